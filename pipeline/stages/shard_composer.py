"""One shard: decoded clips -> backbone and proposals -> RoIAlign -> one file.

Batches consist of consecutive rows of a shard, never of what happens to be ready. A failed row
keeps its place in its batch as a black view. So what is stored depends neither on the number of
workers nor on when a run was stopped and resumed.

A shard that is written again copies its good rows from the old file. In a batch with others, they
are black views too.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.cache.good_rows import GoodViews
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_writer import GroupPlan, NotFinite, ShardWriter
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Clip
from pipeline.proposals import BoxesError
from pipeline.stages.frozen_networks import BatchRow, ClipRegions, Computed, FrozenNetworks
from pipeline.stages.jobs import Advance, RunOptions, ShardJob
from pipeline.stages.shard_rows import ShardRows, group_plans, is_settled
from pipeline.text.counted import agree
from pipeline.video.frame_reader import DecodeError, DecoderDied, DecodeTimeout, beyond_end
from pipeline.video.video_identity import same_video
from pipeline.video.view_pixels import ClipPixels
from pipeline.views.sampling import View, views_of
from pipeline.views.video_info import VideoInfo
from pipeline.workers.claims import Claim
from pipeline.workers.completion import Mark, finish_shard
from pipeline.workers.decode_pool import WorkerDied

# Bytes of batches that may wait for the device or the disk while the next ones are prepared.
PENDING_BYTES = 512 << 20


class VideoChanged(ValueError):
    """The video of a clip is another one than when its features were extracted."""


@dataclass
class ViewRow:
    """A view on its way through the networks.

    Attributes:
        number: its row in the group.
        clip: its clip's id.
        view: frames, crop and flip; None where the clip failed, or the view is `kept`.
        info: what is known of its video.
        pixels: uint8 [F,h,w,3]; None like `view`.
        times: float32 [T], seconds of its feature steps; None like `view`.
        regions: the boxes of its clip; None like `view`, and if no boxes are wanted.
        kept: whether it is copied from the existing file.
    """

    number: int
    clip: str
    view: View | None = None
    info: VideoInfo | None = None
    pixels: np.ndarray | None = None
    times: np.ndarray | None = None
    regions: ClipRegions | None = None
    kept: bool = False


class ShardComposer:
    """Turns the decode workers' results into one file."""

    def __init__(
        self,
        job: ShardJob,
        claim: Claim,
        mark: Mark,
        models: FrozenNetworks,
        options: RunOptions,
        disk: ThreadPoolExecutor,
        good: GoodViews | None = None,
        workers: int = 0,
    ):
        """Prepare for a shard; nothing is written yet.

        Args:
            job: the shard.
            claim: the claim on it.
            mark: the version of its file when it was claimed.
            models: the networks.
            options: how to work.
            disk: the thread that writes.
            good: the views to copy from the existing file, which is replaced then.
            workers: how many decode processes there are, for the statistics.
        """
        self.job, self.clips, self.claim, self.mark = job, job.clips, claim, mark
        self.models, self.options, self.disk, self.good = models, options, disk, good
        self.sampling, self.workers = models.config.sampling, workers
        self.rows = ShardRows(job.views)
        self.waiting: dict[str, list[ViewRow]] = {group: [] for group in self.rows.groups}
        self.pending: list[tuple[Future, int]] = []
        self.failures: dict[str, dict] = {}
        # (height, width) of test rows, where clips differ.
        self.sizes: dict[int, tuple[int, int]] = {}
        self.seconds = {"decode": 0.0, "write": 0.0}
        # Only the thread that writes changes it.
        self.boxes = dict.fromkeys(("views", "steps", "empty_views", "empty_steps"), 0)

        # Clips that are decoded again replace what the existing file says of them.
        self.videos = [""] * len(job.clips)
        self.warnings: dict[str, list[str]] = {}
        if good:
            existing = _existing_statistics(job.path)
            self.videos = list(existing.get("videos", self.videos))
            for record in existing.get("warnings", ()):
                self.warnings.setdefault(record["clip"], []).append(record["message"])
        # The networks serve one shard after another; what they count from now on is this one's.
        models.seconds.clear()

    def run(self, results: Iterator, advance: Advance) -> Callable[[], dict | None]:
        """Write every row of the shard.

        Args:
            results: what the decode workers return for `decode_tasks`.
            advance: called with (1, whether it failed) after every clip.

        Returns:
            A function for what is left to do: hash the file and give it its name. It returns the
            statistics, or None if another run has completed the shard in the meantime.
        """
        begun = time.monotonic()
        with ExitStack() as stack:
            writer = ShardWriter(
                self.job.path,
                self._plans(results),
                attrs=self.job.attrs,
                compression=self.options.compression,
                claim=self.claim.name,
            )
            stack.enter_context(writer)
            for position, clip in enumerate(self.clips):
                result = None
                if not self._settled(position):
                    # While this process waits for a clip, decode workers may wait for memory.
                    self.models.transfers.forget_what_was_read()
                    result = next(results)[1]
                failed = self._take(position, clip, result, writer)
                advance(1, int(failed))
            for group in self.waiting:
                self._flush(group, writer)
            self._drain(0)
            self._refuse_to_lose_clips()
            statistics = self._statistics(time.monotonic() - begun)
            # The writer stays open for `complete`.
            open_writer = stack.pop_all()

        def complete() -> dict | None:
            with open_writer:
                return finish_shard(
                    writer, statistics, self.claim, self.mark, replace=self.good is not None
                )

        return complete

    def _settled(self, position: int) -> bool:
        return is_settled(self.job, self.rows, self.good, position)

    def _refuse_to_lose_clips(self) -> None:
        """ValueError if clips that the existing shard holds have failed now: it stays."""
        existing = _existing_statistics(self.job.path)
        # Added fields of earlier features are of no use.
        if not existing or not existing["attrs"].items() >= self.job.attrs.items():
            return
        failed_before = {failure["clip"] for failure in existing.get("failures", ())}
        lost = sorted(set(self.failures) - failed_before)
        if lost:
            reason = self.failures[lost[0]]["message"]
            raise ValueError(
                f"{self.job.path}: left as it was, because {len(lost)} of its clips "
                f"{agree(len(lost), 'fails', 'fail')} now ({lost[0]}: {reason}); look at the videos"
            )

    def _plans(self, results: Iterator) -> dict[str, GroupPlan]:
        """The groups of the file. Where test views differ in size, the probes come first."""
        if "test" in self.waiting and self.sampling.size_of("test") is None:
            self.sizes = self._test_sizes(results)
        return group_plans(self.models, self.job, {"test": list(self.sizes.values())})

    def _test_sizes(self, results: Iterator) -> dict[int, tuple[int, int]]:
        """Row -> (height, width) of the test views of every clip that opens."""
        sizes = {}
        for position in range(len(self.clips)):
            rows = self.rows.of(position).get("test", ())
            if not rows or position in self.job.skipped:
                continue
            if self._settled(position):
                width, height = self.good.source_size("test", rows[0])
                # Only the size matters here.
                info = VideoInfo(1, 1.0, width, height)
            else:
                _, info = next(results)
            if not isinstance(info, VideoInfo):
                continue
            # A clip without views fails later, when its pixels are asked for.
            with suppress(ValueError):
                views = views_of(self.sampling, info, "", (), 0)
                size_of = {view.number: view.size for view in views if view.group == "test"}
                sizes |= {row: size_of[self.rows.views["test"][row]] for row in rows}
        return sizes

    def _take(self, position: int, clip: Clip, result, writer: ShardWriter) -> bool:
        """Queue a clip's views in row order; True if the clip failed.

        Only errors that the data caused are caught. `result` is None for a clip without tasks.
        """
        pixels, regions = None, None
        if isinstance(result, ClipPixels):
            self.seconds["decode"] += result.seconds
            self.videos[position] = result.video
            try:
                self._require_same_video(position, result)
                regions = self.models.regions(clip, result)
                pixels = result
                remarks = (beyond_end(clip, result.info), self.models.remark(clip, result))
                self.warnings[clip.clip] = [text for text in remarks if text]
            except (BoxesError, VideoChanged) as error:
                self._fail(clip.clip, error, result.seconds)
        elif result is not None:
            limit = self.options.time_limit
            seconds = getattr(result, "seconds", 0.0)
            if isinstance(result, TimeoutError):
                seconds = limit
            self.seconds["decode"] += seconds
            self._fail(clip.clip, _as_decode_error(clip, result, limit), seconds)

        rows = self._rows(position, clip)
        if pixels:
            by_view = {}
            for group, new in rows.items():
                by_view |= {(group, self.rows.views[group][row.number]): row for row in new}
            found = zip(pixels.views, pixels.pixels, pixels.times, strict=True)
            for view, frames, times in found:
                row = by_view[view.group, view.number]
                if not row.kept:
                    row.view, row.info = view, pixels.info
                    row.pixels, row.times, row.regions = frames, times, regions
        for group, new in rows.items():
            for row in new:
                self.waiting[group].append(row)
                if len(self.waiting[group]) == self.options.batch:
                    self._flush(group, writer)
        return clip.clip in self.failures

    def _rows(self, position: int, clip: Clip) -> dict[str, list[ViewRow]]:
        rows = {}
        for group, numbers in self.rows.of(position).items():
            kept = self.good.rows[group] if self.good else ()
            rows[group] = [ViewRow(number, clip.clip, kept=number in kept) for number in numbers]
        return rows

    def _require_same_video(self, position: int, pixels: ClipPixels) -> None:
        """VideoChanged if added fields would come from another video than the rest."""
        if self.job.videos and not same_video(self.job.videos[position], pixels.video):
            raise VideoChanged(
                "its video is another one than when its features were extracted; run `vidgraph "
                "repair --changed`"
            )

    def _fail(self, clip: str, error: Exception, seconds: float = 0.0) -> None:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        record = {
            "clip": clip,
            "error": type(error).__name__,
            "message": reason,
            "seconds": round(seconds, 6),
        }
        # The first failure of a clip is the one that counts.
        self.failures.setdefault(clip, record)

    def _flush(self, group: str, writer: ShardWriter) -> None:
        """Compute the waiting rows of a group and hand them to the disk.

        There is one forward pass for each size among them.
        """
        rows, self.waiting[group] = self.waiting[group], []
        kept = [row.number for row in rows if row.kept]
        if kept:
            self._submit(self._copy_good, group, kept, writer)

        # Failed and kept rows take part with their sizes, so that batches do not depend on them.
        fixed = self.sampling.size_of(group)
        size_of = {row.number: fixed or self.sizes.get(row.number) for row in rows}
        sizes = [size_of[row.number] for row in rows if row.pixels is not None]
        for size in dict.fromkeys(sizes):
            mates = [row for row in rows if size_of[row.number] == size]
            batch = [BatchRow(row.pixels, row.view, row.regions) for row in mates]
            computed = self.models.launch(batch, size)
            for row in mates:
                # The device reads them, and the decode workers need their memory.
                row.pixels = None
            self._submit(self._write, group, mates, size, computed, writer, bytes=computed.bytes)
        self._drain(PENDING_BYTES)

    def _submit(self, step: Callable, *arguments: object, bytes: int = 0) -> None:
        """Have the thread that writes do a step, which holds so many bytes until then."""
        self.pending.append((self.disk.submit(step, *arguments), bytes))

    def _write(
        self,
        group: str,
        rows: list[ViewRow],
        size: tuple[int, int],
        computed: Computed,
        writer: ShardWriter,
    ) -> list[tuple[str, NotFinite]]:
        """Store a batch, in the writer's thread; returns clips with values that cannot be stored.

        Rows that failed, or that are copied from the existing file, are left out.
        """
        arrays = computed.wait()
        begun, refused = time.perf_counter(), []
        fields = writer.plans[group].fields
        keep = [name for name in self.models.kept if name in fields]
        grids = {name: np.array(grid, np.int16) for name, grid in self.models.grids(size).items()}
        for k, row in enumerate(rows):
            if row.view is None:
                continue
            tensors = _placement(row) | grids | {name: arrays[name][k] for name in keep}
            if "time" in fields:
                tensors["time"] = row.times
            tensors = {name: _padded(tensors[name], shape) for name, (shape, _) in fields.items()}
            try:
                writer.write(group, row.number, tensors)
            except NotFinite as error:
                refused.append((row.clip, error))
            else:
                self._count_boxes(tensors)
        self.seconds["write"] += time.perf_counter() - begun
        return refused

    def _copy_good(
        self, group: str, rows: list[int], writer: ShardWriter
    ) -> list[tuple[str, NotFinite]]:
        """Copy rows of the existing file, in the writer's thread; none is refused."""
        for row in rows:
            tensors = self.good.read(group, row, writer.plans[group].fields)
            writer.write(group, row, tensors)
            self._count_boxes(tensors)
        return []

    def _count_boxes(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Count a view that was written, its steps, and those without any box."""
        if "valid" not in tensors:
            return
        has_box = np.asarray(tensors["valid"]).any(-1)
        self.boxes["views"] += 1
        self.boxes["steps"] += len(has_box)
        self.boxes["empty_views"] += int(not has_box.any())
        self.boxes["empty_steps"] += int((~has_box).sum())

    def _drain(self, unwritten: int) -> None:
        """Wait until at most so many bytes are unwritten, and record what was refused.

        This bounds the memory that batches take.
        """
        while self.pending:
            held = sum(bytes for _, bytes in self.pending)
            # One batch may be unwritten whatever it takes, so that disk and device work together.
            if unwritten and held <= max(unwritten, self.pending[-1][1]):
                return
            for clip, error in self.pending.pop(0)[0].result():
                self._fail(clip, error)

    def _statistics(self, wall: float) -> dict:
        failures = [self.failures[clip.clip] for clip in self.clips if clip.clip in self.failures]
        warnings = []
        for clip in self.clips:
            for text in self.warnings.get(clip.clip, ()):
                warnings.append({"clip": clip.clip, "message": text})

        seconds = dict(self.seconds)
        for part in ("backbone", "proposals"):
            seconds[part] = self.models.seconds[part]
        seconds["wall"] = wall
        return {
            "stage": "features" if self.job.fields is None else "added",
            "shard": self.job.shard,
            "first": self.clips[0].position,
            "clips": len(self.clips),
            "views": sum(map(len, self.rows.views.values())),
            "taken_over": sum(map(len, self.good.rows.values())) if self.good else 0,
            "failures": failures,
            **({"warnings": warnings} if warnings else {}),
            **({"boxes": self.boxes} if self.models.config.wants_boxes else {}),
            "videos": self.videos,
            "seconds": {part: round(value, 3) for part, value in seconds.items()},
            "device": device_name(self.models.device.type),
            "versions": versions(),
            "batch": self.options.batch,
            "workers": self.workers,
            # With paths, which the fingerprint leaves out: `repair` needs them.
            "asked": self.models.config.as_asked(),
        }


def _existing_statistics(path: Path) -> dict:
    """The statistics of a shard that exists; {} if there are none, or they cannot be read."""
    try:
        return read_statistics(path)
    except (OSError, Damaged):
        return {}


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of a small view, with zeros up to the size of the shard's largest."""
    if array.shape == shape:
        return array
    padded = np.zeros(shape, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def _placement(row: ViewRow) -> dict[str, np.ndarray]:
    view, info = row.view, row.info
    return {
        "frames": np.array(view.frames, np.int32) + info.first,
        "crop": np.array((*view.crop, info.width, info.height), np.float32),
        "flip": np.bool_(view.flip),
    }


def _as_decode_error(clip: Clip, error: Exception, limit: float) -> Exception:
    """A worker's failure as a decode error of the clip. An error that the data did not cause is
    raised.
    """
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, TimeoutError):
        reason = f"took longer than {limit:g} s to decode (--time-limit)"
        return DecodeTimeout(clip.clip, clip.path, reason)
    if isinstance(error, WorkerDied):
        return DecoderDied(clip.clip, clip.path, str(error))
    if isinstance(error, MemoryError):
        details = f" ({error})" if str(error) else ""
        reason = f"not enough memory to decode it{details}; try fewer --workers, or smaller views"
        return DecodeError(clip.clip, clip.path, reason)
    raise error


def device_name(kind: str) -> str:
    """Return a description of the device.

    Args:
        kind: "cpu" or "cuda".

    Returns:
        The GPU's name, or the number of threads that torch uses on the CPU.
    """
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} of {os.cpu_count()} cores"


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that stored values depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("vidgraph", "torch", "torchvision", "decord", "av", "pillow", "numpy", "h5py"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # vidgraph runs from its folder without having been installed.
            found[name] = "not installed"
    return found
