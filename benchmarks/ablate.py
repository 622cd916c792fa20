"""Members that share their passes over a cache against the same members trained one after the
other.

roi_pool    reads the nodes of 50 boxes with 2048 channels, 3.3 MB a view, as much as a map of res5:
            reading dominates. `cold`: the files' pages are dropped before every epoch, as if the
            cache were larger than the memory. `memory`: resident.
strg        reads 10 boxes with 512 channels (STRG on Something-Something), 183 kB a view, from
            memory: computing dominates.

Seconds are those of an epoch with its validation on a few clips and its checkpoints, the median
over the epochs but the first; of separate runs their sum. Features are random. Both sides give the
same weights.
"""

import statistics
import tempfile
import time
from pathlib import Path

from _caches import drop_pages, node_fields, random_cache
from _report import arguments, report

from heads.config.member import Member
from heads.config.recipe import Recipe, recipe_from
from heads.training.study import Failure
from heads.training.train import run_members
from pipeline.cache.reader import Cache
from pipeline.workers.memory import keep_freed_memory

CASES = (  # head, boxes, channels, resident, share of the clips
    ("roi_pool", 50, 2048, "disk", 1.0),
    ("roi_pool", 50, 2048, "ram", 1.0),
    ("strg", 10, 512, "ram", 0.25),  # a view takes it ten times as long
)


class Clock:
    """Hears the lines of a run; `epochs` are the seconds from the last line of one epoch to the
    last of the next.
    """

    def __init__(self, members: int, cache: Path, cold: bool):
        self.members, self.cache, self.cold = members, cache, cold
        self.heard, self.epochs, self.begun = 0, [], 0.0

    def __call__(self, line: str) -> None:
        if "epoch " not in line:
            return
        self.heard += 1
        if self.heard % self.members:
            return
        if self.begun:
            self.epochs.append(time.perf_counter() - self.begun)
        if self.cold:
            drop_pages(self.cache)
        self.begun = time.perf_counter()


def epoch_of(
    recipe: Recipe, seeds: range, cache: Cache, folder: Path, resident: str
) -> tuple[float, float]:
    """(seconds, share of waiting for data) of an epoch of members with these seeds in one pass."""
    clock = Clock(len(seeds), cache.path, resident == "disk")
    members = [Member(recipe, folder / str(seed), seed) for seed in seeds]
    outcomes = run_members(members, cache, order_seed=0, device="cpu", resident=resident, say=clock)
    if failed := [one for one in outcomes if isinstance(one, Failure)]:
        raise failed[0].error
    seconds = statistics.median(clock.epochs)
    return seconds, outcomes[0].waiting / outcomes[0].epochs / seconds


def compare(
    head: str,
    boxes: int,
    channels: int,
    resident: str,
    clips: int,
    members: int,
    rounds: int,
    batch: int,
) -> dict:
    """One row of the table."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # not in memory, as /tmp may be
        place = Path(folder)
        fields = node_fields(16, boxes, channels)
        cache = random_cache(place, fields, clips)
        training = {"epochs": rounds + 1, "batch": batch, "lr": 1e-3}
        data = {"num_classes": 174}
        recipe = recipe_from(
            {
                "name": head,
                "source": "a benchmark",
                "head": {"name": head},
                "data": data,
                "train": training,
            }
        )
        together, waited = epoch_of(recipe, range(members), cache, place / "together", resident)
        alone = [
            epoch_of(recipe, range(k, k + 1), cache, place / "alone", resident)
            for k in range(members)
        ]
        size = cache["train"].shape("nodes")
    apart = sum(seconds for seconds, _ in alone)
    return {
        "head": head,
        "nodes": f"{size[0]}×{size[1]}×{size[2]}",
        "read from": "disk, cold" if resident == "disk" else "memory",
        "members": members,
        "views": clips,
        "apart, s": apart,
        "waiting apart, %": 100 * statistics.median(share for _, share in alone),
        "shared, s": together,
        "waiting shared, %": 100 * waited,
        "shared / apart": together / apart,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=256, help="training clips, one view each")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    keep_freed_memory()
    rows = []
    for *case, share in CASES:
        rows.append(
            compare(
                *case, max(1, int(share * given.clips)), given.members, given.rounds, given.batch
            )
        )
    report(
        "members in shared passes against the same runs one by one, seconds an epoch",
        rows,
        given.json,
    )


if __name__ == "__main__":
    main()
