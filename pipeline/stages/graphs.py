"""Stage two: computes the graphs of every shard and stores them beside its features."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.fields import FIELDS
from pipeline.cache.folder import home_of
from pipeline.cache.reader import Cache, CacheError, Group, made_from
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.files.atomic_files import Damaged
from pipeline.files.watched_folder import WatchedFolder
from pipeline.regions.graphs import GRAPHS, NEEDS, GraphOptions, graphs_of, require_neighbours
from pipeline.workers.claims import Claim, ClaimWatch, sweep_claims, take_claim
from pipeline.workers.completion import begin_shard, finish_shard
from pipeline.workers.engines import Engine, LocalEngine, pick_device, share_jobs
from pipeline.workers.waiting import PrintLine

BATCH_BYTES = 64 << 20  # of nodes and inner products at a time: more gains nothing and costs memory


def build_graphs(
    path: str | Path,
    which: Sequence[str] = tuple(GRAPHS),
    neighbours: int = 10,
    workers: int = 0,
    device: str = "cpu",
    compression: str = "none",
    announce: Callable[[int, int], Callable[[int, int], None]] | None = None,
    engine: Engine | None = None,
    say: PrintLine | None = None,
) -> list[dict]:
    """Computes the graphs of every complete shard that lacks them, or whose features were written
    again since.

    Returns the statistics of the shards that it wrote; those that are up to date, with the same
    options, are left alone, and other runs on the cache share the work. `workers` processes of this
    machine (0: this one), unless an `engine` says where. `announce(views to do, views there are)`
    is called once and returns `advance(done, failed)`. `say` is told whose claims are waited for.
    Gone if the cache is moved, deleted or replaced meanwhile. CacheError if a field that the graphs
    need is not stored; ValueError for options that do not fit.
    """
    maker = ShardGraphs(Path(path), GraphOptions(tuple(which), neighbours), device, compression)
    maker.check()
    features, graphs = maker.cache.records["features"], maker.cache.records["graphs"]
    sizes = {
        shard: sum(group["rows"] for group in record["groups"].values())
        for shard, record in features.items()
    }
    todo = [
        shard
        for shard in features
        if shard not in graphs or graphs[shard].get("options") != maker.options.record
    ]
    advance = (
        announce(sum(sizes[s] for s in todo), sum(sizes.values()))
        if announce
        else lambda done, failed: None
    )
    written, watch = [], ClaimWatch()
    sweep_claims(maker.path / "graphs", watch)
    jobs = [GraphJob(shard, maker.cache.shards.path(shard, "graphs")) for shard in todo]
    if jobs:
        engine = engine or LocalEngine(min(workers, len(jobs)))
        with closing(share_jobs(maker, jobs, engine, maker.finished, maker.home, say)) as results:
            for job, record in results:
                written += [record] if record else []
                advance(sizes[job.shard], 0)
    sweep_claims(maker.path / "graphs", watch)
    return sorted(written, key=lambda record: record["shard"])


class GraphJob(NamedTuple):
    """A shard whose graphs are to be made, and their file."""

    shard: int
    path: Path


class ShardGraphs:
    """Computes the graphs of one shard after another; each process that it is sent to opens the
    cache once.

    `device` is `auto`, `cpu` or `cuda`, of the process that computes.
    """

    def __init__(self, path: Path, options: GraphOptions, device: str, compression: str):
        self.path, self.options, self.device, self.compression = path, options, device, compression

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key not in ("cache", "home")}

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.path)

    @cached_property
    def home(self) -> WatchedFolder:
        """The cache's folders, identified when this process began."""
        return home_of(self.cache.path, self.cache.fingerprint, "graphs")

    def check(self) -> None:
        """CacheError or ValueError if the cache holds no views, or they do not allow these
        graphs.
        """
        if not self.cache.groups:
            raise CacheError(f"{self.path}: no shard is complete yet; run `vidgraph extract` first")
        for name in self.cache.groups:
            group = self.cache[name]
            for field in self._needs():
                if field not in group.fields:
                    graphs = ", ".join(
                        graph for graph in self.options.which if field in NEEDS[graph]
                    )
                    advice = f"extract with --keep {'nodes' if field == 'nodes' else 'boxes'}, or leave {graphs} out of --which"
                    raise CacheError(
                        f"{self.path} {name}: {graphs} need {field}, which is not stored; {advice}"
                    )
            steps, count = group.shape("valid")
            if "iou" in self.options.which and steps < 2:
                raise CacheError(
                    f"{self.path} {name}: iou needs 2 steps, the views have {steps}; leave it out "
                    f"of --which"
                )
            if "similar" in self.options.which:
                require_neighbours(self.options.neighbours, steps * count)

    def _needs(self) -> list[str]:
        return sorted({field for graph in self.options.which for field in NEEDS[graph]})

    def finished(self, job: GraphJob) -> bool:
        """Whether a shard's graphs are there as asked for, by what the disk says now."""
        try:
            graphs = self.cache.shards.record(job.shard, "graphs")
            features = self.cache.shards.record(job.shard)
        except (OSError, Damaged):
            return False
        return graphs.get("options") == self.options.record and made_from(graphs, features)

    def __call__(self, job: GraphJob) -> dict | None:
        """Writes the graphs of a shard and returns its statistics; None if another run is at it, or
        was.
        """
        with self.home.guarded():
            claim = take_claim(job.path)
            if claim is None:
                return None
            with claim:
                self.home.check()  # the claim lies in the cache that this run began with
                return None if self.finished(job) else self._make(job.shard, claim)

    def _make(self, shard: int, claim: Claim) -> dict | None:
        features, shards = self.cache.records["features"][shard], self.cache.shards
        attrs = {**shards.attrs(shard), "source_sha256": features["sha256"]}
        plans = {name: self._plan(self.cache[name], shard) for name in features["groups"]}
        begun, mark = time.monotonic(), begin_shard(claim.path)
        with ShardWriter(
            claim.path, plans, attrs=attrs, compression=self.compression, claim=claim.name
        ) as writer:
            for name in plans:
                self._write(self.cache[name], shard, writer)
            views = sum(int(ok.sum()) for ok in writer.ok.values())
            stats = {
                "stage": "graphs",
                "shard": shard,
                "options": self.options.record,
                "views": views,
            }
            self.home.check()
            return finish_shard(
                writer, {**stats, "seconds": round(time.monotonic() - begun, 3)}, claim, mark
            )

    def _plan(self, group: Group, shard: int) -> GroupPlan:
        rows = group.rows_in(shard)
        steps, count = group.shape("valid")
        most = self.options.neighbours
        shapes = {
            "iou": (steps - 1, count, count),
            "nearest": (steps, count, steps),
            "similar": (steps, count, most),
            "similarity": (steps, count, most),
        }
        fields = {
            name: (shapes[name], FIELDS[name].dtype)
            for graph in self.options.which
            for name in GRAPHS[graph]
        }
        return GroupPlan(
            group.clips[rows.start : rows.stop],
            group.views[rows.start : rows.stop].tolist(),
            fields,
        )

    def _write(self, group: Group, shard: int, writer: ShardWriter) -> None:
        rows, needs = group.rows_in(shard), self._needs()
        steps, count = group.shape("valid")
        channels = group.shape("nodes")[-1] if "nodes" in needs else 0
        size = max(1, BATCH_BYTES // (4 * steps * count * (steps * count + channels)))
        ok = [row for row in rows if group.ok[row]]
        for start in range(0, len(ok), size):
            batch = ok[start : start + size]
            graphs = graphs_of(group.batch(batch, needs), self.options, pick_device(self.device))
            for k, row in enumerate(batch):
                writer.write(
                    group.name,
                    row - rows.start,
                    {field: values[k] for field, values in graphs.items()},
                )
