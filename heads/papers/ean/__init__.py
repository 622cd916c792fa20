"""EAN, Event Adaptive Network (IJCV 2022): its Sparse Object Interaction Transformer."""
