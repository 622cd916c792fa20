"""STRG: Wang and Gupta, Videos as Space-Time Region Graphs, ECCV 2018.

Sec. 4.1 has X, sec. 4.2 eq. (1) and (2), sec. 4.3 eq. (3), sec. 5 the layers and y.

    V = conv_1x1x1(res5), 2048 -> 512, with bias, no norm          [B,T,512,h,w]
    X = RoIAlign 7x7 of V at every box, then max                   [B,T,N,C]     n = T N nodes
    F(i,j) = (w x_i)^T (w' x_j),  G^sim = row softmax of F         [B,n,n]       eq. (1), (2)
    G^front_ij = IoU(i at t, j at t+1), rows divided by their sum  [B,T-1,N,N]   eq. (3)
    G^back     = the transposed IoU, rows divided by their sum     [B,T-1,N,N]
    Z = relu(LN(sum_g G_g Z' W_g)), layers 1 and 2                 [B,T,N,C]     eq. (4), (5)
    Z = sum_g G_g Z' W_g,           layer 3, W = 0 at first        [B,T,N,C]
    Z = Z_S + Z_ST
    y = W [drop(mean of V) ; mean of Z over the valid nodes] + b   [B,K]

V is cached as `reduced`, or learned here. C = 512. The softmax runs over all n nodes, the node
itself included; LN is over channels. Branch S has G^sim, branch ST has G^front and G^back; they are
fused only at the end. Dropout of 0.3 is on the global half alone.

Parameters at C = 512 (`joint`): 9 x 262 144 + 2 x 262 144 = 2 883 584, LayerNorms 4 096, the
convolution 1 048 576 + 512.

Multiply-adds of 16 steps with 50 boxes, beside the backbone's 152.47 G: the paper says 153 without
and 158 with the graphs. G^sim takes 0.75 G and each of the 9 dense products G X W 0.54 G, 158.05 in
all (sec. 6.1). G^sim anew in every layer would make it 159.5. So it is computed once, from X;
`similarity_each_layer` is the other reading. This file needs 3.11 G (or 4.60 G).

No code of STRG was released: both variants are the paper. The later release of one of its authors
(Something-Else) shows the convolution, the dropout and the order of the two halves, which are as
above.

Differs from the paper:
- padded boxes are masked: they send nothing, count in no softmax and in no mean;
- G^front and G^back are multiplied step by step, not as n x n matrices. W of layer 3 acts on the
  mean over nodes, which is the same because it is linear. The paper's 158 GFLOPs count the dense
  products; these are fewer;
- `reduce="cached"` takes nodes and pooled features as they are in the cache. That is exact for the
  paper's GCN stage if the cut is `reduced`, whose convolution was learned with the backbone and is
  then fixed. With another cut the nodes keep that cut's C channels.

Not stated in the paper, and chosen:
- layer 3 is linear. The paper has LN and ReLU after a layer "before Z is forwarded to the next".
  That leaves the last one open. Both would leave its W = 0 without a gradient for ever;
- Xavier weights in layers 1 and 2, no biases, the initial size of w and w';
- IoU in continuous coordinates;
- G^sim is computed once, from X.
"""

from functools import partial

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import (
    along_back,
    along_front,
    front_back,
    grid_mean,
    next_frame_iou,
)
from heads.interface.variants import SAME, at_least, one_of
from heads.papers.strg.graph import (
    LASTS,
    STARTS,
    Graph,
    GraphBranch,
    SimilarityGraph,
    multiply_similarity,
    total,
)
from pipeline.regions.roi_align import roi_align

# Option -> the values that it may have.
CHOICES = {
    "variant": SAME,
    "form": ("similarity", "spatial_temporal", "joint"),
    "reduce": ("cached", "conv"),
    "roi_pool": ("max", "mean"),
    "last": LASTS,
    "last_init": STARTS,
    "layer_init": STARTS[:2],
    "similarity_init": ("scaled", "xavier"),
}


class Reduction(nn.Module):
    """A fresh 1x1x1 convolution on a cached map; X and the mean of V come from its output.

    Args:
        cut: the map.
        channels: of the map.
        width: C.
        roi_size: bins per side of RoIAlign.
        roi_pool: "max" or "mean" of the bins.
    """

    def __init__(self, cut: str, channels: int, width: int, roi_size: int, roi_pool: str):
        super().__init__()
        # Two-dimensional, step by step: a 1x1x1 kernel sees one step.
        self.conv = nn.Conv2d(channels, width, 1)
        self.cut, self.roi_size, self.roi_pool = cut, roi_size, roi_pool

    def forward(
        self, fmap: Tensor, grid: Tensor | None, boxes: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reduce a map and align boxes on it.

        Args:
            fmap: [B,T,channels,h,w].
            grid: [B,2], true (h, w) in cells; None if nothing is padding.
            boxes: [B,T,N,4], xyxy in [0,1].
            valid: [B,T,N] bool.

        Returns:
            X [B,T,N,width], and the mean of V over time and grid [B,width].
        """
        v = self.conv(fmap.flatten(0, 1)).unflatten(0, fmap.shape[:2])  # [B,T,width,h,w]
        # [B,T,C,h,w] -> [B,C,T,h,w], as RoIAlign reads it
        maps = v.movedim(2, 1)
        x = roi_align(maps, boxes, valid, size=self.roi_size, pool=self.roi_pool, grid=grid)
        return x.to(fmap.dtype), grid_mean(v, grid).mean(1)


class STRG(nn.Module):
    """The region graph head; see the top of this file.

    Args:
        channels: C of X.
        num_classes: K.
        reduction: makes X from a map; None reads cached nodes.
        similarity: makes G^sim; None without branch S.
        branch_s, branch_st: the two branches; None if `form` leaves one out.
        similarity_each_layer: whether G^sim is computed anew in every layer.
        box_pixel: what a box gains on its right and lower side before IoU, as a part of the view.
        proposals: how many boxes of a step count, the best first; 0 means all.
        dropout: on the global half.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        reduction: Reduction | None,
        similarity: SimilarityGraph | None,
        branch_s: GraphBranch | None,
        branch_st: GraphBranch | None,
        *,
        similarity_each_layer: bool,
        box_pixel: float,
        proposals: int,
        dropout: float,
    ):
        super().__init__()
        self.reduction, self.similarity = reduction, similarity
        self.branch_s, self.branch_st = branch_s, branch_st
        self.similarity_each_layer, self.box_pixel = similarity_each_layer, box_pixel
        # [:None] takes all boxes.
        self.proposals = proposals or None
        # Only the global half passes through it, see `forward`.
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)

        needs = ["pooled", "nodes", "valid"]
        if reduction is not None:
            needs = [reduction.cut, "boxes", "valid"]
        uses = []
        if branch_st is not None:
            needs.append("boxes")
            # The stored IoU is that of boxes without a pixel more.
            if not box_pixel:
                uses.append("iou")
        if reduction is not None:
            uses.append("grid")
        self.needs, self.uses = tuple(dict.fromkeys(needs)), tuple(uses)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`, and those of `uses` that the cache has.
            want_maps: whether to return the maps "similarity" [B,n,n], "front" and "back"
                [B,T-1,N,N] of the branches that the head has.

        Returns:
            logits [B,K].
        """
        n = self.proposals
        valid = clips.get("valid")[:, :, :n]
        if self.reduction is None:
            x, v = clips.get("nodes")[:, :, :n], clips.get("pooled").mean(1)  # [B,T,N,C], [B,C]
        else:
            fmap, boxes = clips.get(self.reduction.cut), clips.get("boxes")[:, :, :n]
            x, v = self.reduction(fmap, clips.grid, boxes, valid)

        maps: dict[str, Tensor] = {}
        parts = []
        if self.branch_s is not None:
            maps["similarity"], graph = self._similar(x, valid)
            parts.append(self.branch_s(x, (graph,), valid))
        if self.branch_st is not None:
            front, back = front_back(self._overlaps(clips), valid)
            front, back = front.to(x.dtype), back.to(x.dtype)
            maps |= {"front": front, "back": back}
            graphs = (partial(along_front, front), partial(along_back, back))
            parts.append(self.branch_st(x, graphs, valid))
        z = total(parts)  # [B,C]: the mean of Z_S + Z_ST over the valid nodes

        logits = self.fc(torch.cat([self.drop(v), z], dim=1))
        if not want_maps:
            return HeadOutput(logits)
        return HeadOutput(logits, maps={name: m.detach() for name, m in maps.items()})

    def _similar(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Graph]:
        """Return G^sim of X [B,n,n], and the function that multiplies a layer's input by it."""
        graph = self.similarity(x, valid)
        if not self.similarity_each_layer:
            return graph, partial(multiply_similarity, graph)

        def multiply(z: Tensor) -> Tensor:
            # The first layer's input is X, whose graph is there already.
            return multiply_similarity(graph if z is x else self.similarity(z, valid), z)

        return graph, multiply

    def _overlaps(self, clips: Clips) -> Tensor:
        """Return the IoU of the boxes that count with those of the next step [B,T-1,N,N]."""
        n = self.proposals
        if clips.iou is not None and not self.box_pixel:
            return clips.iou[:, :, :n, :n]
        low, high = clips.get("boxes")[:, :, :n].split(2, -1)
        # No tensor [0, 0, 1, 1], whose copy to a GPU would be waited for.
        return next_frame_iou(torch.cat([low, high + self.box_pixel], -1))


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    form: str = "joint",
    proposals: int = 0,
    reduce: str = "cached",
    cut: str = "res5",
    width: int = 512,
    roi_size: int = 7,
    roi_pool: str = "max",
    dropout: float = 0.3,
    similarity_each_layer: bool = False,
    last: str = "linear",
    last_init: str = "zero",
    layer_init: str = "xavier",
    similarity_init: str = "scaled",
    bias: bool = False,
    box_pixel: float = 0.0,
) -> STRG:
    """Build STRG: Wang and Gupta, ECCV 2018, sec. 4 and 5.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        form: "similarity", "spatial_temporal" or "joint" (Table 2a).
        proposals: use only the first so many boxes of a step, which are the best scored (sec. 6.1:
            25, 50, 100); 0 means all.
        reduce: "cached" takes nodes and pooled features as they are; "conv" learns a 1x1x1
            convolution on the map at `cut`.
        cut: the map [B,T,C,h,w], for reduce="conv".
        width: channels after that convolution.
        roi_size: bins per side of RoIAlign on its output.
        roi_pool: the "max" or the "mean" of the bins.
        dropout: on the global half.
        similarity_each_layer: compute G^sim from every layer's input, with the same w and w',
            and not once from X. Not stated in the paper.
        last: what follows layer 3: "linear" (nothing), "norm" (LN), "norm_relu" (LN, ReLU). Not
            stated in the paper.
        last_init: weights of layer 3: "zero" (the paper), "xavier" or "normal" (std 0.01).
        layer_init: weights of layers 1 and 2: "xavier" or "normal" (std 0.01). Not stated in the
            paper.
        similarity_init: "scaled" starts w and w' at Xavier times C^(-1/4), which gives F unit
            variance for features of unit variance; "xavier" has no factor, and gives a nearly
            one-hot softmax. Not stated in the paper.
        bias: whether w, w' and every W have a bias. Not stated in the paper.
        box_pixel: what a box gains on its right and lower side before IoU, as a part of the view:
            0 is continuous coordinates, 1/224 counts pixels inclusively. Not stated in the paper.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: a value that an option cannot have, or weights that could never learn.
        MissingFields: the cache lacks what the head needs.
    """
    _check_choices(
        variant=variant,
        form=form,
        reduce=reduce,
        roi_pool=roi_pool,
        last=last,
        last_init=last_init,
        layer_init=layer_init,
        similarity_init=similarity_init,
    )
    at_least("strg", 1, width=width, roi_size=roi_size)
    at_least("strg", 0, proposals=proposals, box_pixel=box_pixel)
    _require_fields(dims, reduce, cut, proposals)

    reduction, channels = None, dims.C
    if reduce == "conv":
        reduction, channels = Reduction(cut, dims.maps[cut][0], width, roi_size, roi_pool), width
    starts = (layer_init, last_init)
    return STRG(
        channels,
        num_classes,
        reduction,
        *_branches(form, channels, similarity_init, last, starts, bias),
        similarity_each_layer=similarity_each_layer,
        box_pixel=box_pixel,
        proposals=proposals,
        dropout=dropout,
    )


def _check_choices(**options: str) -> None:
    """Raise ValueError for a value that an option cannot have, or weights that cannot learn."""
    for option, value in options.items():
        one_of("strg", option, value, CHOICES[option])
    if options["last"] == "norm_relu" and options["last_init"] == "zero":
        raise ValueError(
            "head strg: last='norm_relu' with last_init='zero' can never learn (the ReLU's "
            "gradient at 0 is 0); pass last_init='xavier', or last='linear'"
        )


def _require_fields(dims: Dims, reduce: str, cut: str, proposals: int) -> None:
    """Raise MissingFields for what a cache lacks, ValueError for more boxes than it has."""
    if reduce == "cached":
        dims.require("strg", "pooled", "nodes", "boxes", "valid")
    else:
        dims.require("strg", cut, "boxes", "valid")
    if proposals > dims.N:
        raise ValueError(
            f"head strg, option proposals: expected at most the {dims.N} boxes that a frame has, "
            f"got {proposals}"
        )


def _branches(
    form: str, channels: int, similarity_init: str, last: str, starts: tuple[str, str], bias: bool
) -> tuple[SimilarityGraph | None, GraphBranch | None, GraphBranch | None]:
    """Return w and w', branch S and branch ST; None for what `form` leaves out."""
    similarity = branch_s = branch_st = None
    if form != "spatial_temporal":
        similarity = SimilarityGraph(channels, similarity_init, bias)
        branch_s = GraphBranch(channels, 1, last, starts, bias)
    if form != "similarity":
        branch_st = GraphBranch(channels, 2, last, starts, bias)
    return similarity, branch_s, branch_st
