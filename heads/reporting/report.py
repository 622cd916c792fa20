"""Run folders -> report.html, report.md and CSV files: what was run, what came out, and how to get
it again.

    outcome = report(["runs"], "report")
    outcome.problems          # what is unfinished or damaged: it is listed, never hidden

The runs' files are read; a cache is asked where it is there (boxes of each clip, extraction
statistics), and videos for a few pictures. The same runs give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads.reporting.cache_facts import KnownCache, known_caches
from heads.reporting.class_sections import by_class, confusions, predicting, structures
from heads.reporting.condition_sections import conditions
from heads.reporting.csv_tables import to_csv
from heads.reporting.document import Block, Document, Notice, Text, tables_of
from heads.reporting.example_sections import examples
from heads.reporting.groups import RunGroup, by_test_set, groups_of
from heads.reporting.html_page import to_html
from heads.reporting.markdown import to_markdown
from heads.reporting.output_folder import PAGE, own_files, write_report
from heads.reporting.predictions import predictions_by_video
from heads.reporting.provenance_sections import extraction, reproduce
from heads.reporting.result_sections import costs, learning, results
from heads.reporting.run_folders import (
    FoundRun,
    failed_members,
    find_runs,
    predictions_of,
    read_run,
)
from pipeline.plugins import HEAD, own_names
from pipeline.text.printable import first_line
from pipeline.text.suggestions import nearest
from pipeline.workers.waiting import PrintLine


@dataclass(frozen=True)
class WrittenReport:
    """What was written: the page's path, how many runs and rows of the study it is about, and what
    is wrong with which run.
    """

    page: Path
    runs: int
    rows: int
    problems: tuple[str, ...]


def report(
    paths: Sequence[str | Path],
    out: Path | str,
    *,
    title: str = "",
    split: str = "",
    compare: tuple[str, str] | None = None,
    caches: Sequence[Path] = (),
    pictures: int = 6,
    macs: bool = True,
    say: PrintLine = print,
) -> WrittenReport:
    """Writes a report of the runs at `paths` (run folders, folders that hold some, patterns) to the
    folder `out`.

    `split`: whose figures ("": test, or val where no run has figures of test). `compare`: two rows
    of the study by name, the first against the second ("None": the best two). `caches`: where
    caches lie now, if they were moved. `pictures`: of examples each way. `macs`: count them, which
    may take seconds for a large head.

    ValueError for a path without a run, an unknown row, two rows of different clips to compare, a
    cache of none of the runs, or a folder `out` that holds something else.
    """
    folders, out = find_runs(paths), Path(out)
    own_files(out)  # refuses a folder that holds something else before the work, not after it
    found = [read_run(folder) for folder in folders]
    split = split or _split(found)
    for run in found:
        _read_predictions(run, split)
    groups = groups_of(found, split)
    known = known_caches(found, caches)
    pair = _pair(groups, compare, split)
    if macs:
        _count(groups, say)
    failed = [f"{folder}: {why}" for folder, why in failed_members(folders)]
    problems = (*(f"{run.folder}: {problem}" for run in found for problem in run.problems), *failed)
    document = _document(title, groups, found, known, pair, split, pictures, problems)
    markdown, files = to_markdown(document)
    files |= {f"tables/{table.name}.csv": to_csv(table).encode() for table in tables_of(document)}
    write_report(out, to_html(document), markdown, files)
    return WrittenReport(out / PAGE, len(found), len(groups), problems)


def _split(found: Sequence[FoundRun]) -> str:
    """test where a run has figures of it, else val."""
    return (
        "test"
        if any(run.figures("test") for run in found) or not any(run.figures("val") for run in found)
        else "val"
    )


def _read_predictions(run: FoundRun, split: str) -> None:
    """Fills `run.predicted`; predictions that are not those of the run's figures are a problem of
    the run.
    """
    arrays = predictions_of(run, split) if run.finished and run.figures(split) else None
    run.predicted = predictions_by_video(arrays, run.recipe) if arrays else None
    if run.predicted is None:
        return
    said, found = run.figures(split), run.predicted.figures
    run.own = all(
        np.isclose(value, said.get(name, value), atol=1e-6, equal_nan=True)
        for name, value in found.items()
    )
    if not run.own:
        run.problems.append(
            f"predictions_{split}.npz gives other figures than metrics.json: it is of another "
            f"evaluation; "
            f"run `vidgraph evaluate {run.folder} --split {split}`"
        )


def _pair(
    groups: Sequence[RunGroup], compare: tuple[str, str] | None, split: str
) -> tuple[RunGroup, RunGroup] | None:
    """The rows that are compared: those asked for, else the best two that have predictions."""
    if compare is None:
        best = predicting(groups, split)[:2]
        return (best[0], best[1]) if len(best) == 2 else None
    by_name = {group.name: group for group in groups}
    for name in compare:
        if name not in by_name:
            raise ValueError(f"no row {name!r} to compare: {nearest(name, by_name)}")
    one, other = (by_name[name] for name in compare)
    if one is other:
        raise ValueError(f"compare: expected two different rows, got {one.name!r} twice")
    if one.test_set(split) != other.test_set(split):
        raise ValueError(
            f"compare: {one.name!r} and {other.name!r} were evaluated on other clips or labels of "
            f"split {split}; expected two "
            "rows of one manifest"
        )
    return one, other


def _count(groups: Sequence[RunGroup], say: PrintLine) -> None:
    """The MACs of each group's head; one that cannot be built here, for whatever reason, has none,
    nor one that was trained with its backbone, of which it would be a part."""
    from heads.config.recipe import recipe_from
    from heads.evaluation.counting import count_head
    from heads.interface.clips import dims_from

    known: dict[str, int | None] = {}
    for group in groups:
        about = group.runs[0].about
        if "frames" in about:
            continue
        try:
            if not _head_names(about["recipe"]) <= set(own_names(HEAD)):
                raise ValueError("a report executes no plug-in")
            recipe = recipe_from(about["recipe"], str(group.runs[0].folder))
            head = recipe.of(group.runs[0].result.get("phase", recipe.all_phases[-1].name)).head
            key = repr((head, about["dims"], len(about["classes"])))
            if key not in known:
                known[key] = count_head(
                    head.name, dims_from(about["dims"]), len(about["classes"]), head.options
                ).total.macs
            group.macs = known[key]
        except Exception as error:  # whatever a head raises: its figures are there all the same
            said = first_line(error)
            say(f"{group.name}: MACs are not counted: {said}")


def _head_names(recipe: Mapping[str, Any]) -> set[str]:
    """The heads that a recorded recipe names."""
    heads = [recipe["head"], *(phase.get("head", {}) for phase in recipe.get("phases", ()))]
    return {str(head["name"]) for head in heads if "name" in head}


def _document(
    title: str,
    groups: Sequence[RunGroup],
    found: Sequence[FoundRun],
    known: Sequence[KnownCache],
    pair: tuple[RunGroup, RunGroup] | None,
    split: str,
    pictures: int,
    problems: Sequence[str],
) -> Document:
    """All sections that have something to say."""
    done = sum(run.finished for run in found)
    heads = ", ".join(sorted({group.head for group in groups})) or "none"
    blocks: list[Block] = [
        Text(
            f"Finished runs: {done}, in {len(groups)} rows. Heads: {heads}. Figures of split "
            f"{split}."
        )
    ]
    sets = len(by_test_set(groups, split))
    if sets > 1:
        blocks.append(
            Notice(
                (
                    f"The rows' figures are of {sets} different sets of clips or labels of split "
                    f"{split}, each with tables of "
                    "its own: figures of different sets cannot be compared. Classes, confusions, "
                    "views and examples are of the "
                    "best row's set.",
                )
            )
        )
    if problems:
        left = (
            f"Not in the tables: {len(found) - done} of {len(found)} runs. "
            if done < len(found)
            else ""
        )
        blocks.append(Notice((f"{left}Not as it should be:", *problems)))
    sections = (
        results(groups, found, split),
        learning(groups),
        costs(groups, split),
        by_class(groups, pair, split),
        confusions(groups, split),
        structures(groups),
        conditions(groups, known, split),
        examples(pair, known, pictures),
        extraction(known),
        reproduce(groups, found, known),
    )
    return Document(
        title or "Report",
        tuple(blocks),
        tuple(section for section in sections if section is not None),
    )
