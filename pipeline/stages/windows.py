"""Divide long videos into windows: rows of a manifest that share a video, with start and end.

    windows = make_windows(clips, ClipOpener(root), WindowGrid(length=2.0, stride=1.0))
    windows.rows                    # cells for `write_manifest`, without paths
    windows.failures                # videos that cannot be opened

Times are those that the file's time stamps say, because rates in headers are often wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pipeline.manifests.folder_scan import id_of
from pipeline.manifests.manifest import Clip
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

# The last window of a video may be shorter than the others, by this part of the length at most.
SHORTEST = 0.5
# Digits of a manifest's seconds after the point.
DIGITS = 6
# Seconds or frames by which products and differences may be wrong.
ROUNDING = 1e-6


@dataclass(frozen=True)
class WindowGrid:
    """Where windows lie.

    Attributes:
        length: of a window, in `unit`.
        stride: from the start of one window to the start of the next, in `unit`.
        unit: "seconds" or "frames".
    """

    length: float
    stride: float
    unit: str = "seconds"

    def __post_init__(self) -> None:
        if self.unit not in ("seconds", "frames"):
            raise ValueError(f"unit: expected seconds or frames, got {self.unit!r}")
        for name in ("length", "stride"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected {self.unit} above 0, got {value}")
            if self.unit == "frames" and value != int(value):
                raise ValueError(f"{name}: expected a whole number of frames, got {value:g}")

    def spans(self, total: float) -> Iterator[tuple[float, float]]:
        """Yield (begin, end) of every window of a video, in `unit` from its start.

        The last window may be shorter; it is left out if it would be shorter than half a length.
        A video that is shorter than that is one window.

        Args:
            total: the length of the video.
        """
        number = 0
        while True:
            # A product, because a sum of strides would drift.
            begin = number * self.stride
            left = total - begin
            if number and left < SHORTEST * self.length - ROUNDING:
                return
            yield begin, min(begin + self.length, total)
            # The rest belongs to this window.
            if left <= self.length + ROUNDING:
                return
            number += 1


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a clip are shown.

    Attributes:
        times: seconds in the file, ascending.
        until: the second at which the last frame ends.
    """

    times: tuple[float, ...]
    until: float


@dataclass(frozen=True)
class _ReadTimes:
    """A task for a worker: return the FrameTimes of a clip."""

    clip: Clip
    opener: ClipOpener

    def run(self) -> FrameTimes:
        with self.opener.open(self.clip) as reader:
            info = reader.info
            if reader.contents is not None:
                times = reader.contents.times
            elif info.fps:
                times = [k / info.fps for k in range(info.first + info.frames)]
            else:
                raise DecodeError(
                    self.clip.clip,
                    self.clip.path,
                    "windows need the frame rate of a folder of frames; pass --source-fps",
                )
            end = info.first + info.frames
            until = times[end] if end < len(times) else info.until
            return FrameTimes(tuple(times[info.first : end]), until)


def read_times(task: _ReadTimes) -> FrameTimes:
    """Run a task in a worker process; DecodeError if the clip cannot be opened."""
    return task.run()


@dataclass
class Windows:
    """The windows of some videos.

    Attributes:
        rows: (the video's clip, id of the window, start, end) in the order of the videos; times as
            a manifest has them, the end "" where it is the file's own.
        failures: (clip id, reason) of videos that cannot be opened.
    """

    rows: list[tuple[Clip, str, str, str]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def make_windows(
    clips: Sequence[Clip],
    opener: ClipOpener,
    grid: WindowGrid,
    workers: int = 0,
    time_limit: float = 120.0,
    advance: Callable[[int, int], None] = lambda done, failed: None,
) -> Windows:
    """Divide clips into windows.

    Args:
        clips: the videos, or parts of them.
        opener: opens them.
        grid: where windows lie, from the start of each clip.
        workers: processes that read the files' packets; 0 is this one.
        time_limit: seconds for a video; without workers there is no limit.
        advance: called with (videos done, videos failed) after every video.

    Returns:
        The windows.
    """
    found = Windows()
    tasks = (_ReadTimes(clip, opener) for clip in clips)
    limit = time_limit if workers else None
    with WorkerPool(read_times, workers, limit, again=1) as pool:
        for task, result in pool.imap(tasks, ahead=max(1, 4 * workers)):
            clip, failed = task.clip, not isinstance(result, FrameTimes)
            if failed:
                found.failures.append((clip.clip, _reason(result)))
            else:
                found.rows += _windows_of(clip, result, grid)
            advance(1, int(failed))
    return found


def _windows_of(
    clip: Clip, shown: FrameTimes, grid: WindowGrid
) -> Iterator[tuple[Clip, str, str, str]]:
    times, until = shown.times, shown.until
    if grid.unit == "frames":
        for begin, end in grid.spans(len(times)):
            first, last = int(begin), int(end)
            stop = times[last] if last < len(times) else clip.end
            name = id_of(f"{clip.clip}@f{first:06d}")
            yield clip, name, _seconds(times[first]), _seconds(stop)
        return

    start = clip.start or 0.0
    total = (until if clip.end is None else min(until, clip.end)) - start
    for begin, end in grid.spans(total):
        stop = start + end if end < total - ROUNDING else clip.end
        name = id_of(f"{clip.clip}@{start + begin:09.3f}")
        yield clip, name, _seconds(start + begin), _seconds(stop)


def _seconds(value: float | None) -> str:
    """Write seconds as a manifest has them: "" for None."""
    return "" if value is None else f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def _reason(error: Exception) -> str:
    """Say why a video cannot be opened; an error that the video did not cause is raised."""
    if isinstance(error, DecodeError):
        return error.reason
    if isinstance(error, (TimeoutError, WorkerDied)):
        return " ".join(str(error).split())
    raise error
