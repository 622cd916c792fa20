"""GOS's feature aggregation as a head: Li et al., CVPR 2020, Table 2 (Something-Something V1 49.9
%, V2 62.0 %).

    P = softmax_j(5 x^_i^T U x^_j),  z_i = act( sum_j P_ij (W x_j + b) )          eq. (2)
    logits = K [ mean over valid nodes of z ; mean of y ] + k          no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py); the operation is in
heads/papers/gos/operations.py, its two variants are in heads/papers/gos/affinity.py. 131 840
parameters at C = 256.

Differs from the paper: the backbone is frozen; padded boxes are masked.
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
    affinity: str = "",
    scale: float = 5.0,
    normalise: bool = True,
) -> SingleOperation:
    """`variant`: "paper" or "released"; it decides `affinity` ("full", "diagonal") and `roi`
    ("aligned", "old").

    `regions`: "map", as the paper, or "nodes", from the cached nodes and pooled features
    (approximate, heads/papers/gos/operation_inputs.py). `cut`: the map; `width`: C; `roi_size`:
    bins per side; `dropout` before the classifier. Not stated in the paper: `scale`, the factor 5
    before the softmax; `normalise`, whether the affinity sees x/|x|.
    """
    return single_operation(
        "gos_feat_aggr",
        dims,
        num_classes,
        variant,
        {"roi": roi, "affinity": affinity},
        {"scale": scale, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
