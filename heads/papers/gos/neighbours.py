"""GOS's two operations that choose neighbours: temporal convolution and node attention (CVPR 2020,
eq. 4, 5 and 9).

    temp_conv    s_i(f) = argmax_j x_i . x_j over the nodes j of frame f, itself in its own frame
                 z_i = mean_t act( sum_k W_k x_(s_i(t+k)) + b )
    node_att     top:  z_i = sigmoid( v [cos(x_i,x_j) ; p_j - p_i] + c ) x_i, j the M most similar
                 others, p = (cx, cy, t)
                 all:  z_i = sigmoid( v [cos(x_i,x_1) .. cos(x_i,x_n) ; layout_i] + c ) x_i

Differs from the paper:
- temp_conv gathers no sequences: a tap is applied to every node first, [B,T,N,C], and a product
  with the one-hot matrix of nearest nodes sums the taps, a few views at a time (a tenth of the
  time, and no scattered gradient);
- node_att of form "all" contracts x^_i . (sum_j v_j x^_j) rather than fill the matrix of cosines;
  it is the same;
- a frame without boxes gives temp_conv zeros, as its padding does; missing neighbours give node_att
  zeros;
- `neighbours="cached"` takes the nearest and most similar nodes as stage two found them among the
  backbone's features, not among the operation's own: faster, and approximate. The similarities
  themselves are always those of x.

Neighbours are chosen in float64, which torch.autocast leaves alone, among nodes minus their mean:
where feat_aggr made the nodes alike, their inner products differ by less than float32's rounding,
and noise would choose. The result is rounded to float32: nodes that are equal, as temp_conv leaves
them, stay equal and go by their index.

Not stated in the paper, and chosen: "same" padding and the mean over time after the activation, M =
10, ties by index, neighbours other than the node itself, positions in [0,1].
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

# Bytes of temp_conv's values before their mean over time: on a CPU what its caches hold, and below
# the 32 MB from which glibc asks the kernel for fresh pages every time.
_CPU_BYTES, _DEVICE_BYTES = 16 << 20, 1 << 30


class TempConv(Operation):
    """Temporal convolution over the sequence of a node's nearest nodes, eq. (4), (5)."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        C, self.taps = sizes.channels, choices.taps
        self.affinity = BilinearAffinity(C, choices) if choices.nearest == "affinity" else None
        self.conv = nn.Conv1d(
            C, C, self.taps, groups=C if choices.kernel == "depthwise" else 1
        )  # applied in `convolved`
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
    def attention(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """Box numbers [B,T,N,T]: the node of each frame that is nearest; 0 for a frame without
        boxes.
        """
        if self.reads:
            return scene.nearest
        flat, valid = x.flatten(1, 2).double(), scene.valid.flatten(1)
        if self.affinity is None:
            products = flat @ centred(flat, valid).mT
        else:
            flat = self.affinity.features(flat)
            products = self.affinity(flat, centred(flat, valid))
        return nearest_nodes(
            products.float().masked_fill_(~valid[:, None], -torch.inf), scene.valid
        ).long()

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        B, T, N, C = x.shape
        self._check(T)
        pick = x.new_zeros(
            B, T, N, T, N
        )  # one-hot: whom node (t,i) sees in every frame; nobody in a frame without boxes
        there = scene.valid.any(-1)[:, None, None, :, None].expand(B, T, N, T, 1)
        pick = pick.scatter_(-1, self.attention(x, scene)[..., None], there.to(x.dtype)).flatten(
            1, 2
        )  # [B,n,T,N]
        weights = self.conv.weight.permute(2, 1, 0).unbind()  # a tap [C,C] or [1,C]
        positions = T + 2 * self.pad - self.taps + 1
        budget = _CPU_BYTES if x.device.type == "cpu" else _DEVICE_BYTES
        chunk = max(1, budget // (x.element_size() * positions * T * N * C))
        parts = [
            activated(
                self.norm, self.convolved(x[s : s + chunk], pick[s : s + chunk], weights)
            ).sum(1)
            for s in range(0, B, chunk)
        ]
        return (torch.cat(parts) / positions).view_as(
            x
        )  # not mean(1), whose gradient would be written out for every position

    def convolved(self, x: Tensor, pick: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """x [b,T,N,C], pick [b,n,T,N], one weight per tap -> [b,P,n,C], P positions: sum_k
        pick_(p+k) (x_(p+k) W_k) + bias.
        """
        positions, N = x.shape[1] + 2 * self.pad - self.taps + 1, x.shape[2]
        tapped = [x * w if len(w) == 1 else x @ w for w in weights]
        if self.pad:
            tapped = [F.pad(t, (0, 0, 0, 0, self.pad, self.pad)) for t in tapped]
            pick = F.pad(pick, (0, 0, self.pad, self.pad))
        bias = self.conv.bias.to(tapped[0].dtype).expand(
            len(x), positions, 1, -1
        )  # one more node, which everybody picks
        tapped = torch.cat(
            [*(t[:, k : k + positions] for k, t in enumerate(tapped)), bias], 2
        )  # [b,P,taps N + 1,C]
        windows = pick.flatten(2).unfold(2, self.taps * N, N).transpose(1, 2)  # [b,P,n,taps N]
        return F.pad(windows, (0, 1), value=1.0) @ tapped


class NodeAtt(Operation):
    """Node attention, eq. (9): a scalar per node, no norm, no activation."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.normalise, self.top, self.nodes = (
            choices.normalise,
            choices.top,
            sizes.steps * sizes.nodes,
        )
        self.all = choices.attention == "all"
        self.linear = linear(self.nodes + LAYOUT if self.all else 4 * self.top, 1)
        self.cached = choices.neighbours == "cached" and not self.all
        self.reads = ("layout", "similar") if self.cached else ("layout",)

    def attention(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """w [B,T,N,1] in (0,1)."""
        flat = x.flatten(1, 2)
        flat = unit(flat) if self.normalise else flat
        logits = self._from_all(flat, scene) if self.all else self._from_top(flat, scene)
        return logits.sigmoid().view(*x.shape[:3], 1)

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        return self.attention(x, scene) * x

    def _from_all(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """x [B,n,C] -> [B,n,1]: v [cos(x_i,x_1) .. cos(x_i,x_n) ; layout_i] + c."""
        if x.shape[1] != self.nodes:
            raise ValueError(
                f"node_att: attention='all' has a weight for each of {self.nodes} nodes, got "
                f"{x.shape[1]}; "
                "read views with the steps and boxes that it was built for, or pass attention='top'"
            )
        v, own = self.linear.weight.split([self.nodes, LAYOUT], 1)
        total = (v * scene.valid.flatten(1))[
            :, None
        ] @ x  # [B,1,C]: sum_j v_j x_j over the valid nodes
        return x @ total.mT + F.linear(scene.layout.flatten(1, 2), own, self.linear.bias)

    def _from_top(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """x [B,n,C] -> [B,n,1]: v [similarities to the M most similar others ; their positions
        minus the node's] + c.
        """
        similarity = x @ x.mT  # [B,n,n]
        index, real = (
            self._similar_cached(scene) if self.cached else self._similar(x, scene)
        )  # [B,n,m], m <= M
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        position = scene.position.flatten(1, 2)  # [B,n,3]
        apart = (position[rows, index] - position[:, :, None]) * real[..., None]  # [B,n,m,3]
        told = [similarity.gather(2, index) * real, *apart.unbind(-1)]
        return self.linear(torch.cat([F.pad(t, (0, self.top - t.shape[-1])) for t in told], -1))

    @torch.no_grad()
    def _similar(self, x: Tensor, scene: OperationInputs) -> tuple[Tensor, Tensor]:
        """Flat indices of the M most similar valid others [B,n,m], and whether there are that many
        [B,n,m].
        """
        flat, valid = x.double(), scene.valid.flatten(1)
        c = centred(flat, valid)
        # Lengths of 1: by |x_i - x_j|^2 = 2 - 2 x_i.x_j, whatever part of x_i.x_j all nodes share.
        products = c @ c.mT - c.square().sum(-1)[:, None] / 2 if self.normalise else flat @ c.mT
        products = products.float().masked_fill_(~valid[:, None], -torch.inf)
        most = min(self.top, products.shape[1] - 1)
        if most < 1:
            nobody = torch.zeros(*products.shape[:2], 0, dtype=torch.long, device=x.device)
            return nobody, nobody.bool()
        return self._real(similar_nodes(products, scene.valid, most)[0].flatten(1, 2).long(), scene)

    def _similar_cached(self, scene: OperationInputs) -> tuple[Tensor, Tensor]:
        kept = scene.similar.shape[-1]
        if kept < min(self.top, scene.valid[0].numel() - 1):
            raise ValueError(
                f"node_att: expected the {self.top} most similar nodes in the cache, got {kept}; "
                f"run `vidgraph graphs` with --neighbours {self.top}, or pass top={kept}"
            )
        return self._real(scene.similar[..., : self.top].flatten(1, 2), scene)

    @staticmethod
    def _real(index: Tensor, scene: OperationInputs) -> tuple[Tensor, Tensor]:
        """A node has as many neighbours as there are other valid nodes; the entries after them say
        nothing.
        """
        others = scene.valid.flatten(1).sum(1) - 1  # [B]
        return index, (
            torch.arange(index.shape[-1], device=index.device) < others[:, None, None]
        ).expand_as(index)


def centred(x: Tensor, valid: Tensor) -> Tensor:
    """x [B,n,C] minus its mean m over the valid nodes: x_i . (x_j - m) ranks the nodes j as x_i .
    x_j does.
    """
    return x - masked_mean(x, valid)[:, None]
