"""Make tiny videos with a box in each frame, extract them, and read their cache as bytes."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.video.decode import write_video
from pipeline.views.sampling import Sampling

# Of every video: pixels, frames.
SIDE, LENGTH = 64, 8
SAMPLING = Sampling(
    frames=4, size=32, train_views=2, train_crop="multiscale", flip=0.5, test_clips=1, test_crops=1
)
# A batch of 4 rows ends in the middle of a clip, which has 3 views.
INLINE = RunOptions(workers=0, batch=4, shard_size=3, views_for_all=True)


def picture(clip: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Make the frames [F,H,W,3] of a clip: coarse noise, different in every frame and clip."""
    rng = np.random.default_rng(clip)
    blocks = rng.integers(0, 255, (LENGTH, height // 16, width // 16, 3), np.uint8)
    return blocks.repeat(16, 1).repeat(16, 2)


def make_videos(
    folder: Path,
    clips: int = 7,
    broken: tuple[int, ...] = (),
    sizes: dict[int, tuple[int, int]] | None = None,
):
    """Write `clips` videos, manifest.csv and boxes.csv.

    Args:
        folder: where to write.
        clips: number of videos.
        broken: videos that are text files instead.
        sizes: video -> (height, width), where it is not SIDE x SIDE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    for clip in range(clips):
        path = folder / f"clip{clip}.mp4"
        if clip in broken:
            path.write_text("not a video")
        else:
            size = (sizes or {}).get(clip, (SIDE, SIDE))
            write_video(path, picture(clip, *size), fps=8)
        rows.append((path.stem, path.name, "train", clip % 2))
        boxes += [(path.stem, k, 8 + clip, 8 + 2 * k, 40 + clip, 40 + 2 * k) for k in range(LENGTH)]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    return folder


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((header, *rows))


def config_of(folder: Path, **changes) -> ExtractConfig:
    """Make a configuration: a small network, boxes from a file, 2 training views, 1 test view."""
    base = ExtractConfig(
        backbone="digit_cnn",
        backbone_options={"width": 8},
        keep=("pooled", "nodes", "conv2"),
        sampling=SAMPLING,
        proposals="annotations",
        proposal_options={"file": str(folder / "boxes.csv"), "num_boxes": 2},
        dtype="float32",
    )
    return replace(base, **changes)


def run(
    folder: Path,
    cache: Path,
    config: ExtractConfig | None = None,
    options: RunOptions = INLINE,
    **more,
):
    """Extract the folder's manifest; `more` are further arguments of `extract`."""
    return extract(
        config or config_of(folder), read_manifest(folder / "manifest.csv"), cache, options, **more
    )


def everything(cache: Path) -> dict[str, dict[tuple[str, int], bytes]]:
    """Return all stored bytes of the good rows: "group/field" -> (clip, view) -> bytes."""
    opened, found = Cache(cache), {}
    for group in opened.groups:
        rows = opened[group]
        good = np.flatnonzero(rows.ok)
        for name, array in rows.batch(good).items():
            table = {}
            for k, row in enumerate(good.tolist()):
                table[rows.clips[row], int(rows.views[row])] = array[k].tobytes()
            found[f"{group}/{name}"] = table
    return found
