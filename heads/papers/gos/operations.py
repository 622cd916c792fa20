"""GOS's graph operations: Li et al., Adaptive Interaction Modeling via Graph Operations Search,
CVPR 2020, sec. 3.2 and 3.3.

Every operation maps nodes x [B,T,N,C] to nodes [B,T,N,C] in the light of a `OperationInputs`
(heads/papers/gos/operation_inputs.py). n = T N nodes of a view, frame by frame; G = h w cells of a
frame's background y [B,T,G,C]; A and act as in heads/papers/gos/affinity.py.

    feat_aggr    P = softmax_j(5 A),           z_i = act( sum_j P_ij (W x_j + b) )
                 eq. (2)
    diff_prop    P = softmax_(j != i)(5 A),    z_i = act( sum_j P_ij (W (x_i - x_j) + b) )
                 eq. (3)
    temp_conv    s_i(f) = the node of frame f nearest to i,  z_i = mean_t act( conv_7(x_s)(t) )
                 eq. (4), (5)
    back_incor   per frame P = softmax_g(5 A), z_i = act( V [sum_g P_ig y_g ; A_i] + b )
                 eq. (6)-(8)
    node_att     w_i = sigmoid(v [similarities ; positions] + c),  z_i = w_i x_i
                 eq. (9)
    skip, none   dropout(x), 0
    comb1 = diff_prop, comb2 = temp_conv, comb3 = back_incor, each followed by feat_aggr, then
    node_att    Fig. 4

temp_conv and node_att, which choose neighbours, are in heads/papers/gos/neighbours.py; what the
paper and its released code do differently is in heads/papers/gos/affinity.py.

Differs from the paper:
- diff_prop never forms the n x n x C differences: with r_i = sum_j P_ij, sum_j P_ij (W (x_i - x_j)
  + b) is W (r_i x_i - sum_j P_ij x_j) + r_i b (1.68 G multiplications fewer at n = 160, C = 256);
- padded nodes are masked: they send nothing, are nobody's neighbour and count in no mean. What an
  operation returns in their rows is finite and means nothing.

Not stated in the paper, and chosen: the factor 5 and the LayerNorm (the released code's), V reading
A itself, dropout 0.5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.masked_layers import masked_softmax
from heads.papers.gos.affinity import (
    BilinearAffinity,
    Operation,
    OperationChoices,
    OperationSizes,
    activated,
    linear,
)
from heads.papers.gos.neighbours import NodeAtt, TempConv
from heads.papers.gos.operation_inputs import OperationInputs

COMBINATIONS = {
    "comb1": ("diff_prop", "feat_aggr", "node_att"),
    "comb2": ("temp_conv", "feat_aggr", "node_att"),
    "comb3": ("back_incor", "feat_aggr", "node_att"),
}
SPACES = {
    "fixed": ("none", "skip", *COMBINATIONS),
    "original": ("none", "skip", "feat_aggr", "diff_prop", "temp_conv", "back_incor", "node_att"),
}


class FeatAggr(Operation):
    """Feature aggregation, eq. (2)."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.affinity = BilinearAffinity(sizes.channels, choices)
        self.linear = linear(sizes.channels, sizes.channels)
        self.norm = nn.LayerNorm(sizes.channels)
        self.scale = choices.scale

    def heard(self, valid: Tensor) -> Tensor:
        """valid [B,n] -> [B,1 or n,n]: whom a node hears."""
        return valid[:, None]

    def attention(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """P [B,n,n]; rows sum to 1, or are 0 where there is nobody to listen to."""
        x = self.affinity.features(x.flatten(1, 2))
        return masked_softmax(self.scale * self.affinity(x, x), self.heard(scene.valid.flatten(1)))

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        P = self.attention(x, scene)
        return activated(self.norm, P @ self.linear(x.flatten(1, 2))).view_as(x)  # [B,n,C], eq. (2)


class DiffProp(FeatAggr):
    """Difference propagation, eq. (3), by the identity at the top of this file."""

    def heard(self, valid: Tensor) -> Tensor:
        return valid[:, None] & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        P, flat = self.attention(x, scene), x.flatten(1, 2)
        r = (
            self.heard(scene.valid.flatten(1)).any(-1, keepdim=True).to(x.dtype)
        )  # P's row sums: 0 for a node alone
        with torch.autocast(
            x.device.type, enabled=False
        ):  # the difference of near nodes would drown in bf16's rounding
            difference = r * flat - P.to(x.dtype) @ flat
        z = F.linear(difference, self.linear.weight) + r * self.linear.bias
        return activated(self.norm, z).view_as(x)


class BackIncor(Operation):
    """Background incorporation, eq. (6) to (8), frame by frame; one layer of both parts is the
    paper's sum of two.
    """

    reads = ("y",)

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.affinity = BilinearAffinity(sizes.channels, choices)
        self.linear = linear(sizes.channels + sizes.cells, sizes.channels)
        self.norm = nn.LayerNorm(sizes.channels)
        self.scale, self.raw = choices.scale, choices.background == "raw"

    def affinities(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """A [B,T,N,G]."""
        return self.affinity(
            self.affinity.features(x), scene.directions if self.affinity.normalise else scene.y
        )

    def attention(self, x: Tensor, scene: OperationInputs) -> Tensor:
        """P [B,T,N,G]; rows sum to 1, cells in the padding of a narrower map get 0."""
        return masked_softmax(self.scale * self.affinities(x, scene), scene.cells[:, None, None])

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        A, cells = self.affinities(x, scene), scene.cells[:, None, None]
        P = masked_softmax(self.scale * A, cells)
        told = torch.cat(
            [P @ scene.y, A.masked_fill(~cells, 0) if self.raw else P], -1
        )  # [B,T,N,C+G]
        return activated(self.norm, self.linear(told))


class Skip(Operation):
    """The identity with dropout on single values."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.drop = nn.Dropout(choices.skip_dropout)

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        return self.drop(x)


class Zero(Operation):
    """No interaction."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        return torch.zeros_like(x)


class Chain(Operation):
    """One operation after another."""

    def __init__(self, operations: list[Operation]):
        super().__init__()
        self.operations = nn.ModuleList(operations)
        self.reads = tuple(
            dict.fromkeys(name for operation in operations for name in operation.reads)
        )

    def forward(self, x: Tensor, scene: OperationInputs) -> Tensor:
        for operation in self.operations:
            x = operation(x, scene)
        return x


OPERATIONS = {
    "none": Zero,
    "skip": Skip,
    "feat_aggr": FeatAggr,
    "diff_prop": DiffProp,
    "temp_conv": TempConv,
    "back_incor": BackIncor,
    "node_att": NodeAtt,
}


def new_operation(name: str, sizes: OperationSizes, choices: OperationChoices) -> Operation:
    """A fresh operation or combination of the two spaces, by name."""
    if name in COMBINATIONS:
        return Chain([new_operation(part, sizes, choices) for part in COMBINATIONS[name]])
    return OPERATIONS[name](sizes, choices)


def node_weights(operation: Operation, x: Tensor, scene: OperationInputs) -> Tensor | None:
    """w [B,T,N] of the node attention that `operation` is, or ends with, on nodes x; None where
    there is none.
    """
    *before, last = operation.operations if isinstance(operation, Chain) else [operation]
    if not isinstance(last, NodeAtt):
        return None
    for part in before:
        x = part(x, scene)
    return last.attention(x, scene)[..., 0]
