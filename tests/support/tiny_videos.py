"""A folder of tiny videos with a box in each frame, a small extraction of them, and what a cache of
it holds, as bytes.
"""

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

SIDE, LENGTH = 64, 8  # pixels, frames
SAMPLING = Sampling(
    frames=4, size=32, train_views=2, train_crop="multiscale", flip=0.5, test_clips=1, test_crops=1
)
INLINE = RunOptions(
    workers=0, batch=4, shard_size=3
)  # batches of 4 rows cut through clips of 2 views


def picture(clip: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """The frames [F,H,W,3] of a clip: noise in coarse blocks, so that no two frames or clips are
    alike.
    """
    rng = np.random.default_rng(clip)
    blocks = rng.integers(0, 255, (LENGTH, height // 16, width // 16, 3), np.uint8)
    return blocks.repeat(16, 1).repeat(16, 2)


def make_videos(
    folder: Path,
    clips: int = 7,
    broken: tuple[int, ...] = (),
    sizes: dict[int, tuple[int, int]] | None = None,
):
    """`clips` videos (text files instead where `broken`), manifest.csv and boxes.csv; `sizes`
    (height, width) of some.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, boxes = [], []
    for clip in range(clips):
        path = folder / f"clip{clip}.mp4"
        if clip in broken:
            path.write_text("not a video")
        else:
            write_video(path, picture(clip, *(sizes or {}).get(clip, (SIDE, SIDE))), fps=8)
        rows.append((path.stem, path.name, "train", clip % 2))
        boxes += [(path.stem, k, 8 + clip, 8 + 2 * k, 40 + clip, 40 + 2 * k) for k in range(LENGTH)]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    write_csv(folder / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), boxes)
    return folder


def write_csv(path: Path, header, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((header, *rows))


def config_of(folder: Path, **changes) -> ExtractConfig:
    """A small network, boxes from the folder's file, two views to train and one to test."""
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
    """Extracts the folder's manifest; `more` as for `extract`."""
    return extract(
        config or config_of(folder), read_manifest(folder / "manifest.csv"), cache, options, **more
    )


def everything(cache: Path) -> dict[str, dict[tuple[str, int], bytes]]:
    """Every stored byte of a cache's tensors: "group/field" -> (clip, view) -> bytes, of the rows
    that are ok.
    """
    opened, found = Cache(cache), {}
    for group in opened.groups:
        rows = opened[group]
        good = np.flatnonzero(rows.ok)
        for name, array in rows.batch(good).items():
            found[f"{group}/{name}"] = {
                (rows.clips[row], int(rows.views[row])): array[k].tobytes()
                for k, row in enumerate(good.tolist())
            }
    return found
