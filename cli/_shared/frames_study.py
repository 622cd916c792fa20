"""`vidgraph finetune --study`: the members of a study, trained from frames."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._shared.say import say
from pipeline.text.counted import counted
from pipeline.text.printable import visible_lines
from pipeline.text.typed_options import SAMPLING

if TYPE_CHECKING:
    from pipeline.manifests.manifest import Manifest

# Options of the command line whose key in a study's table [extract] has another name.
KEY_OF = {
    "boxes": "proposal_options.num_boxes",
    "proposal_size": "proposal_options.size",
    "proposal_weights": "proposal_options.weights",
    "annotations": "proposal_options.file",
    **{name: f"sampling.{name}" for name in SAMPLING},
}


def run_study(
    name: str,
    settings: dict[str, Any],
    extraction: dict[str, Any],
    given: Iterable[str],
    runs: Path,
    folder_name: str | None,
    only_list: bool,
    checked: dict[str, Any],
    more: dict[str, Any],
    folds: "Mapping[str, Manifest]",
) -> int:
    """Train a study from frames, or list its members.

    Args:
        name: the study.
        settings: keys of its recipes that --set gives.
        extraction: keys of the extraction that --set gives, without "extract.".
        given: the options of the extraction that the command line has.
        runs: the folder of run folders.
        folder_name: the study's folder in it; None for the study's name.
        only_list: train nothing.
        checked: arguments that `rows_from_frames` and `finetune_study` share.
        more: further arguments of `finetune_study`.
        folds: name of a fold -> its manifest, in place of the manifest in `checked`; {} for none.

    Returns:
        The exit code.

    Raises:
        UsageError: an option of the command line that the study sets.
    """
    from heads.config.study_file import read_study
    from heads.finetuning.finetune_study import finetune_study
    from heads.finetuning.study_folds import finetune_folds
    from heads.finetuning.study_rows import rows_from_frames

    as_keys = {f"extract.{key}": value for key, value in extraction.items()}
    plan = read_study(name, {**settings, **as_keys})
    set_there: set[str] = set()
    for row in plan.rows:
        set_there.update(row.extract)
    for option in given:
        key = KEY_OF.get(option, option)
        if key in set_there:
            raise click.UsageError(
                f"--{option.replace('_', '-')}: the study sets extract.{key}; leave it out, or "
                f"pass --set extract.{key}=VALUE"
            )

    def announce(rows) -> None:
        count = len(rows) * len(plan.seeds)
        say(
            f"{plan.name}: {counted(len(rows), 'row')}, {counted(count, 'member')}, one after "
            "another"
        )
        for one in rows:
            cost = "" if one.macs is None else f", {one.macs / 1e9:.3g} GMACs a view"
            say(f"  {one.row.name}: phase {one.phase.name}{cost}")

    folder = runs / (folder_name or plan.name)
    if folds:
        del checked["manifest"]
    if only_list:
        for fold, manifest in folds.items():
            say(f"{fold}: {manifest.path}")
            announce(rows_from_frames(plan, manifest=manifest, **checked))
        if not folds:
            announce(rows_from_frames(plan, **checked))
        return 0
    if folds:
        outcome = finetune_folds(plan, folder, folds, before=announce, **checked, **more)
    else:
        outcome = finetune_study(plan, folder, before=announce, **checked, **more)
    # Not `say`, which turns line ends into escapes.
    click.echo(f"\n{visible_lines(outcome.table.text())}\n")
    undecoded = 0
    for row in outcome.table.rows:
        for result in row.results.values():
            undecoded += result.undecoded
    say(
        f"{counted(outcome.before, 'member')} finished before; {outcome.seconds:.1f} s; {folder}: "
        f"results.txt, results.csv, results.json"
    )
    return 3 if outcome.failed or undecoded else 0
