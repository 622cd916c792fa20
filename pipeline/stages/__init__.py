"""The stages that make a cache: check, plan, extract, graphs, verify, repair.

The room composes all other rooms of `pipeline`, except for `digits`. Its verbs are functions:

    pipeline.stages.extract.extract        stage one: videos -> features
    pipeline.stages.graphs.build_graphs    stage two: boxes and nodes -> graphs
    pipeline.stages.check.check_clips      looks at every clip before a run
    pipeline.stages.plan.make_plan         estimates bytes and hours from a few clips
    pipeline.stages.verify.inspect         reads every byte of a cache
    pipeline.stages.repair.as_extracted    the options that write a damaged shard again

`extract` is the loop over shards, `shard_composer` writes one shard, and `frozen_networks` turns
pixels into tensors. `passing_extract` hands out shards that nobody keeps. `recorded` turns the
record of an extraction into its config again. `bottleneck` says what held a run back.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "ExtractConfig": "config",
    "RunOptions": "jobs",
    "FrozenNetworks": "frozen_networks",
    "build_graphs": "graphs",
    "check_clips": "check",
    "make_plan": "plan",
    "inspect": "verify",
    "bad_shards": "verify",
    "as_extracted": "repair",
}

__all__ = list(_HOMES)

__getattr__ = load_lazily(__name__, _HOMES)
