"""Views of videos as frames: decoded by worker processes, with boxes from a cache or from the
source that would fill one.

The views are the cache's own: the same frames, crops and mirroring, found again from (seed, clip,
view number). With `fresh` every epoch draws other training views, as if the cache had been made
with another seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from heads.data.splits import SplitViews
from heads.finetuning.frame_training import Piece
from heads.interface.clips import Clips
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.proposals import BoxesError
from pipeline.stages.config import ExtractConfig
from pipeline.stages.frozen_networks import boxes_of
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener, ClipPixels, DecodeViews, run_task
from pipeline.views.sampling import Sampling, View, count_views
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache

BOXES = ("boxes", "scores", "valid")
PLACE = ("frames", "crop", "flip")  # what a cache says of where a view comes from
AGAIN = 1  # times that a clip is given to another decode process when its own died


@dataclass(frozen=True)
class PlannedCache:
    """What an extraction of a manifest would hold, as far as training looks at a cache: the views
    of every clip.
    """

    path: str
    manifest: Manifest
    sampling: Sampling

    @property
    def groups(self) -> tuple[str, ...]:
        """train, test, or both."""
        return tuple(group for group, count in count_views(self.sampling).items() if count)

    def __getitem__(self, group: str) -> "PlannedGroup":
        count = count_views(self.sampling)[group]
        if not count:
            option = {"train": "--train-views", "test": "--test-clips"}[group]
            raise ValueError(f"{self.path}: no {group} view is asked for; pass {option} from 1")
        clips = [clip.clip for clip in self.manifest.clips]
        views = np.tile(np.arange(count, dtype=np.int32), len(clips))
        there = np.ones(len(views), bool)
        return PlannedGroup(
            [clip for clip in clips for _ in range(count)], views, count, there, there
        )


@dataclass
class PlannedGroup:
    """As `pipeline.cache.reader.Group`, without fields."""

    clips: list[str]
    views: np.ndarray
    per_clip: int
    present: np.ndarray
    ok: np.ndarray


class VideoViews:
    """A `heads.finetuning.frame_training.FrameSource`. Close it: it owns decode processes.

    clips: by id, with paths as `root` has them and labels as the extraction had them. `cache`:
    where the boxes of its own views are; `source` (see pipeline/proposals) finds those of other
    views; without either a view has none. `steps`: T. `workers` 0 decodes in this process;
    `time_limit`: seconds for a clip.
    """

    def __init__(
        self,
        config: ExtractConfig,
        parts: Mapping[str, SplitViews],
        clips: Mapping[str, Clip],
        opening: ClipOpener,
        steps: int,
        *,
        cache: "Cache | None" = None,
        source: Any = None,
        fresh: bool = False,
        device: torch.device | str = "cpu",
        workers: int = 1,
        time_limit: float = 120.0,
    ):
        self.config, self.parts, self.clips, self.opening, self.steps = (
            config,
            parts,
            clips,
            opening,
            steps,
        )
        self.cache, self.source, self.fresh, self.device = (
            cache,
            source,
            fresh,
            torch.device(device),
        )
        self.pool = WorkerPool(run_task, workers, timeout=time_limit, again=AGAIN)
        self.ahead = max(1, 2 * workers)

    def close(self) -> None:
        """Ends the decode processes."""
        self.pool.close()

    def __enter__(self) -> "VideoViews":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """See `heads.finetuning.frame_training.FrameSource`."""
        return self.views(
            self.parts[split], batches, epoch if self.fresh and split == "train" else None
        )

    def views(
        self, part: SplitViews, batches: Sequence[np.ndarray], epoch: int | None
    ) -> Iterator[list[Piece]]:
        """The views of a split, other ones in every `epoch`; None: those that a cache has."""
        runs = [
            [list(run) for _, run in groupby(rows.tolist(), key=lambda row: part.group.clips[row])]
            for rows in batches
        ]
        asked = self.pool.imap((self._task(part, run, epoch) for run in chain(*runs)), self.ahead)
        kept = self.cache is not None and epoch is None
        for mine in runs:
            found: list[tuple[int, View, np.ndarray, tuple]] = []
            place = 0
            for rows in mine:
                found += self._take(part, rows, place, *next(asked), kept)
                place += len(rows)
            yield [self._piece(some) for some in _by_size(found)]

    def _task(self, part: SplitViews, rows: Sequence[int], epoch: int | None) -> DecodeViews:
        """What a decode process is asked for: these views of one clip."""
        config, sampling, seed, group = (
            self.config,
            self.config.sampling,
            self.config.seed,
            _group(part),
        )
        only = tuple((group, int(part.group.views[row])) for row in rows)
        if epoch is not None:
            sampling, only = replace(sampling, train_views=1, test_clips=0), (("train", 0),)
            seed = int(np.random.SeedSequence([config.seed, 1 + epoch]).generate_state(1)[0])
        size = self.source.frame_size if self.source is not None else None
        return DecodeViews(
            self.clips[part.group.clips[rows[0]]],
            self.opening,
            sampling,
            seed,
            self.steps,
            size,
            only,
        )

    def _take(
        self,
        part: SplitViews,
        rows: Sequence[int],
        place: int,
        task: DecodeViews,
        result,
        kept: bool,
    ) -> list[tuple]:
        """(place, view, pixels, boxes) of each of these rows; none of a clip that cannot be had."""
        if isinstance(result, (DecodeError, TimeoutError, WorkerDied)):
            return []
        if not isinstance(result, ClipPixels):
            raise result
        if kept:
            boxes = self._cached_boxes(part, rows, result)
        elif self.source is None:
            boxes = [()] * len(rows)
        else:
            try:
                boxes = boxes_of(self.source, task.clip, result, self.steps)
            except BoxesError:
                return []
        numbers = {(view.group, view.number): k for k, view in enumerate(result.views)}
        order = [numbers[name] for name in task.only]
        order += order[:1] * (
            len(rows) - len(order)
        )  # a clip that is drawn twice running has one fresh view
        return [
            (place + n, result.views[k], result.pixels[k], boxes[k]) for n, k in enumerate(order)
        ]

    def _cached_boxes(
        self, part: SplitViews, rows: Sequence[int], result: ClipPixels
    ) -> list[tuple]:
        """What the cache holds for the views of a result, in their order. ValueError where its
        views are other ones.
        """
        row_of = {int(part.group.views[row]): row for row in rows}
        own = [row_of[view.number] for view in result.views]
        names = BOXES if self.config.wants_boxes else ()
        stored = part.group.batch(own, fields=(*PLACE, *names))
        for k, view in enumerate(result.views):
            crop = np.array((*view.crop, result.info.width, result.info.height), np.float32)
            here = (np.array(view.frames) + result.info.first, crop, np.bool_(view.flip))
            for name, value in zip(PLACE, here, strict=True):
                if not np.array_equal(stored[name][k], value):
                    raise ValueError(
                        f"{self.cache.path}, clip {part.group.clips[own[k]]}, view {view.number}: "
                        f"{name} is "
                        f"{_short(stored[name][k])} in the cache, {_short(value)} in the video as "
                        f"it is now: it is another "
                        "file, its labels are others, or the cache is older than --pixel-aspect "
                        "and its pixels are not square; "
                        "extract again, or pass --root with the videos of the extraction"
                    )
        return [tuple(stored[name][k] for name in names) for k in range(len(own))]

    def _piece(self, found: Sequence[tuple[int, View, np.ndarray, tuple]]) -> Piece:
        places, views, pixels, boxes = zip(*found, strict=True)
        tensors = {
            "frames": torch.from_numpy(np.stack(pixels)),
            "flip": torch.tensor([view.flip for view in views]),
        }
        for name, arrays in zip(BOXES, zip(*boxes, strict=True), strict=False):
            tensors[name] = torch.from_numpy(np.stack(arrays))
        return Clips(
            **{name: tensor.to(self.device) for name, tensor in tensors.items()}
        ), np.array(places)


def _by_size(found: Sequence[tuple]) -> list[list[tuple]]:
    """What was found, split where the sizes of the views differ."""
    sizes = dict.fromkeys(one[1].size for one in found)
    return [[one for one in found if one[1].size == size] for size in sizes]


def _group(part: SplitViews) -> str:
    """Which views a split has: random ones to train on, or those of an evaluation."""
    return "train" if part.split == "train" else "test"


def _short(value: np.ndarray) -> str:
    text = np.array2string(value, threshold=6).replace("\n", "")
    return text if len(text) < 60 else text[:57] + "..."
