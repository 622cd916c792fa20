"""The graph convolutions of STRG.

Wang and Gupta, Videos as Space-Time Region Graphs, ECCV 2018, sec. 4.2, 4.3 and 5.

    F(i,j) = (w x_i)^T (w' x_j),  G^sim = row softmax of F    [B,n,n]     eq. (1), (2)
    Z = relu(LN(sum_g G_g X W_g)), layers 1 and 2             [B,T,N,C]   eq. (4), (5)
    Z = sum_g G_g X W_g,           layer 3, W = 0 at first    [B,T,N,C]

The softmax runs over all n = T N nodes of the view, the node itself included. LN is over channels.

Differs from the paper: padded boxes send nothing and count in no softmax and in no mean. W of
layer 3 acts on the mean over nodes, which is the same because it is linear. Not stated in the
paper: see heads/zoo/strg.py.
"""

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from heads.interface.masked_layers import masked_mean, masked_softmax

LAYERS = 3
LASTS = ("linear", "norm", "norm_relu")
STARTS = ("xavier", "normal", "zero")

# X [B,T,N,C] -> G X
Graph = Callable[[Tensor], Tensor]


class GraphBranch(nn.Module):
    """Three graph convolutions over the same graphs, then the mean over nodes.

    Layers 1 and 2 are followed by LN over channels and ReLU.

    Args:
        channels: C.
        graphs: how many graphs each layer sums; each has weights of its own.
        last: what follows layer 3: "linear" (nothing), "norm" (LN) or "norm_relu" (LN, ReLU).
        starts: initial weights of layers 1 and 2, and of layer 3: "xavier", "normal" (std 0.01) or
            "zero".
        bias: whether every W has a bias, 0 at first.
    """

    def __init__(self, channels: int, graphs: int, last: str, starts: tuple[str, str], bias: bool):
        super().__init__()
        self.weights = nn.ModuleList()
        for _ in range(LAYERS):
            layer = [nn.Linear(channels, channels, bias=bias) for _ in range(graphs)]
            self.weights.append(nn.ModuleList(layer))
        norms = LAYERS - 1 if last == "linear" else LAYERS
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(norms))
        self.last = last

        # After all layers exist, not one by one: the order decides what a seed gives.
        for k, layer in enumerate(self.weights):
            for linear in layer:
                _initialise(linear, starts[k == LAYERS - 1])

    def forward(self, x: Tensor, graphs: tuple[Graph, ...], valid: Tensor) -> Tensor:
        """Apply the three layers.

        Args:
            x: [B,T,N,C].
            graphs: functions X -> G X.
            valid: [B,T,N] bool.

        Returns:
            [B,C], the mean over the valid nodes; zeros for a view without any.
        """
        for weights, norm in zip(self.weights[:-1], self.norms, strict=False):
            terms = (linear(g(x)) for linear, g in zip(weights, graphs, strict=True))
            x = norm(total(terms)).relu()  # [B,T,N,C], eq. (4), (5)

        pairs = zip(self.weights[-1], graphs, strict=True)
        if self.last == "linear":
            # The mean over nodes and W commute: W sees one row per view.
            z = total(linear(masked_mean(g(x), valid)) for linear, g in pairs)
            # With a bias, the mean over no nodes must still be 0.
            return z * valid.flatten(1).any(1, keepdim=True)

        x = self.norms[-1](total(linear(g(x)) for linear, g in pairs))
        if self.last == "norm_relu":
            x = x.relu()
        return masked_mean(x, valid)


class SimilarityGraph(nn.Module):
    """G^sim (eq. 1, 2): a row softmax over the valid nodes, without a scale or an L2 norm.

    Args:
        channels: C.
        init: "scaled" starts w and w' at Xavier times C^(-1/4); "xavier" has no factor.
        bias: whether w and w' have a bias, 0 at first.
    """

    def __init__(self, channels: int, init: str, bias: bool):
        super().__init__()
        self.w = nn.Linear(channels, channels, bias=bias)
        self.w2 = nn.Linear(channels, channels, bias=bias)
        gain = channels**-0.25 if init == "scaled" else 1.0
        for linear in (self.w, self.w2):
            _initialise(linear, "xavier", gain)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Compute the graph.

        Args:
            x: [B,T,N,C].
            valid: [B,T,N] bool.

        Returns:
            [B,n,n]; rows of padded nodes are zero.
        """
        x, valid = x.flatten(1, 2), valid.flatten(1)
        # This masks the senders only; the next line masks padded receivers.
        graph = masked_softmax(self.w(x) @ self.w2(x).mT, valid[:, None, :])
        return graph.masked_fill(~valid[..., None], 0)


def multiply_similarity(graph: Tensor, x: Tensor) -> Tensor:
    """Return G^sim X for a graph [B,n,n] and nodes [B,T,N,C]."""
    return (graph @ x.flatten(1, 2)).view_as(x)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Add up at least one tensor."""
    return reduce(torch.add, terms)


def _initialise(linear: nn.Linear, start: str, gain: float = 1.0) -> None:
    if start == "zero":
        nn.init.zeros_(linear.weight)
    elif start == "normal":
        nn.init.normal_(linear.weight, std=0.01)
    else:
        nn.init.xavier_uniform_(linear.weight, gain=gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
