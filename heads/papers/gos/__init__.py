"""GOS, Adaptive Interaction Modeling via Graph Operations Search (CVPR 2020): its operations."""
