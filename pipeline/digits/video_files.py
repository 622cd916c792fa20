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

PER_MESSAGE = 50  # videos that a worker process writes before it reports
BOX_COLUMNS = ("clip", "frame", "x1", "y1", "x2", "y2")  # [0,1] of the frame


def write_dataset(
    out: str | Path,
    task: Task,
    splits: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    images: Mapping[str, Images] | None = None,
    fps: float = 8.0,
) -> Path:
    """Writes videos as mp4 files with their boxes, and returns the path of their manifest,
    OUT/manifest.csv.

    splits: split -> number of videos. `workers` processes write them (default: one per core; 0:
    this one). OUT/boxes.csv has the digits' boxes as the `annotations` source reads them,
    OUT/digits.json says what was made. The manifest is written last: where it and the same
    digits.json are there, nothing is done. ValueError if OUT holds other videos, or for an unknown
    split.
    """
    out, images = Path(out), images or load_images()
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"split {unknown[0]!r}: expected {', '.join(SPLITS)}")
    record = {"task": task.name, **asdict(task)}
    record |= {"splits": dict(splits), "seed": seed, "images": images["train"].name, "fps": fps}
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
            clip, digits = f"{split}-{index:05d}", " ".join(map(str, made.classes))
            table.writerows(_box_rows(clip, made, task.size))
            path = _path_of(split, index)
            rows.append(
                {"clip": clip, "path": path, "split": split, "label": made.label, "digits": digits}
            )
    (out / "digits.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return write_manifest(out / "manifest.csv", rows).path


def _is_written(out: Path, record: dict) -> bool:
    """Whether OUT holds the finished videos of `record`; ValueError if it holds others."""
    if not (out / "manifest.csv").exists():
        return False
    try:
        there = json.loads((out / "digits.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"{out}: has a manifest, but no digits.json that says which videos; choose another "
            f"folder"
        ) from None
    if differing := [key for key in record if there.get(key) != record[key]]:
        shown = "; ".join(
            f"{key} {there.get(key)!r} there, {record[key]!r} asked for" for key in differing
        )
        raise ValueError(
            f"{out}: holds other videos ({shown}); choose another folder, or delete it"
        )
    return True


@dataclass(frozen=True)
class _Job:
    """What a process needs to write any of the videos; `tiles` are the images of each split at the
    task's size.
    """

    out: Path
    task: Task
    tiles: dict[str, Images]
    seed: int
    fps: float

    def __call__(self, part: tuple[str, range]) -> list[Video]:
        """Writes some videos of a split; returns them without their frames, which nobody reads in
        the parent process.
        """
        from pipeline.video.decode import write_video

        split, indices = part
        made = []
        for index, one in zip(
            indices, videos(self.task, self.tiles[split], self.seed, split, indices), strict=True
        ):
            write_video(self.out / _path_of(split, index), one.frames, self.fps)
            made.append(replace(one, frames=one.frames[:0]))
        return made


def _path_of(split: str, index: int) -> str:
    return f"{split}/{index:05d}.mp4"


def _write_all(
    job: _Job, splits: Mapping[str, int], workers: int | None
) -> Iterator[tuple[str, int, Video]]:
    """(split, index, video without frames) of every video, in order, as they are written."""
    workers = cores_here() if workers is None else workers
    parts = [
        (split, range(first, min(first + PER_MESSAGE, count)))
        for split, count in splits.items()
        for first in range(0, count, PER_MESSAGE)
    ]
    with WorkerPool(job, min(workers, len(parts))) as pool:
        for (split, indices), made in pool.imap(parts, ahead=2 * max(1, workers)):
            if isinstance(made, Exception):
                raise made
            yield from ((split, index, one) for index, one in zip(indices, made, strict=True))


def _box_rows(clip: str, made: Video, size: int) -> Iterator[tuple]:
    for frame, boxes in enumerate((made.boxes / size).tolist()):
        yield from ((clip, frame, *box) for box in boxes)
