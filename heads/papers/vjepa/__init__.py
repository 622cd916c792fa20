"""The attentive probe of V-JEPA (Bardes et al., TMLR 2024) and V-JEPA 2 (Assran et al., 2025).

probe_blocks    its self-attention blocks, and the block in which queries read tokens
"""
