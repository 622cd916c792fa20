"""GOS's temporal convolution as a head: Li et al., CVPR 2020, Table 2 (Something-Something V1 48.7
%, V2 61.0 %).

    s_i(f) = the node of frame f nearest to i,  z_i = mean_t act( conv_7(x_s)(t) )          eq. (4),
    (5)
    logits = K [ mean over valid nodes of z ; mean of y ] + k          no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py); the operation is in
heads/papers/gos/neighbours.py, its two variants are in heads/papers/gos/affinity.py. 459 520
parameters at C = 256, 68 096 in the released variant.

Differs from the paper: the backbone is frozen; padded boxes are masked; with `neighbours="cached"`
the nearest nodes are those among the backbone's features.
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
    kernel: str = "",
    padding: str = "",
    nearest: str = "",
    affinity: str = "",
    taps: int = 7,
    normalise: bool = True,
) -> SingleOperation:
    """`variant`: "paper" or "released"; it decides `kernel` ("full", "depthwise"), `padding`
    ("same", "valid"), `nearest` ("inner", "affinity"), `affinity` ("full", "diagonal") and `roi`
    ("aligned", "old").

    `regions`: "map", as the paper, or "nodes", from the cached nodes and pooled features
    (approximate, heads/papers/gos/operation_inputs.py). `cut`: the map; `width`: C; `roi_size`:
    bins per side; `dropout` before the classifier. `neighbours`: "live", or "cached", stage two's
    `nearest` (approximate). `taps`: length of the kernel. Not stated in the paper: `normalise`,
    whether the affinity sees x/|x|.
    """
    return single_operation(
        "gos_temp_conv",
        dims,
        num_classes,
        variant,
        {
            "roi": roi,
            "kernel": kernel,
            "padding": padding,
            "nearest": nearest,
            "affinity": affinity,
        },
        {"neighbours": neighbours, "taps": taps, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
