"""The searched cell of GOS, and the structure that weighs its operations.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.

    s_0 = x,  s_j = sum_(i<j) sum_o w^ij_o o(s_i)      [B,T,N,C]   eq. (1), (10)
    search:   w^ij = softmax_o(alpha^ij)               [B,E,O]     all operations, mixed
    discrete: w^ij = 1[alpha^ij_o = max]               [B,E,O]     eq. (11)
    alpha = A g + a                                    [B,E,O]     eq. (12)
    L_var = var_o(sum_ij alpha^ij_o)                               eq. (13)

The operations o are in heads/papers/gos/operations.py. There are E = S (S+1) / 2 edges. Not stated
in the paper, and chosen: the variance is the unbiased one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.papers.gos.affinity import OperationChoices, OperationSizes
from heads.papers.gos.operation_inputs import OperationInputs
from heads.papers.gos.operations import new_operation, node_weights

STRUCTURES = ("adaptive", "shared", "shared_test")
# Of the mean structure that "shared_test" evaluates with.
DECAY = 0.99


def edges_of(supernodes: int) -> tuple[tuple[int, int], ...]:
    """Return (i, j) of every edge, i < j, grouped by where they end."""
    edges = []
    for j in range(1, supernodes + 1):
        edges += [(i, j) for i in range(j)]
    return tuple(edges)


class Cell(nn.Module):
    """The states after s_0; every edge has operations of its own.

    Args:
        space: the names of the operations.
        supernodes: S.
        sizes: the sizes that the operations are built for.
        choices: how they are computed.
    """

    def __init__(
        self,
        space: Sequence[str],
        supernodes: int,
        sizes: OperationSizes,
        choices: OperationChoices,
    ):
        super().__init__()
        self.space, self.supernodes = tuple(space), supernodes
        self.edges = nn.ModuleList()
        for _ in edges_of(supernodes):
            operations = {name: new_operation(name, sizes, choices) for name in space}
            self.edges.append(nn.ModuleDict(operations))

    def forward(
        self, x: Tensor, inputs: OperationInputs, weights: Tensor, discrete: bool
    ) -> list[Tensor]:
        """Compute the states.

        Args:
            x: [B,T,N,C], s_0.
            inputs: what the operations read.
            weights: w [B,E,O].
            discrete: whether to compute each edge's heaviest operation alone.

        Returns:
            s_1 .. s_S, each [B,T,N,C].
        """
        compute = self._chosen if discrete else self._mixed
        states = [x] + [torch.zeros_like(x)] * self.supernodes
        edges = zip(edges_of(self.supernodes), self.edges, weights.unbind(1), strict=True)
        # Edges are grouped by their end, so that s_i is complete before an edge leaves it.
        for (i, j), operations, w in edges:
            states[j] = states[j] + compute(operations, states[i], inputs, w)
        return states[1:]

    def node_attention(
        self, states: list[Tensor], inputs: OperationInputs, weights: Tensor
    ) -> Tensor:
        """Compute the weights of node_att in each edge's heaviest operation.

        Args:
            states: s_0 .. s_S, each [B,T,N,C].
            inputs: what the operations read.
            weights: w [B,E,O].

        Returns:
            [B,E,T,N]; NaN where that operation has no node_att.
        """
        found = []
        edges = zip(edges_of(self.supernodes), self.edges, weights.unbind(1), strict=True)
        for (i, _), operations, w in edges:
            choice = w.argmax(-1)
            attention = torch.full_like(states[i][..., 0], math.nan)
            # Views may choose different operations: each operation gets the views that chose it.
            for o in choice.unique().tolist():
                rows = (choice == o).nonzero()[:, 0]
                operation = operations[self.space[o]]
                part = node_weights(operation, states[i][rows], inputs.take(rows))
                if part is not None:
                    attention[rows] = part.to(attention.dtype)
            found.append(attention)
        return torch.stack(found, 1)

    def _mixed(
        self, operations: nn.ModuleDict, x: Tensor, inputs: OperationInputs, w: Tensor
    ) -> Tensor:
        """Return sum_o w_o o(x), eq. (10), for w [B,O]."""
        total = torch.zeros_like(x)
        for o, name in enumerate(self.space):
            # It adds 0; its weight still lowers the others through the softmax.
            if name != "none":
                total = total + w[:, o, None, None, None] * operations[name](x, inputs)
        return total

    def _chosen(
        self, operations: nn.ModuleDict, x: Tensor, inputs: OperationInputs, w: Tensor
    ) -> Tensor:
        """Return the heaviest operation's o(x) for every view, eq. (11)."""
        choice = w.argmax(-1)
        total = torch.zeros_like(x)
        # Views that chose alike are computed together.
        for o in choice.unique().tolist():
            rows = (choice == o).nonzero()[:, 0]
            operation = operations[self.space[o]]
            # All views chose alike: nothing to select or to put back.
            if len(rows) == len(x):
                return operation(x, inputs)
            if self.space[o] != "none":
                part = operation(x[rows], inputs.take(rows))
                total = total.index_add(0, rows, part.to(total.dtype))
        return total


class Structure(nn.Module):
    """alpha [B,cells,E,O] from g [B,inputs], eq. (12).

    The weights start at 0, so that every view has the same structure at first.

    Args:
        inputs: channels of g.
        shape: (cells, E, O).
        form: "adaptive"; "shared", one learned structure for all videos; "shared_test", adaptive
            in training and the mean structure in evaluation.
    """

    def __init__(self, inputs: int, shape: tuple[int, int, int], form: str):
        super().__init__()
        self.form = form
        # A buffer, so that a checkpoint says what its structure is made of.
        self.register_buffer("shape", torch.tensor(shape))
        self.sizes = shape

        outputs, bound = math.prod(shape), inputs**-0.5
        if form == "shared":
            self.alpha = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        else:
            # The bias keeps torch's start, U(-bound, bound).
            self.alpha = nn.Linear(inputs, outputs)
            nn.init.zeros_(self.alpha.weight)
        if form == "shared_test":
            # With zero weights, alpha is the bias for every video: the mean starts there.
            self.register_buffer("mean", self.alpha.bias.detach().clone())

    def forward(self, g: Tensor) -> Tensor:
        """Compute alpha.

        Args:
            g: [B,inputs].

        Returns:
            [B,cells,E,O]. "shared_test" updates its mean in training.
        """
        if self.form == "shared":
            alpha = self.alpha.expand(len(g), -1)
        else:
            alpha = self.alpha(g)
            # Autocast returns half precision, which is too coarse to choose a structure with.
            if g.dtype != torch.float64:
                alpha = alpha.float()
        if self.form == "shared_test":
            # A transferred structure is fixed, and so is its mean.
            if self.training and self.alpha.bias.requires_grad:
                self.mean.lerp_(alpha.detach().mean(0).to(self.mean.dtype), 1 - DECAY)
            else:
                alpha = self.mean.expand_as(alpha)
        return alpha.unflatten(1, self.sizes)


def diversity_of(alpha: Tensor) -> Tensor:
    """Compute L_var, eq. (13).

    Args:
        alpha: [B,cells,E,O].

    Returns:
        The variance over the operations of the sum over the edges, averaged over the views.
    """
    return alpha.sum((1, 2)).var(-1).mean()
