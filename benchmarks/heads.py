"""How fast heads train: GOS's operations against their naive forms, and an epoch from the cache
against one from frames.

operations  see benchmarks/_operations.py.
epoch       STRG (joint form, 16 steps of 10 boxes: 160 nodes, 512 channels, 174 classes) on a
            cache, against the same training from videos: i3d_r50 with its reduction to 512
            channels, RoIAlign and the head, on 32 frames of 224×224 decoded from mp4 (240×320, 64
            frames), by `heads.finetuning.finetune`. Same batch, same machine, fp32 on the CPU; the
            table says what each side includes. Boxes are a grid's, so no RPN runs on either side;
            frames come from worker processes beside the network. From the cache whole epochs are
            timed, from frames a few mini-batches, and both are given per clip: an epoch is
            proportional to its clips. Medians, without the first epoch, in which workers start.
            Features and weights are random.
"""

import json
import statistics
import tempfile
from pathlib import Path

import _report
from _caches import node_fields, random_cache
from _operations import rows_of
from extract import make_videos

from heads.config.recipe import Recipe, recipe_from
from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
from heads.finetuning.frame_training import FrameRunOptions
from heads.training.train import train
from pipeline.manifests.manifest import read_manifest, write_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.views.sampling import Sampling
from pipeline.workers.memory import keep_freed_memory

WIDTH = 512
INCLUDES = {
    "cache, in memory": "gather, to float32; head: forward, backward, update",
    "cache, from disk": "read, check, to float32; head: forward, backward, update",
    "frames, backbone "
    "frozen": "decode, crop; backbone: forward; RoIAlign; head: forward, backward, update",
    "frames, all trained": "decode, crop; backbone, RoIAlign, head: forward, backward, update",
}


def recipe_of(batch: int, epochs: int) -> Recipe:
    """STRG as on Something-Something; a rate that moves weights and keeps random ones finite."""
    return recipe_from(
        {
            "name": "epoch",
            "source": "a benchmark",
            "head": {"name": "strg", "form": "joint", "dropout": 0.3},
            "data": {"num_classes": 174},
            "train": {"epochs": epochs, "batch": batch, "lr": 1e-6, "weight_decay": 0.0},
        }
    )


def measured(folder: Path, clips: int) -> tuple[float, float]:
    """(seconds a clip, share of waiting for data) of the epochs of a run but the first."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][1:]
    return statistics.median(line["seconds"] / clips for line in lines), statistics.median(
        line["waiting"] / line["seconds"] for line in lines
    )


def from_cache(
    folder: Path, batch: int, clips: int, epochs: int, resident: str
) -> tuple[float, float]:
    """As `measured`, of the head on cached regions."""
    cache = random_cache(folder, node_fields(16, 10, WIDTH), clips)
    how = {"device": "cpu", "resident": resident, "say": _quiet, "tensorboard": False}
    train(recipe_of(batch, epochs), cache, folder / "run", **how)
    return measured(folder / "run", clips)


def from_frames(
    folder: Path, batch: int, batches: int, epochs: int, accumulate: int, size: int, train_from: str
) -> tuple[float, float]:
    """As `measured`, of backbone and head on videos."""
    clips = batch * batches
    make_videos(folder, clips + 1)
    rows = [
        {
            "clip": str(k),
            "path": f"{k}.mp4",
            "split": "train" if k < clips else "val",
            "label": str(k % 2),
        }
        for k in range(clips + 1)
    ]
    config = ExtractConfig(
        backbone="i3d_r50",
        backbone_options={
            "temporal": "alternating",
            "res5_stride": 1,
            "pool1_time": 1,
            "reduce": WIDTH,
        },
        cut="reduced",
        keep=("pooled", "nodes"),
        sampling=Sampling(frames=32, size=size, train_views=1, test_clips=1, test_crops=1),
        proposals="grid",
        proposal_options={"scales": (3, 1)},  # ten boxes
    )
    recipe, phase = frames_phase(recipe_of(batch, epochs), train_from=train_from, frozen_bn=True)
    options = FrameRunOptions(accumulate=accumulate, tensorboard=False)
    manifest = read_manifest(write_manifest(folder / "clips.csv", rows).path)
    finetune(
        recipe,
        folder / "run",
        phase,
        config=config,
        manifest=manifest,
        options=options,
        source_options=SourceOptions(),
        device="cpu",
        say=_quiet,
    )
    return measured(folder / "run", clips)


def _quiet(line: str) -> None:
    """The runs' own lines say nothing that the table does not."""


def epochs_table(
    batch: int, clips: int, batches: int, rounds: int, accumulate: int, size: int
) -> list[dict[str, object]]:
    """One row per way to train."""
    found = {}
    for name in INCLUDES:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            if name.startswith("cache"):
                found[name] = from_cache(
                    place, batch, clips, rounds + 1, "ram" if "memory" in name else "disk"
                )
            else:
                train_from = "none" if "frozen" in name else "stem"
                found[name] = from_frames(
                    place, batch, batches, rounds + 1, accumulate, size, train_from
                )
    fastest = found["cache, in memory"][0]
    return [
        {
            "from": name,
            "includes": INCLUDES[name],
            "batch": batch,
            "ms a clip": 1000 * seconds,
            "waiting for data, %": 100 * waiting,
            "epoch of 10,000 clips, min": seconds * 10_000 / 60,
            "times the cache's": seconds / fastest,
        }
        for name, (seconds, waiting) in found.items()
    ]


def main() -> None:
    parser = _report.arguments(__doc__)
    parser.add_argument("--part", choices=("operations", "epoch", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, or epochs, that are timed")
    parser.add_argument("--views", type=int, default=64, help="operations: views in a batch")
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="operations: leave out the processes that measure memory",
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="epoch: clips in a mini-batch, on both sides"
    )
    parser.add_argument(
        "--clips", type=int, default=512, help="epoch: clips of an epoch from the cache"
    )
    parser.add_argument(
        "--batches", type=int, default=1, help="epoch: mini-batches of an epoch from frames"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        default=8,
        help="epoch: parts of a mini-batch from frames, for its memory",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        help="epoch: side of a view, pixels; less only to try the script",
    )
    given = parser.parse_args()
    keep_freed_memory()
    if given.part != "epoch":
        rows = rows_of(given.views, given.rounds, not given.no_memory)
        _report.report(
            "GOS's operations, forward and backward", rows, _file(given.json, "operations")
        )
    if given.part != "operations":
        rows = epochs_table(
            given.batch, given.clips, given.batches, given.rounds, given.accumulate, given.size
        )
        _report.report(
            "an epoch of strg with 160 nodes, from the cache and from frames",
            rows,
            _file(given.json, "epoch"),
        )


def _file(path: Path | None, part: str) -> Path | None:
    """heads.json -> heads_epoch.json"""
    return path and path.with_name(f"{path.stem}_{part}{path.suffix}")


if __name__ == "__main__":
    main()
