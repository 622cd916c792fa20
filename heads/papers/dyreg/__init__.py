"""DyReg-GNN, Discovering Dynamic Salient Regions (NeurIPS 2021): regions, graph and module."""
