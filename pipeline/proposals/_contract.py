"""What extraction relies on in any source of boxes, as checks that run on one.

The tests run them over every source of ours, and `vidgraph check-plugin` over a plug-in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.plugins import require
from pipeline.proposals import LABELS


@dataclass(frozen=True)
class SourceCase:
    """A source of boxes under test, and a clip that it knows.

    Attributes:
        source: what `build` returned.
        clip: a `pipeline.manifests.manifest.Clip`.
        info: its `pipeline.views.video_info.VideoInfo`.
        numbers: the frames that are asked for.
    """

    source: Any
    clip: Any
    info: Any
    numbers: Sequence[int] = (0, 3, 7)

    def frames(self, black: bool = False) -> torch.Tensor | None:
        """Frames uint8 [K,H,W,3]: noise, or black; None where the source needs no pixels."""
        size = self.source.frame_size
        if size is None:
            return None
        # Wider than high, so that a source that swaps the two is found out.
        shape = (len(self.numbers), size, size * 3 // 2, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return torch.from_numpy(np.zeros_like(pixels) if black else pixels)

    def propose(self, black: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Boxes and scores of these frames."""
        return self.source.propose(self.frames(black), self.clip, self.info, tuple(self.numbers))


def has_its_attributes(case: SourceCase) -> None:
    """`frame_size`, `in_view`, `num_boxes` and `weights_sha256` are there; `to` returns it."""
    source = case.source
    for name in ("frame_size", "in_view", "num_boxes", "weights_sha256", "to", "propose"):
        require(hasattr(source, name), f"it has no `{name}`")
    size = source.frame_size
    require(
        size is None or (isinstance(size, int) and size > 0),
        f"frame_size is {size!r}, expected pixels, or None where it needs none",
    )
    require(isinstance(source.in_view, bool), f"in_view is {source.in_view!r}, expected a bool")
    many = source.num_boxes
    require(isinstance(many, int) and many > 0, f"num_boxes is {many!r}, expected N from 1")
    require(isinstance(source.weights_sha256, str), 'weights_sha256 is no text; "" for none')
    require(source.to("cpu", "fp32") is source, "to(device, precision) does not return the source")


def boxes_have_their_shape(case: SourceCase) -> None:
    """`propose` returns float32 arrays [K,N,4] and [K,N], with N rows for every frame."""
    boxes, scores = case.propose()
    frames, rows = len(case.numbers), case.source.num_boxes
    for name, found, wanted in (
        ("boxes", boxes, (frames, rows, 4)),
        ("scores", scores, (frames, rows)),
    ):
        require(isinstance(found, np.ndarray), f"{name} are a {type(found).__name__}, not an array")
        require(
            found.shape == wanted,
            f"{name} have the shape {list(found.shape)}, expected {list(wanted)}",
        )
        require(found.dtype == np.float32, f"{name} are {found.dtype}, expected float32")


def boxes_are_xyxy_in_range(case: SourceCase) -> None:
    """Boxes are x, y, x, y in [0,1], the upper left corner first."""
    for black in (False, True):
        boxes, _ = case.propose(black)
        require(bool(((boxes >= 0) & (boxes <= 1)).all()), "boxes leave [0,1]")
        ordered = bool((boxes[..., :2] <= boxes[..., 2:]).all())
        require(ordered, "a box has its right or lower edge before the left or upper one: not xyxy")


def labels_belong_to_boxes(case: SourceCase) -> None:
    """A source with labels names them, and gives whole numbers [K,N] that fit its classes: -1 where
    no box is. One without has nothing to show."""
    source = case.source
    labels = tuple(getattr(source, "labels", ()))
    if not labels:
        return
    require(set(labels) <= set(LABELS), f"labels are {labels}, expected some of {LABELS}")
    asked = (case.frames(), case.clip, case.info, tuple(case.numbers))
    boxes, scores, known = source.propose_labelled(*asked)
    require(set(known) == set(labels), f"it gives {sorted(known)}, its labels are {labels}")
    wanted = (len(case.numbers), source.num_boxes)
    require(boxes.shape == (*wanted, 4), f"boxes have the shape {list(boxes.shape)}")
    require(not boxes[scores < 0].any(), "a row with score -1 has a box that is not zeros")
    for name, values in known.items():
        require(values.shape == wanted, f"{name} has the shape {list(values.shape)}")
        require(values.dtype.kind == "i", f"{name} are {values.dtype}, expected whole numbers")
        require(bool((values >= -1).all()), f"{name} has values below -1")
        require(bool((values[scores < 0] == -1).all()), f"{name} is not -1 where no box is")
    if "box_class" in labels:
        names = source.class_names
        all_text = all(isinstance(name, str) for name in names)
        require(all_text and len(set(names)) == len(names), f"class_names are {names!r}")
        require(bool((known["box_class"] < len(names)).all()), "a class has no name")


def best_first_then_empty_rows(case: SourceCase) -> None:
    """Scores fall; rows after the last box have score -1 and a box of zeros, also in frames that
    have no box at all."""
    for black in (False, True):
        boxes, scores = case.propose(black)
        require(bool(((scores >= 0) | (scores == -1)).all()), "a score is below 0 and is not -1")
        require(bool((np.diff(scores, axis=1) <= 0).all()), "scores do not fall within a frame")
        require(not boxes[scores < 0].any(), "a row with score -1 has a box that is not zeros")


def asked_again_gives_the_same(case: SourceCase) -> None:
    """The same frames give the same boxes."""
    first, again = case.propose(), case.propose()
    for one, other in zip(first, again, strict=True):
        require(np.array_equal(one, other), "the same frames give other boxes when asked again")


CHECKS: dict[str, Callable[[SourceCase], None]] = {
    check.__name__: check
    for check in (
        has_its_attributes,
        boxes_have_their_shape,
        boxes_are_xyxy_in_range,
        best_first_then_empty_rows,
        labels_belong_to_boxes,
        asked_again_gives_the_same,
    )
}
