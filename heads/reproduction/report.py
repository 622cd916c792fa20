"""The results of a reproduction: a record of every run, and a page with the measured figures beside
the paper's.

Both are made from the run folders that are finished, whenever asked: a table that is half done
shows what there is.
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
from heads.reproduction.reproduce import Reproduction, finished
from heads.reproduction.tables import PaperRow
from heads.runs import run_files as runs
from heads.training.study_table import FigureSpread, spread
from pipeline.cache.records import require
from pipeline.files.atomic_files import parse_json
from pipeline.files.regular_files import read_small_text

CURVE = ("epoch", "loss", "val", "seconds")  # what of a run's log is kept
SHOWN = 8  # pairs of rows in another order that are named


def record(work: Reproduction) -> dict[str, Any]:
    """What is known of a reproduction, as JSON can hold it: the machine, the size, and per task the
    rows with their runs.

    Accuracies are fractions of the test videos. A run: seed, figures, parameters, epochs, seconds,
    and its curve by epoch.
    """
    tasks = {}
    for name in work.table.tasks:
        task = work.task(name)
        rows = [{**_row(work, name, row), "videos": work.videos(row)} for row in work.table.rows]
        plain = {
            "guess": task.guess,
            "labels": len(task.labels),
            "options": asdict(task),
            "rows": rows,
        }
        tasks[name] = plain
    size = {
        key: value for key, value in asdict(work.size).items() if key not in ("minutes", "seeds")
    }
    return {
        "title": work.table.title,
        "size": size,
        "images": work.images,
        "machine": machine(work.device),
        "tasks": tasks,
    }


def _row(work: Reproduction, task: str, row: PaperRow) -> dict[str, Any]:
    found = []
    for folder in sorted((work.folder / task).glob(f"{row.name}-seed*")):
        seed = int(folder.name.rpartition("seed")[2])
        if finished(work, task, row, seed):
            found.append(_run(folder, seed))
    return {
        "name": row.name,
        "title": row.title,
        "paper": row.paper.get(task),
        "runs": sorted(found, key=lambda r: r["seed"]),
    }


def _run(folder: Path, seed: int) -> dict[str, Any]:
    metrics = runs.read_json(folder / "metrics.json", METRICS)
    log = folder / "log.jsonl"
    lines = [
        require(parse_json(line, log), LOG_LINE, log) for line in read_small_text(log).splitlines()
    ]
    curve = [{key: line[key] for key in CURVE if key in line} for line in lines]
    kept = {key: metrics[key] for key in ("parameters", "epochs", "best_epoch", "seconds")}
    return {
        "seed": seed,
        "test": metrics["metrics"]["test"],
        "val": metrics["metrics"]["val"],
        **kept,
        "curve": curve,
    }


def machine(device: str) -> dict[str, Any]:
    """What computed it: processor, cores, GPU, versions."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    } | runs.versions()


def _processor() -> str:
    try:
        found = re.search(
            r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8")
        )
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def accuracy(row: dict[str, Any]) -> FigureSpread | None:
    """A row's test accuracy in percent over its seeds; None without a run."""
    return spread(100 * run["test"]["top1"] for run in row["runs"])


def beyond_spread(lower: FigureSpread, higher: FigureSpread) -> bool:
    """Whether the means differ by more than both standard deviations together. False for a single
    seed.
    """
    if lower.std is None or higher.std is None:
        return False
    return higher.mean - lower.mean > lower.std + higher.std


def compare_order(rows: list[dict[str, Any]]) -> tuple[int, int, list[str]]:
    """(pairs of rows that the paper and the runs put in the same order, all pairs that both have,
    the others as sentences).
    """
    there = [
        (row["title"], row["paper"], accuracy(row))
        for row in rows
        if row["paper"] is not None and row["runs"]
    ]
    same, other = 0, []
    for (one, paper, mine), (two, theirs, yours) in combinations(there, 2):
        if (paper - theirs) * (mine.mean - yours.mean) > 0:
            same += 1
        else:
            low, high = (one, two) if paper < theirs else (two, one)
            other.append(f"{low} is not below {high}")
    return same, same + len(other), other


def _epochs(count: int | dict[str, int]) -> str:
    if isinstance(count, int):
        return f"{count} epochs"
    return " and ".join(f"{some} epochs on {task}" for task, some in count.items())


def markdown(found: dict[str, Any]) -> str:
    """The page: what was run, a table per task beside the paper's, and where the orders differ."""
    size, made = found["size"], found["machine"]
    lines = [f"# {found['title']}, size `{size['name']}`", ""]
    lines += [
        f"Digits: {found['images']}. {_epochs(size['epochs'])}, mini-batches of {size['batch']}.",
        "",
    ]
    lines += ["Machine: " + ", ".join(f"{key} {value}" for key, value in made.items()) + ".", ""]
    for name, task in found["tasks"].items():
        lines += _section(name, task)
    lines += [
        "Accuracy in percent of the test videos, mean ± standard deviation over seeds, of the "
        "epoch that was best on the",
        "validation videos. The paper's figures are of the full experiment: more classes, 600,000 "
        "videos, full widths.",
    ]
    return "\n".join(lines) + "\n"


def _section(name: str, task: dict[str, Any]) -> list[str]:
    options = task["options"]
    shown = ", ".join(
        f"{key} {options[key]}"
        for key in ("digits", "classes", "reach", "frames", "canvas", "size", "none_in")
    )
    lines = [
        f"## {name}",
        "",
        f"{task['labels']} labels; {shown}. Who knows which digits are there, and no more, is "
        f"right in",
    ]
    lines += [f"{100 * task['guess']:.1f} % of the videos.", ""]
    lines += [
        "| row | paper % | here % | seeds | training videos | parameters | seconds a run |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in task["rows"]:
        paper = "–" if row["paper"] is None else f"{row['paper']:g}"
        if not row["runs"]:
            lines.append(f"| {row['title']} | {paper} | not run | 0 | | | |")
            continue
        seconds = spread(run["seconds"] for run in row["runs"])
        cells = [
            row["title"],
            paper,
            accuracy(row).text(1),
            len(row["runs"]),
            f"{row['videos']['train']:,}",
        ]
        lines.append(
            "| "
            + " | ".join(
                map(str, [*cells, f"{row['runs'][0]['parameters']:,}", f"{seconds.mean:.0f}"])
            )
            + " |"
        )
    same, pairs, other = compare_order(task["rows"])
    if pairs:
        lines += [
            "",
            f"Of {pairs} pairs of rows with a figure in the paper {same} are in the paper's order.",
        ]
        more = f"; and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        lines += [f"Not: {'; '.join(other[:SHOWN])}{more}."] if other else []
    return [*lines, ""]


def write_report(work: Reproduction, out: Path) -> tuple[Path, Path]:
    """Writes the record and the page to out/TABLE-SIZE.json and .md; returns their paths."""
    found, name = record(work), f"{work.table.name}-{work.size.name}"
    out.mkdir(parents=True, exist_ok=True)
    paths = out / f"{name}.json", out / f"{name}.md"
    runs.write_text(paths[0], json.dumps(found, indent=1) + "\n")
    runs.write_text(paths[1], markdown(found))
    return paths
