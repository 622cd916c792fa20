"""GOS's graph operations.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.2 and 3.3.

Every operation maps nodes x [B,T,N,C] to nodes [B,T,N,C], given `OperationInputs`
(heads/papers/gos/operation_inputs.py). n = T N nodes of a view, step by step; G = h w cells of the
background y [B,T,G,C] of a step; A and act are in heads/papers/gos/affinity.py.

    feat_aggr   P = softmax_j(A)                                                   eq. (2)
                z_i = act( sum_j P_ij (W x_j + b) )
    diff_prop   P = softmax_(j != i)(A)                                            eq. (3)
                z_i = act( sum_j P_ij (W (x_i - x_j) + b) )
    temp_conv   near_i(f) = the node of step f nearest to i; i itself in its own   eq. (4), (5)
                z_i = mean_t act( conv_7(x_near)(t) )
    back_incor  P = softmax_g(A), step by step                                     eq. (6)-(8)
                z_i = act( V [sum_g P_ig y_g ; A_i] + b )
    node_att    w_i = sigmoid(v [similarities ; differences of places] + c)        eq. (9)
                z_i = w_i x_i
    skip        dropout(x)
    none        0
    comb1       diff_prop,  then feat_aggr, then node_att                          Fig. 4
    comb2       temp_conv,  then feat_aggr, then node_att
    comb3       back_incor, then feat_aggr, then node_att

temp_conv and node_att, which choose neighbours, are in heads/papers/gos/neighbours.py. The table of
what the paper and its released code do differently is in heads/papers/gos/affinity.py.

Differs from the paper:
- diff_prop never forms the n x n x C differences. With r_i = sum_j P_ij, the sum over j of
  P_ij (W (x_i - x_j) + b) is W (r_i x_i - sum_j P_ij x_j) + r_i b. At n = 160 and C = 256 that
  takes 1.68 G multiplications fewer;
- padded nodes are masked: they send nothing, are nobody's neighbour and count in no mean. What an
  operation returns in their rows is finite and means nothing.

The LayerNorm in act and the dropout of skip are the supplement's. Not stated in the paper, and
chosen: V reads A itself, not P; the dropout's probability is 0.5.
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

    def senders(self, valid: Tensor) -> Tensor:
        """Return which nodes j send to a node i: [B,1 or n,n] from valid [B,n]."""
        # [B,1,n]: the same senders for every receiver.
        return valid[:, None]

    def attention(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return P [B,n,n]; a row sums to 1, or is 0 where nobody sends."""
        x = self.affinity.features(x.flatten(1, 2))
        senders = self.senders(inputs.valid.flatten(1))
        return masked_softmax(self.scale * self.affinity(x, x), senders)

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        P = self.attention(x, inputs)
        z = P @ self.linear(x.flatten(1, 2))  # [B,n,C], eq. (2)
        return activated(self.norm, z).view_as(x)


class DiffProp(FeatAggr):
    """Difference propagation, eq. (3), by the identity at the top of this file."""

    def senders(self, valid: Tensor) -> Tensor:
        itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
        # A node's difference to itself is 0, but would take a share of the softmax.
        return valid[:, None] & ~itself

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        P, flat = self.attention(x, inputs), x.flatten(1, 2)
        # The row sums of P: 1, or 0 for a node to which nobody sends.
        r = self.senders(inputs.valid.flatten(1)).any(-1, keepdim=True).to(x.dtype)
        # In bf16 the difference of similar nodes would drown in rounding.
        with torch.autocast(x.device.type, enabled=False):
            difference = r * flat - P.to(x.dtype) @ flat
        # The factor r also keeps b from a node to which nobody sends.
        z = F.linear(difference, self.linear.weight) + r * self.linear.bias
        return activated(self.norm, z).view_as(x)


class BackIncor(Operation):
    """Background incorporation, eq. (6) to (8), step by step.

    One linear layer on both parts is the paper's sum of two layers.
    """

    reads = ("y",)

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.affinity = BilinearAffinity(sizes.channels, choices)
        self.linear = linear(sizes.channels + sizes.cells, sizes.channels)
        self.norm = nn.LayerNorm(sizes.channels)
        self.scale, self.raw = choices.scale, choices.background == "raw"

    def affinities(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return A [B,T,N,G]."""
        # Every edge normalises the same background, so the inputs do it once.
        y = inputs.directions if self.affinity.normalise else inputs.y
        return self.affinity(self.affinity.features(x), y)

    def attention(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        """Return P [B,T,N,G]; rows sum to 1, cells in the padding of a narrower map get 0."""
        return masked_softmax(self.scale * self.affinities(x, inputs), inputs.cells[:, None, None])

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        A, cells = self.affinities(x, inputs), inputs.cells[:, None, None]
        P = masked_softmax(self.scale * A, cells)
        # P is 0 in the padding already, A is not.
        second = A.masked_fill(~cells, 0) if self.raw else P
        both = torch.cat([P @ inputs.y, second], -1)  # [B,T,N,C+G]
        return activated(self.norm, self.linear(both))


class Skip(Operation):
    """The identity with dropout on single values."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()
        self.drop = nn.Dropout(choices.skip_dropout)

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        return self.drop(x)


class Zero(Operation):
    """No interaction."""

    def __init__(self, sizes: OperationSizes, choices: OperationChoices):
        super().__init__()

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        return torch.zeros_like(x)


class Chain(Operation):
    """One operation after another."""

    def __init__(self, operations: list[Operation]):
        super().__init__()
        self.operations = nn.ModuleList(operations)
        reads = []
        for operation in operations:
            reads += operation.reads
        self.reads = tuple(dict.fromkeys(reads))

    def forward(self, x: Tensor, inputs: OperationInputs) -> Tensor:
        for operation in self.operations:
            x = operation(x, inputs)
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
    """Build an operation or a combination.

    Args:
        name: a name of one of the two `SPACES`.
        sizes: the sizes that it is built for.
        choices: how it is computed.

    Returns:
        The operation with fresh weights.
    """
    if name in COMBINATIONS:
        return Chain([new_operation(part, sizes, choices) for part in COMBINATIONS[name]])
    return OPERATIONS[name](sizes, choices)


def node_weights(operation: Operation, x: Tensor, inputs: OperationInputs) -> Tensor | None:
    """Compute the weights w of the node attention that an operation is, or ends with.

    Args:
        operation: a single operation or a combination.
        x: [B,T,N,C], the nodes that enter it.
        inputs: what it reads.

    Returns:
        [B,T,N], or None if the operation has no node attention.
    """
    parts = operation.operations if isinstance(operation, Chain) else [operation]
    *before, last = parts
    if not isinstance(last, NodeAtt):
        return None
    for part in before:
        x = part(x, inputs)
    return last.attention(x, inputs)[..., 0]
