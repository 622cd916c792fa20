"""Views of videos as frames: decoded by worker processes, with boxes from a cache or its source.

The views are the cache's own: the same frames, crops and mirroring, drawn again from (seed, clip,
view number). With `fresh` every epoch draws other training views, as if the cache had been made
with another seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from heads.data.device_lane import DeviceLane
from heads.data.splits import SplitViews
from heads.finetuning.frame_training import Piece
from heads.interface.clips import Clips
from pipeline.cache.fields import LABELS
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.proposals import BoxesError
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract_shards import start_decoders
from pipeline.stages.frozen_networks import boxes_of, labels_of
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener, ClipPixels, DecodeViews
from pipeline.views.sampling import Sampling, View, count_views
from pipeline.workers.decode_pool import WorkerDied

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache

BOXES = ("boxes", "scores", "valid")

# What a cache stores of where a view comes from.
ORIGIN = ("frames", "crop", "flip")


@dataclass(frozen=True)
class PlannedCache:
    """Stands for the cache that an extraction would make: the views of every clip, no fields.

    Attributes:
        path: names it in messages.
        manifest: its clips.
        sampling: how many views each clip has.
    """

    path: str
    manifest: Manifest
    sampling: Sampling

    @property
    def stored(self) -> Manifest:
        """The clips that have views: all of them."""
        return self.manifest

    @property
    def groups(self) -> tuple[str, ...]:
        """train, test, or both."""
        return tuple([group for group, count in count_views(self.sampling).items() if count])

    def __getitem__(self, group: str) -> "PlannedGroup":
        count = count_views(self.sampling)[group]
        if not count:
            option = {"train": "--train-views", "test": "--test-clips"}[group]
            raise ValueError(f"{self.path}: no {group} view is asked for; pass {option} from 1")

        ids = [clip.clip for clip in self.manifest.clips]
        clips = np.repeat(np.array(ids, object), count).tolist()
        views = np.tile(np.arange(count, dtype=np.int32), len(ids))
        everywhere = np.ones(len(views), bool)
        return PlannedGroup(clips, views, count, everywhere, everywhere)


@dataclass
class PlannedGroup:
    """As `pipeline.cache.reader.Group`, without fields.

    Attributes:
        clips: each row's clip.
        views: each row's view number.
        per_clip: views per clip.
        present: all True.
        ok: all True.
    """

    clips: list[str]
    views: np.ndarray
    per_clip: int
    present: np.ndarray
    ok: np.ndarray


class DecodedView(NamedTuple):
    """A view of a batch: its position there, what was drawn, pixels [F,H,W,3], fields of boxes."""

    position: int
    view: View
    pixels: np.ndarray
    boxes: dict[str, np.ndarray]


class VideoViews:
    """A `heads.finetuning.frame_training.FrameSource` that decodes videos.

    Close it: it owns decode processes.

    Args:
        config: of the extraction whose views these are.
        parts: the splits by name.
        clips: by id, with the paths to decode and the labels of the extraction.
        opener: opens a clip.
        steps: T, feature steps per view.
        cache: holds the boxes of its own views; None without a cache.
        source: finds boxes of other views (see pipeline/proposals). Without cache and source a
            view has no boxes.
        fresh: whether every epoch draws new training views.
        device: where clips are put.
        workers: decode processes; 0 decodes in this process.
        time_limit: seconds for a clip.
        say: prints a line.
    """

    def __init__(
        self,
        config: ExtractConfig,
        parts: Mapping[str, SplitViews],
        clips: Mapping[str, Clip],
        opener: ClipOpener,
        steps: int,
        *,
        cache: "Cache | None" = None,
        source: Any = None,
        fresh: bool = False,
        device: torch.device | str = "cpu",
        workers: int = 1,
        time_limit: float = 120.0,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.config, self.parts, self.clips = config, parts, clips
        self.opener, self.steps = opener, steps
        self.cache, self.source, self.fresh = cache, source, fresh
        # Of new views; of a cache's own views, the cache may also know tracks that were linked.
        self.labels, self.cached_labels = labels_of(source, config), ()
        if cache is not None:
            fields = cache[cache.groups[0]].fields
            self.cached_labels = tuple(name for name in LABELS if name in fields)
        self.lane = DeviceLane(device)
        self.pool = start_decoders(workers, time_limit, say)
        # Enough tasks in the queue that no worker waits for the network.
        self.queued = max(1, 2 * workers)

    def close(self) -> None:
        """End the decode processes."""
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
        """Yield the views of each batch; see `heads.finetuning.frame_training.FrameSource`."""
        fresh = self.fresh and split == "train"
        return self.views(self.parts[split], batches, epoch if fresh else None)

    def views(
        self, part: SplitViews, batches: Sequence[np.ndarray], epoch: int | None
    ) -> Iterator[list[Piece]]:
        """Yield the views of each batch.

        Args:
            part: the split.
            batches: arrays of its rows.
            epoch: draws other views in each epoch; None for the views that a cache has.

        Yields:
            Pieces, as `heads.finetuning.frame_training.FrameSource.batches`.
        """
        # One task decodes neighbouring rows of one clip.
        by_clip = []
        for rows in batches:
            runs = groupby(rows.tolist(), key=lambda row: part.group.clips[row])
            by_clip.append([list(run) for _, run in runs])
        tasks = (self._task(part, run, epoch) for run in chain(*by_clip))
        results = self.pool.imap(tasks, self.queued)

        cached_boxes = self.cache is not None and epoch is None
        for runs in by_clip:
            found: list[DecodedView] = []
            position = 0
            for rows in runs:
                task, result = next(results)
                found += self._decoded(part, rows, position, task, result, cached_boxes)
                position += len(rows)
            yield [self._piece(views) for views in _by_size(found)]

    def _task(self, part: SplitViews, rows: Sequence[int], epoch: int | None) -> DecodeViews:
        """The decode task for these views of one clip."""
        # Training takes random views, everything else those of an evaluation.
        group = "train" if part.split == "train" else "test"
        sampling, seed = self.config.sampling, self.config.seed
        only = tuple([(group, int(part.group.views[row])) for row in rows])
        if epoch is not None:
            # One view of the clip, as an extraction with this epoch's seed would draw it.
            sampling = replace(sampling, train_views=1, test_clips=0)
            only = (("train", 0),)
            seed = int(np.random.SeedSequence([seed, 1 + epoch]).generate_state(1)[0])
        return DecodeViews(
            self.clips[part.group.clips[rows[0]]],
            self.opener,
            sampling,
            seed,
            self.steps,
            None if self.source is None else self.source.frame_size,
            self.config.resize,
            only,
        )

    def _decoded(
        self,
        part: SplitViews,
        rows: Sequence[int],
        position: int,
        task: DecodeViews,
        result: Any,
        cached_boxes: bool,
    ) -> list[DecodedView]:
        """The views of these rows; none of a clip that cannot be decoded or has no boxes."""
        if isinstance(result, (DecodeError, TimeoutError, WorkerDied)):
            return []
        # Any other error is a fault of the program, or of the machine.
        if not isinstance(result, ClipPixels):
            raise result

        if cached_boxes:
            boxes = self._cached_boxes(part, rows, result)
        elif self.source is None:
            boxes = [{}] * len(rows)
        else:
            try:
                boxes = boxes_of(
                    self.source, task.clip, result, self.steps, task.resize, self.labels
                )
            except BoxesError:
                return []

        numbers = {(view.group, view.number): k for k, view in enumerate(result.views)}
        order = [numbers[name] for name in task.only]
        # A clip that is drawn twice in a row has one fresh view, which then counts twice.
        order += order[:1] * (len(rows) - len(order))
        found = []
        for n, k in enumerate(order):
            found.append(DecodedView(position + n, result.views[k], result.pixels[k], boxes[k]))
        return found

    def _cached_boxes(
        self, part: SplitViews, rows: Sequence[int], result: ClipPixels
    ) -> list[dict[str, np.ndarray]]:
        """The cache's boxes for the views of a result; ValueError where its views are others."""
        # The result's views may come in another order than the rows.
        row_of = {int(part.group.views[row]): row for row in rows}
        ordered = [row_of[view.number] for view in result.views]
        names = (*BOXES, *self.cached_labels) if self.config.wants_boxes else ()
        stored = part.group.batch(ordered, fields=(*ORIGIN, *names))
        for k, view in enumerate(result.views):
            crop = np.array((*view.crop, result.info.width, result.info.height), np.float32)
            drawn = (np.array(view.frames) + result.info.first, crop, np.bool_(view.flip))
            for name, value in zip(ORIGIN, drawn, strict=True):
                if not np.array_equal(stored[name][k], value):
                    raise ValueError(
                        f"{self.cache.path}, clip {part.group.clips[ordered[k]]}, view "
                        f"{view.number}: {name} is {_short(stored[name][k])} in the cache, "
                        f"{_short(value)} in the video as it is now: it is another file, its "
                        "labels are others, or the cache is older than --pixel-aspect and its "
                        "pixels are not square; extract again, or pass --root with the videos of "
                        "the extraction"
                    )
        return [{name: stored[name][k] for name in names} for k in range(len(ordered))]

    def _piece(self, found: Sequence[DecodedView]) -> Piece:
        """Views of one size as tensors on the device."""
        positions, views, pixels, boxes = zip(*found, strict=True)
        tensors = {
            "frames": torch.from_numpy(np.stack(pixels)),
            "flip": torch.tensor([view.flip for view in views]),
        }
        # Without boxes there is no field to add.
        for name in boxes[0]:
            tensor = torch.from_numpy(np.stack([fields[name] for fields in boxes]))
            tensors[name] = tensor.long() if name in LABELS else tensor
        # Not as float32: frames are bytes, and boxes are what the cache holds.
        there = {name: self.lane.put(tensor.numpy()) for name, tensor in tensors.items()}
        return Clips(**there), np.array(positions)


def _by_size(found: Sequence[DecodedView]) -> list[list[DecodedView]]:
    """Views grouped by their size."""
    groups: dict[Any, list[DecodedView]] = {}
    for one in found:
        groups.setdefault(one.view.size, []).append(one)
    return list(groups.values())


def _short(value: np.ndarray) -> str:
    text = np.array2string(value, threshold=6).replace("\n", "")
    return text if len(text) < 60 else text[:57] + "..."
