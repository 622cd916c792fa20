"""`vidgraph graphs`: stage two, relations between the cached nodes."""

from pathlib import Path

import click

from cli._shared.cluster import cluster_options, engine_of
from cli._shared.interrupt import stoppable
from cli._shared.options import commas, device_option, pick_device
from cli._shared.progress import progress, say_aside
from cli._shared.say import say
from pipeline.text.counted import agree, counted


@click.command("graphs")
@click.option(
    "--cache",
    required=True,
    type=click.Path(path_type=Path),
    help="The cache, after `vidgraph extract`.",
)
@click.option(
    "--which",
    default="iou,nearest,similar",
    callback=commas,
    help="Graphs to have, comma-separated; others that are there go.",
)
@click.option(
    "--neighbours", default=10, help="M, most similar other nodes kept per node (graph similar)."
)
@click.option(
    "--tracks/--no-tracks",
    default=None,
    help="Also link boxes of the same object over time (field track), by overlap, features and "
    "class, where the extraction's boxes came without tracks.  [default: as the graphs that are "
    "there, else no]",
)
@click.option(
    "--workers",
    default=0,
    type=click.IntRange(min=0),
    help="Processes, each with one thread; 0: this one, with all its threads.",
)
@click.option(
    "--compression",
    default="none",
    type=click.Choice(["none", "lzf", "zstd"]),
    help="Compression of the graphs' files.",
)
@device_option
@cluster_options
def command(
    cache: Path,
    which: tuple[str, ...],
    neighbours: int,
    tracks: bool | None,
    workers: int,
    compression: str,
    device: str,
    **cluster,
) -> int:
    """Compute IoU, nearest-node and similarity graphs of every cached view.

    Shards whose graphs are up to date, with the same options, are skipped. The same command
    therefore resumes a stopped run, and updates the graphs of a repaired cache. Several runs at the
    same time share the work.
    """
    from contextlib import ExitStack

    with (
        stoppable("stopped; finished graphs are kept, the same command resumes"),
        ExitStack() as stack,
    ):
        from pipeline.stages.graphs import build_graphs, links_tracks

        if tracks is None:
            tracks = links_tracks(cache)
        engine = engine_of(cluster, cache / "logs")
        # With an engine, each worker chooses among the devices of its own machine.
        device = device if engine else pick_device(device)

        def announce(todo: int, total: int):
            if todo < total:
                skipped = f"{total - todo:,} of {counted(total, 'view')}"
                verb = agree(total - todo, "is", "are")
                say(f"{skipped} {verb} in shards whose graphs are up to date", err=True)
            return stack.enter_context(progress("graphs", todo, "views"))

        written = build_graphs(
            cache,
            which,
            neighbours,
            workers,
            device,
            compression,
            announce,
            engine,
            say_aside,
            tracks,
        )
    if not written:
        say(f"{cache}: nothing to do, all graphs are up to date")
        return 0
    views = sum(record["views"] for record in written)
    size = sum(record["bytes"] for record in written)
    say(
        f"{cache}: graphs of {counted(views, 'view')} in {counted(len(written), 'shard')} written, "
        f"{size / 1e6:,.1f} MB"
    )
    return 0
