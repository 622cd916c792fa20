"""Write a report of runs: report.html, report.md and CSV files.

    written = report(["runs"], "report")
    written.problems          # runs that are unfinished or damaged; the report lists them, too

The runs' files are read. Their caches are read where they still exist, for boxes of each clip and
extraction statistics, and videos for a few pictures. The same runs give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads.evaluation.class_attributes import ClassAttributes, read_class_attributes
from heads.reporting.attribute_sections import by_attribute
from heads.reporting.cache_facts import known_caches
from heads.reporting.class_sections import by_class, confusions, predicting, structures
from heads.reporting.condition_sections import conditions
from heads.reporting.document import Block, Document, Notice, Text, tables_of
from heads.reporting.example_sections import examples
from heads.reporting.groups import RunGroup, by_test_set, groups_of
from heads.reporting.html_page import to_html
from heads.reporting.markdown import to_csv, to_markdown
from heads.reporting.output_folder import PAGE, report_files, write_report
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
from pipeline.text.counted import counted
from pipeline.text.printable import first_line
from pipeline.text.suggestions import nearest
from pipeline.workers.waiting import PrintLine


@dataclass(frozen=True)
class WrittenReport:
    """What was written.

    Attributes:
        page: the path of report.html.
        runs: how many runs the report covers.
        rows: how many rows its study has.
        problems: "folder: what is wrong", for runs that are unfinished or damaged.
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
    attributes: Path | None = None,
    say: PrintLine = print,
) -> WrittenReport:
    """Write a report of runs to a folder.

    Args:
        paths: run folders, folders that hold some, or patterns.
        out: the folder to write; a new one, or that of an earlier report.
        title: of the page.
        split: whose figures are reported; "" for test, or val where no run has figures of test.
        compare: names of two rows of the study; None for the best two.
        caches: where caches are now, if they were moved.
        pictures: how many examples have pictures, each way; 0 reads no video.
        macs: whether to count MACs, which may take seconds for a large head.
        attributes: a CSV file of attributes of classes, whose figures are then reported.
        say: prints a line.

    Returns:
        What was written.

    Raises:
        ValueError: a path without a run, an unknown row, two rows of different clips to compare, or
            a cache of none of the runs. A file of attributes that is wrong or does not fit the
            classes. A folder `out` that holds something else.
    """
    folders, out = find_runs(paths), Path(out)
    # Refuses a folder that holds something else before the work, not after it.
    report_files(out)
    of_classes = None
    if attributes is not None:
        of_classes = read_class_attributes(attributes)

    found = [read_run(folder) for folder in folders]
    split = split or _default_split(found)
    for run in found:
        _read_predictions(run, split)
    groups = groups_of(found, split)
    known = known_caches(found, caches)
    pair = _pair(groups, compare, split)
    if of_classes is not None:
        _check_attributes(of_classes, groups, split)
    if macs:
        _count_macs(groups, say)

    problems = []
    for run in found:
        problems += [f"{run.folder}: {problem}" for problem in run.problems]
    problems += [f"{folder}: {reason}" for folder, reason in failed_members(folders)]

    blocks = _summary(groups, found, split, problems)
    sections = (
        results(groups, found, split),
        learning(groups, split),
        costs(groups, split),
        by_class(groups, pair, split),
        by_attribute(groups, pair, split, of_classes),
        confusions(groups, split),
        structures(groups),
        conditions(groups, known, split),
        examples(pair, known, pictures),
        extraction(known),
        reproduce(groups, found, known),
    )
    # A section without content is None.
    shown = tuple([section for section in sections if section is not None])
    document = Document(title or "Report", tuple(blocks), shown)

    markdown, files = to_markdown(document)
    for table in tables_of(document):
        files[f"tables/{table.name}.csv"] = to_csv(table).encode()
    write_report(out, to_html(document), markdown, files)
    return WrittenReport(out / PAGE, len(found), len(groups), tuple(problems))


def _default_split(found: Sequence[FoundRun]) -> str:
    """val where runs have figures of val alone, else test."""
    has_test = any(run.figures("test") for run in found)
    has_val = any(run.figures("val") for run in found)
    return "val" if has_val and not has_test else "test"


def _read_predictions(run: FoundRun, split: str) -> None:
    """Read the run's predictions, and check that they give the run's figures."""
    if not run.finished or not run.figures(split):
        return
    arrays = predictions_of(run, split)
    if not arrays:
        return
    run.predicted = predictions_by_video(arrays, run.recipe)
    if run.predicted is None:
        return

    recorded, computed = run.figures(split), run.predicted.figures
    run.agrees = True
    for name, value in computed.items():
        # A figure that the run does not record is no contradiction.
        if not np.isclose(value, recorded.get(name, value), atol=1e-6, equal_nan=True):
            run.agrees = False
    if not run.agrees:
        run.problems.append(
            f"predictions_{split}.npz gives other figures than metrics.json: it is of another "
            f"evaluation; run `vidgraph evaluate {run.folder} --split {split}`"
        )


def _pair(
    groups: Sequence[RunGroup], compare: tuple[str, str] | None, split: str
) -> tuple[RunGroup, RunGroup] | None:
    """The rows that are compared: those asked for, else the best two that have predictions."""
    if compare is None:
        best = predicting(groups, split)[:2]
        return (best[0], best[1]) if len(best) == 2 else None

    # Names of rows are unique.
    by_name = {group.name: group for group in groups}
    for name in compare:
        if name not in by_name:
            raise ValueError(f"no row {name!r} to compare: {nearest(name, by_name)}")
    one, other = (by_name[name] for name in compare)
    if one is other:
        raise ValueError(f"compare: expected two different rows, got {one.name!r} twice")
    if one.compared_with(split) != other.compared_with(split):
        raise ValueError(
            f"compare: {one.name!r} and {other.name!r} were evaluated on other clips, labels, "
            f"classes or targets of split {split}; expected two rows of one table"
        )
    return one, other


def _check_attributes(attributes: ClassAttributes, groups: Sequence[RunGroup], split: str) -> None:
    """Raise ValueError unless the attributes are of classes that a row has predictions of."""
    drawn = predicting(groups, split)
    if not drawn:
        raise ValueError(
            f"{attributes.path}: figures by attributes need predictions, and no run has any of "
            f"split {split}; run `vidgraph evaluate RUN --split {split}` first"
        )
    attributes.check(drawn[0].predicted[0].classes)


def _count_macs(groups: Sequence[RunGroup], say: PrintLine) -> None:
    """Count the MACs of each group's head, where the head can be built here.

    A head that was trained with its backbone is only a part of its network, so it is not counted.
    """
    from heads.config.recipe import recipe_from
    from heads.evaluation.counting import count_head
    from heads.interface.clips import dims_from

    counted: dict[str, int | None] = {}
    for group in groups:
        run = group.runs[0]
        if "frames" in run.about:
            continue
        # A head may raise anything. The other figures are reported all the same.
        try:
            if not _head_names(run.about["recipe"]) <= set(own_names(HEAD)):
                raise ValueError("a report executes no plug-in")
            recipe = recipe_from(run.about["recipe"], str(run.folder))
            head = recipe.of(run.result.get("phase", recipe.all_phases[-1].name)).head
            dims, classes = run.about["dims"], len(run.about["classes"])
            # Rows that differ in training alone share their head's count.
            key = repr((head, dims, classes))
            if key not in counted:
                count = count_head(head.name, dims_from(dims), classes, head.options)
                counted[key] = count.total.macs
            group.macs = counted[key]
        except Exception as error:
            say(f"{group.name}: MACs are not counted: {first_line(error)}")


def _head_names(recipe: Mapping[str, Any]) -> set[str]:
    """The heads that a recorded recipe names."""
    tables = [recipe["head"]]
    for phase in recipe.get("phases", ()):
        tables.append(phase.get("head", {}))
    return {str(table["name"]) for table in tables if "name" in table}


def _summary(
    groups: Sequence[RunGroup], found: Sequence[FoundRun], split: str, problems: Sequence[str]
) -> list[Block]:
    """What stands before the first section."""
    finished = sum([run.finished for run in found])
    heads = ", ".join(sorted({group.head for group in groups})) or "none"
    blocks: list[Block] = [
        Text(
            f"Finished runs: {finished}, in {counted(len(groups), 'row')}. Heads: {heads}. Figures "
            f"of split {split}."
        )
    ]

    sets = len(by_test_set(groups, split))
    if sets > 1:
        line = (
            f"The rows' figures are of {sets} different sets of clips, labels, classes or targets "
            f"of split {split}, each with a heading and tables of its own: figures of different "
            "sets cannot be compared. Classes, confusions, views and examples are of the first set."
        )
        blocks.append(Notice((line,)))

    if problems:
        left_out = ""
        if finished < len(found):
            left_out = (
                f"Not in the tables: {len(found) - finished} of {counted(len(found), 'run')}. "
            )
        blocks.append(Notice((f"{left_out}Problems:", *problems)))
    return blocks
