"""The predictions of clips that are in no cache, shard by shard, as `evaluate` would make them.

A shard is extracted into a folder that nobody keeps, its graphs are built where the head reads
some, and the head predicts its test views. The code is that of `vidgraph extract`,
`vidgraph graphs` and `vidgraph evaluate`, so the logits are theirs too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from heads.data.splits import SplitViews, require_split_views
from heads.evaluation.head_predictor import Predictions, open_store, predict
from heads.interface.loss import device_for
from heads.prediction.asked_run import AskedRun
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.stages.graphs import build_graphs
from pipeline.stages.jobs import Advance, RunOptions
from pipeline.stages.passing_extract import PassingExtraction
from pipeline.workers.waiting import PrintLine, print_nothing

# What a CPU cannot compute in, see `pipeline.networks.precision`.
ON_GPU_ONLY = ("tf32", "fp16")


@dataclass
class PredictedShard:
    """The predictions of some clips.

    Attributes:
        cache: holds the views of these clips until the next shard is asked for.
        clips: the clips.
        part: those that could be extracted; None if no clip could.
        predictions: of all of their views; None if no clip could be extracted.
        failures: records (clip, error, message, seconds) of the others.
        warnings: records (clip, message) of clips that look wrong and were predicted anyway.
    """

    cache: Cache
    clips: Sequence[Clip]
    part: SplitViews | None
    predictions: Predictions | None
    failures: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]


def predict_clips(
    run: AskedRun,
    manifest: Manifest,
    folder: Path,
    options: RunOptions,
    precision: str = "fp32",
    announce: Callable[[int, int], Advance] | None = None,
    say: PrintLine = print_nothing,
) -> Iterator[PredictedShard]:
    """Predict the clips of a manifest, whatever their labels and splits are.

    Args:
        run: the run that is asked.
        manifest: the clips.
        folder: where features are for a while.
        options: how to work. The run has its own batch size.
        precision: of the head: "fp32", "tf32", "bf16" or "fp16".
        announce: as for `pipeline.stages.extract.extract`.
        say: prints one line for a person.

    Yields:
        The clips in the manifest's order, some at a time.

    Raises:
        ValueError: the networks here are not those that the run was trained on.
        LossNotFinite: the head's logits are NaN or infinite.
    """
    device = device_for(options.device, precision)
    head, config, recipe = run.head.to(device), run.config, run.recipe
    if config.precision in ON_GPU_ONLY and device.type == "cpu":
        say(f"precision {config.precision} needs a GPU: features are computed in fp32")
        config = replace(config, precision="fp32")

    clips = [replace(clip, split="test", labels=()) for clip in manifest.clips]
    asked = replace(manifest, clips=tuple(clips))
    options = replace(options, device=device.type, batch=run.batch)
    passing = PassingExtraction(config, asked, folder, options)
    run.require_same_networks(passing.record)
    for shard_clips, statistics in passing.shards(announce):
        if run.graphs or run.tracks:
            build_graphs(
                passing.cache,
                run.graphs,
                run.neighbours,
                device=device.type,
                tracks=run.tracks,
            )
        cache = Cache(passing.cache)
        rows = cache["test"]
        views = None
        found = None
        if any(rows.ok[rows.rows_of(clip.clip)].any() for clip in shard_clips):
            here = replace(asked, clips=tuple(shard_clips))
            views = require_split_views(cache, "test", "test", here, run.classes, recipe.data)
            store = open_store([head], cache, [views], recipe, "disk", device)
            found = predict(head, views, store, recipe, precision)
        yield PredictedShard(
            cache,
            shard_clips,
            views,
            found,
            statistics["failures"],
            statistics.get("warnings", ()),
        )
        # Their space is free once they are deleted and closed.
        for file in cache.files:
            file.release()
