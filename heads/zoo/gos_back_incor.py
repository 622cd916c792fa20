"""GOS's background incorporation as a head: Li et al., CVPR 2020, Table 2 (Something-Something V1
49.7 %, V2 62.4 %).

    A_ig = x^_i^T U y^_g per frame,  P = softmax_g(5 A),  z_i = act( V [sum_g P_ig y_g ; A_i] + b )
                                     eq. (6)-(8)
    logits = K [ mean over valid nodes of z ; mean of y ] + k          no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py); the operation is in
heads/papers/gos/operations.py, its two variants are in heads/papers/gos/affinity.py. 144 384
parameters at C = 256 and 7 x 7 cells.

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
    cut: str = "res5",
    width: int = 256,
    roi_size: int = 7,
    roi: str = "",
    affinity: str = "",
    background: str = "",
    scale: float = 5.0,
    normalise: bool = True,
) -> SingleOperation:
    """`variant`: "paper" or "released"; it decides `affinity` ("full", "diagonal"), `background`
    ("raw", "softmax") and `roi` ("aligned", "old").

    The nodes and the background are those of the map.
    `cut`: the map; `width`: C; `roi_size`: bins per side; `dropout` before the classifier.
    Not stated in the paper: `scale`, the factor 5 before the softmax; `normalise`, whether the
    affinity sees x/|x|.
    """
    return single_operation(
        "gos_back_incor",
        dims,
        num_classes,
        variant,
        {"roi": roi, "affinity": affinity, "background": background},
        {"scale": scale, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions="map",
        dropout=dropout,
    )
