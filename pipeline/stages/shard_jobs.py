"""Which shards a run has to write: those of the features, then those of fields added later."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache.fields import LABELS, grid_at
from pipeline.cache.parts import Part, ViewKey
from pipeline.cache.shards import Shards, made_from, read_if_there
from pipeline.stages.config import ExtractConfig, for_views, recorded_for_views
from pipeline.stages.jobs import ShardJob
from pipeline.views.sampling import count_views
from pipeline.workers.completion import mark_of


@dataclass
class ShardPass:
    """Shards that are written with one config.

    Attributes:
        stage: the folder of the cache that they are in.
        config: the config.
        record: the config as `ExtractConfig.computed` gives it.
        redo: whether files that exist are written again, with their good rows.
        jobs: the shards.
    """

    stage: str
    config: ExtractConfig
    record: dict
    redo: bool
    jobs: list[ShardJob] = field(default_factory=list)


def shards_to_do(
    plan: Shards, stage: str, wanted: Iterable[int], redo: bool, before: Iterable[int] = ()
) -> list[int]:
    """Return the shards that a stage lacks.

    Args:
        plan: the shards of the cache.
        stage: one of `plan.stages`.
        wanted: the shards to look at.
        redo: whether complete shards count, too.
        before: shards whose features are written first, in the same run.
    """
    before, found = set(before), []
    for shard in wanted:
        if not plan.has_stage(shard, stage):
            continue
        is_missing = redo or not plan.done(shard, stage)
        if stage != "features" and not is_missing:
            is_missing = shard in before or is_stale(plan, shard, stage)
        if is_missing:
            found.append(shard)
    return found


def is_stale(plan: Shards, shard: int, stage: str) -> bool:
    """Return whether added fields of a shard belong to other features than those that are there.

    Args:
        plan: the shards of the cache.
        shard: the shard's number.
        stage: one of `plan.stages`, but not "features".
    """
    features, made = read_if_there(plan, shard, "features"), read_if_there(plan, shard, stage)
    if features is None or made is None:
        return True
    return not made_from(made, {"features": features})


def passes_of(
    plan: Shards,
    stage: str,
    shards: Iterable[int],
    config: ExtractConfig,
    record: dict,
    redo: bool,
) -> list[ShardPass]:
    """Group the shards of a stage by what they are written with.

    Args:
        plan: the shards of the cache.
        stage: one of `plan.stages`.
        shards: the numbers of the shards.
        config: the config of the whole cache.
        record: what `ExtractConfig.computed` gives for it, as JSON gives it back.
        redo: whether files that exist are written again. Those of added fields always are, because
            they exist only if they are stale, or damaged.

    Returns:
        The passes, in the order of their first shards.
    """
    passes: dict[tuple, ShardPass] = {}
    for shard in shards:
        part = plan.part_of[shard]
        own = _config_of(plan, stage, part, config)
        key = own.keep, own.sampling.train_views, own.sampling.test_clips
        if key not in passes:
            own_record = recorded_for_views(record, own) if own != config else record
            passes[key] = ShardPass(stage, own, own_record, redo or stage != "features")
        passes[key].jobs.append(_job(plan, stage, shard, own, passes[key].redo))
    return list(passes.values())


def _config_of(plan: Shards, stage: str, part: Part, config: ExtractConfig) -> ExtractConfig:
    """The config of a part's shards: its own fields, and the numbers of its views."""
    if part.views is None or part.keep is None:
        return config
    keep = plan.keep.get(stage, part.keep)
    train = max(part.views.get("train", ()), default=-1) + 1
    # The frames of test views depend on how many test clips there are.
    test = part.test_clips if part.views.get("test") else 0
    if (train, test) == (0, 0):
        return config
    return for_views(config, keep, train, test)


def _job(plan: Shards, stage: str, shard: int, config: ExtractConfig, redo: bool) -> ShardJob:
    # Absolute, because other processes may have another working directory.
    path = Path(os.path.abspath(plan.path(shard, stage)))
    clips, views = plan.clips(shard), plan.views(shard)
    if views is None:
        views = (all_views(config),) * len(clips)
    # Where nothing is written again, the shard was not there.
    mark = mark_of(path) if redo else None
    job = ShardJob(shard, path, plan.attrs(shard, stage), clips, mark, views)
    if stage == "features":
        return job

    features = plan.record(shard)
    failed = {failure["clip"] for failure in features.get("failures", ())}
    skipped = [number for number, clip in enumerate(clips) if clip.clip in failed]
    stored = next(iter(features["groups"].values()))["fields"]
    return job._replace(
        attrs={**job.attrs, "source_sha256": features["sha256"]},
        fields=("crop", *fields_to_add(plan.keep[stage], stored)),
        skipped=frozenset(skipped),
        videos=tuple(features.get("videos", ())),
    )


def fields_to_add(keep: Sequence[str], stored: Iterable[str]) -> tuple[str, ...]:
    """Return the datasets of added fields: the fields, the sizes of their maps, labels of boxes.

    Args:
        keep: the fields.
        stored: what the features hold already.
    """
    # Labels come with boxes whose source has them; a shard of other boxes has no such dataset.
    labels = LABELS if "boxes" in keep else ()
    names = (*keep, *map(grid_at, keep), *labels)
    return tuple(name for name in names if name not in set(stored))


def all_views(config: ExtractConfig) -> tuple[ViewKey, ...]:
    """Return every view that a config gives a clip, in the order of the rows.

    Args:
        config: the config.
    """
    keys: list[ViewKey] = []
    for group, count in count_views(config.sampling).items():
        keys += [(group, number) for number in range(count)]
    return tuple(keys)
