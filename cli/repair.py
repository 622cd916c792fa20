"""`vidgraph repair`: redoes what `verify` or a run found wrong."""

from pathlib import Path

import click

from cli._options import device_option


@click.command("repair")
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="The cache to repair.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the videos.  [default: where they were]")
@click.option("--weights", help="Checkpoint of the backbone.  [default: where it was]")
@click.option("--workers", type=int, help="Decode processes.  [default: 1 on a CPU, one per spare core beside a GPU]")
@click.option("--time-limit", default=120.0, help="Seconds a clip may take to decode.")
@device_option
def command(cache: Path, root: Path | None, weights: str | None, workers: int | None, time_limit: float, device: str) -> int:
    """Extract again exactly the shards that are damaged, missing, or hold failed clips.

    Configuration and batch size are those the cache was made with. The graphs of a shard that was redone are stale: run
    `vidgraph graphs` afterwards.
    """
    from cli._options import pick_device
    from cli.extract import default_workers, run
    from pipeline.extract import RunOptions
    from pipeline.repair import as_extracted
    from pipeline.verify import shards_to_repair

    device = pick_device(device)
    found = shards_to_repair(cache)
    if not found:
        click.echo(f"{cache}: nothing to repair")
        return 0
    click.echo(f"{cache}: redoing {len(found)} shards: {', '.join(map(str, found))}", err=True)
    workers = default_workers(device) if workers is None else workers
    options = RunOptions(device=device, workers=workers, time_limit=time_limit)
    config, manifest, options = as_extracted(cache, options, root, weights)
    return run(config, manifest, cache, options, found, redo=True)
