"""`vidgraph ls`: the caches and runs below a folder."""

from pathlib import Path

import click

from cli._shared.say import console, say, to_json

WIDEST = 100_000  # columns: more than any table has


@click.command("ls")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON instead.")
def command(folder: Path, as_json: bool) -> int:
    """List the caches and runs in FOLDER (default: this one) and below it.

    Prints stage, size, age and fingerprint of each.
    """
    import time
    from dataclasses import asdict

    from heads.runs.find_runs import entries_below

    entries = entries_below(folder)
    if as_json:
        click.echo(to_json([{**asdict(entry), "path": str(entry.path)} for entry in entries]))
        return 0
    if not entries:
        say(f"{folder}: no cache and no run below")
        return 0
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table

    table = Table("", "path", "what", "stage", "MB", "age", "cache fingerprint", box=box.SIMPLE)
    table.columns[4].justify = table.columns[5].justify = "right"
    now = time.time()
    for entry in entries:
        cells = (
            str(entry.path),
            entry.what,
            entry.stage,
            f"{entry.bytes / 1e6:,.1f}",
            age(now - entry.modified),
        )
        table.add_row(entry.kind, *cells, entry.fingerprint[:12])
    # A path that is cut cannot be copied: the terminal breaks the long line at its edge.
    screen = console()
    screen.width = WIDEST
    screen.width = Measurement.get(screen, screen.options, table).maximum
    screen.print(table, soft_wrap=True)
    return 0


def age(seconds: float) -> str:
    """Write seconds in the largest unit that gives at least 1."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
