"""GOS's node attention as a head: Li et al., CVPR 2020, Table 2.

    w_i = sigmoid(v [x_i . x_j ; s_i - s_j for the M nearest j] + c)        eq. (9)
    z_i = w_i x_i                                              [B,T,N,C]
    logits = K [ mean over valid nodes of z ; mean of y ] + k  [B,K]        no dropout

x [B,T,N,C] and y come from the stem (heads/papers/gos/operation_inputs.py). The operation is in
heads/papers/gos/neighbours.py, its two variants in heads/papers/gos/affinity.py.

Parameters of the operation: 41 with M = 10, 170 in the released variant at 16 x 10 nodes.
The paper reports 49.8 % on Something-Something V1 and 61.8 % on V2.

Differs from the paper: the backbone is frozen; padded boxes are masked; with `neighbours="cached"`
the most similar nodes are those among the backbone's features.

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
    attention: str = "",
    offset: str = "",
    top: int = 10,
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
        neighbours: "live", or "cached": stage two's `similar`, which is approximate.
        attention: sees the "top" M nodes (paper) or "all" (release); "" is the variant's.
        offset: of the places s with attention "top": s_i - s_j, "from_neighbour" (paper), or
            s_j - s_i, "to_neighbour"; "" is the variant's.
        top: M. Not stated in the paper.
        similarity: plain "inner" products (paper) or "cosine" (release); "" is the variant's.
        normalise: False lets "cosine" see x in place of x/|x|.

    Returns:
        The head with fresh weights: Li et al., CVPR 2020, eq. (9), Table 2.

    Raises:
        ValueError: a value that an option cannot have.
        MissingFields: the cache lacks the map, the nodes or the boxes.
    """
    return single_operation(
        "gos_node_att",
        dims,
        num_classes,
        variant,
        {"roi": roi, "similarity": similarity, "attention": attention, "offset": offset},
        {"neighbours": neighbours, "top": top, "scale": 0.0, "normalise": normalise},
        cut=cut,
        width=width,
        roi_size=roi_size,
        regions=regions,
        dropout=dropout,
    )
