"""Stage two: compute the graphs of every shard and store them beside its features."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.fields import FIELDS
from pipeline.cache.folder import watch_cache_folder
from pipeline.cache.reader import Cache, CacheError, Group
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.cache.shards import made_from, source_of
from pipeline.files.atomic_files import Damaged
from pipeline.files.watched_folder import WatchedFolder
from pipeline.regions.graphs import GRAPHS, NEEDS, GraphOptions, graphs_of, require_neighbours
from pipeline.workers.claims import Claim, ClaimWatch, sweep_claims, take_claim
from pipeline.workers.completion import OtherRun, begin_shard, finish_shard
from pipeline.workers.engines import Engine, LocalEngine, pick_device, share_jobs
from pipeline.workers.waiting import PrintLine

# What boxes are linked by, and what else is looked at if it is stored.
NEEDED_BY_TRACKS = ("boxes", "valid")
USED_BY_TRACKS = ("nodes", "box_class")
# Bytes of nodes and inner products at a time. More would only cost memory.
BATCH_BYTES = 64 << 20


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
    tracks: bool = False,
) -> list[dict]:
    """Compute the graphs of every complete shard that lacks them, or whose graphs are stale.

    Graphs that were computed with the same options from the same features stay. Other runs on the
    cache share the work.

    Args:
        path: the cache.
        which: the graphs: any of "iou", "nearest", "similar".
        neighbours: M, nodes that "similar" keeps per node.
        workers: processes on this machine; 0 is this process.
        device: "auto", "cpu" or "cuda", of the process that computes.
        compression: of the shards: "none", "lzf" or "zstd".
        announce: called once with (views to do, views in all). It returns a function that is
            called with (views done, 0) after every shard.
        engine: where shards are worked on, in place of `workers`.
        say: prints a line where another run's claim is waited for, or tracks are there already.
        tracks: whether boxes are linked over time. Where the features have tracks, those stay.

    Returns:
        The statistics of the shards that this run wrote, in the order of the shards.

    Raises:
        FolderGone: the cache was moved, deleted or replaced during the run.
        CacheError: a field that the graphs need is not stored, or no shard is complete.
        ValueError: unknown graphs, or more neighbours than nodes.
    """
    if tracks and _has_tracks(Cache(path)):
        tracks = False
        if say:
            say(f"{path}: its boxes came with tracks, which stay; none are computed")
    options = GraphOptions(tuple(which), neighbours, tracks)
    maker = ShardGraphs(Path(path), options, device, compression)
    maker.check()
    features, graphs = maker.cache.records["features"], maker.cache.records["graphs"]
    views: dict[int, int] = {}
    jobs: list[GraphJob] = []
    for shard, record in features.items():
        views[shard] = sum(group["rows"] for group in record["groups"].values())
        if shard not in graphs or graphs[shard].get("options") != maker.options.record:
            jobs.append(GraphJob(shard, maker.cache.shards.path(shard, "graphs")))

    advance = _ignore
    if announce:
        advance = announce(sum(views[job.shard] for job in jobs), sum(views.values()))
    written: list[dict] = []
    watch = ClaimWatch()
    sweep_claims(maker.path / "graphs", watch)
    if jobs:
        # More processes than shards would have nothing to do.
        engine = engine or LocalEngine(min(workers, len(jobs)))
        shared = share_jobs(maker, jobs, engine, maker.finished, maker.watched, say)
        with closing(shared) as results:
            for job, record in results:
                if record:
                    written.append(record)
                advance(views[job.shard], 0)
    sweep_claims(maker.path / "graphs", watch)
    return sorted(written, key=lambda record: record["shard"])


def links_tracks(path: str | Path) -> bool:
    """Return whether the graphs that a cache has came with tracks, so that later ones do, too.

    Args:
        path: the cache.

    Raises:
        CacheError: there is no cache.
        Damaged: cache.json or statistics are damaged.
    """
    made = Cache(path).records.get("graphs", {})
    return any(record.get("options", {}).get("tracks", False) for record in made.values())


def _has_tracks(cache: Cache) -> bool:
    """Whether the features of a cache hold tracks."""
    for record in cache.records["features"].values():
        if any("track" in group["fields"] for group in record["groups"].values()):
            return True
    return False


def _ignore(done: int, failed: int) -> None:
    """Report progress to nobody."""


class GraphJob(NamedTuple):
    """A shard whose graphs are to be computed.

    Attributes:
        shard: its number.
        path: the HDF5 file of its graphs.
    """

    shard: int
    path: Path


class ShardGraphs:
    """Computes the graphs of one shard after another.

    Each process that gets a pickled copy opens the cache once.
    """

    def __init__(self, path: Path, options: GraphOptions, device: str, compression: str):
        """Remember what to do; the cache is opened later.

        Args:
            path: the cache.
            options: which graphs.
            device: "auto", "cpu" or "cuda", of the process that computes.
            compression: of the shards: "none", "lzf" or "zstd".
        """
        self.path, self.options, self.device, self.compression = path, options, device, compression

    def __getstate__(self) -> dict:
        # Each process opens the cache itself.
        return {key: value for key, value in vars(self).items() if key not in ("cache", "watched")}

    @cached_property
    def cache(self) -> Cache:
        """The cache, as it was when this process opened it."""
        return Cache(self.path)

    @cached_property
    def watched(self) -> WatchedFolder:
        """A watch on the cache's folders from now on."""
        return watch_cache_folder(self.cache.path, self.cache.fingerprint, "graphs")

    def check(self) -> None:
        """Check that the cache has what the graphs need.

        Raises:
            CacheError: no shard is complete, or a field is not stored.
            ValueError: there are more neighbours than nodes.
        """
        if not self.cache.groups:
            raise CacheError(f"{self.path}: no shard is complete yet; run `vidgraph extract` first")
        which = self.options.which
        for name in self.cache.groups:
            group = self.cache[name]
            for field in self._needs():
                if field not in group.fields:
                    self._refuse_without(field, name)
            steps, count = group.shape("valid")
            if "iou" in which and steps < 2:
                raise CacheError(
                    f"{self.path} {name}: iou needs 2 steps, the views have {steps}; leave it out "
                    f"of --which"
                )
            if "similar" in which:
                require_neighbours(self.options.neighbours, steps * count)

    def _refuse_without(self, field: str, group: str) -> None:
        graphs = [graph for graph in self.options.which if field in NEEDS[graph]]
        if self.options.tracks and field in NEEDED_BY_TRACKS:
            graphs.append("tracks")
        graphs = ", ".join(graphs)
        kept = "nodes" if field == "nodes" else "boxes"
        raise CacheError(
            f"{self.path} {group}: {graphs} need {field}, which is not stored; extract with "
            f"--keep {kept}, or leave {graphs} out of --which"
        )

    def _needs(self) -> list[str]:
        """The fields that the graphs are computed from."""
        fields = set()
        for graph in self.options.which:
            fields.update(NEEDS[graph])
        if self.options.tracks:
            fields.update(NEEDED_BY_TRACKS)
        return sorted(fields)

    def _reads(self, group: Group) -> list[str]:
        """The fields to read of a group: what is needed, and what tracks use if it is there."""
        fields = self._needs()
        if self.options.tracks:
            fields += [name for name in USED_BY_TRACKS if name in group.fields]
        return sorted(set(fields))

    def finished(self, job: GraphJob) -> bool:
        """Return whether a shard has these graphs, by what is on the disk now.

        Args:
            job: the shard.
        """
        try:
            graphs = self.cache.shards.record(job.shard, "graphs")
            features = {}
            for stage in graphs.get("sources", ["features"]):
                features[stage] = self.cache.shards.record(job.shard, stage)
        except (OSError, Damaged):
            return False
        return graphs.get("options") == self.options.record and made_from(graphs, features)

    def __call__(self, job: GraphJob) -> dict | OtherRun | None:
        """Write the graphs of a shard.

        Args:
            job: the shard.

        Returns:
            Its statistics; OtherRun.FINISHED if another run has written them, None if one does.
        """
        # Without a claim, which takes many calls of the file system.
        if self.finished(job):
            return OtherRun.FINISHED
        with self.watched.guarded():
            claim = take_claim(job.path)
            if claim is None:
                return None
            with claim:
                # The claim must lie in the cache that the run started in.
                self.watched.check()
                if self.finished(job):
                    return OtherRun.FINISHED
                return self._make(job.shard, claim)

    def _make(self, shard: int, claim: Claim) -> dict | None:
        records, shards = self.cache.records, self.cache.shards
        features, sources = records["features"][shard], self._sources(shard)
        source = source_of({stage: records[stage][shard] for stage in sources}, sources)
        attrs = {**shards.attrs(shard, "graphs"), "source_sha256": source}
        plans = {name: self._plan(self.cache[name], shard) for name in features["groups"]}
        begun, mark = time.monotonic(), begin_shard(claim.path)
        with ShardWriter(
            claim.path, plans, attrs=attrs, compression=self.compression, claim=claim.name
        ) as writer:
            for name in plans:
                self._write(self.cache[name], shard, writer)
            statistics = {
                "stage": "graphs",
                "shard": shard,
                "options": self.options.record,
                "views": sum(int(ok.sum()) for ok in writer.ok.values()),
            }
            # A cache that was replaced in the meantime must not get this shard.
            self.watched.check()
            if sources != ["features"]:
                statistics["sources"] = sources
            statistics["seconds"] = round(time.monotonic() - begun, 3)
            return finish_shard(writer, statistics, claim, mark)

    def _sources(self, shard: int) -> list[str]:
        """The stages that hold what the graphs of a shard are computed from."""
        found = {"features"}
        for name in self.cache.records["features"][shard]["groups"]:
            found.update(self.cache[name].stage_of(field, shard) for field in self._needs())
        return [stage for stage in self.cache.shards.stages if stage in found]

    def _plan(self, group: Group, shard: int) -> GroupPlan:
        """The rows of the features, with the graphs' fields."""
        steps, count = group.shape("valid")
        neighbours = self.options.neighbours
        shapes = {
            "iou": (steps - 1, count, count),
            "nearest": (steps, count, steps),
            "similar": (steps, count, neighbours),
            "similarity": (steps, count, neighbours),
        }
        fields = {}
        for graph in self.options.which:
            for name in GRAPHS[graph]:
                fields[name] = (shapes[name], FIELDS[name].dtype)
        if self.options.tracks:
            fields["track"] = ((steps, count), FIELDS["track"].dtype)
        return GroupPlan(*group.keys_in(shard), fields)

    def _write(self, group: Group, shard: int, writer: ShardWriter) -> None:
        rows, needs = group.rows_in(shard), self._reads(group)
        steps, count = group.shape("valid")
        channels = group.shape("nodes")[-1] if "nodes" in needs else 0
        # Inner products [T*N,T*N] and nodes [T*N,C] of a view, in float32.
        view_bytes = 4 * steps * count * (steps * count + channels)
        size = max(1, BATCH_BYTES // view_bytes)

        ok = [row for row in rows if group.ok[row]]
        for start in range(0, len(ok), size):
            batch = ok[start : start + size]
            graphs = graphs_of(group.batch(batch, needs), self.options, pick_device(self.device))
            for k, row in enumerate(batch):
                tensors = {field: values[k] for field, values in graphs.items()}
                writer.write(group.name, int(group.places[row]), tensors)
