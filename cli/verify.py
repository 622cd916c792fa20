"""`vidgraph verify`: reads a whole cache and lists what is wrong with it."""

from pathlib import Path

import click

from cli._shared.options import require_writable
from cli._shared.progress import progress
from cli._shared.say import console, say, to_json
from pipeline.text.counted import counted


@click.command("verify")
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="The cache to check.")
@click.option(
    "--workers",
    default=1,
    type=click.IntRange(min=0),
    help="Processes that read; 0: this one, which a damaged file might crash.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as JSON to this file, too.",
)
def command(cache: Path, workers: int, as_json: bool, report: Path | None) -> int:
    """Check every byte of a cache.

    Hashes, checksums, shapes, row order, NaN, ranges, failed clips, missing shards, stale graphs,
    leftovers of stopped runs. Failed clips that were accepted (`extract --accept-failures`) are no
    finding.

    Exit code 0: all is well; 3: there are findings, each printed with what to do.
    """
    from contextlib import ExitStack

    from pipeline.stages.verify import inspect

    if report:
        require_writable(report, as_it_is=True)
    with ExitStack() as stack:

        def announce(total: int):
            show = stack.enter_context(progress("verify", _megabytes(total), "MB", "found"))
            read = 0

            def advance(done: int, found: int) -> None:
                nonlocal read
                # The sum is rounded, not each part, so that the bar ends at its total.
                before, read = read, read + done
                show(_megabytes(read) - _megabytes(before), found)

            return advance

        found = inspect(cache, workers, announce)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(to_json(_record(cache, found), plain=False) + "\n", encoding="utf-8")
    if as_json:
        click.echo(to_json(_record(cache, found)))
    else:
        _print_table(cache, found)
    return 3 if found.findings else 0


def _megabytes(size: int) -> int:
    """Bytes in MB, rounded up, so that a small cache has one."""
    return -(-size // 1_000_000)


def _record(cache: Path, report) -> dict:
    from dataclasses import asdict

    return {"cache": str(cache), **asdict(report)}


def _print_table(cache: Path, report) -> None:
    from rich import box
    from rich.table import Table

    # A line of its own: a title of the table would be broken at the table's width.
    say(cache)
    table = Table("stage", "shards", "views", "GB", "findings", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, shards in report.shards.items():
        found = sum(finding.stage == stage for finding in report.findings)
        cells = (
            f"{shards:,}",
            f"{report.views[stage]:,}",
            f"{report.bytes[stage] / 1e9:,.2f}",
            f"{found:,}",
        )
        table.add_row(stage, *cells)
    console().print(table)
    for finding in report.findings:
        say(f"{finding.where}: {finding.what}; {finding.fix}")
    rate = sum(report.bytes.values()) / 1e6 / max(report.seconds, 1e-9)
    count = len(report.findings)
    if count == 0:
        ending = "nothing wrong"
    else:
        ending = counted(count, "finding")
    say(f"{ending}; {report.seconds:,.1f} s, {rate:,.0f} MB/s")
