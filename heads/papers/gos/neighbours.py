"""GOS's two operations that choose neighbours: temporal convolution and node attention.

Li et al., CVPR 2020, eq. (4), (5) and (9).

    temp_conv   near_i(f) = argmax_j x_i . x_j over the nodes j of step f
                z_i = mean_t act( sum_k W_k x_(near_i(t+k)) + b )
    node_att    top:  z_i = sigmoid( v [x_i . x_j ; s_i - s_j] + c ) x_i
                all:  z_i = sigmoid( v [cos(x_i,x_1) .. cos(x_i,x_n) ; layout_i] + c ) x_i

In its own step the node nearest to i is i itself, however long its neighbours are; the release's
`nearest="affinity"` compares there too. In form "top", j are the M most similar other nodes and
s = (cx, cy, t).

Differs from the paper:
- temp_conv gathers no sequences. It applies each tap to every node first, [B,T,N,C], and sums the
  taps by a product with the one-hot matrix of nearest nodes, a few views at a time. That takes a
  tenth of the time and scatters no gradient;
- node_att of form "all" contracts x^_i . (sum_j v_j x^_j) and never fills the matrix of cosines;
- a step without boxes gives temp_conv zeros, as its padding does; missing neighbours give node_att
  zeros;
- `neighbours="cached"` takes the nearest and most similar nodes that stage two found among the
  backbone's features, not among the operation's inputs: faster, and approximate. The similarities
  themselves are always those of x.

Neighbours are chosen in float64, which torch.autocast leaves alone, among nodes minus their mean.
Where feat_aggr made the nodes alike, their inner products differ by less than float32's rounding,
and noise would choose. The result is rounded to float32: nodes that are equal, as temp_conv leaves
them, stay equal and go by their index.

Not stated in the paper, and chosen:
- "same" padding and the mean over time after the activation;
- M = 10, ties by index, neighbours other than the node itself, places in [0,1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.masked_layers import masked_mean
from heads.papers.gos.affinity import (
    BilinearAffinity,
    Operation,
    OperationChoices,
    OperationSizes,
    activated,
    linear,
    unit,
)
from heads.papers.gos.operation_inputs import LAYOUT, OperationInputs
from pipeline.regions.graphs import nearest_nodes, similar_nodes

# Bytes of temp_conv's values before their mean over time. On a CPU its caches hold so much, and it
# is below the 32 MB from which glibc asks the kernel for fresh pages every time.
_CPU_BYTES, _DEVICE_BYTES = 16 << 20, 1 << 30


class TempConv(Operation):
    """Temporal convolution over the sequence of a node's nearest nodes, eq. (4) and (5)."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        C, self.taps = sizes.channels, choices.taps
        # Inner products alone would prefer a longer node of the own step to the node itself.
        self.own_is_itself = choices.nearest == "inner"
        self.affinity = None
        if choices.nearest == "affinity":
            self.affinity = BilinearAffinity(C, choices)

        # Holds the weights; `convolved` applies them.
        groups = C if choices.kernel == "depthwise" else 1
        self.conv = nn.Conv1d(C, C, self.taps, groups=groups)
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.norm = nn.LayerNorm(C)

        self.pad = self.taps // 2 if choices.padding == "same" else 0
        self.reads = ("nearest",) if choices.neighbours == "cached" else ()
        self._check(sizes.steps)

    def _check(self, steps: int) -> None:
        if steps + 2 * self.pad < self.taps:
            raise ValueError(
                f"temp_conv: {self.taps} taps without padding need at least {self.taps} steps, "
                f"got {steps}; pass padding='same'"
            )

    @torch.no_grad()
    def attention(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return the nearest node of every step.

        Args:
            x: [B,T,N,C].
            inputs: `valid`, and `nearest` with neighbours="cached".

        Returns:
            Box numbers [B,T,N,T]; 0 for a step without boxes.
        """
        near = inputs.nearest if self.reads else self._nearest(x, inputs)
        if self.own_is_itself:
            near = near.clone()  # a cached table belongs to the batch
            itself = torch.arange(x.shape[2], device=x.device)
            near.diagonal(dim1=1, dim2=3).copy_(itself[:, None])  # [B,N,T]
        return near

    def _nearest(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        flat, valid = x.flatten(1, 2).double(), inputs.valid.flatten(1)
        if self.affinity is None:
            products = flat @ centred(flat, valid).mT
        else:
            flat = self.affinity.features(flat)
            products = self.affinity(flat, centred(flat, valid))
        products = products.float().masked_fill_(~valid[:, None], -torch.inf)
        return nearest_nodes(products, inputs.valid).long()

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        B, T, N, C = x.shape
        self._check(T)

        # One-hot: which node of every step (t,i) sees; none of a step without boxes.
        pick = x.new_zeros(B, T, N, T, N)
        present = inputs.valid.any(-1)[:, None, None, :, None].expand(B, T, N, T, 1)
        pick.scatter_(-1, self.attention(x, inputs)[..., None], present.to(x.dtype))
        pick = pick.flatten(1, 2)  # [B,n,T,N]

        weights = self.conv.weight.permute(2, 1, 0).unbind()  # a tap [C,C] or [1,C]
        positions = T + 2 * self.pad - self.taps + 1
        budget = _CPU_BYTES if x.device.type == "cpu" else _DEVICE_BYTES
        chunk = max(1, budget // (x.element_size() * positions * T * N * C))
        sums = []
        for start in range(0, B, chunk):
            views = slice(start, start + chunk)
            z = self.convolved(x[views], pick[views], weights)
            sums.append(activated(self.norm, z).sum(1))
        # Not mean(1), whose gradient would be written out for every position.
        return (torch.cat(sums) / positions).view_as(x)

    def convolved(self, x: Tensor, pick: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Compute sum_k pick_(p+k) (x_(p+k) W_k) + bias.

        Args:
            x: [b,T,N,C].
            pick: [b,n,T,N], one-hot.
            weights: one tap each, [C,C] or [1,C].

        Returns:
            [b,P,n,C], P positions.
        """
        positions, N = x.shape[1] + 2 * self.pad - self.taps + 1, x.shape[2]
        apply = torch.mul if len(weights[0]) == 1 else torch.matmul
        tapped = [apply(x, w) for w in weights]
        if self.pad:
            tapped = [F.pad(t, (0, 0, 0, 0, self.pad, self.pad)) for t in tapped]
            pick = F.pad(pick, (0, 0, self.pad, self.pad))
        tapped = [t[:, k : k + positions] for k, t in enumerate(tapped)]

        # The bias is one more node, which every node picks.
        bias = self.conv.bias.to(tapped[0].dtype).expand(len(x), positions, 1, -1)
        tapped = torch.cat([*tapped, bias], 2)  # [b,P,taps N + 1,C]
        windows = pick.flatten(2).unfold(2, self.taps * N, N).transpose(1, 2)  # [b,P,n,taps N]
        return F.pad(windows, (0, 1), value=1.0) @ tapped


class NodeAtt(Operation):
    """Node attention, eq. (9): a scalar per node, no norm, no activation."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.normalise, self.top = choices.normalise, choices.top
        self.nodes = sizes.steps * sizes.nodes
        self.all = choices.attention == "all"
        self.sign = 1 if choices.offset == "from_neighbour" else -1
        self.linear = linear(self.nodes + LAYOUT if self.all else 4 * self.top, 1)
        self.cached = choices.neighbours == "cached" and not self.all
        self.reads = ("layout", "similar") if self.cached else ("layout",)

    def attention(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return w [B,T,N,1] in (0,1)."""
        flat = x.flatten(1, 2)
        if self.normalise:
            flat = unit(flat)
        logits = self._from_all(flat, inputs) if self.all else self._from_top(flat, inputs)
        return logits.sigmoid().view(*x.shape[:3], 1)

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        return self.attention(x, inputs) * x

    def _from_all(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return v [cos(x_i,x_1) .. cos(x_i,x_n) ; layout_i] + c: [B,n,1] from x [B,n,C]."""
        if x.shape[1] != self.nodes:
            raise ValueError(
                f"node_att: attention='all' has a weight for each of {self.nodes} nodes, got "
                f"{x.shape[1]}; read views with the steps and boxes that it was built for, or "
                "pass attention='top'"
            )
        v, of_layout = self.linear.weight.split([self.nodes, LAYOUT], 1)
        # sum_j v_j x_j over the valid nodes
        total = (v * inputs.valid.flatten(1))[:, None] @ x  # [B,1,C]
        return x @ total.mT + F.linear(inputs.layout.flatten(1, 2), of_layout, self.linear.bias)

    def _from_top(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return v [x_i . x_j ; s_i - s_j] + c: [B,n,1] from x [B,n,C]."""
        similarity = x @ x.mT  # [B,n,n]
        index, real = self._similar_cached(inputs) if self.cached else self._similar(x, inputs)
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        place = self.sign * inputs.position.flatten(1, 2)  # [B,n,3]
        apart = (place[:, :, None] - place[rows, index]) * real[..., None]  # [B,n,m,3]

        parts = [similarity.gather(2, index) * real, *apart.unbind(-1)]
        # A small view has fewer than M other nodes.
        padded = [F.pad(part, (0, self.top - part.shape[-1])) for part in parts]
        return self.linear(torch.cat(padded, -1))

    @torch.no_grad()
    def _similar(self, x: Tensor, inputs: OperationInputs) -> tuple[Tensor, Tensor]:
        """Find the M most similar other nodes.

        Returns:
            Flat indices [B,n,m] with m <= M, and whether each stands for a valid node [B,n,m].
        """
        flat, valid = x.double(), inputs.valid.flatten(1)
        c = centred(flat, valid)
        products = (c if self.normalise else flat) @ c.mT
        if self.normalise:
            # With lengths of 1, |x_i - x_j|^2 = 2 - 2 x_i.x_j: the part of x_i.x_j that all nodes
            # share cancels.
            products -= c.square().sum(-1)[:, None] / 2
        products = products.float().masked_fill_(~valid[:, None], -torch.inf)

        most = min(self.top, products.shape[1] - 1)
        if most < 1:
            nobody = torch.zeros(*products.shape[:2], 0, dtype=torch.long, device=x.device)
            return nobody, nobody.bool()
        index = similar_nodes(products, inputs.valid, most)[0]
        return self._real(index.flatten(1, 2).long(), inputs)

    def _similar_cached(self, inputs: OperationInputs) -> tuple[Tensor, Tensor]:
        kept = inputs.similar.shape[-1]
        if kept < min(self.top, inputs.valid[0].numel() - 1):
            raise ValueError(
                f"node_att: expected the {self.top} most similar nodes in the cache, got {kept}; "
                f"run `vidgraph graphs` with --neighbours {self.top}, or pass top={kept}"
            )
        return self._real(inputs.similar[..., : self.top].flatten(1, 2), inputs)

    @staticmethod
    def _real(index: Tensor, inputs: OperationInputs) -> tuple[Tensor, Tensor]:
        """Say which entries count: a node has as many neighbours as there are other valid nodes."""
        others = inputs.valid.flatten(1).sum(1) - 1  # [B]
        real = torch.arange(index.shape[-1], device=index.device) < others[:, None, None]
        return index, real.expand_as(index)


def centred(x: Tensor, valid: Tensor) -> Tensor:
    """Subtract the mean m over the valid nodes from x [B,n,C].

    x_i . (x_j - m) ranks the nodes j as x_i . x_j does.
    """
    return x - masked_mean(x, valid)[:, None]
