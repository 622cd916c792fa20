"""The graph convolutions of STRG: Wang and Gupta, Videos as Space-Time Region Graphs, ECCV 2018,
sec. 3 and 4.

    F(i,j) = (w x_i)^T (w' x_j),  G^sim = row softmax of F         [B,n,n]       eq. (1), (2); over
                                  all nodes, self included
    Z = relu(LN(sum_g G_g X W_g)), layers 1 and 2                  [B,T,N,C]     eq. (4), (5); LN
    over channels Z = sum_g G_g X W_g, layer 3, W = 0 at first

Differs from the paper: padded boxes send nothing and count in no softmax and in no mean; layer 3's
W acts on the mean over nodes, which is the same because it is linear. Not stated in the paper: see
heads/zoo/strg.py.
"""

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from heads.interface.masked_layers import masked_mean, masked_softmax

LAYERS = 3
LASTS = ("linear", "norm", "norm_relu")
STARTS = ("xavier", "normal", "zero")

Graph = Callable[[Tensor], Tensor]  # X [B,T,N,C] -> G X


class GraphBranch(nn.Module):
    """Three graph convolutions over the same graphs; returns the mean over nodes of the last one's
    output.

    `graphs` is how many graphs each layer sums (unshared weights). After layers 1 and 2 LN over
    channels, then ReLU; after the last one what `last` says: "linear", "norm" (LN) or "norm_relu"
    (LN, ReLU). `starts`: how the weights of layers 1 and 2 and those of layer 3 begin ("xavier",
    "normal" of std 0.01, "zero"); `bias`: whether every W has one, 0 at first.
    """

    def __init__(self, channels: int, graphs: int, last: str, starts: tuple[str, str], bias: bool):
        super().__init__()
        linears = [
            [nn.Linear(channels, channels, bias=bias) for _ in range(graphs)] for _ in range(LAYERS)
        ]
        self.weights = nn.ModuleList(nn.ModuleList(layer) for layer in linears)
        norms = LAYERS - 1 if last == "linear" else LAYERS
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(norms))
        self.last = last
        for k, layer in enumerate(linears):
            for linear in layer:
                _start(linear, starts[k == LAYERS - 1])

    def forward(self, x: Tensor, graphs: tuple[Graph, ...], valid: Tensor) -> Tensor:
        """x [B,T,N,C], graphs: functions X -> G X, valid [B,T,N] -> [B,C]; zeros for a view without
        nodes.
        """
        for weights, norm in zip(self.weights[:-1], self.norms, strict=False):
            x = norm(
                total(linear(g(x)) for linear, g in zip(weights, graphs, strict=True))
            ).relu()  # [B,T,N,C], eq. (4), (5)
        weights = self.weights[-1]
        if self.last == "linear":  # the mean over nodes and W commute
            z = total(
                linear(masked_mean(g(x), valid)) for linear, g in zip(weights, graphs, strict=True)
            )
            return z * valid.flatten(1).any(
                1, keepdim=True
            )  # of a bias, the mean over no nodes is 0 too
        x = self.norms[-1](total(linear(g(x)) for linear, g in zip(weights, graphs, strict=True)))
        return masked_mean(x.relu() if self.last == "norm_relu" else x, valid)


class SimilarityGraph(nn.Module):
    """G^sim (eq. 1, 2): row softmax of (w x_i)^T (w' x_j) over the valid nodes of the view, no
    scale, no L2 norm.

    `init`: "scaled" starts w and w' at Xavier times C^(-1/4), "xavier" without the factor. `bias`:
    of w and w', 0 at first.
    """

    def __init__(self, channels: int, init: str, bias: bool):
        super().__init__()
        self.w = nn.Linear(channels, channels, bias=bias)
        self.w2 = nn.Linear(channels, channels, bias=bias)
        gain = channels**-0.25 if init == "scaled" else 1.0
        for linear in (self.w, self.w2):
            _start(linear, "xavier", gain)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B,T,N,C], valid [B,T,N] -> [B,n,n], rows of padded nodes zero."""
        x, valid = x.flatten(1, 2), valid.flatten(1)
        graph = masked_softmax(self.w(x) @ self.w2(x).mT, valid[:, None, :])
        return graph.masked_fill(~valid[..., None], 0)


def multiply_similarity(graph: Tensor, x: Tensor) -> Tensor:
    """G^sim X: graph [B,n,n], x [B,T,N,C] -> [B,T,N,C]."""
    return (graph @ x.flatten(1, 2)).view_as(x)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    return reduce(torch.add, terms)


def _start(linear: nn.Linear, how: str, gain: float = 1.0) -> None:
    if how == "zero":
        nn.init.zeros_(linear.weight)
    elif how == "normal":
        nn.init.normal_(linear.weight, std=0.01)
    else:
        nn.init.xavier_uniform_(linear.weight, gain=gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
