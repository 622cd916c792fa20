"""The results of a reproduction: a record of every run, and a page beside the paper's figures.

Both are made from the finished run folders at any time. A table that is half done shows what
exists.
"""

import json
import os
import platform
import re
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from heads.interface.run_records import LOG_LINE, METRICS
from heads.reproduction.experiments import PaperRow, has_row
from heads.reproduction.reproduce import DISTANCE, Reproduction, finished
from heads.runs import run_files as runs
from heads.training.study_table import FigureSpread, spread
from pipeline.cache.records import require
from pipeline.files.atomic_files import parse_json
from pipeline.files.regular_files import read_small_text

# What the record keeps of each line of a run's log, and of its metrics.
CURVE = ("epoch", "loss", "val", "seconds")
KEPT = ("parameters", "epochs", "best_epoch", "seconds")
# DyReg-GNN's Dist of a run: figure -> value (see heads/reproduction/digit_regions.py).
DISTANCES = {
    "dist": float,
    "dist_regions": float,
    "dist_start": float,
    "dist_regions_start": float,
}
# Options of a task that the page names.
TASK_OPTIONS = ("digits", "classes", "reach", "frames", "canvas", "size", "none_in")
# How many pairs of rows in another order the page names.
PAIRS_NAMED = 8
DISTANCE_HEADER = [
    "Dist: from the middle of a digit to that of the nearest region, and of a region to that of "
    "the nearest digit,",
    "in sides of the frame, over the test videos.",
    "",
    "| row | of digits, before training | after | of regions, before | after |",
    "|---|--:|--:|--:|--:|",
]
HEADER = [
    "| row | paper % | here % | seeds | training videos | parameters | seconds a run |",
    "|---|--:|--:|--:|--:|--:|--:|",
]


def result_paths(work: Reproduction, out: Path) -> tuple[Path, Path]:
    """Return the paths out/TABLE-SIZE.json and out/TABLE-SIZE.md."""
    name = f"{work.table.name}-{work.size.name}"
    return out / f"{name}.json", out / f"{name}.md"


def write_report(work: Reproduction, out: Path) -> tuple[Path, Path]:
    """Write the record and the page.

    Args:
        work: the reproduction.
        out: the folder to write to.

    Returns:
        The paths that were written, see `result_paths`.
    """
    found = record(work)
    out.mkdir(parents=True, exist_ok=True)
    paths = result_paths(work, out)
    runs.write_text(paths[0], json.dumps(found, indent=1) + "\n")
    runs.write_text(paths[1], markdown(found))
    return paths


# ---- The record


def record(work: Reproduction) -> dict[str, Any]:
    """Return what is known of a reproduction, as JSON can hold it.

    Args:
        work: the reproduction.

    Returns:
        The title, the size, the images, the machine, and per task the rows with their runs. A
        run has its seed, figures, parameters, epochs, seconds, and a curve by epoch. Accuracies
        are fractions of the test videos.
    """
    tasks = {}
    for name in work.table.tasks:
        task = work.task(name)
        rows = []
        for row in work.table.rows:
            if has_row(row, work.size, name):
                rows.append({**_row(work, name, row), "videos": work.videos(row)})
        tasks[name] = {
            "guess": task.guess,
            "labels": len(task.labels),
            "options": asdict(task),
            "rows": rows,
        }
    # Estimated minutes and default seeds say nothing about the runs.
    size = asdict(work.size)
    del size["minutes"], size["seeds"]
    return {
        "title": work.table.title,
        "size": size,
        "images": work.images,
        "machine": machine(work.device),
        "tasks": tasks,
    }


def _row(work: Reproduction, task: str, row: PaperRow) -> dict[str, Any]:
    found, made = {}, work.made(task, row)
    for run in work.earlier.runs(task, row.name, made):
        found[run["seed"]] = run
    for folder in (work.folder / task).glob(f"{row.name}-seed*"):
        seed = int(folder.name.rpartition("seed")[2])
        if finished(work, task, row, seed):
            found[seed] = _run(folder, seed)
    return {
        "name": row.name,
        "title": row.title,
        "paper": row.paper.get(task),
        "made": made,
        "runs": [found[seed] for seed in sorted(found)],
    }


def _run(folder: Path, seed: int) -> dict[str, Any]:
    metrics = runs.read_json(folder / "metrics.json", METRICS)
    distance = {}
    if (folder / DISTANCE).exists():
        distance = {"distance": runs.read_json(folder / DISTANCE, DISTANCES)}
    log = folder / "log.jsonl"
    curve = []
    for text in read_small_text(log).splitlines():
        line = require(parse_json(text, log), LOG_LINE, log)
        curve.append({key: line[key] for key in CURVE if key in line})
    return {
        "seed": seed,
        "test": metrics["metrics"]["test"],
        "val": metrics["metrics"]["val"],
        **{key: metrics[key] for key in KEPT},
        **distance,
        "curve": curve,
    }


def machine(device: str) -> dict[str, Any]:
    """Return the processor, cores, GPU and versions of this process.

    Args:
        device: "cpu" or "cuda", where networks run.
    """
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        **runs.versions(),
    }


def _processor() -> str:
    """Return the name of the processor: Python's own answer is often empty on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    if name:
        return name.group(1)
    return platform.processor() or platform.machine()


# ---- The page


def accuracy(row: dict[str, Any]) -> FigureSpread | None:
    """Return a row's test accuracy in percent over its seeds, None without a run."""
    return spread(100 * run["test"]["top1"] for run in row["runs"])


def beyond_spread(lower: FigureSpread, higher: FigureSpread) -> bool:
    """Return whether the means differ by more than the sum of both standard deviations.

    False for a single seed, which has no standard deviation.
    """
    if lower.std is None or higher.std is None:
        return False
    return higher.mean - lower.mean > lower.std + higher.std


def compare_order(rows: list[dict[str, Any]]) -> tuple[int, int, list[str]]:
    """Compare the order of the rows with the paper's.

    Args:
        rows: the rows of one task in a record.

    Returns:
        The number of pairs in the paper's order, the number of pairs for which both orders are
        known, and one sentence for each pair in another order.
    """
    known = []
    for row in rows:
        if row["paper"] is not None and row["runs"]:
            known.append((row["title"], row["paper"], accuracy(row).mean))

    same, others = 0, []
    for (title_a, paper_a, mean_a), (title_b, paper_b, mean_b) in combinations(known, 2):
        # Equal means have no order, so they count as not in the paper's.
        if (paper_a - paper_b) * (mean_a - mean_b) > 0:
            same += 1
        elif paper_a < paper_b:
            others.append(f"{title_a} is not below {title_b}")
        else:
            others.append(f"{title_b} is not below {title_a}")
    return same, same + len(others), others


def markdown(found: dict[str, Any]) -> str:
    """Return the page of a record.

    It says what was run, and has one table per task beside the paper's figures. It names the
    pairs of rows that are in another order.
    """
    size = found["size"]
    of_machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = [
        f"# {found['title']}, size `{size['name']}`",
        "",
        f"Digits: {found['images']}. {_epochs(size['epochs'])}, mini-batches of {size['batch']}.",
        "",
        f"Machine: {of_machine}.",
        "",
    ]
    for name, task in found["tasks"].items():
        lines += _section(name, task)
    lines += [
        "Accuracy in percent of the test videos, mean ± standard deviation over seeds, of the "
        "epoch that was best on the",
        "validation videos. The paper's figures are of the full experiment: more classes, 600,000 "
        "videos, full widths.",
    ]
    return "\n".join(lines) + "\n"


def _epochs(epochs: int | dict[str, int]) -> str:
    if isinstance(epochs, int):
        return f"{epochs} epochs"
    return " and ".join(f"{count} epochs on {task}" for task, count in epochs.items())


def _section(name: str, task: dict[str, Any]) -> list[str]:
    """Return the lines of one task."""
    options = ", ".join(f"{key} {task['options'][key]}" for key in TASK_OPTIONS)
    lines = [
        f"## {name}",
        "",
        f"{task['labels']} labels; {options}. A guess that knows which digits are there is right "
        "in",
        f"{100 * task['guess']:.1f} % of the videos.",
        "",
        *HEADER,
    ]
    lines += [_table_row(row) for row in task["rows"]]

    earlier = 0
    for row in task["rows"]:
        earlier += sum("earlier" in run for run in row["runs"])
    if earlier:
        sentence = "Figures taken from an earlier record, whose seconds are those of its machine: "
        lines += ["", f"{sentence}{earlier}."]
    lines += _distances(task["rows"])

    same, pairs, others = compare_order(task["rows"])
    if pairs:
        sentence = f"Of {pairs} pairs of rows with a figure in the paper, {same} are in its order."
        lines += ["", sentence]
    if others:
        named = "; ".join(others[:PAIRS_NAMED])
        if len(others) > PAIRS_NAMED:
            named += f"; and {len(others) - PAIRS_NAMED} more"
        lines.append(f"Not: {named}.")
    return [*lines, ""]


def _distances(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of DyReg-GNN's Dist; none where no run has it."""
    lines = []
    for row in rows:
        found = [run["distance"] for run in row["runs"] if "distance" in run]
        if found:
            cells = [row["title"]]
            for name in ("dist_start", "dist", "dist_regions_start", "dist_regions"):
                cells.append(spread(figures[name] for figures in found).text(3))
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    return ["", *DISTANCE_HEADER, *lines]


def _table_row(row: dict[str, Any]) -> str:
    paper = "–" if row["paper"] is None else f"{row['paper']:g}"
    if not row["runs"]:
        return f"| {row['title']} | {paper} | not run | 0 | | | |"
    seconds = spread(run["seconds"] for run in row["runs"])
    cells = [
        row["title"],
        paper,
        accuracy(row).text(1),
        str(len(row["runs"])),
        f"{row['videos']['train']:,}",
        f"{row['runs'][0]['parameters']:,}",
        f"{seconds.mean:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"
