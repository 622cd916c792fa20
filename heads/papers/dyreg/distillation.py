"""DyReg's distillation: networks with one module each teach the regions of one with several.

Duta, Nicolicioiu and Leordeanu, NeurIPS 2021, sec. 3.3. The modules of student and teachers are
matched by the point of the backbone at which they are inserted. `distillation_loss` in
heads/papers/dyreg/regions.py says what is compared, the recipe's table [train.distil] for how long.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, HeadOutput
from heads.papers.dyreg.module import recorded
from heads.papers.dyreg.regions import distillation_loss


class Teachers:
    """Frozen heads that teach a student, on the student's device.

    `needs` and `uses` name the fields that the teachers read.

    Args:
        student: a head of `heads.zoo.dyreg`.
        teachers: heads of `heads.zoo.dyreg`; they are put in eval mode and frozen.

    Raises:
        ValueError: a head is not dyreg, or a module of the student has no teacher or several.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[nn.Module]):
        for head in (student, *teachers):
            if not hasattr(head, "dyregs"):
                raise ValueError(
                    "train.distil: expected heads dyreg as student and teachers, got "
                    f"{type(head).__name__}"
                )

        points, needs, uses = [], [], []
        self.heads = {}
        for head in teachers:
            head.eval().requires_grad_(False)
            self.heads.update(dict.fromkeys(head.points, head))
            points += head.points
            needs += head.needs
            uses += head.uses
        self.needs, self.uses = tuple(dict.fromkeys(needs)), tuple(dict.fromkeys(uses))

        if sorted(points) != sorted(student.points):
            raise ValueError(
                f"train.distil.teachers: their modules are at {', '.join(points)}, expected one "
                f"for each of {', '.join(student.points)}"
            )

    def teach(self, student: nn.Module, clips: Clips, weight: float) -> HeadOutput:
        """Run the student and add the distillation loss.

        Args:
            student: the head that learns.
            clips: a batch with what student and teachers read.
            weight: of the loss.

        Returns:
            What the student returns, with `losses["distillation"]`.
        """
        targets = [self._offsets(point, clips) for point in student.points]
        with recorded(student.dyregs) as records:
            out = student(clips)
        offsets = [record[-1].offsets for record in records]
        loss = weight * distillation_loss(offsets, targets)
        return HeadOutput(out.logits, {**out.losses, "distillation": loss}, out.maps)

    @torch.no_grad()
    def _offsets(self, point: str, clips: Clips) -> Tensor | None:
        """Return the offsets [B,T,N,4] that the teacher at a point predicts."""
        head = self.heads[point]
        with recorded(head.dyregs) as records:
            head(clips)
        return records[head.points.index(point)][-1].offsets
