"""STRG: Wang and Gupta, Videos as Space-Time Region Graphs, ECCV 2018.

    V = conv_1x1x1(res5), 2048 -> 512, with bias, no norm          [B,T,512,h,w]   (cached as `reduced`, or learned here)
    X = RoIAlign 7x7 of V at every box, then max                   [B,T,N,C]       n = T N nodes of C = 512
    F(i,j) = (w x_i)^T (w' x_j),  G^sim = row softmax of F         [B,n,n]         eq. (1), (2); over all nodes, self included
    G^front_ij = IoU(i at t, j at t+1), rows divided by their sum  [B,T-1,N,N]     eq. (3); back: transposed, then its rows
    Z = relu(LN(sum_g G_g Z' W_g)), layers 1 and 2                                 eq. (4), (5); LN over channels
    Z = sum_g G_g Z' W_g, layer 3, W = 0 at first
    branch S has G^sim; branch ST has G^front and G^back; Z = Z_S + Z_ST, fused only here
    y = W [drop(mean of V) ; mean of Z over the valid nodes] + b   [B,K]           dropout 0.3 on the global half alone

Parameters at C = 512 (`joint`): 9 x 262 144 + 2 x 262 144 = 2 883 584, LayerNorms 4 096, the convolution 1 048 576 + 512.

Differs from the paper:
- padded boxes are masked: they send nothing, count in no softmax and in no mean;
- G^front and G^back are multiplied frame by frame, not as n x n matrices; layer 3's W acts on the mean over nodes, which is
  the same because it is linear. The paper's 158 GFLOPs count the dense products; these are fewer;
- `reduce="cached"` takes nodes and pooled features as they lie in the cache: exact for the paper's GCN stage when the cut is
  `reduced` (the convolution was learned with the backbone and is fixed then); with another cut the nodes keep that cut's C
  channels.

Not stated in the paper, and chosen: layer 3 linear (its LN and ReLU would leave W = 0 without a gradient for ever), Xavier
weights in layers 1 and 2, no biases, IoU in continuous coordinates, G^sim computed once from X, the initial size of w and w'.
"""

from collections.abc import Callable, Iterable
from functools import partial
from functools import reduce as reduce_  # `reduce` is the option's name

import torch
from torch import Tensor, nn

from heads.batch import Clips, Dims, HeadOutput
from heads.layers import along_back, along_front, front_back, grid_mean, masked_mean, masked_softmax, next_frame_iou
from pipeline.roi import roi_align

FORMS = ("similarity", "spatial_temporal", "joint")
LAYERS = 3

Graph = Callable[[Tensor], Tensor]  # X [B,T,N,C] -> G X


class Branch(nn.Module):
    """Three graph convolutions over a fixed set of graphs; returns the mean over nodes of the last one's output.

    `graphs` is how many graphs each layer sums (unshared weights). After layers 1 and 2 LN over channels, then ReLU; after
    the last one what `last` says: "linear", "norm" (LN) or "norm_relu" (LN, ReLU).
    """

    def __init__(self, channels: int, graphs: int, last: str, last_init: str):
        super().__init__()
        linears = [[nn.Linear(channels, channels, bias=False) for _ in range(graphs)] for _ in range(LAYERS)]
        self.weights = nn.ModuleList(nn.ModuleList(layer) for layer in linears)
        norms = LAYERS - 1 if last == "linear" else LAYERS
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(norms))
        self.last = last
        for k, layer in enumerate(linears):
            for linear in layer:
                if k == LAYERS - 1 and last_init == "zero":
                    nn.init.zeros_(linear.weight)
                else:
                    nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, graphs: tuple[Graph, ...], valid: Tensor) -> Tensor:
        """x [B,T,N,C], graphs: functions X -> G X, valid [B,T,N] -> [B,C]."""
        for weights, norm in zip(self.weights[:-1], self.norms, strict=False):
            x = norm(_total(linear(g(x)) for linear, g in zip(weights, graphs, strict=True))).relu()  # [B,T,N,C], eq. (4), (5)
        weights = self.weights[-1]
        if self.last == "linear":  # the mean over nodes and W commute
            return _total(linear(masked_mean(g(x), valid)) for linear, g in zip(weights, graphs, strict=True))
        x = self.norms[-1](_total(linear(g(x)) for linear, g in zip(weights, graphs, strict=True)))
        return masked_mean(x.relu() if self.last == "norm_relu" else x, valid)


class Similarity(nn.Module):
    """G^sim (eq. 1, 2): row softmax of (w x_i)^T (w' x_j) over the valid nodes of the view, no scale, no L2 norm, no bias."""

    def __init__(self, channels: int, init: str):
        super().__init__()
        self.w = nn.Linear(channels, channels, bias=False)
        self.w2 = nn.Linear(channels, channels, bias=False)
        gain = channels**-0.25 if init == "scaled" else 1.0
        for linear in (self.w, self.w2):
            nn.init.xavier_uniform_(linear.weight, gain=gain)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B,T,N,C], valid [B,T,N] -> [B,n,n], rows of padded nodes zero."""
        x, valid = x.flatten(1, 2), valid.flatten(1)
        graph = masked_softmax(self.w(x) @ self.w2(x).mT, valid[:, None, :])
        return graph.masked_fill(~valid[..., None], 0)


class Reduction(nn.Module):
    """A fresh 1x1x1 convolution on the map at `cut`, `channels` -> `width`, with bias; then X and the mean of V from it."""

    def __init__(self, cut: str, channels: int, width: int, roi_size: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1)  # step by step: a 1x1x1 kernel sees one step
        self.cut, self.roi_size = cut, roi_size

    def forward(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """The map [B,T,channels,h,w] with its boxes -> X [B,T,N,width] and the mean of V over time and grid [B,width]."""
        fmap = clips.get(self.cut)
        v = self.conv(fmap.flatten(0, 1)).unflatten(0, fmap.shape[:2])  # [B,T,width,h,w]
        boxes, valid = clips.get("boxes"), clips.get("valid")
        x = roi_align(v.movedim(2, 1), boxes, valid, size=self.roi_size, pool="max", grid=clips.grid)
        return x.to(fmap.dtype), grid_mean(v, clips.grid).mean(1)


class STRG(nn.Module):
    """The region graph head; see the top of this file. `form` chooses the branches, `channels` is C of X."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        reduction: Reduction | None,
        form: str,
        dropout: float,
        last: str,
        last_init: str,
        similarity_init: str,
    ):
        super().__init__()
        spatial_temporal, similar = form != "similarity", form != "spatial_temporal"
        self.reduction = reduction
        self.similarity = Similarity(channels, similarity_init) if similar else None
        self.branch_s = Branch(channels, 1, last, last_init) if similar else None
        self.branch_st = Branch(channels, 2, last, last_init) if spatial_temporal else None
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)
        needs = ("pooled", "nodes", "valid") if reduction is None else (reduction.cut, "boxes", "valid")
        self.needs = tuple(dict.fromkeys((*needs, "boxes") if spatial_temporal else needs))
        self.uses = (("iou",) if spatial_temporal else ()) + (("grid",) if reduction is not None else ())

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: similarity [B,n,n], front and back [B,T-1,N,N], as `form` has them."""
        valid = clips.get("valid")
        if self.reduction is None:
            x, v = clips.get("nodes"), clips.get("pooled").mean(1)  # [B,T,N,C], [B,C]
        else:
            x, v = self.reduction(clips)
        maps: dict[str, Tensor] = {}
        halves = []
        if self.branch_s is not None:
            maps["similarity"] = graph = self.similarity(x, valid)
            halves.append(self.branch_s(x, (partial(_among_all, graph),), valid))
        if self.branch_st is not None:
            iou = clips.iou if clips.iou is not None else next_frame_iou(clips.get("boxes"))
            front, back = (graph.to(x.dtype) for graph in front_back(iou, valid))
            maps |= {"front": front, "back": back}
            halves.append(self.branch_st(x, (partial(along_front, front), partial(along_back, back)), valid))
        z = _total(halves)  # [B,C]: the mean of Z_S + Z_ST over the valid nodes
        logits = self.fc(torch.cat([self.drop(v), z], dim=1))
        return HeadOutput(logits, maps={name: m.detach() for name, m in maps.items()} if want_maps else {})


def _among_all(graph: Tensor, x: Tensor) -> Tensor:
    """G^sim X: graph [B,n,n], x [B,T,N,C] -> [B,T,N,C]."""
    return (graph @ x.flatten(1, 2)).view_as(x)


def _total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return reduce_(torch.add, terms)


def build(
    dims: Dims,
    num_classes: int,
    *,
    form: str = "joint",
    reduce: str = "cached",
    cut: str = "res5",
    width: int = 512,
    roi_size: int = 7,
    dropout: float = 0.3,
    last: str = "linear",
    last_init: str = "zero",
    similarity_init: str = "scaled",
) -> STRG:
    """STRG for views of `dims`.

    `form`: "similarity", "spatial_temporal" or "joint" (Table 2a). `reduce`: "cached" uses nodes and pooled as they are,
    "conv" learns a 1x1x1 convolution from the map at `cut` to `width` channels and aligns `roi_size` x `roi_size` on it.
    `dropout`: global half. Not stated in the paper: `last` ("linear", "norm", "norm_relu"), what follows layer 3; `last_init`
    ("zero" as the paper, "xavier"); `similarity_init`: "scaled" starts w and w' at Xavier x C^(-1/4), so that F of features
    of unit variance has unit variance (std 0.0093 at C = 512, beside the 0.01 of non-local networks), "xavier" without the
    factor (a nearly one-hot softmax at C = 512).
    """
    _one_of("form", form, FORMS)
    _one_of("reduce", reduce, ("cached", "conv"))
    _one_of("last", last, ("linear", "norm", "norm_relu"))
    _one_of("last_init", last_init, ("zero", "xavier"))
    _one_of("similarity_init", similarity_init, ("scaled", "xavier"))
    if last == "norm_relu" and last_init == "zero":
        raise ValueError(
            "head strg: last='norm_relu' with last_init='zero' can never learn (the ReLU's gradient at 0 is 0); "
            "pass last_init='xavier', or last='linear'"
        )
    fields = ("pooled", "nodes", "boxes", "valid") if reduce == "cached" else (cut, "boxes", "valid")
    dims.require("strg", *fields)
    reduction = Reduction(cut, dims.maps[cut][0], width, roi_size) if reduce == "conv" else None
    channels = dims.C if reduction is None else width
    return STRG(channels, num_classes, reduction, form, dropout, last, last_init, similarity_init)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"head strg, option {option}: expected one of {', '.join(choices)}, got {value!r}")
