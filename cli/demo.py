"""`vidgraph demo`: all stages on generated digit videos, on this machine, in minutes."""

import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._shared.interrupt import stoppable
from cli._shared.options import device_option, pick_device
from cli._shared.say import console, say
from pipeline.text.counted import counted
from pipeline.text.printable import visible

if TYPE_CHECKING:
    from heads.training.train import Result
    from pipeline.digits import Images
    from pipeline.stages.config import ExtractConfig

RECIPES = ("demo_pool", "demo_roi_pool", "demo_mean_lstm", "demo_strg")
BOXES = 6  # N: the four digits of a frame, and two to spare
WIDTH = 64  # channels of the digit network
VIEWS = 16  # per forward pass
RPN_VIDEOS = 200  # training videos whose frames the RPN is fitted to
STEPS = 6
# What --quick takes in place of the defaults: enough to see every stage work.
QUICK = {"videos": 120, "val_videos": 30, "test_videos": 60, "seeds": 1}
QUICK_STEPS, QUICK_RPN, QUICK_RPN_STEPS, QUICK_EPOCHS = 30, 40, 100, 5
NEXT = """
{minutes} min {seconds:.0f} s. Everything is in {out}:
  videos/                        mp4 files, manifest.csv, boxes.csv
  digit_cnn.pt, digit_rpn.pt     the networks
  cache/                         features and graphs
  runs/                          checkpoints, logs, predictions
  results.json, steps.json       the table; what each step took
Try next:
  vidgraph train demo_strg --cache {out}/cache --runs {out}/runs --name similarity \\
    --set head.form=similarity
  vidgraph verify --cache {out}/cache
  vidgraph manifest folder YOUR_VIDEOS --out mine.csv
  vidgraph extract --manifest mine.csv --cache mine"""


@dataclass
class Steps:
    """The demo's steps, with their results and times. A rerun skips those that are done.

    Attributes:
        file: where the record is kept.
        done: step -> its result; also the options of the demo, under "asked".
        number: how many steps have begun.
    """

    file: Path
    done: dict[str, dict]
    number: int = 0

    def run(self, name: str, made: Path, work: Callable[[], dict]) -> dict:
        """Do a step, unless it is done and its output exists.

        Args:
            name: of the step.
            made: the file or folder that the step writes.
            work: does the step and returns its result.
        """
        title = self.title(name)
        if name in self.done and made.exists():
            found = self.done[name]
            say(f"{title}: done before, in {found['seconds']:.1f} s: {made}")
            return found
        say(f"{title} …")
        start = time.monotonic()
        found = work()
        self.done[name] = {**found, "seconds": round(time.monotonic() - start, 1)}
        self.save()
        say(f"    {self.done[name]['seconds']:.1f} s: {made}")
        return self.done[name]

    def title(self, name: str) -> str:
        """Count the next step and write its heading."""
        self.number += 1
        return f"[{self.number}/{STEPS}] {name}"

    def save(self) -> None:
        """Write the record. A run that is killed before this repeats the step, which is
        harmless.
        """
        from pipeline.files.atomic_files import write_text

        write_text(self.file, json.dumps(self.done, indent=1) + "\n")


@dataclass(frozen=True)
class Demo:
    """The demo's options. A folder belongs to one set of options."""

    task: str
    train: int
    val: int
    test: int
    seed: int
    images: str
    quick: bool = False

    def as_dict(self) -> dict:
        """Return the options that steps.json records."""
        record = asdict(self)
        # Demos of versions without it are continued.
        if not self.quick:
            del record["quick"]
        return record


@dataclass(frozen=True)
class DemoRow:
    """One head's runs, one per seed."""

    head: str
    results: "list[Result]"

    @property
    def accuracies(self) -> list[float]:
        """Top-1 on the test videos, in percent."""
        return [100 * result.metrics["test"]["top1"] for result in self.results]

    @property
    def accuracy(self) -> str:
        """Mean and standard deviation over seeds."""
        text = f"{statistics.mean(self.accuracies):.1f}"
        if len(self.results) > 1:
            text += f" ± {statistics.stdev(self.accuracies):.1f}"
        return text

    @property
    def seconds(self) -> float:
        """Training time of one run, on average."""
        return statistics.mean(result.seconds for result in self.results)


@click.command("demo")
@click.option(
    "--out",
    default="demo",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for everything.",
)
@click.option("--task", default="meet", help="What the digits do: meet, sync3, sync5 or multisync.")
@click.option("--videos", default=2000, type=click.IntRange(min=1), help="Training videos.")
@click.option("--val-videos", default=200, type=click.IntRange(min=1), help="Validation videos.")
@click.option(
    "--test-videos",
    default=600,
    type=click.IntRange(min=1),
    help="Test videos, of digits never trained on.",
)
@click.option("--seeds", default=3, type=click.IntRange(min=1), help="Training runs per head.")
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Another seed: other videos, other weights.",
)
@click.option(
    "--images",
    default="sklearn",
    type=click.Choice(["sklearn", "mnist"]),
    help="Handwritten digits; mnist is downloaded once.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that write videos.  [default: one per core]",
)
@click.option(
    "--quick",
    is_flag=True,
    help="A smoke test within a minute: fewer videos, steps and epochs, one seed. Its accuracies "
    "mean nothing.",
)
@device_option
@click.pass_context
def command(ctx: click.Context, **given) -> int:
    """Generate digit videos, run every stage on them, and print the accuracy of each head.

    Digits bounce about and one pair of them meets: which two? Pooled features show which digits are
    there. The graph of overlapping boxes joins those that meet. A rerun continues where the last
    one stopped.
    """
    from pipeline.digits import TASKS, load_images
    from pipeline.workers.memory import keep_freed_memory

    if given["quick"]:
        for name, value in QUICK.items():
            if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
                given[name] = value
    out, task, seeds = given["out"], given["task"], given["seeds"]
    if task not in TASKS:
        raise click.BadParameter(
            f"expected one of {', '.join(TASKS)}, got {task!r}", param_hint="--task"
        )
    keep_freed_memory()
    begun = time.monotonic()
    counts = given["videos"], given["val_videos"], given["test_videos"]
    asked = Demo(task, *counts, given["seed"], given["images"], given["quick"])
    device = pick_device(given["device"])
    with stoppable("stopped; finished steps, shards and epochs are kept, the same command resumes"):
        steps = _open(out, asked)
        found = load_images(asked.images)
        _videos(steps, out, asked, found, given["workers"])
        _cache(steps, out, _config(asked, *_networks(steps, out, asked, found)), device)
        rows = _train(steps, out, seeds, device, asked.quick)
    _report(out, asked, rows, time.monotonic() - begun)
    return 0


def _open(out: Path, asked: Demo) -> Steps:
    """Read the record of the steps in `out`; ValueError if the demo there has other options."""
    from pipeline.files.atomic_files import make_folder
    from pipeline.files.owners import remove_abandoned

    make_folder(out)
    remove_abandoned(out)
    file, record = out / "steps.json", {"asked": asked.as_dict()}
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else record
    if stored["asked"] != record["asked"]:
        differences = []
        for key in {**record["asked"], **stored["asked"]}:
            value, found = record["asked"].get(key), stored["asked"].get(key)
            if found != value:
                differences.append(f"{key} {found!r} there, {value!r} asked for")
        raise ValueError(
            f"{out}: holds another demo ({'; '.join(differences)}); choose another --out, or "
            f"delete it"
        )
    return Steps(file, stored)


def _videos(
    steps: Steps, out: Path, asked: Demo, images: "dict[str, Images]", workers: int | None
) -> None:
    from pipeline.digits import TASKS, write_dataset

    splits = {"train": asked.train, "val": asked.val, "test": asked.test}

    def work() -> dict:
        write_dataset(out / "videos", TASKS[asked.task](), splits, asked.seed, workers, images)
        return {}

    steps.run(f"write {sum(splits.values()):,} videos of handwritten digits", out / "videos", work)


def _networks(
    steps: Steps, out: Path, asked: Demo, images: "dict[str, Images]"
) -> tuple[Path, Path]:
    """Pre-train the digit network, fit the RPN, and return the files of their weights."""
    import numpy as np

    from heads.reproduction.pretraining import Pretraining, pretrain
    from pipeline.digits import TASKS, videos
    from pipeline.proposals import digit_rpn

    task = TASKS[asked.task]()
    backbone, rpn = out / "digit_cnn.pt", out / "digit_rpn.pt"

    def train_backbone() -> dict:
        how = Pretraining(width=WIDTH, tile=task.shown, canvas=task.size)
        if asked.quick:
            how = replace(how, steps=QUICK_STEPS)
        with digit_rpn.one_thread():
            made = pretrain(backbone, images, how, asked.seed, say=lambda line: say(f"    {line}"))
        return {"accuracy": made.accuracy, "steps": made.steps}

    def frames(split: str, count: int):
        some = list(videos(task, images[split], asked.seed, split, range(count)))
        return np.concatenate([one.frames for one in some]), np.concatenate(
            [one.boxes for one in some]
        )

    def fit_rpn() -> dict:
        count, fewer = RPN_VIDEOS, {}
        if asked.quick:
            count, fewer = QUICK_RPN, {"steps": QUICK_RPN_STEPS}
        digit_rpn.fit(rpn, *frames("train", count), seed=asked.seed, **fewer)
        source = digit_rpn.build(str(rpn), task.size, BOXES)
        found, per_digit = digit_rpn.recall(source, *frames("val", count // 4))
        say(
            f"    finds {100 * found:.1f} % of unseen digits (IoU 0.5), with {per_digit:.2f} "
            f"boxes per digit"
        )
        return {"recall": found, "boxes_per_digit": per_digit}

    steps.run("pre-train digit_cnn on single digits", backbone, train_backbone)
    steps.run("fit the small RPN", rpn, fit_rpn)
    return backbone, rpn


def _config(asked: Demo, backbone: Path, rpn: Path) -> "ExtractConfig":
    """Configure stage one: every frame of a video, uncropped, and boxes by the RPN."""
    from pipeline.digits import TASKS
    from pipeline.stages.config import ExtractConfig
    from pipeline.views.sampling import Sampling

    task = TASKS[asked.task]()
    return ExtractConfig(
        backbone="digit_cnn",
        backbone_options={"width": WIDTH, "pixels": "unit"},
        weights=str(backbone),
        sampling=Sampling(
            frames=task.frames, sampling="linspace", size=task.size, train_crop="centre", flip=0.0
        ),
        proposals="digit_rpn",
        proposal_options={"weights": str(rpn), "size": task.size, "num_boxes": BOXES},
        seed=asked.seed,
    )


def _cache(steps: Steps, out: Path, config: "ExtractConfig", device: str) -> None:
    """Run stages one and two as `vidgraph extract` and `vidgraph graphs` do."""
    from cli.extract import default_workers
    from cli.extract import run as run_extract
    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.extract import RunOptions
    from pipeline.stages.graphs import build_graphs

    cache = out / "cache"

    def extract() -> dict:
        options = RunOptions(device=device, batch=VIEWS, workers=default_workers(device))
        manifest = read_manifest(out / "videos" / "manifest.csv")
        code = run_extract(config, manifest, cache, options)
        if code:
            raise RuntimeError(
                f"{cache}: the demo's own videos failed to extract (exit code {code}); see above"
            )
        return {}

    def graphs() -> dict:
        build_graphs(cache, ("iou",), device=device)
        return {}

    steps.run("extract: decode, digit_cnn, RPN, RoIAlign", cache / "features", extract)
    steps.run("graphs: which boxes overlap from frame to frame", cache / "graphs", graphs)


@dataclass(frozen=True)
class DemoRun:
    """One training run, as it is sent to a worker process."""

    recipe: str
    seed: int
    folder: Path
    cache: Path
    device: str
    quick: bool = False


def train_one(run: DemoRun) -> "Result":
    """Train one run in a worker process."""
    from heads.config.recipe import read_recipe
    from heads.runs.folder_lock import print_waiting
    from heads.training.train import train
    from pipeline.cache.reader import Cache

    settings = {"train.epochs": QUICK_EPOCHS} if run.quick else {}
    # The demo prints one line per head. Each run's own lines are in its log.
    return train(
        read_recipe(run.recipe, settings),
        Cache(run.cache),
        run.folder,
        seed=run.seed,
        device=run.device,
        say=print_waiting,
    )


def _train(steps: Steps, out: Path, seeds: int, device: str, quick: bool) -> list[DemoRow]:
    """Train every head with every seed.

    On a CPU there is one run per core: heads this small gain nothing from a second core.
    """
    from heads.config.recipe import read_recipe
    from pipeline.workers.cores import cores_here
    from pipeline.workers.decode_pool import WorkerPool

    what = f"train {len(RECIPES)} heads with {counted(seeds, 'seed')} each"
    say(f"{steps.title(what)} …")
    todo = []
    for name in RECIPES:
        for seed in range(seeds):
            folder = out / "runs" / f"{name}-seed{seed}"
            todo.append(DemoRun(name, seed, folder, out / "cache", device, quick))
    before = set()
    for run in todo:
        if (run.folder / "metrics.json").exists():
            before.add(run.folder)

    workers = min(cores_here(), len(todo) - len(before)) if device == "cpu" else 0
    rows = [DemoRow(read_recipe(name).head.name, []) for name in RECIPES]
    # A single worker process would gain nothing over this one.
    with WorkerPool(train_one, workers if workers > 1 else 0) as pool:
        # Results come in the order of `todo`, where the seeds of a head are neighbours.
        for k, (_, result) in enumerate(pool.imap(todo, ahead=len(todo))):
            if isinstance(result, Exception):
                raise result
            row = rows[k // seeds]
            row.results.append(result)
            if len(row.results) == seeds:
                known = sum(one.folder in before for one in todo[k + 1 - seeds : k + 1])
                again = ""
                if known:
                    again = f"; {known} of {seeds} runs were trained before"
                say(
                    f"    {row.head}: {row.accuracy} % of test videos right, {row.seconds:.1f} s "
                    f"a run{again}"
                )
    return rows


def _report(out: Path, asked: Demo, rows: list[DemoRow], seconds: float) -> None:
    from rich.table import Table

    from pipeline.digits import TASKS
    from pipeline.files.atomic_files import write_text

    task = TASKS[asked.task]()
    seeds = len(rows[0].results)
    title = f"{asked.task}: {asked.test:,} test videos"
    if asked.quick:
        title += ", a smoke test: too little training to compare heads"
    if seeds > 1:
        title += f", mean ± standard deviation over {seeds} seeds"
    table = Table(title=title, title_justify="left")
    for name in ("head", "top-1 %", "parameters", "s per run"):
        table.add_column(name, justify="left" if name == "head" else "right")
    table.add_row("chance", f"{100 / len(task.labels):.1f}", "", "")
    table.add_row("knowing only which digits are there", f"{100 * task.guess:.1f}", "", "")
    for row in rows:
        table.add_row(
            row.head, row.accuracy, f"{row.results[0].parameters:,}", f"{row.seconds:.1f}"
        )
    console().print(table)
    record = {
        row.head: {
            "top1": row.accuracies,
            "parameters": row.results[0].parameters,
            "seconds": [round(result.seconds, 1) for result in row.results],
        }
        for row in rows
    }
    write_text(out / "results.json", json.dumps(record, indent=1) + "\n")
    # make runs the demo from an environment that is not active: then name the whole path.
    command = "vidgraph" if shutil.which("vidgraph") else sys.argv[0]
    took = {"minutes": math.floor(seconds / 60), "seconds": seconds % 60}
    click.echo(NEXT.replace("vidgraph ", f"{command} ").format(out=visible(str(out)), **took))
