"""How well `vidgraph plan` foretells a run: its seconds and bytes against those of the extraction
itself.

Both see the same generated videos; each round plans first and extracts then. A busy machine makes
both uneven: the last row is the ratio of the medians.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from _report import arguments, report
from extract import SAMPLING, make_videos

from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.plan import make_plan
from pipeline.workers.memory import keep_freed_memory


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=60, help="clips of the whole run")
    parser.add_argument("--clips", type=int, default=8, help="clips that the plan times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="i3d_r50")
    parser.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--keep", default="pooled,res5", help="fields, comma-separated")
    parser.add_argument("--compression", default="none", choices=("none", "lzf", "zstd"))
    parser.add_argument(
        "--workers", type=int, default=1, help="decode processes (default 1; 0: in this process)"
    )
    given = parser.parse_args()
    keep_freed_memory()
    config = ExtractConfig(
        backbone=given.backbone,
        weights="none",
        keep=tuple(given.keep.split(",")),
        sampling=replace(SAMPLING, size=given.size),
        proposals="grid",
    )
    options = RunOptions(shard_size=20, compression=given.compression, workers=given.workers)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_manifest(make_videos(Path(folder), given.videos))
        for turn in range(given.rounds):
            cache = Path(folder) / f"cache{turn}"
            plan = make_plan(config, manifest, cache, options, given.clips)
            done = extract(config, manifest, cache, options)
            seconds, size = (
                plan.with_workers(1).seconds,
                sum(path.stat().st_size for path in cache.glob("features/*.h5")),
            )
            found = {
                "planned s": seconds,
                "took s": done.seconds,
                "planned / took": seconds / done.seconds,
            }
            found |= {
                "planned MB": plan.bytes / 1e6,
                "weighs MB": size / 1e6,
                "planned / weighs": plan.bytes / size,
            }
            rows.append({"round": turn, **found, "shards": f"{plan.shards} of {done.shards}"})
    middle = {
        key: statistics.median(row[key] for row in rows)
        for key in ("planned s", "took s", "planned MB", "weighs MB")
    }
    ratios = middle["planned s"] / middle["took s"], middle["planned MB"] / middle["weighs MB"]
    rows.append(
        rows[-1]
        | {"round": "median"}
        | middle
        | dict(zip(("planned / took", "planned / weighs"), ratios, strict=True))
    )
    rows = [{**row, "round": str(row["round"])} for row in rows]
    how = f"{given.keep}, {given.workers} decode processes, compression {given.compression}"
    report(
        f"plan against the run: {given.videos} clips, {given.backbone} at {given.size}, {how}",
        rows,
        given.json,
    )


if __name__ == "__main__":
    main()
