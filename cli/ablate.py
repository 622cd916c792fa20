"""`vidgraph ablate`: a grid of trainings in shared passes over a cache."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from cli._shared.caches import caches_option
from cli._shared.cluster import engine_of, place_options
from cli._shared.interrupt import stoppable
from cli._shared.options import device_option, plugin_option, say_cost, set_option
from cli._shared.progress import progress
from cli._shared.say import say
from pipeline.text.counted import counted
from pipeline.text.printable import visible_lines

INTERVAL = 1.0  # seconds between two readings of the members' logs


@click.command("ablate")
@click.argument("study")
@caches_option("The cache to train on.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Labels and splits.  [default: the cache's copy]",
)
@click.option(
    "--folds",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Train on every fold of a cross-validation: the manifests in this folder, as `vidgraph "
    "manifest folds` writes them. The table is over the folds.",
)
@click.option(
    "--runs",
    default="runs",
    type=click.Path(path_type=Path),
    help="The study's folder is made in this one.",
)
@click.option("--name", help="The study's folder.  [default: the study's name]")
@device_option
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic of the heads.",
)
@click.option(
    "--resident",
    default="auto",
    type=click.Choice(["auto", "gpu", "ram", "disk"]),
    help="Features in the GPU's memory, in the machine's, or read per batch; auto: the first with "
    "twice the room.",
)
@click.option(
    "--at-once",
    default=0,
    type=click.IntRange(min=0),
    help="Members that share a pass, at most; 0: all.",
)
@click.option(
    "--batch-members/--no-batch-members",
    default=None,
    help="Train members that have the same shapes as one; their figures then change by rounding. "
    " [default: on a GPU]",
)
@place_options(
    "Members in so many groups that train at the same time: processes here, or where the other "
    "options say."
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Continue what is in the study's folder, or start over.",
)
@click.option(
    "--list", "only_list", is_flag=True, help="Check every member, print them, and train none."
)
@set_option
@plugin_option
def command(
    study,
    cache,
    manifest,
    folds,
    runs,
    name,
    device,
    precision,
    resident,
    at_once,
    batch_members,
    resume,
    only_list,
    settings,
    **given,
) -> int:
    """Train all members of STUDY and print their table.

    STUDY is a TOML file, or the name of a study of the package (demo): a grid of heads or recipes,
    options, seeds and label subsets. Members read the cache together: every batch is read once and
    given to each. A member that fails is reported at the end, and the rest continues (exit code 3).
    The same command resumes a stopped study, tries failed members again, and trains members that
    were added to the file.
    """
    if manifest and folds:
        raise click.UsageError("--manifest and --folds: expected one of them, got both")
    with (
        stoppable("stopped; finished epochs are kept, the same command resumes"),
        ExitStack() as stack,
    ):
        from heads.config.study_file import read_study
        from heads.training.ablate import ablate
        from heads.training.estimates import AblateOptions, count_passes, estimate_members
        from heads.training.folds import ablate_folds, read_folds
        from pipeline.cache.joined import open_caches
        from pipeline.manifests.manifest import read_manifest

        plan, opened = read_study(study, settings), open_caches(cache)
        folder = runs / (name or plan.name)
        labels = read_manifest(manifest) if manifest else None
        how = AblateOptions(device, precision, labels, resume, resident, batch_members)
        engine, groups = _places(given, folder / "logs")
        if not only_list:
            say_cost(
                precision,
                device,
                elsewhere=given["scheduler"] is not None or given["slurm"] is not None,
            )

        def announce(some) -> None:
            left = [one for one in some if one.result is None]
            line, which = f"{plan.name}: {counted(len(some), 'member')}", "all"
            if len(left) < len(some):
                line += f", {len(some) - len(left)} of them finished before"
                which = "those"
            if left:
                line += f"; an epoch of {which} is {_times(count_passes(left))}"
            say(line)
            # Of the fold before.
            watch.close()
            if left and not only_list:
                watch.enter_context(_watched(left))

        watch = stack.enter_context(ExitStack())
        divided = read_folds(folds) if folds else {}
        if only_list:
            for fold, own in (divided or {"": how.manifest}).items():
                if fold:
                    say(f"{fold}: {own.path}")
                asked = replace(how, manifest=own)
                some = estimate_members(plan, opened, (folder / fold).resolve(), asked, say)
                announce(some)
                _list_members(some)
            return 0
        where = {"engine": engine, "jobs": groups, "at_once": at_once}
        where |= {"say": say, "before": announce}
        if divided:
            outcome = ablate_folds(plan, opened, folder, divided, how, **where)
        else:
            outcome = ablate(plan, opened, folder, how, **where)
    # Not `say`, which turns line ends into escapes.
    click.echo(f"\n{visible_lines(outcome.table.text())}\n")
    say(f"{outcome.seconds:.1f} s; {folder}: results.txt, results.csv, results.json")
    return 3 if outcome.failed else 0


def _list_members(some) -> None:
    """Print what each member would do."""
    for one in some:
        state = "finished"
        if not one.result:
            state = one.why or f"{one.epochs} epochs, reads {', '.join(one.reads)}"
        say(f"  {one.member.folder.name}: {state}")


def _times(count: int) -> str:
    return f"{counted(count, 'pass', 'passes')} over the cache"


def _places(given: dict, logs: Path):
    """The engine that the options name (None: this process), and the number of groups."""
    groups = given["jobs"] or given["dask"] or 1
    if given["jobs"] and given["dask"]:
        raise click.UsageError(
            "--jobs and --dask: expected one; both say how many processes train here"
        )
    # engine_of takes --jobs for Slurm alone; without Slurm it means Dask processes here, or groups
    # for the workers of a scheduler.
    if given["slurm"] is None:
        here = groups > 1 and given["scheduler"] is None
        given = {**given, "jobs": None, "dask": groups if here else given["dask"]}
    return engine_of(given, logs), groups


@contextmanager
def _watched(some) -> Iterator[None]:
    """Show how many epochs are finished. It reads the members' logs, wherever they are trained."""
    from heads.training.estimates import count_epochs

    before, over = count_epochs(some), threading.Event()
    shown = before

    def look(advance: Callable[[int, int], None]) -> None:
        nonlocal shown
        now = count_epochs(some)
        if now != shown:
            advance(now - shown, 0)
        shown = now

    def watch(advance: Callable[[int, int], None]) -> None:
        while not over.wait(INTERVAL):
            look(advance)

    with progress("train", sum(one.epochs for one in some) - before, "epochs") as advance:
        watcher = threading.Thread(target=watch, args=(advance,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            # The epochs since the thread's last look.
            look(advance)
