"""`vidgraph reproduce`: repeats the papers' experiments on digits, within a budget of time."""

from dataclasses import replace
from pathlib import Path

import click

from cli._shared.interrupt import stoppable
from cli._shared.options import commas, device_option, pick_device
from cli._shared.real_numbers import RealNumber
from cli._shared.say import say
from pipeline.text.printable import visible_lines

RESUME = "stopped; finished epochs are kept, the same command resumes"


@click.command("reproduce")
@click.argument("table", type=click.Choice(["rstg", "dyreg"]))
@click.option(
    "--budget",
    default=120.0,
    type=RealNumber(min=0),
    help="Minutes; the largest size that fits is taken.",
)
@click.option(
    "--size",
    "size_name",
    help="Take this size, whatever it costs: tiny, small, middle, large, paper.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Training runs per row.  [default: the size's]"
)
@click.option(
    "--rows", callback=commas, help="Only these rows, separated by commas.  [default: all]"
)
@click.option(
    "--tasks",
    callback=commas,
    help="Only these: sync3, sync5 (rstg), multisync (dyreg).  [default: all]",
)
@click.option(
    "--folder",
    default="reproduce",
    type=click.Path(file_okay=False, path_type=Path),
    help="For caches and runs.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="For the results.  [default: FOLDER/TABLE-SIZE]",
)
@click.option(
    "--earlier",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TABLE-SIZE.json of an earlier command: runs made in the same way are not trained again. "
    "The one in --out always counts.  [repeatable]",
)
@click.option(
    "--images",
    default="sklearn",
    type=click.Choice(["sklearn", "mnist"]),
    help="Handwritten digits; mnist is downloaded once.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Continue what is in the folder, or train these rows again.",
)
@device_option
def command(
    table, budget, size_name, seeds, rows, tasks, folder, out, earlier, images, resume, device
) -> int:
    """Train the rows of TABLE on generated digit videos, and write a table beside the paper's.

    rstg: RSTG, Table 1, on 3 and 5 synchronous digits. dyreg: DyReg-GNN, Tables 5 and 6. Small
    budgets have fewer digit classes and videos, larger steps and narrower networks than the papers;
    the table says which. The same command resumes a stopped run. Several commands may share a
    folder: each skips rows that another one is training.
    """
    from heads.reproduction.earlier_results import read_results
    from heads.reproduction.experiments import size_for
    from heads.reproduction.report import result_paths, write_report
    from heads.reproduction.reproduce import Reproduction, train_rows
    from heads.reproduction.tables import TABLES
    from pipeline.text.suggestions import nearest
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    plan, where = TABLES[table], pick_device(device)
    sizes = {size.name: size for size in plan.sizes}
    if size_name is not None and size_name not in sizes:
        raise ValueError(f"size {size_name!r}: {nearest(size_name, sizes)}")
    size = sizes[size_name] if size_name else size_for(plan, budget, where, seeds)
    chosen = _chosen("--rows", rows, {row.name: row for row in plan.rows})
    names = _chosen("--tasks", tasks, {task: task for task in plan.tasks})
    work = Reproduction(plan, size, folder / f"{table}-{size.name}", where, images, say)
    out = out or work.folder
    records = [*earlier, *filter(Path.exists, [result_paths(work, out)[0]])]
    work = replace(work, earlier=read_results(records))
    say(f"{plan.title}: size {size.name} of {', '.join(sizes)}, in {work.folder}")
    with stoppable(RESUME):
        # A run that is stopped early has all tasks of the first seeds.
        for seed in range(seeds or size.seeds):
            for task in names:
                train_rows(work, task, chosen, [seed], resume)
    paths = write_report(work, out)
    click.echo(f"\n{visible_lines(paths[1].read_text(encoding='utf-8'))}")
    say(f"{paths[0]}, {paths[1]}")
    return 0


def _chosen(option: str, names, known: dict) -> list:
    """Look names up; None means all. An unknown name is a ValueError with the nearest ones."""
    from pipeline.text.suggestions import nearest

    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name!r}: {nearest(name, known)}")
    return [known[name] for name in names or known]
