"""`vidgraph plan`: what an extraction will take, from a few clips."""

from pathlib import Path

import click

from cli._shared.extraction import (
    config_for,
    like_options,
    network_options,
    running_options,
    views_options,
)
from cli._shared.interrupt import stoppable
from cli._shared.options import FOLDER, pick_device, plugin_option, say_cost
from cli._shared.progress import progress
from cli._shared.say import console, say
from pipeline.text.counted import counted


@click.command("plan")
@click.option(
    "--manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="The clips (see `vidgraph manifest`).",
)
@click.option("--root", type=FOLDER, help="Folder that its paths start from.  [default: its own]")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder that `extract` would write to.  [default with --like: NEW, beside that cache]",
)
@click.option(
    "--clips",
    default=8,
    type=click.IntRange(min=1),
    help="Clips of a measured shard; 9/4 of them are extracted.",
)
@views_options
@network_options
@running_options
@plugin_option
def command(**given) -> int:
    """Measure a few clips and print what `extract` would take for all, with the same options.

    Prints bytes per field, shards, seconds, hours of the device with 1, 8 and 64 workers on
    machines like this one, and whether the disk has room. Nothing stays on the disk.

    Exit code 3: there is no room, or some of the clips failed.
    """
    from contextlib import ExitStack

    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.plan import make_plan
    from pipeline.stages.shard_composer import RunOptions
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    if given["cache"] is None:
        if given["like"] is None:
            raise click.UsageError("Missing option '--cache': the folder that would be written to")
        given["cache"] = given["like"].absolute().parent / "NEW"
    given = like_options(given)
    manifest = read_manifest(given["manifest"], given["root"])
    names = [
        "batch",
        "workers",
        "time_limit",
        "compile",
        "compression",
        "shard_bytes",
        "shard_size",
        "views_for_all",
    ]
    options = RunOptions(
        device=pick_device(given["device"]), **{name: given[name] for name in names}
    )
    with stoppable("stopped; nothing was kept"), ExitStack() as stack:

        def announce(todo: int, total: int):
            return stack.enter_context(progress("plan", todo, "clips"))

        config = config_for(given, manifest)
        say_cost(config.precision, given["device"])
        plan = make_plan(config, manifest, given["cache"], options, given["clips"], announce)
    return _print(plan, given["cache"])


# The measured clips come from all shards.
command.params = [parameter for parameter in command.params if parameter.name != "shards"]


def _print(plan, cache: Path) -> int:
    """Print the tables and the lines below them, and return the exit code."""
    from rich import box
    from rich.table import Table

    from pipeline.stages.plan import WORKERS

    fields = Table(
        "group",
        "field",
        "shape",
        "dtype",
        "a view",
        "all",
        box=box.SIMPLE,
        title="bytes",
        title_justify="left",
    )
    for field in plan.fields:
        size = " ".join(map(str, field.shape)) or "1"
        fields.add_row(
            field.group,
            field.name,
            size,
            field.dtype,
            _bytes(field.view_bytes),
            _bytes(field.bytes),
        )
    workers = Table(
        "workers",
        "busy",
        "wall time",
        "device hours",
        box=box.SIMPLE,
        title="time",
        title_justify="left",
    )
    for row in map(plan.with_workers, WORKERS):
        workers.add_row(
            f"{row.workers}", f"{row.busy}", _time(row.seconds), f"{row.device_hours:,.2f}"
        )
    for table, first in ((fields, 4), (workers, 0)):
        for column in table.columns[first:]:
            column.justify = "right"
    output = console()
    output.print(fields)
    output.print(workers)
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in plan.parts.items() if seconds)
    say(
        f"measured {plan.measured:,} of {counted(plan.clips, 'clip')} on {plan.device}: "
        f"{plan.clip_seconds:.3g} s a clip "
        f"({parts}; they overlap), {plan.start_seconds:.1f} s to start"
    )

    room = (
        f"{_bytes(plan.bytes)} on the disk, in {counted(plan.shards, 'shard')} of "
        f"{counted(plan.per_shard, 'clip')}"
    )
    if plan.there:
        room += f", {_bytes(plan.there)} of it there already"
    verdict = "it fits"
    if not plan.fits:
        verdict = f"{_bytes(plan.bytes - plan.there - plan.free)} are missing"
    say(f"{room}; {_bytes(plan.free)} free for {cache}: {verdict}")
    if plan.failed:
        say(
            f"{len(plan.failed)} of the measured clips failed, {plan.failed[0]}: {plan.failure}; "
            f"`vidgraph check` looks at all clips",
            err=True,
        )
    return 0 if plan.fits and not plan.failed else 3


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def _time(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:,.1f} min"
    return f"{seconds:,.0f} s"
