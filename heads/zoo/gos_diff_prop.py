"""GOS's difference propagation as a head: Li et al., CVPR 2020, Table 2.

    P = softmax_(j != i)(x_i^T U x_j)                                       eq. (3)
    z_i = act( sum_j P_ij (W (x_i - x_j) + b) )                [B,T,N,C]
    logits = K [ mean over valid nodes of z ; mean of y ] + k  [B,K]        no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py). The operation is in
heads/papers/gos/operations.py, its two variants in heads/papers/gos/affinity.py.

Parameters of the operation: 131 840 at C = 256.
The paper reports 49.5 % on Something-Something V1 and 61.8 % on V2.

Differs from the paper: the backbone is frozen; padded boxes are masked; the n x n differences are
never formed.

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
    affinity: str = "",
    similarity: str = "",
    scale: float = 0.0,
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
        affinity: "full" (paper) or "diagonal" (release) matrix U; "" is the variant's.
        similarity: A of plain "inner" products (paper) or of "cosine"s (release); "" is the
            variant's.
        scale: the factor before the softmax; 0 is 1 with "inner" and 5 with "cosine".
        normalise: False lets "cosine" see x in place of x/|x|.

    Returns:
        The head with fresh weights: Li et al., CVPR 2020, eq. (3), Table 2.

    Raises:
        ValueError: a value that an option cannot have.
        MissingFields: the cache lacks the map, the nodes or the boxes.
    """
    return single_operation(
        "gos_diff_prop",
        dims,
        num_classes,
        variant,
        {"roi": roi, "similarity": similarity, "affinity": affinity},
        {"scale": scale, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
