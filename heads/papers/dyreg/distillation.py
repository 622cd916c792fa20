"""DyReg's distillation: networks with one module each teach the regions of one with several.

Duta, Nicolicioiu and Leordeanu, NeurIPS 2021: regions of networks with one graph are distilled into
the one with three for the first tenth of the iterations. The modules of student and teachers are
matched by the point of the backbone at which they are inserted. The recipe's table [train.distil]
says for how many iterations the loss counts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.clips import Clips, HeadOutput
from heads.papers.dyreg.module import recorded


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
            # A point that two teachers share stays twice in `points`, so the check below finds it.
            self.heads.update(dict.fromkeys(head.points, head))
            points += head.points
            needs += head.needs
            uses += getattr(head, "uses", ())
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
        # [B,T,N,4] each, with gradients: the loss trains what predicts the student's regions.
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


def distillation_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Compare the offsets of a network's modules with those of their single-module teachers.

    The paper does not state the form, and the release has no distillation; smooth-L1 is ours.

    Args:
        students: o [B,T,N,4] of every module.
        teachers: o [B,T,N,4] of every teacher; they get no gradient.

    Returns:
        A scalar, the mean over everything and over the modules.

    Raises:
        ValueError: a student has no teacher of the same shape.
    """
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"expected a teacher for each module, got {len(students)} modules and {len(teachers)} "
            "teachers"
        )

    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        if student is None or teacher is None or student.shape != teacher.shape:
            raise ValueError(
                "expected offsets of the same shape of module and teacher, got "
                f"{_shape(student)} and {_shape(teacher)}"
            )
        losses.append(F.smooth_l1_loss(student, teacher.detach()))
    return torch.stack(losses).mean()


def _shape(offsets: Tensor | None) -> str:
    return "none" if offsets is None else str(list(offsets.shape))
