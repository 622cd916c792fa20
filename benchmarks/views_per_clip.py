"""How many training views per clip a cache needs: accuracy against K at equal numbers of steps.

Videos of the task "meet" are longer than a view. A training view takes a random frame of each of 8
equal segments, and a random square of 1 or 0.9 times the frame's side (the sampling and the crop of
GOS's recipes; STRG's crops move in the same way). One cache holds the most views; a run draws from
the first K of them (`data.train_views`). So all runs see the same clips, equally often, in the same
order, for the same number of steps. Runs of --epochs differ in K alone.

`epochs / K` says how often a run has seen each view. `gain` is the accuracy less that of K = 1, and
`gain / best` its share of the largest gain at this length. The head is STRG's joint form, on boxes
from the annotations and nodes of the frozen digit network.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from _report import arguments, report

from heads.config.member import Member
from heads.config.recipe import Recipe, recipe_from
from heads.reproduction.pretraining import Pretraining, pretrain
from heads.training.study import Failure
from heads.training.train import run_members
from pipeline.cache.reader import Cache
from pipeline.digits import load_images, write_dataset
from pipeline.digits.meet_task import Meet
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import extract
from pipeline.stages.graphs import build_graphs
from pipeline.stages.jobs import RunOptions
from pipeline.views.sampling import Sampling
from pipeline.workers.memory import keep_freed_memory

# Twice the frames of the demo's videos at the same speed; a view has 8 of them.
TASK = Meet(frames=16, together=8)
FRAMES = 8


def make_cache(folder: Path, clips: int, views: int, width: int) -> Cache:
    """Write videos and extract them; what exists in the folder is kept.

    Args:
        folder: for the videos, the network and the cache.
        clips: training videos; there are half as many for test, at least 400.
        views: training views per clip.
        width: channels of the digit network.
    """
    images = load_images()
    splits = {"train": clips, "test": max(clips // 2, 400)}
    manifest = write_dataset(folder / "videos", TASK, splits, workers=0, images=images)
    network = folder / "digit_cnn.pt"
    if not network.exists():
        how = Pretraining(width=width, tile=TASK.shown, canvas=TASK.size)
        pretrain(network, images, how, seed=0, say=print)

    config = ExtractConfig(
        backbone="digit_cnn",
        backbone_options={"width": width, "pixels": "unit"},
        weights=str(network),
        sampling=Sampling(
            frames=FRAMES,
            sampling="segments",
            size=TASK.size,
            train_views=views,
            train_crop="gos",
            flip=0.0,
        ),
        proposals="annotations",
        proposal_options={"file": str(folder / "videos" / "boxes.csv"), "num_boxes": TASK.digits},
    )
    cache = folder / "cache"
    extract(config, read_manifest(manifest), cache, RunOptions(device="cpu", batch=16, workers=1))
    build_graphs(cache, ("iou",), device="cpu")
    return Cache(cache)


def recipe_of(epochs: int, views: int) -> Recipe:
    """Return STRG's joint form with the demo's training, on the first `views` views of a clip."""
    return recipe_from(
        {
            "name": f"strg-{epochs}-{views}",
            "source": "benchmarks/views_per_clip.py",
            "head": {"name": "strg", "form": "joint"},
            "data": {"train_views": views},
            "train": {
                "epochs": epochs,
                "batch": 64,
                "optimiser": "adam",
                "lr": 0.004,
                "schedule": "cosine",
                "weight_decay": 0.0,
            },
            "evaluate": {"checkpoint": "last"},
        }
    )


def accuracies(cache: Cache, folder: Path, epochs: int, views: int, seeds: int) -> list[float]:
    """Train with every seed; return the accuracies on the test split in percent."""
    recipe = recipe_of(epochs, views)
    members = []
    for seed in range(seeds):
        members.append(Member(recipe, folder / f"{recipe.name}-{seed}", seed))
    found = []
    outcomes = run_members(members, cache, order_seed=0, device="cpu", say=lambda line: None)
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome.error
        found.append(100 * outcome.metrics["test"]["top1"])
    return found


def numbers(text: str) -> list[int]:
    """Return whole numbers from "1,2,4"."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--views", default="1,2,4,8,16", help="K, training views per clip")
    parser.add_argument("--epochs", default="8,32,96", help="lengths of training")
    parser.add_argument("--clips", type=int, default=600, help="training videos")
    parser.add_argument("--width", type=int, default=32, help="channels of the digit network")
    parser.add_argument("--seeds", type=int, default=3, help="runs per row")
    parser.add_argument("--folder", type=Path, help="keep videos, cache and runs here")
    given = parser.parse_args()
    keep_freed_memory()
    views, lengths = numbers(given.views), numbers(given.epochs)

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        cache = make_cache(folder, given.clips, max(views), given.width)
        print(f"cache: {time.monotonic() - began:.0f} s on {len(os.sched_getaffinity(0))} cores")

        rows = []
        for epochs in lengths:
            by_views = {}
            began = time.monotonic()
            for count in views:
                by_views[count] = accuracies(cache, folder / "runs", epochs, count, given.seeds)
            print(f"{epochs} epochs: {time.monotonic() - began:.0f} s")
            rows += table_of(epochs, by_views)
    report(
        f"meet, {given.clips:,} training videos, {given.seeds} seeds, 10 classes", rows, given.json
    )


def table_of(epochs: int, by_views: dict[int, list[float]]) -> list[dict[str, object]]:
    """Return the rows of one length of training.

    Args:
        epochs: the length.
        by_views: K -> accuracies of its seeds in percent; the first K is compared with.
    """
    means = {count: statistics.mean(found) for count, found in by_views.items()}
    first = next(iter(means.values()))
    best = max(means.values()) - first
    rows = []
    for count, found in by_views.items():
        gain = means[count] - first
        rows.append(
            {
                "epochs": epochs,
                "views K": count,
                "epochs / K": epochs / count,
                "top-1 %": means[count],
                "std": statistics.stdev(found) if len(found) > 1 else 0.0,
                "gain": gain,
                "gain / best": gain / best if best else 0.0,
            }
        )
    return rows


if __name__ == "__main__":
    main()
