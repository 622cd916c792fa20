"""RSTG, Recurrent Space-time Graph Neural Networks (NeurIPS 2019): grid, graph and map module."""
