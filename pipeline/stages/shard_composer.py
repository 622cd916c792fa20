"""One shard: decoded clips in, one file out: backbone and proposals -> RoIAlign -> Extracted ->
writer.

Batches are made of consecutive rows of a shard, never of what happens to be ready, and a failed row
takes its place in its batch as a black view: so what is stored depends neither on the number of
workers nor on when a run was stopped and resumed. A shard that is written again takes its good rows
over from the old file; in a batch with others, they too are black views.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.cache.fields import Extracted, field_of
from pipeline.cache.good_rows import GoodViews
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_writer import GroupPlan, NotFinite, ShardWriter
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Clip
from pipeline.proposals import BoxesError
from pipeline.stages.config import clip_opener
from pipeline.stages.frozen_networks import Boxes, FrozenNetworks
from pipeline.stages.jobs import Advance, RunOptions, ShardJob
from pipeline.video.frame_reader import DecodeError, DecoderDied, DecodeTimeout, beyond_end
from pipeline.video.view_pixels import ClipPixels, DecodeViews, ProbeClip
from pipeline.views.sampling import Sampling, View, count_views, views_of
from pipeline.views.video_info import VideoInfo
from pipeline.workers.claims import Claim
from pipeline.workers.completion import Mark, finish_shard
from pipeline.workers.decode_pool import WorkerDied

PENDING_WRITES = 2  # batches that may wait for the disk while the device goes on


@dataclass
class ViewRow:
    """A view on its way through the networks; `pixels` is None where its clip failed, or it is
    `kept`: taken over.
    """

    number: int
    clip: str
    view: View | None = None
    info: VideoInfo | None = None
    pixels: np.ndarray | None = None
    boxes: Boxes | None = None
    kept: bool = False


def decode_tasks(
    models: FrozenNetworks, root: Path, clips: Sequence[Clip], good: GoodViews | None
) -> list[ProbeClip | DecodeViews]:
    """What the decode workers are asked for a shard: each clip's size, where that of its views
    follows from it, and its pixels.

    Nothing is asked about clips whose views are all taken over.
    """
    config = models.config
    opening = clip_opener(root, config)
    clips = [
        clip for place, clip in enumerate(clips) if not _all_good(good, config.sampling, place)
    ]
    sizes_differ = config.sampling.test_clips and config.sampling.size_of("test") is None
    probes = [ProbeClip(clip, opening) for clip in clips] if sizes_differ else []
    views = (config.sampling, config.seed, models.steps, models.frame_size)
    return probes + [DecodeViews(clip, opening, *views) for clip in clips]


def rows_of(sampling: Sampling, place: int) -> dict[str, range]:
    """group -> the rows of a shard's clip number `place`."""
    counts = ((group, count) for group, count in count_views(sampling).items() if count)
    return {group: range(place * count, (place + 1) * count) for group, count in counts}


def _all_good(good: GoodViews | None, sampling: Sampling, place: int) -> bool:
    """Whether every view of a shard's clip number `place` is taken over."""
    return good is not None and good.has_all(rows_of(sampling, place))


def group_plans(
    models: FrozenNetworks, clips: Sequence[Clip], sizes: Mapping[str, list[tuple[int, int]]]
) -> dict[str, GroupPlan]:
    """The groups of a shard's file: which rows, and each tensor's shape, padded to the widest view
    where sizes differ.

    sizes: (height, width) of the views of groups where it is not the same for all.
    """
    sampling, config, plans = models.config.sampling, models.config, {}
    for group, count in count_views(sampling).items():
        if not count:
            continue
        here = (
            [sampling.size_of(group)]
            if sampling.size_of(group)
            else sizes.get(group) or [(sampling.resized,) * 2]
        )
        shapes = models.shapes((max(h for h, _ in here), max(w for _, w in here)))
        dtypes = {name: field_of(name).dtype for name in shapes}
        fields = {
            name: (shape, config.dtype if dtypes[name] == "feature" else dtypes[name])
            for name, shape in shapes.items()
        }
        names = [clip.clip for clip in clips for _ in range(count)]
        plans[group] = GroupPlan(names, list(range(count)) * len(clips), fields)
    return plans


class ShardComposer:
    """Everything between the decode workers' results and one finished file, written under `claim`
    (`claims.begin` gave `mark`).

    `good` are the views that are taken over from the file that is there, which is replaced then.
    """

    def __init__(
        self,
        job: ShardJob,
        claim: Claim,
        mark: Mark,
        models: FrozenNetworks,
        options: RunOptions,
        disk: ThreadPoolExecutor,
        good: GoodViews | None = None,
    ):
        self.job, self.clips, self.claim, self.mark = job, job.clips, claim, mark
        self.models, self.options, self.disk, self.good = models, options, disk, good
        self.sampling = models.config.sampling
        self.counts = {group: count for group, count in count_views(self.sampling).items() if count}
        self.waiting: dict[str, list[ViewRow]] = {group: [] for group in self.counts}
        self.pending: list[Future] = []
        self.failures: dict[str, dict] = {}
        self.warnings: dict[str, list[str]] = {}
        self.videos = _recorded(job.path, len(job.clips)) if good else [""] * len(job.clips)
        for record in (
            _recorded_warnings(job.path) if good else ()
        ):  # clips that are decoded again replace theirs
            self.warnings.setdefault(record["clip"], []).append(record["message"])
        self.expected: dict[
            int, tuple[int, int]
        ] = {}  # sizes of test rows, where they differ between clips
        self.seconds = {"decode": 0.0, "write": 0.0}
        models.seconds.clear()

    def run(self, results: Iterator, advance: Advance) -> Callable[[], dict | None]:
        """Writes every row; returns what is left to do: hash the file, give it its name, and return
        its statistics.

        None in their place if another run has completed the shard meanwhile.
        """
        begun = time.monotonic()
        with ExitStack() as stack:
            how = {
                "attrs": self.job.attrs,
                "compression": self.options.compression,
                "claim": self.claim.name,
            }
            writer = stack.enter_context(ShardWriter(self.job.path, self._plans(results), **how))
            for place, clip in enumerate(self.clips):
                result = None if _all_good(self.good, self.sampling, place) else next(results)[1]
                failed = self._take(place, clip, result, writer)
                advance(1, int(failed))
            for group in self.waiting:
                self._flush(group, writer)
            self._drain(0)
            self._refuse_to_lose()
            statistics, open_writer = self._statistics(time.monotonic() - begun), stack.pop_all()

        def complete() -> dict | None:
            with open_writer:
                return finish_shard(
                    writer, statistics, self.claim, self.mark, replace=self.good is not None
                )

        return complete

    def _refuse_to_lose(self) -> None:
        """ValueError if clips that the shard there holds have failed now: it stays as it is."""
        try:
            before = read_statistics(self.job.path).get("failures", ())
        except (OSError, Damaged):
            return  # no shard there, or one that says nothing
        if lost := sorted(set(self.failures) - {failure["clip"] for failure in before}):
            why = self.failures[lost[0]]["message"]
            raise ValueError(
                f"{self.job.path}: left as it was, for {len(lost)} of its clips fail now "
                f"({lost[0]}: {why}); look at the videos"
            )

    def _plans(self, results: Iterator) -> dict[str, GroupPlan]:
        """The groups of the file, once the sizes of their views are known."""
        if "test" in self.counts and self.sampling.size_of("test") is None:
            self.expected = self._expected(results)
        return group_plans(self.models, self.clips, {"test": list(self.expected.values())})

    def _expected(self, results: Iterator) -> dict[int, tuple[int, int]]:
        """row -> (height, width) of the test views of every clip that opens."""
        found = {}
        for place in range(len(self.clips)):
            if _all_good(self.good, self.sampling, place):
                width, height = self.good.source_size("test", place * self.counts["test"])
                info = VideoInfo(1, 1.0, width, height)  # of which the size alone counts here
            else:
                _, info = next(results)
            if isinstance(info, VideoInfo):
                with suppress(
                    ValueError
                ):  # a clip that has no views fails when its pixels are asked for
                    views = [
                        view
                        for view in views_of(self.sampling, info, "", (), 0)
                        if view.group == "test"
                    ]
                    found |= {place * len(views) + view.number: view.size for view in views}
        return found

    def _take(self, place: int, clip: Clip, result, writer: ShardWriter) -> bool:
        """Puts a clip's views into the queues, in row order; True if it failed. Only what the data
        caused is caught.

        `result` is None for a clip that nobody was asked for, whose views are all taken over.
        """
        pixels, boxes = None, []
        if isinstance(result, ClipPixels):
            self.seconds["decode"] += result.seconds
            self.videos[place] = result.video
            try:
                boxes = self.models.boxes(clip, result)
                pixels = result
                found = (beyond_end(clip, result.info), self.models.remark(clip, result))
                self.warnings[clip.clip] = [words for words in found if words]
            except BoxesError as error:
                self._fail(clip.clip, error, result.seconds)
        elif result is not None:
            seconds = (
                self.options.time_limit
                if isinstance(result, TimeoutError)
                else getattr(result, "seconds", 0.0)
            )
            self.seconds["decode"] += seconds
            self._fail(clip.clip, _as_decode_error(clip, result, self.options.time_limit), seconds)
        kept = self.good.rows if self.good else dict.fromkeys(self.counts, ())
        rows = {
            group: [ViewRow(number, clip.clip, kept=number in kept[group]) for number in numbers]
            for group, numbers in rows_of(self.sampling, place).items()
        }
        if pixels:
            for view, frames, places in zip(pixels.views, pixels.pixels, boxes, strict=True):
                row = rows[view.group][view.number]
                if not row.kept:
                    row.view, row.info, row.pixels, row.boxes = view, pixels.info, frames, places
        for group, new in rows.items():
            for row in new:
                self.waiting[group].append(row)
                if len(self.waiting[group]) == self.options.batch:
                    self._flush(group, writer)
        return clip.clip in self.failures

    def _fail(self, clip: str, error: Exception, seconds: float = 0.0) -> None:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        record = {
            "clip": clip,
            "error": type(error).__name__,
            "message": reason,
            "seconds": round(seconds, 6),
        }
        self.failures.setdefault(clip, record)

    def _flush(self, group: str, writer: ShardWriter) -> None:
        """Runs the waiting rows of a group, one forward pass for each size among them, and hands
        them to the disk.
        """
        rows, self.waiting[group] = self.waiting[group], []
        if kept := [row.number for row in rows if row.kept]:
            self.pending.append(self.disk.submit(self._take_over, group, kept, writer))
        fixed = self.sampling.size_of(group)
        size_of = {row.number: fixed or self.expected.get(row.number) for row in rows}
        for size in dict.fromkeys(size_of[row.number] for row in rows if row.pixels is not None):
            mates = [row for row in rows if size_of[row.number] == size]
            batch = self._forward(mates, size)
            self.pending.append(self.disk.submit(self._write, group, batch, writer))
        self._drain(PENDING_WRITES)

    def _forward(self, rows: list[ViewRow], size: tuple[int, int]) -> list[tuple[int, Extracted]]:
        frames = np.zeros((len(rows), self.sampling.frames, *size, 3), np.uint8)
        boxes = np.zeros((len(rows), self.models.steps, self.models.num_boxes, 4), np.float32)
        scores, valid = boxes[..., 0].copy(), np.zeros(boxes.shape[:-1], bool)
        for at, row in enumerate(rows):
            if row.pixels is not None:
                frames[at] = row.pixels
                boxes[at], scores[at], valid[at] = row.boxes
        computed = self.models.tensors(frames, boxes, valid) | {
            "boxes": boxes,
            "scores": scores,
            "valid": valid,
        }
        grids = {name: np.array(grid, np.int16) for name, grid in self.models.grids(size).items()}
        batch = []
        for at, row in enumerate(rows):
            if row.view is not None:
                tensors = {name: computed[name][at] for name in self.models.config.keep}
                batch.append(
                    (
                        row.number,
                        Extracted(row.clip, row.view.number, _placement(row) | grids | tensors),
                    )
                )
        return batch

    def _write(
        self, group: str, batch: list[tuple[int, Extracted]], writer: ShardWriter
    ) -> list[tuple[str, NotFinite]]:
        """Runs in the writer's thread; returns the views that hold a value which cannot be
        stored.
        """
        begun, refused = time.perf_counter(), []
        shapes = {name: shape for name, (shape, _) in writer.plans[group].fields.items()}
        for number, view in batch:
            try:
                writer.write(
                    group,
                    number,
                    {name: _padded(array, shapes[name]) for name, array in view.tensors.items()},
                )
            except NotFinite as error:
                refused.append((view.clip, error))
        self.seconds["write"] += time.perf_counter() - begun
        return refused

    def _take_over(
        self, group: str, rows: list[int], writer: ShardWriter
    ) -> list[tuple[str, NotFinite]]:
        """Runs in the writer's thread; nothing is refused, since it was stored before."""
        for row in rows:
            writer.write(group, row, self.good.read(group, row, writer.plans[group].fields))
        return []

    def _drain(self, most: int) -> None:
        """Waits until at most `most` batches are unwritten, which bounds memory, and takes note of
        what was refused.
        """
        while len(self.pending) > most:
            for clip, error in self.pending.pop(0).result():
                self._fail(clip, error)

    def _statistics(self, wall: float) -> dict:
        failures = [self.failures[clip.clip] for clip in self.clips if clip.clip in self.failures]
        warnings = [
            {"clip": clip.clip, "message": words}
            for clip in self.clips
            for words in self.warnings.get(clip.clip, ())
        ]
        seconds = {
            **self.seconds,
            **{part: self.models.seconds[part] for part in ("backbone", "proposals")},
            "wall": wall,
        }
        return {
            "stage": "features",
            "shard": self.job.shard,
            "first": self.clips[0].position,
            "clips": len(self.clips),
            "views": len(self.clips) * sum(self.counts.values()),
            "taken_over": sum(map(len, self.good.rows.values())) if self.good else 0,
            "failures": failures,
            **({"warnings": warnings} if warnings else {}),
            "videos": self.videos,
            "seconds": {part: round(value, 3) for part, value in seconds.items()},
            "device": device_name(self.models.device.type),
            "versions": versions(),
            "batch": self.options.batch,
            "asked": _with_absolute_paths(
                asdict(self.models.config)
            ),  # with paths, which the fingerprint leaves out: `repair` needs them
        }


def _recorded(path: Path, clips: int) -> list[str]:
    """The marks of the videos of a shard that is there; "" where it has none."""
    try:
        return list(read_statistics(path)["videos"])
    except (OSError, Damaged, KeyError):
        return [""] * clips


def _recorded_warnings(path: Path) -> list[dict]:
    """The warnings in the statistics of an existing shard."""
    try:
        return list(read_statistics(path).get("warnings", ()))
    except (OSError, Damaged):
        return []


def _with_absolute_paths(asked: dict) -> dict:
    """The configuration as another working directory would have to spell it."""
    options = asked["proposal_options"]
    found = {
        key: os.path.abspath(value) if key == "file" or os.path.isfile(str(value)) else value
        for key, value in options.items()
    }
    weights = (
        os.path.abspath(asked["weights"]) if os.path.isfile(asked["weights"]) else asked["weights"]
    )
    return {**asked, "weights": weights, "proposal_options": found}


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of a narrow view, with zeros up to the size of the shard's widest."""
    if array.shape == shape:
        return array
    wide = np.zeros(shape, array.dtype)
    wide[tuple(map(slice, array.shape))] = array
    return wide


def _placement(row: ViewRow) -> dict[str, np.ndarray]:
    view, info = row.view, row.info
    return {
        "frames": np.array(view.frames, np.int32) + info.first,
        "crop": np.array((*view.crop, info.width, info.height), np.float32),
        "flip": np.bool_(view.flip),
    }


def _as_decode_error(clip: Clip, error: Exception, limit: float) -> Exception:
    """A worker's failure as a decode error of the clip; anything that is not the data's fault is
    raised.
    """
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, TimeoutError):
        return DecodeTimeout(
            clip.clip, clip.path, f"took longer than {limit:g} s to decode (--time-limit)"
        )
    if isinstance(error, WorkerDied):
        return DecoderDied(clip.clip, clip.path, str(error))
    if isinstance(error, MemoryError):
        asked = f" ({error})" if str(error) else ""
        return DecodeError(
            clip.clip,
            clip.path,
            f"not enough memory to decode it{asked}; try fewer --workers, or smaller views",
        )
    raise error


def device_name(kind: str) -> str:
    """The device in words: the GPU's name, or the number of threads that torch uses on the CPU."""
    import torch

    return (
        torch.cuda.get_device_name()
        if kind == "cuda"
        else f"cpu, {torch.get_num_threads()} of {os.cpu_count()} cores"
    )


@cache
def versions() -> dict[str, str]:
    """Versions of what a stored value depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("vidgraph", "torch", "torchvision", "decord", "av", "pillow", "numpy", "h5py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its folder without having been installed
            found[name] = "not installed"
    return found
