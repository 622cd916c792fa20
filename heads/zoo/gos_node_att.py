"""GOS's node attention as a head: Li et al., CVPR 2020, Table 2 (Something-Something V1 49.8 %, V2
61.8 %).

    w_i = sigmoid(v [similarities ; positions] + c),  z_i = w_i x_i          eq. (9)
    logits = K [ mean over valid nodes of z ; mean of y ] + k          no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py); the operation is in
heads/papers/gos/neighbours.py, its two variants are in heads/papers/gos/affinity.py. 41 parameters
with M = 10, 170 in the released variant at 16 x 10 nodes.

Differs from the paper: the backbone is frozen; padded boxes are masked; with `neighbours="cached"`
the most similar nodes are those among the backbone's features.
Not stated in the paper, and chosen: the mean over nodes is concatenated with the global feature of
C before the classifier.
"""

from heads.interface.clips import Dims
from heads.zoo._single import SingleOperation, single_operation


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    dropout: float = 0.0,
    regions: str = "map",
    cut: str = "res5",
    width: int = 256,
    roi_size: int = 7,
    roi: str = "",
    neighbours: str = "live",
    attention: str = "",
    top: int = 10,
    normalise: bool = True,
) -> SingleOperation:
    """`variant`: "paper" or "released"; it decides `attention` ("top", "all") and `roi` ("aligned",
    "old").

    `regions`: "map", as the paper, or "nodes", from the cached nodes and pooled features
    (approximate, heads/papers/gos/operation_inputs.py). `cut`: the map; `width`: C; `roi_size`:
    bins per side; `dropout` before the classifier. `neighbours`: "live", or "cached", stage two's
    `similar` (approximate). Not stated in the paper: `top`, M; `normalise`, whether similarities
    are cosines.
    """
    return single_operation(
        "gos_node_att",
        dims,
        num_classes,
        variant,
        {"roi": roi, "attention": attention},
        {"neighbours": neighbours, "top": top, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
