"""The searched cell of GOS, and the structure that weighs its operations.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.

    s_0 = x,  s_j = sum_(i<j) sum_o w^ij_o o(s_i)      [B,T,N,C]   eq. (1), (10)
    search:   w^ij = softmax_o(alpha^ij)               [B,E,O]     all operations, mixed
    discrete: w^ij = 1[alpha^ij_o = max]               [B,E,O]     eq. (11)
    alpha = A g + a                                    [B,E,O]     eq. (12)
    L_var = var_o(sum_ij alpha^ij_o)                               eq. (13)

The operations o are in heads/papers/gos/operations.py. There are E = S (S+1) / 2 edges. The
variance has the factor 1 / (|O| - 1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.interface.usage import Usage
from heads.interface.votes import Votes
from heads.papers.gos.affinity import OperationChoices, OperationSizes
from heads.papers.gos.operation_inputs import OperationInputs
from heads.papers.gos.operations import new_operation, node_weights

STRUCTURES = ("adaptive", "shared", "shared_test")
COMMON = "common"  # the buffer of the structure that most training views chose


def edges_of(supernodes: int) -> tuple[tuple[int, int], ...]:
    """Return (i, j) of every edge, i < j, grouped by where they end."""
    edges = []
    for j in range(1, supernodes + 1):
        edges += [(i, j) for i in range(j)]
    return tuple(edges)


class Cell(nn.Module):
    """The states after s_0; every edge has operations of its own. `reads` names what they read.

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
            for operation in operations.values():
                operation.usage = Usage()
            self.edges.append(nn.ModuleDict(operations))
        # All edges have the same operations.
        reads = set()
        for operation in operations.values():
            reads.update(operation.reads)
        self.reads = tuple(sorted(reads))

    def forward(
        self,
        x: Tensor,
        inputs: OperationInputs,
        weights: Tensor,
        discrete: bool,
        known: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Compute the states.

        Args:
            x: [B,T,N,C], s_0.
            inputs: what the operations read.
            weights: w [B,E,O].
            discrete: whether to compute each edge's heaviest operation alone.
            known: that operation's number for every edge, if it is the same for all views; only
                where `discrete`.

        Returns:
            s_1 .. s_S, each [B,T,N,C].
        """
        compute = self._mixed
        if discrete:
            # A GPU would have to be waited for to learn which views chose which operation.
            compute = self._selected if x.device.type == "cuda" else self._chosen
        states = [x] + [torch.zeros_like(x)] * self.supernodes
        edges = zip(edges_of(self.supernodes), self.edges, weights.unbind(1), strict=True)
        # Edges are grouped by their end, so that s_i is complete before an edge leaves it.
        for e, ((i, j), operations, w) in enumerate(edges):
            if known is not None:
                result = operations[self.space[known[e]]](states[i], inputs)
            else:
                result = compute(operations, states[i], inputs, w)
            states[j] = states[j] + result
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

    def _selected(
        self, operations: nn.ModuleDict, x: Tensor, inputs: OperationInputs, w: Tensor
    ) -> Tensor:
        """Return what `_chosen` does, without asking the device which operations the views chose.

        Every operation is computed for every view, as in a mixture.
        """
        choice = w.argmax(-1)
        total = torch.zeros_like(x)
        for o, name in enumerate(self.space):
            chose = choice == o
            if self.training and torch.is_grad_enabled():
                operations[name].usage.note(chose.any())
            if name != "none":
                part = operations[name](x, inputs).to(total.dtype)
                # Not a product with 0, which NaN would survive.
                total = torch.where(chose[:, None, None, None], part, total)
        return total


class Structure(nn.Module):
    """alpha [B,cells,E,O] from g [B,inputs], eq. (12).

    The weights start at 0, so that every view has the same structure at first.

    It counts the structures of a training epoch, in `votes`. Buffer `common` [cells,E] is the one
    that most views chose; -1 before the first epoch has ended. A checkpoint holds it.

    Args:
        inputs: channels of g.
        shape: (cells, E, O).
        form: "adaptive"; "shared", one learned structure for all videos; "shared_test", adaptive
            in training, and the common structure in evaluation.
    """

    def __init__(self, inputs: int, shape: tuple[int, int, int], form: str):
        super().__init__()
        self.form = form
        # A buffer, so that a checkpoint says what its structure is made of.
        self.register_buffer("shape", torch.tensor(shape))
        self.register_buffer(COMMON, torch.full(shape[:2], -1))
        self.sizes = shape
        self.votes = Votes()
        # What `of_all_views` was asked for: the tensor, its version, the answer.
        self._asked: tuple[Tensor, int, list | None] | None = None

        outputs, bound = math.prod(shape), inputs**-0.5
        if form == "shared":
            self.alpha = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        else:
            # The bias keeps torch's start, U(-bound, bound).
            self.alpha = nn.Linear(inputs, outputs)
            nn.init.zeros_(self.alpha.weight)

    def forward(self, g: Tensor) -> Tensor:
        """Compute alpha [B,cells,E,O] from g [B,inputs]."""
        if self.form == "shared":
            alpha = self.alpha.expand(len(g), -1)
        else:
            alpha = self.alpha(g)
            # Autocast returns half precision, which is too coarse to choose a structure with.
            if g.dtype != torch.float64:
                alpha = alpha.float()
        alpha = alpha.unflatten(1, self.sizes)
        if self.training:
            self.votes.cast(alpha.detach().argmax(-1).flatten(1))
        return alpha

    @property
    def evaluated_with(self) -> Tensor | None:
        """The structure [cells,E] that form "shared_test" evaluates every view with, if any."""
        known = self.form == "shared_test" and self.of_all_views is not None
        return self.common if known else None

    @property
    def of_all_views(self) -> list[list[int]] | None:
        """The discrete structure by cell and edge, if the form gives all views the same one.

        It waits for the device where that structure may have changed since the last call.
        """
        if self.form == "adaptive" or (self.form == "shared_test" and self.training):
            return None
        source = self.alpha if self.form == "shared" else self.common
        asked = self._asked
        if asked is None or asked[0] is not source or asked[1] != source._version:
            asked = self._asked = (source, source._version, self._ask(source.detach()))
        return asked[2]

    def _ask(self, source: Tensor) -> list[list[int]] | None:
        if self.form == "shared":
            # By the weights, as every view's own: the softmax may round two of them to one number.
            return source.view(self.sizes).softmax(-1).argmax(-1).tolist()
        common = source.tolist()
        return None if any(min(cell) < 0 for cell in common) else common

    def train(self, mode: bool = True) -> "Structure":
        """Set the mode; an epoch of training ends with it, and another one may begin."""
        self._count()
        self.votes.end_epoch()
        self._asked = None
        return super().train(mode)

    def _count(self) -> None:
        most = self.votes.most()
        if most is not None:
            self.common.copy_(torch.tensor(most).view_as(self.common))

    def _save_to_state_dict(self, *args) -> None:
        self._count()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        # Checkpoints of earlier versions counted no structures.
        state.setdefault(prefix + COMMON, torch.full(self.sizes[:2], -1))
        super()._load_from_state_dict(state, prefix, *args)


def one_hot(structure: Tensor, views: int, operations: int, like: Tensor) -> Tensor:
    """Return the weights w [views,cells,E,O] of one structure [cells,E], eq. (11)."""
    # Not F.one_hot, which may look at the values, and so wait for the device.
    each = torch.arange(operations, device=structure.device)
    return (structure[..., None] == each).to(like.dtype).expand(views, -1, -1, -1)


def diversity_of(alpha: Tensor) -> Tensor:
    """Compute L_var, eq. (13).

    Args:
        alpha: [B,cells,E,O].

    Returns:
        The variance over the operations of the sum over the edges, averaged over the views.
    """
    return alpha.sum((1, 2)).var(-1).mean()
