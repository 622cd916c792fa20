"""Train all members of a study from frames, one after another, and tabulate them.

    plan = read_study("ean_table8_blocks")
    outcome = finetune_study(plan, "runs/ean_table8_blocks", config=config, manifest=manifest)
    print(outcome.table.text())

A member computes what `finetune` computes with its recipe, its options of the extraction and its
seed, in the study's order. All rows come with the first seed first, so that a whole table is there
early. heads/training/ablate.py trains studies on a cache.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.config.study_file import StudyPlan
from heads.finetuning.finetune import SourceOptions, finetune
from heads.finetuning.frame_training import FrameRunOptions
from heads.finetuning.study_rows import FramesRow, rows_from_frames
from heads.interface.loss import device_for
from heads.runs import run_files
from heads.runs.find_runs import epochs_in_log
from heads.runs.folder_lock import FolderBusy
from heads.runs.manifest_record import manifest_record
from heads.training.ablate import AblateOutcome
from heads.training.study import Result, one_line
from heads.training.study_table import FailedRow, Outcomes, StudyTable, row_of
from pipeline.files.atomic_files import make_folder
from pipeline.files.owners import remove_abandoned
from pipeline.files.watched_folder import WatchedFolder
from pipeline.manifests.manifest import Manifest
from pipeline.stages.config import ExtractConfig
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


class BusyRow(FailedRow):
    """A member that another process is training."""


def finetune_study(
    plan: StudyPlan,
    folder: Path | str,
    *,
    cache: "Cache | None" = None,
    config: ExtractConfig | None = None,
    manifest: Manifest | None = None,
    start: Path | None = None,
    phase: str = "",
    frames: dict[str, Any] | None = None,
    source_options: SourceOptions | None = None,
    options: FrameRunOptions | None = None,
    device: str = "auto",
    say: PrintLine = print,
    before: Callable[[list[FramesRow]], None] = lambda rows: None,
) -> AblateOutcome:
    """Train the members of a study that are not finished, and write its table.

    The table goes to results.txt, results.csv and results.json in `folder`, after every member. A
    member that fails does not stop the others, and the next call tries it again. A member that
    another process trains is left to that process: several may share a study's folder.

    Args:
        plan: the study.
        folder: the study's folder; each member gets a folder in it.
        cache, manifest, start, source_options, device: as for `finetune`.
        config: as for `finetune`, before the study's own options of the extraction.
        phase: its name; "" for the first of each recipe that reads frames.
        frames: values to replace in the phases' `FrameOptions`.
        options: as for `finetune`, but for the seeds, which are the study's.
        say: prints one line for a person.
        before: gets the rows once all of them have been checked.

    Returns:
        The table and the failures.

    Raises:
        ValueError: a member cannot be trained, before the first step; a cache alone would do for
            the study; or torchrun started this process with others.
    """
    started, folder = time.monotonic(), Path(folder).resolve()
    source_options = source_options or SourceOptions()
    options = replace(options or FrameRunOptions(), order_seed=plan.order_seed)
    device_for(device, options.precision)
    rows = rows_from_frames(
        plan,
        cache=cache,
        config=config,
        manifest=manifest,
        phase=phase,
        frames=frames,
        source_options=source_options,
    )
    before(rows)

    shared = {
        "cache": cache,
        "manifest": manifest,
        "start": start,
        "source_options": source_options,
        "device": device,
    }
    about = {
        "study": plan.name,
        "source": plan.source,
        "order_seed": plan.order_seed,
        "settings": plan.settings,
        "manifest": manifest_record(manifest or cache.manifest),
        "precision": options.precision,
        "versions": run_files.versions(),
    }
    if cache is None:
        about["extraction"] = asdict(config)
    else:
        about |= {"cache": str(cache.path.resolve()), "fingerprint": cache.fingerprint}

    make_folder(folder)
    # Partial files of a study that was killed while it wrote its table.
    remove_abandoned(folder)
    watched = WatchedFolder(folder)
    outcomes: Outcomes = {}
    finished = 0
    members = []
    for seed in plan.seeds:
        members += [(one, seed) for one in rows]
    with watched.guarded():
        # The second time for members that another process held: it may have finished them.
        for again in (False, True):
            for number, (one, seed) in enumerate(members, start=1):
                path = plan.folder_of(one.row, seed, folder)
                if again and not isinstance(outcomes[path], BusyRow):
                    continue
                say(f"member {number} of {len(members)}: {path.name}")
                written = _time_of_result(path)
                outcome = _train(one, path, replace(options, seed=seed), shared, say)
                # A run that is read back leaves its result as it was.
                if isinstance(outcome, Result) and written == _time_of_result(path):
                    finished += 1
                outcomes[path] = outcome
                table = _table(plan, rows, folder, outcomes, about)
                # No member may make the study's folder anew after it was moved.
                watched.check()
                table.write(folder)

    failed: list[FailedRow] = []
    for row in table.rows:
        failed += row.failed
    return AblateOutcome(table, tuple(failed), finished, time.monotonic() - started)


def _train(
    one: FramesRow, path: Path, options: FrameRunOptions, shared: dict[str, Any], say: PrintLine
) -> Result | FailedRow:
    """Train a member, or read it back; whatever it raises, the others can still be trained."""
    try:
        return finetune(
            one.recipe,
            path,
            one.phase,
            config=one.config,
            options=options,
            say=lambda line: say(f"{path.name}: {line}"),
            **shared,
        )
    except Exception as error:
        text = one_line(error)
        say(f"{path.name}: {text}")
        row = FailedRow(str(path), options.seed, text, epochs_in_log(path))
        return row if not isinstance(error, FolderBusy) else BusyRow(**vars(row))


def _time_of_result(folder: Path) -> int | None:
    """When the result of a run was written; None where it has none."""
    path = folder / "metrics.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _table(
    plan: StudyPlan,
    rows: Sequence[FramesRow],
    folder: Path,
    outcomes: Outcomes,
    about: dict[str, Any],
) -> StudyTable:
    """The table of the members that were trained so far."""
    table = [row_of(plan, one.row, folder, outcomes, one.macs) for one in rows]
    return StudyTable(plan.name, plan.columns, tuple(table), about, "the whole network")
