"""Digit videos as mp4 files, with their boxes and their manifest."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.digits.images import Images, load_images
from pipeline.digits.scenes import Task, Video, videos
from pipeline.manifests.manifest import SPLITS, write_manifest
from pipeline.workers.cores import cores_here
from pipeline.workers.decode_pool import WorkerPool

# Videos that a worker process writes before it reports.
PER_MESSAGE = 50
# Boxes are fractions of the frame, 0 to 1; a digit keeps its track.
BOX_COLUMNS = ("clip", "frame", "x1", "y1", "x2", "y2", "class", "track")


def write_dataset(
    out: str | Path,
    task: Task,
    splits: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    images: Mapping[str, Images] | None = None,
    fps: float = 8.0,
) -> Path:
    """Write videos as mp4 files, with their boxes and a manifest.

    OUT/boxes.csv has the digits' boxes as the source `annotations` reads them. OUT/digits.json
    records what was made. The manifest is written last: where it exists with the same
    digits.json, nothing is done.

    Args:
        out: the folder OUT.
        task: what can happen in a video.
        splits: split -> number of videos.
        seed: with the split and an index, it determines a video.
        workers: number of processes that write; default one per core, 0 for this process.
        images: the images of each split; default `load_images()`.
        fps: frames per second of the files.

    Returns:
        The path of the manifest, OUT/manifest.csv.

    Raises:
        ValueError: OUT holds other videos, or a split is unknown.
    """
    out, images = Path(out), images or load_images()
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"split {unknown[0]!r}: expected {', '.join(SPLITS)}")

    record = {"task": task.name, **asdict(task)}
    record |= {"splits": dict(splits), "seed": seed, "images": images["train"].name, "fps": fps}
    # JSON turns tuples into lists.
    if _is_written(out, json.loads(json.dumps(record))):
        return out / "manifest.csv"

    for split in splits:
        (out / split).mkdir(parents=True, exist_ok=True)
    tiles = {split: images[split].resized(task.tile) for split in splits}
    rows = []
    with open(out / "boxes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(BOX_COLUMNS)
        for split, index, made in _write_all(_Job(out, task, tiles, seed, fps), splits, workers):
            clip = f"{split}-{index:05d}"
            for frame, boxes in enumerate((made.boxes / task.size).tolist()):
                for track, (digit, box) in enumerate(zip(made.classes, boxes, strict=True)):
                    table.writerow((clip, frame, *box, digit, track))
            rows.append(
                {
                    "clip": clip,
                    "path": _path_of(split, index),
                    "split": split,
                    "label": made.label,
                    "digits": " ".join(map(str, made.classes)),
                }
            )
    (out / "digits.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return write_manifest(out / "manifest.csv", rows).path


def _is_written(out: Path, record: dict) -> bool:
    """Return whether OUT holds the finished videos of `record`.

    Raises:
        ValueError: it holds others.
    """
    if not (out / "manifest.csv").exists():
        return False
    try:
        written = json.loads((out / "digits.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"{out}: has a manifest, but no digits.json that says which videos; choose another "
            "folder"
        ) from None

    differences = []
    for key, value in record.items():
        if written.get(key) != value:
            differences.append(f"{key}: made with {written.get(key)!r}, asked for {value!r}")
    if differences:
        raise ValueError(
            f"{out}: holds other videos ({'; '.join(differences)}); choose another folder, or "
            "delete it"
        )
    return True


@dataclass(frozen=True)
class _Job:
    """What a process needs to write any of the videos.

    Attributes:
        out: the folder.
        task: what can happen in a video.
        tiles: the images of each split, at the task's size.
        seed: of the videos.
        fps: frames per second of the files.
    """

    out: Path
    task: Task
    tiles: dict[str, Images]
    seed: int
    fps: float

    def __call__(self, part: tuple[str, range]) -> list[Video]:
        """Write some videos of a split, and return them without their frames."""
        from pipeline.video.decode import write_video

        split, indices = part
        written = []
        made = videos(self.task, self.tiles[split], self.seed, split, indices)
        for index, one in zip(indices, made, strict=True):
            write_video(self.out / _path_of(split, index), one.frames, self.fps)
            # The parent process does not read the frames: do not send them.
            written.append(replace(one, frames=one.frames[:0]))
        return written


def _path_of(split: str, index: int) -> str:
    return f"{split}/{index:05d}.mp4"


def _write_all(
    job: _Job, splits: Mapping[str, int], workers: int | None
) -> Iterator[tuple[str, int, Video]]:
    """Yield (split, index, video without frames) of every video, in order."""
    if workers is None:
        workers = cores_here()
    parts = []
    for split, count in splits.items():
        for first in range(0, count, PER_MESSAGE):
            parts.append((split, range(first, min(first + PER_MESSAGE, count))))

    with WorkerPool(job, min(workers, len(parts))) as pool:
        for (split, indices), made in pool.imap(parts, ahead=2 * max(1, workers)):
            if isinstance(made, Exception):
                raise made
            for index, one in zip(indices, made, strict=True):
                yield split, index, one
