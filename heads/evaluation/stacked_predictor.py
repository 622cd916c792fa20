"""Several heads of the same shapes predict as one, in one call for each batch.

    predictor = StackedPredictor(StackedHead(heads, limit=1e-4), part, recipe, precision)
    outcomes = predict_all([predictor], store)[0]       # one for each head

The first batch is computed both ways. Where the logits differ by more than `limit`, or torch cannot
compute the heads in one call, each head predicts by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from heads.evaluation.head_predictor import HeadPredictor, Predictions, join_rows
from heads.interface.clips import Clips, HeadOutput
from heads.interface.loss import LossNotFinite
from heads.interface.members import as_members


class StackedHead(nn.Module):
    """M heads as one, for predictions alone: later changes of their weights are not seen.

    Args:
        heads: of the same shapes.
        limit: by how much logits of the two ways may differ, relative to a head's largest one.
        compared: whether the two ways were compared before, with other weights.

    Attributes:
        why: why the heads predict one by one after all, in words; "" if they do not.
    """

    def __init__(self, heads: Sequence[nn.Module], limit: float, compared: bool = False):
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.limit, self.compared, self.why = limit, compared, ""
        self.needs, self.uses = heads[0].needs, getattr(heads[0], "uses", ())
        # What differs from head to head [M,...], and what is equal; stacked at the first batch.
        self.own: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}

    def _stack(self) -> None:
        states = [dict([*head.named_parameters(), *head.named_buffers()]) for head in self.heads]
        for name, tensor in states[0].items():
            stacked = torch.stack([state[name].detach() for state in states])
            if tensor.requires_grad or not bool((stacked == stacked[:1]).all()):
                self.own[name] = stacked
            else:
                self.shared[name] = tensor.detach()

    def forward(self, clips: Clips) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: B views.

        Returns:
            logits [B,M,K] in float32; what is stored, each [B,M,...].
        """
        if self.why:
            return self._one_by_one(clips)
        try:
            out = self._as_one(clips)
        # Whatever vmap or the memory refuses.
        except Exception as error:
            self.why = str(error).strip().partition("\n")[0] or type(error).__name__
            return self._one_by_one(clips)
        if self.compared:
            return out

        self.compared = True
        alone = self._one_by_one(clips)
        difference = _difference(alone.logits, out.logits)
        if not difference <= self.limit:
            self.why = (
                f"predictions differ by {difference:.1g} of the largest logit from those of one by "
                f"one (allowed: {self.limit:g})"
            )
        return alone

    def _as_one(self, clips: Clips) -> HeadOutput:
        if not self.own:
            self._stack()

        def one(own: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            out = functional_call(self.heads[0], {**self.shared, **own}, (clips,))
            return out.logits.float(), out.stored

        with as_members():
            logits, stored = vmap(one, out_dims=1, randomness="error")(self.own)
        return HeadOutput(logits, stored=stored)

    def _one_by_one(self, clips: Clips) -> HeadOutput:
        outs = [head(clips) for head in self.heads]
        stored = {}
        for name in outs[0].stored:
            stored[name] = torch.stack([out.stored[name] for out in outs], 1)
        return HeadOutput(torch.stack([out.logits.float() for out in outs], 1), stored=stored)


def _difference(alone: Tensor, together: Tensor) -> float:
    """The largest difference of logits [B,M,K], relative to each head's largest logit.

    Heads whose logits are not finite are left out: they end in any case.
    """
    largest = alone.abs().amax((0, 2))
    apart = (alone - together).abs().amax((0, 2))
    shares = apart / largest.clamp(min=torch.finfo(largest.dtype).tiny)
    return float(torch.where(torch.isfinite(largest), shares, 0).max())


@dataclass(frozen=True)
class StackedPredictor(HeadPredictor):
    """A `HeadPredictor` of a `StackedHead`, whose outcome is a list with one for each head."""

    head: StackedHead

    def join(
        self,
        logits: Sequence[Tensor],
        stored: dict[str, list[Tensor]],
        seconds: float,
        waiting: float,
    ) -> "list[Predictions | LossNotFinite]":
        """Join the batches of every head; see `HeadPredictor.join`."""
        table = torch.from_numpy(join_rows(logits))
        tables = {name: torch.from_numpy(join_rows(batches)) for name, batches in stored.items()}
        outcomes = []
        for member in range(len(self.head.heads)):
            own = {name: [rows[:, member]] for name, rows in tables.items()}
            share = seconds / len(self.head.heads)
            outcomes.append(super().join([table[:, member].contiguous()], own, share, waiting))
        return outcomes
