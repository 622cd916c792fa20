"""`vidgraph repair`: writes damaged shards and shards with failed clips again."""

from pathlib import Path

import click

from cli._shared.interrupt import stoppable
from cli._shared.options import FOLDER, device_option, plugin_option, time_limit_option
from cli._shared.progress import say_aside
from cli._shared.say import say
from pipeline.text.counted import counted

_FILE = click.Path(path_type=Path)


@click.command("repair")
@click.option("--cache", required=True, type=_FILE, help="The cache to repair.")
@click.option("--root", type=FOLDER, help="Folder of the videos.  [default: where they were]")
@click.option("--weights", help="Checkpoint of the backbone.  [default: where it was]")
@click.option("--annotations", type=_FILE, help="File of boxes.  [default: where it was]")
@click.option(
    "--proposal-weights", help="Checkpoint of the source of boxes.  [default: where it was]"
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that read and decode.  [default: 1 on a CPU, one per spare core beside a GPU]",
)
@click.option(
    "--changed",
    is_flag=True,
    help="Also the clips whose videos have changed since they were extracted.",
)
@click.option(
    "--accepted", is_flag=True, help="Also the failed clips that --accept-failures accepted."
)
@time_limit_option(120.0)
@device_option
@plugin_option
def command(
    cache: Path,
    root: Path | None,
    weights: str | None,
    annotations: Path | None,
    proposal_weights: str | None,
    workers: int | None,
    changed: bool,
    accepted: bool,
    time_limit: float,
    device: str,
) -> int:
    """Write again the shards that are damaged, missing, or hold failed clips, and their graphs.

    Whole views are copied if their videos are still the same. The rest is decoded and computed
    again, with the configuration and the batch size that the cache was made with. A shard stays as
    it was if clips that it holds cannot be read now.
    """
    from cli._shared.options import pick_device
    from cli.extract import default_workers, run
    from pipeline.stages.extract import RunOptions
    from pipeline.stages.repair import MovedFiles, as_extracted, changed_shards, redo_graphs
    from pipeline.stages.verify import bad_shards

    with stoppable("stopped; finished shards are kept, the same command resumes"):
        device = pick_device(device)
        workers = default_workers(device) if workers is None else workers
        found, code = bad_shards(cache, workers, accepted), 0
        if changed:
            found["features"] = sorted({*found["features"], *changed_shards(cache, root)})
        if not any(found.values()):
            say(f"{cache}: nothing to repair")
            return 0

        features = found["features"]
        if features:
            listed = ", ".join(map(str, features))
            say(f"{cache}: redoing {counted(len(features), 'shard')}: {listed}", err=True)
            options = RunOptions(device=device, workers=workers, time_limit=time_limit)
            config, manifest, options = as_extracted(
                cache, options, MovedFiles(root, weights, annotations, proposal_weights)
            )
            code = run(config, manifest, cache, options, features, redo=True)
        for stage, shards in found.items():
            if shards and stage not in ("features", "graphs"):
                say(f"{cache}: redoing {counted(len(shards), 'shard')} of {stage}", err=True)
                options = RunOptions(device=device, workers=workers, time_limit=time_limit)
                config, manifest, options = as_extracted(
                    cache, options, MovedFiles(root, weights, annotations, proposal_weights)
                )
                redone = run(config, manifest, cache, options, shards, redo=True, stage=stage)
                code = max(code, redone)
        # A cache that never had graphs gets none.
        if any((cache / "graphs").glob("*.h5")):
            written = redo_graphs(cache, found["graphs"], device=device, say=say_aside)
            say(f"{cache}: graphs of {counted(len(written), 'shard')} computed again")
    return code
