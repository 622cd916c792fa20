"""GOS's temporal convolution as a head: Li et al., CVPR 2020, Table 2.

    near_i(f) = the node of step f nearest to i; i itself in its own step   eq. (4)
    z_i = mean_t act( conv_7(x_near)(t) )                      [B,T,N,C]    eq. (5)
    logits = K [ mean over valid nodes of z ; mean of y ] + k  [B,K]        no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py). The operation is in
heads/papers/gos/neighbours.py, its two variants in heads/papers/gos/affinity.py.

Parameters of the operation: 459 520 at C = 256, 68 096 in the released variant.
The paper reports 48.7 % on Something-Something V1 and 61.0 % on V2.

Differs from the paper: the backbone is frozen; padded boxes are masked; with `neighbours="cached"`
the nearest nodes are those among the backbone's features.

Not stated in the paper, and chosen: the mean over nodes is concatenated with the global feature of
C before the classifier.
"""

from heads.interface.changes import Change
from heads.interface.clips import Dims
from heads.papers.gos.affinity import PAPER_CHANGE, paper_change_affects
from heads.zoo._single import SingleOperation, single_operation

CHANGES = (Change(2, PAPER_CHANGE, paper_change_affects),)


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
    similarity: str = "",
    normalise: bool = True,
) -> SingleOperation:
    """Build the head; the nodes come from the stem of GOS.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; it decides every option that is "".
        dropout: before the classifier; the release has none.
        regions: "map" (paper), or "nodes": from cached nodes and pooled features, approximate.
        cut: the map [B,T,C,h,w].
        width: C of the nodes.
        roi_size: bins per side of RoIAlign.
        roi: "aligned" (paper) or "old" (release); "" is the variant's.
        neighbours: "live", or "cached": stage two's `nearest`, which is approximate.
        kernel: "full" (paper) or "depthwise" (release); "" is the variant's.
        padding: "same" (paper) or "valid" (release); "" is the variant's.
        nearest: by "inner" product, and itself in its own step (paper), or by "affinity" (release);
            "" is the variant's.
        affinity: "full" (paper) or "diagonal" (release) matrix U; "" is the variant's.
        taps: the length of the kernel in steps.
        similarity: with nearest "affinity", of plain "inner" products or of "cosine"s (release);
            "" is the variant's.
        normalise: False lets "cosine" see x in place of x/|x|.

    Returns:
        The head with fresh weights: Li et al., CVPR 2020, eq. (4) and (5), Table 2.

    Raises:
        ValueError: a value that an option cannot have.
        MissingFields: the cache lacks the map, the nodes or the boxes.
    """
    return single_operation(
        "gos_temp_conv",
        dims,
        num_classes,
        variant,
        {
            "roi": roi,
            "similarity": similarity,
            "kernel": kernel,
            "padding": padding,
            "nearest": nearest,
            "affinity": affinity,
        },
        {"neighbours": neighbours, "taps": taps, "scale": 0.0, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
