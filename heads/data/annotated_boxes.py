"""Annotated boxes of cached views: those that the cache holds, or those of a file.

Boxes of a file are put into a view by what the cache records of it: its frames, crop, mirroring.
No video is opened.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.regions.boxes import pack, to_view
from pipeline.views.video_info import VideoInfo

if TYPE_CHECKING:
    from pipeline.cache.reader import Group

OF_CACHE = ("boxes", "valid")
OF_FILE = ("frames", "crop", "flip")
# The source of boxes whose boxes were annotated, by its name in a cache's configuration.
ANNOTATIONS = "annotations"


def has_annotated_boxes(group: "Group") -> bool:
    """Return whether a cache holds boxes of views that come from annotations."""
    annotated = group.cache.config.get("proposals") == ANNOTATIONS
    return annotated and set(OF_CACHE) <= set(group.fields)


class AnnotatedBoxes:
    """The annotated boxes of a group of views.

    Args:
        group: the views.
        source: gives the boxes of frames, as `pipeline.proposals.annotations` does; None takes
            the boxes that the cache holds.

    Raises:
        ValueError: the cache lacks a field that is needed.
    """

    def __init__(self, group: "Group", source: Any | None = None):
        self.group, self.source = group, source
        self.fields = OF_CACHE if source is None else OF_FILE
        missing = [name for name in self.fields if name not in group.fields]
        if missing:
            raise ValueError(
                f"{group.cache.path}: annotated boxes need {', '.join(self.fields)} of its views, "
                f"and it lacks {', '.join(missing)}"
            )

    def of(self, rows: Sequence[int] | np.ndarray, steps: int) -> tuple[Tensor, Tensor]:
        """Return the boxes of some views.

        Args:
            rows: [B] rows of the group.
            steps: T, feature steps of a view.

        Returns:
            boxes [B,T,N,4], xyxy in [0,1] of the view, and valid [B,T,N] bool.

        Raises:
            BoxesError: boxes of a clip lie outside its frame.
        """
        fields = self.group.batch([int(row) for row in rows], self.fields)
        if self.source is None:
            return torch.from_numpy(fields["boxes"]), torch.from_numpy(fields["valid"])

        boxes, valid = [], []
        clips = {clip.clip: clip for clip in self.group.cache.manifest.clips}
        for k, row in enumerate(rows):
            view = {name: values[k] for name, values in fields.items()}
            found = self._of_view(clips[self.group.clips[int(row)]], view, steps)
            boxes.append(found[0])
            valid.append(found[1])
        return torch.from_numpy(np.stack(boxes)), torch.from_numpy(np.stack(valid))

    def _of_view(self, clip, view: dict, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [T,N,4] and valid [T,N] of one view."""
        frames = view["frames"].tolist()
        # Every (F/T)-th frame, as at the extraction.
        numbers = tuple(frames[t * len(frames) // steps] for t in range(steps))
        *crop, width, height = view["crop"].tolist()
        info = VideoInfo(max(frames) + 1, 0.0, round(width), round(height))
        found, scores = self.source.propose(None, clip, info, numbers)
        inside, keep = to_view(found, tuple(crop), (width, height), bool(view["flip"]))
        boxes, _, valid = pack(inside, scores, keep, self.source.num_boxes)
        return boxes, valid
