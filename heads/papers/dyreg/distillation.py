"""DyReg's distillation: networks with one module each teach the regions of one with several
(NeurIPS 2021, sec. 3.3).

The student's modules and the teachers' are matched by the point of the backbone they stand at. What
is compared, and for how long, is in heads/papers/dyreg/regions.py (`distillation_loss`) and the
recipe's table [train.distil].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, HeadOutput
from heads.papers.dyreg.module import recorded
from heads.papers.dyreg.regions import distillation_loss


class Teachers:
    """Frozen heads that teach a `student` (heads.zoo.dyreg); on the student's device.

    needs, uses: what the teachers read. ValueError unless every module of the student has exactly
    one teacher.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[nn.Module]):
        for head in (student, *teachers):
            if not hasattr(head, "dyregs"):
                raise ValueError(
                    f"train.distil: expected heads dyreg as student and teachers, got "
                    f"{type(head).__name__}"
                )
        self.heads = {
            point: head.eval().requires_grad_(False) for head in teachers for point in head.points
        }
        if sorted(self.heads) != sorted(student.points) or len(self.heads) != sum(
            len(head.points) for head in teachers
        ):
            theirs = ", ".join(point for head in teachers for point in head.points)
            raise ValueError(
                f"train.distil.teachers: their modules are at {theirs}, expected one for each of "
                f"{', '.join(student.points)}"
            )
        self.needs = tuple(dict.fromkeys(name for head in teachers for name in head.needs))
        self.uses = tuple(dict.fromkeys(name for head in teachers for name in getattr(head, "uses", ())))

    def teach(self, student: nn.Module, clips: Clips, weight: float) -> HeadOutput:
        """student(clips) with `losses["distillation"]`, `weight` times the loss of the offsets of
        its regions.
        """
        wanted = [self._offsets(point, clips) for point in student.points]
        with recorded(student.dyregs) as records:
            out = student(clips)
        found = [record[-1].offsets for record in records]
        return HeadOutput(
            out.logits,
            {**out.losses, "distillation": weight * distillation_loss(found, wanted)},
            out.maps,
        )

    @torch.no_grad()
    def _offsets(self, point: str, clips: Clips) -> Tensor | None:
        """The offsets [B,T,N,4] that the teacher at `point` predicts."""
        head = self.heads[point]
        with recorded(head.dyregs) as records:
            head(clips)
        return records[head.points.index(point)][-1].offsets
