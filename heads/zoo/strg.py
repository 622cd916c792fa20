"""STRG: Wang and Gupta, Videos as Space-Time Region Graphs, ECCV 2018.

    V = conv_1x1x1(res5), 2048 -> 512, with bias, no norm          [B,T,512,h,w]   (cached as
    `reduced`, or learned here)
    X = RoIAlign 7x7 of V at every box, then max                   [B,T,N,C]       n = T N nodes of
    C = 512
    F(i,j) = (w x_i)^T (w' x_j),  G^sim = row softmax of F         [B,n,n]         eq. (1), (2);
                                  over all nodes, self included
    G^front_ij = IoU(i at t, j at t+1), rows divided by their sum  [B,T-1,N,N]     eq. (3); back:
    transposed, then its rows
    Z = relu(LN(sum_g G_g Z' W_g)), layers 1 and 2                                 eq. (4), (5); LN
    over channels Z = sum_g G_g Z' W_g, layer 3, W = 0 at first
    branch S has G^sim; branch ST has G^front and G^back; Z = Z_S + Z_ST, fused only here
    y = W [drop(mean of V) ; mean of Z over the valid nodes] + b   [B,K]           dropout 0.3 on
    the global half alone

Parameters at C = 512 (`joint`): 9 x 262 144 + 2 x 262 144 = 2 883 584, LayerNorms 4 096, the
convolution 1 048 576 + 512.

Multiply-adds of 16 frames with 50 boxes, beside the backbone's 152.47 G: the paper says 153 without
and 158 with the graphs. G^sim once takes 0.75 G and each of the 9 products G X W of the dense form
0.54 G, 158.05 in all; G^sim anew in every layer would make it 159.5. So it is computed once, from
X; `similarity_each_layer` is the other reading. This file needs 3.11 G (or 4.60 G).

No code of STRG was released: both variants are the paper. The later release of one of its authors
(Something-Else) shows the convolution, the dropout and the order of the two halves, which are as
above.

Differs from the paper:
- padded boxes are masked: they send nothing, count in no softmax and in no mean;
- G^front and G^back are multiplied frame by frame, not as n x n matrices; layer 3's W acts on the
  mean over nodes, which is the same because it is linear. The paper's 158 GFLOPs count the dense
  products; these are fewer;
- `reduce="cached"` takes nodes and pooled features as they lie in the cache: exact for the paper's
  GCN stage when the cut is `reduced` (the convolution was learned with the backbone and is fixed
  then); with another cut the nodes keep that cut's C channels.

Not stated in the paper, and chosen: layer 3 linear (its LN and ReLU would leave W = 0 without a
gradient for ever), Xavier weights in layers 1 and 2, no biases, IoU in continuous coordinates,
G^sim computed once from X, the initial size of w and w'.
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

FORMS = ("similarity", "spatial_temporal", "joint")


class Reduction(nn.Module):
    """A fresh 1x1x1 convolution on the map at `cut`, `channels` -> `width`, with bias; then X and
    the mean of V from it.
    """

    def __init__(self, cut: str, channels: int, width: int, roi_size: int, roi_pool: str):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1)  # step by step: a 1x1x1 kernel sees one step
        self.cut, self.roi_size, self.roi_pool = cut, roi_size, roi_pool

    def forward(
        self, fmap: Tensor, grid: Tensor | None, boxes: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The map [B,T,channels,h,w] and its boxes -> X [B,T,N,width] and the mean of V over time
        and grid [B,width].
        """
        v = self.conv(fmap.flatten(0, 1)).unflatten(0, fmap.shape[:2])  # [B,T,width,h,w]
        x = roi_align(
            v.movedim(2, 1), boxes, valid, size=self.roi_size, pool=self.roi_pool, grid=grid
        )
        return x.to(fmap.dtype), grid_mean(v, grid).mean(1)


class STRG(nn.Module):
    """The region graph head; see the top of this file.

    channels: C of X. similarity: makes G^sim, None without branch S. The branches are None where
    `form` leaves them out. reduction: None reads cached nodes. proposals: how many boxes of a frame
    count, the best first; 0: all.
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
        self.reduction, self.similarity, self.branch_s, self.branch_st = (
            reduction,
            similarity,
            branch_s,
            branch_st,
        )
        self.similarity_each_layer, self.box_pixel, self.proposals = (
            similarity_each_layer,
            box_pixel,
            proposals or None,
        )
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)
        needs = (
            ("pooled", "nodes", "valid") if reduction is None else (reduction.cut, "boxes", "valid")
        )
        self.needs = tuple(dict.fromkeys((*needs, "boxes") if branch_st is not None else needs))
        stored = ("iou",) if branch_st is not None and not box_pixel else ()
        self.uses = stored + (("grid",) if reduction is not None else ())

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: similarity [B,n,n], front, back [B,T-1,N,N], as
        the branches have them.
        """
        n = self.proposals
        valid = clips.get("valid")[:, :, :n]
        if self.reduction is None:
            x, v = clips.get("nodes")[:, :, :n], clips.get("pooled").mean(1)  # [B,T,N,C], [B,C]
        else:
            x, v = self.reduction(
                clips.get(self.reduction.cut), clips.grid, clips.get("boxes")[:, :, :n], valid
            )
        maps: dict[str, Tensor] = {}
        halves = []
        if self.branch_s is not None:
            maps["similarity"], among = self._similar(x, valid)
            halves.append(self.branch_s(x, (among,), valid))
        if self.branch_st is not None:
            front, back = (graph.to(x.dtype) for graph in front_back(self._overlaps(clips), valid))
            maps |= {"front": front, "back": back}
            halves.append(
                self.branch_st(x, (partial(along_front, front), partial(along_back, back)), valid)
            )
        z = total(halves)  # [B,C]: the mean of Z_S + Z_ST over the valid nodes
        logits = self.fc(torch.cat([self.drop(v), z], dim=1))
        return HeadOutput(
            logits, maps={name: m.detach() for name, m in maps.items()} if want_maps else {}
        )

    def _similar(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Graph]:
        """G^sim of X [B,n,n], and what multiplies a layer's input by it, or by that input's own."""
        graph = self.similarity(x, valid)
        if self.similarity_each_layer:
            return graph, lambda z: multiply_similarity(
                graph if z is x else self.similarity(z, valid), z
            )
        return graph, partial(multiply_similarity, graph)

    def _overlaps(self, clips: Clips) -> Tensor:
        """IoU of the boxes that count with those of the next frame [B,T-1,N,N]."""
        n = self.proposals
        if clips.iou is not None and not self.box_pixel:
            return clips.iou[:, :, :n, :n]
        boxes = clips.get("boxes")[:, :, :n]
        return next_frame_iou(boxes + self.box_pixel * boxes.new_tensor([0, 0, 1, 1]))


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
    """STRG for views of `dims`. `variant`: "paper" or "released", which are the same here.

    `form`: "similarity", "spatial_temporal" or "joint" (Table 2a). `proposals`: only the first so
    many boxes of a frame, which are the best scored (sec. 6.1: 25, 50, 100), 0 for all. `reduce`:
    "cached" uses nodes and pooled as they are, "conv" learns a 1x1x1 convolution from the map at
    `cut` to `width` channels, aligns `roi_size` x `roi_size` on it and takes the "max" or the
    "mean" (`roi_pool`). `dropout`: global half. `similarity_each_layer`: G^sim from every layer's
    input, with the same w and w', instead of once from X.

    Not stated in the paper: `last` ("linear", "norm", "norm_relu"), what follows layer 3;
    `last_init` of its W ("zero" as the paper, "xavier", "normal"); `layer_init` of layers 1 and 2
    ("xavier", "normal" of std 0.01); `similarity_init`: "scaled" starts w and w' at Xavier x
    C^(-1/4), so that F of features of unit variance has unit variance (std 0.0093 at C = 512,
    beside the 0.01 of non-local networks), "xavier" without the factor (a nearly one-hot softmax at
    C = 512); `bias` of w, w' and every W; `box_pixel`: what a box gains on its right and lower side
    before IoU, as part of the view (0 is continuous coordinates, 1/224 counts pixels inclusively).
    """
    one_of("strg", "variant", variant, SAME)
    one_of("strg", "form", form, FORMS)
    one_of("strg", "reduce", reduce, ("cached", "conv"))
    one_of("strg", "roi_pool", roi_pool, ("max", "mean"))
    one_of("strg", "last", last, LASTS)
    one_of("strg", "last_init", last_init, STARTS)
    one_of("strg", "layer_init", layer_init, STARTS[:2])
    one_of("strg", "similarity_init", similarity_init, ("scaled", "xavier"))
    at_least("strg", 1, width=width, roi_size=roi_size)
    at_least("strg", 0, proposals=proposals, box_pixel=box_pixel)
    if last == "norm_relu" and last_init == "zero":
        raise ValueError(
            "head strg: last='norm_relu' with last_init='zero' can never learn (the ReLU's "
            "gradient at 0 is 0); "
            "pass last_init='xavier', or last='linear'"
        )
    fields = (
        ("pooled", "nodes", "boxes", "valid") if reduce == "cached" else (cut, "boxes", "valid")
    )
    dims.require("strg", *fields)
    if proposals > dims.N:
        raise ValueError(
            f"head strg, option proposals: expected at most the {dims.N} boxes that a frame has, "
            f"got {proposals}"
        )
    reduction = (
        Reduction(cut, dims.maps[cut][0], width, roi_size, roi_pool) if reduce == "conv" else None
    )
    channels = dims.C if reduction is None else width
    starts = (layer_init, last_init)
    similar, spatial_temporal = form != "spatial_temporal", form != "similarity"
    return STRG(
        channels,
        num_classes,
        reduction,
        SimilarityGraph(channels, similarity_init, bias) if similar else None,
        GraphBranch(channels, 1, last, starts, bias) if similar else None,
        GraphBranch(channels, 2, last, starts, bias) if spatial_temporal else None,
        similarity_each_layer=similarity_each_layer,
        box_pixel=box_pixel,
        proposals=proposals,
        dropout=dropout,
    )
