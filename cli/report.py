"""`vidgraph report`: run folders as a page, Markdown and CSV."""

from pathlib import Path

import click

from cli._shared.say import say, warn


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUNS...")
@click.option(
    "--out",
    default="report",
    type=click.Path(path_type=Path),
    help="Folder to write to; an earlier report is replaced.",
)
@click.option("--title", help="Of the report.  [default: the names of RUNS]")
@click.option(
    "--split",
    type=click.Choice(["val", "test"]),
    help="Whose figures.  [default: test where there are any]",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="ROW ROW",
    help="Two rows of the table: gains and examples of the first over the second.  [default: the "
    "best two]",
)
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where a cache lies that was moved; may be repeated.",
)
@click.option(
    "--pictures",
    default=6,
    type=click.IntRange(min=0),
    help="Pictures of examples, each way; 0 reads no video.",
)
@click.option(
    "--macs/--no-macs",
    default=True,
    help="Count the heads' multiply-accumulates, seconds for a large one.",
)
@click.option(
    "--attributes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A CSV file with the columns class, attribute, value: also report figures by attribute.",
)
def command(runs, out, title, split, compare, caches, pictures, macs, attributes) -> int:
    """Write a report of RUNS: run folders, folders of runs (of `vidgraph ablate`), or patterns.

    report.html is one file that loads nothing else and can be read without JavaScript. report.md
    has plots/ and pictures/ beside it. tables/ has every table as CSV. Runs that differ only in
    their seed are one row. Unfinished and damaged runs are listed, and the exit code is then 3.
    """
    from heads.reporting.report import report

    title = title or "Report of " + ", ".join(Path(name).name or name for name in runs)
    outcome = report(
        runs,
        out,
        title=title,
        split=split or "",
        compare=compare,
        caches=caches,
        pictures=pictures,
        macs=macs,
        attributes=attributes,
        say=warn,
    )
    say(
        f"{outcome.page}: {outcome.runs} runs in {outcome.rows} rows; beside it report.md and "
        f"tables/*.csv"
    )
    for problem in outcome.problems:
        say(f"  {problem}", err=True)
    return 3 if outcome.problems else 0
