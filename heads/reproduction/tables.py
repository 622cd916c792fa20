"""What `vidgraph reproduce` trains: the rows of RSTG's Table 1 and DyReg-GNN's Tables 5 and 6, and
sizes for any budget.

A row is a recipe of the package with some options; its figures are the paper's, in percent, by
task. A size says how much of the papers' experiment fits a budget: how many classes, videos and
channels, how long, and how hard the videos are. What a size changes beside the recipes is stated in
every table that comes out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heads.config.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper's table. `name`: of its folder; `title`: the paper's; `recipe` with the
    options `head` on top; `paper`: accuracy in percent by task, where the paper has one.
    `backbone`: the network that is trained from frames, with its options ("": the head alone is
    trained, on maps of the table's pre-trained digit network); `upper`: its lower part is that
    digit network, so that a size may freeze it, and train the upper part with the head on its maps.
    """

    name: str
    title: str
    recipe: str
    paper: Mapping[str, float]
    head: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    upper: bool = False


@dataclass(frozen=True)
class ExperimentSize:
    """How large a reproduction is. `minutes` of one seed of all rows and tasks on one CPU core, as
    estimated from the time of a mini-batch.

    `classes` of digits, at least (a task whose digits differ needs as many); `videos` of the splits
    train, val, test; `end_to_end`: the share of the training videos that rows which train from
    frames get. `cnn`: channels of the digit network, `width`: of heads, `trunk`: of the first stage
    of networks that are trained from frames. `epochs`, perhaps by task; `batch`; `seeds` where the
    command names none. `task`: options of the task (`pipeline.digits`) that differ from the
    paper's. `graph`: options of the head rstg or dyreg that differ from the recipe's: what trains
    on few videos. `frozen`: rows whose `upper` part can be trained alone are, on maps of the
    pre-trained lower part.
    """

    name: str
    minutes: float
    classes: int
    videos: tuple[int, int, int]
    cnn: int
    width: int
    trunk: int
    epochs: int | Mapping[str, int]
    batch: int = 32
    seeds: int = 2
    end_to_end: float = 1.0
    task: Mapping[str, int] = field(default_factory=dict)
    graph: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False

    def epochs_of(self, task: str) -> int:
        """How many epochs a task is trained for."""
        return self.epochs if isinstance(self.epochs, int) else self.epochs[task]


@dataclass(frozen=True)
class PaperTable:
    """One paper's experiment: `tasks` of pipeline.digits, the rows that each is trained with, and
    sizes, smallest first. `lower`: the backbone, with options beside its width, that is pre-trained
    on single digits and frozen; rows that are not trained from frames share a cache of its last
    map.

    When a size is chosen, a minute on a GPU counts as `gpu` minutes of a core: a guess, which
    nobody has measured.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    sizes: tuple[ExperimentSize, ...]
    lower: str = "digit_cnn"
    lower_options: Mapping[str, Any] = field(default_factory=lambda: {"pixels": "unit"})
    gpu: float = 200.0


def _graph(
    name: str,
    title: str,
    scheduler: str,
    three: float | None,
    five: float | None,
    positions: str = "none",
) -> PaperRow:
    figures = {
        task: figure for task, figure in (("sync3", three), ("sync5", five)) if figure is not None
    }
    return PaperRow(
        name, title, "rstg_table1_rstg", figures, {"scheduler": scheduler, "positions": positions}
    )


RSTG = PaperTable(
    "rstg",
    "RSTG (NeurIPS 2019), Table 1",
    ("sync3", "sync5"),
    (
        PaperRow("mean_lstm", "Mean + LSTM", "rstg_table1_mean_lstm", {"sync3": 77.0}),
        PaperRow(
            "conv_lstm", "Conv + LSTM", "rstg_table1_conv_lstm", {"sync3": 95.0, "sync5": 39.7}
        ),
        PaperRow("i3d", "I3D", "rstg_table1_i3d", {"sync5": 90.6}, backbone="digit_i3d"),
        PaperRow("nl", "Non-Local", "rstg_table1_nl", {"sync5": 93.5}, backbone="digit_nl"),
        _graph("space_only", "RSTG: Space-Only", "space_only", 61.3, None),
        _graph("time_only", "RSTG: Time-Only", "time_only", 89.7, None),
        _graph("homogeneous", "RSTG: Homogeneous", "homogeneous", 95.7, 58.3),
        _graph("one_temporal", "RSTG: 1-temp", "one_temporal", 97.0, 74.1),
        _graph("all_temporal", "RSTG: All-temp", "all_temporal", 98.9, 94.5),
        _graph("positional", "RSTG: Positional All-temp", "all_temporal", None, 97.2, "sender"),
    ),
    (
        ExperimentSize(
            "tiny",
            0,
            3,
            (24, 12, 12),
            cnn=4,
            width=4,
            trunk=2,
            epochs=1,
            batch=12,
            task={"reach": 30},
        ),
        ExperimentSize(
            "small",
            55,
            3,
            (20000, 500, 1000),
            cnn=16,
            width=24,
            trunk=4,
            epochs={"sync3": 4, "sync5": 6},
            end_to_end=0.1,
            task={"reach": 30},
            graph={"iterations": 1, "inner_norm": True},
        ),
        ExperimentSize(
            "middle",
            200,
            5,
            (20000, 1000, 2000),
            cnn=32,
            width=48,
            trunk=8,
            epochs=8,
            end_to_end=0.2,
            task={"reach": 20},
            graph={"inner_norm": True},
        ),
        ExperimentSize(
            "large", 900, 10, (60000, 2000, 5000), cnn=64, width=128, trunk=16, epochs=10
        ),
        ExperimentSize(
            "paper", 50000, 10, (600000, 10000, 10000), cnn=512, width=512, trunk=64, epochs=5
        ),
    ),
)

R18 = {"stages": 3, "grey": True}
EASY = {
    "digits": 2,
    "canvas": 128,
    "size": 64,
    "reach": 100,
    "frames": 4,
    "none_in": 2,
}  # do the two move together?
EAGER = {
    "variant": "released",
    "iterations": 1,
    "anchors": "grid",
    "start": 1.0,
}  # gets going on few videos


def _dyreg(name: str, title: str, regions: str, figure: float, table: int = 5) -> PaperRow:
    recipe = "dyreg_table5_multisync" if table == 5 else "dyreg_table6_multisync"
    return PaperRow(
        name,
        title,
        recipe,
        {"multisync": figure},
        {"regions": regions},
        "resnet18",
        R18,
        upper=True,
    )


DYREG = PaperTable(
    "dyreg",
    "DyReg-GNN (NeurIPS 2021), Tables 5 and 6",
    ("multisync",),
    (
        _dyreg("r18", "ResNet-18", "none", 52.29, table=6),
        _dyreg("fixed", "+ GNN, Fixed", "fixed", 78.85),
        _dyreg("static", "Static", "static", 81.48),
        _dyreg("semantic", "DyReg-Semantic", "semantic", 82.41, table=6),
        _dyreg("constant_time", "Ct-Time", "constant_time", 86.77),
        _dyreg("lite", "DyReg-Lite", "lite", 91.43, table=6),
        _dyreg("position_only", "Pos-Only", "position_only", 93.41),
        _dyreg("dyreg", "DyReg", "dynamic", 95.09),
    ),
    (
        ExperimentSize(
            "tiny",
            0,
            3,
            (12, 6, 6),
            cnn=0,
            width=4,
            trunk=4,
            epochs=1,
            batch=6,
            task=EASY,
            graph=EAGER,
            frozen=True,
        ),
        ExperimentSize(
            "small",
            12,
            3,
            (8000, 500, 1000),
            cnn=0,
            width=32,
            trunk=16,
            epochs=3,
            task=EASY,
            graph=EAGER,
            frozen=True,
        ),
        ExperimentSize(
            "middle",
            120,
            3,
            (6000, 500, 1000),
            cnn=0,
            width=32,
            trunk=16,
            epochs=8,
            task={"digits": 3, "reach": 40},
        ),
        ExperimentSize("large", 1500, 5, (20000, 1000, 2000), cnn=0, width=32, trunk=32, epochs=8),
        ExperimentSize(
            "paper", 100000, 10, (600000, 10000, 10000), cnn=0, width=32, trunk=64, epochs=5
        ),
    ),
    lower="resnet18",
    lower_options={**R18, "stages": 2},
)

TABLES = {table.name: table for table in (RSTG, DYREG)}


def size_for(
    table: PaperTable, budget: float, device: str, seeds: int | None = None
) -> ExperimentSize:
    """The largest size of a table that fits `budget` minutes with so many `seeds` (None: its own),
    on "cpu" or "cuda". ValueError for a budget below 0."""
    if not budget >= 0:
        raise ValueError(f"budget: expected minutes from 0, got {budget:g}")
    minutes = budget * (table.gpu if device == "cuda" else 1.0)
    return [size for size in table.sizes if size.minutes * (seeds or size.seeds) <= minutes][-1]


def recipe_of(row: PaperRow, size: ExperimentSize, task: str) -> Recipe:
    """A row's recipe at a size, for a task: its widths, length and batch; Adam on a cosine in place
    of the papers' plain SGD, whose rates suit trainings of hundreds of thousands of videos."""
    recipe = read_recipe(row.recipe)
    phase = recipe.all_phases[0].name
    options: dict[str, Any] = dict(row.head)
    if recipe.head.name == "mean_lstm":
        options["hidden"] = max(64, size.width)
    elif recipe.head.name == "conv_lstm":
        options |= {"width": size.width, "hidden": max(64, size.width)}
    elif recipe.head.name == "rstg":
        options |= {"width": size.width, **size.graph}
    elif recipe.head.name == "dyreg":
        options |= {
            "width": size.width,
            "offset_width": size.width,
            "backbone_options": backbone_options(row, size),
        }
        options |= size.graph
    training = {
        "epochs": size.epochs_of(task),
        "batch": size.batch,
        "optimiser": "adam",
        "lr": LR.get(recipe.head.name, 3e-3),
        "nesterov": False,
        "schedule": "cosine",
        "stop_below": 0.0,
        "clip_norm": 1.0,
    }
    settings = {f"head.{key}": value for key, value in options.items()}
    settings |= {f"phases.{phase}.train.{key}": value for key, value in training.items()}
    if row.backbone and not reads_frames(row, size):
        settings |= {f"phases.{phase}.reads": "cache", f"phases.{phase}.frames": {}}
    return read_recipe(row.recipe, settings)


# Of Adam, where it is not 0.003: at 0.001 the graphs need twice as many videos, and at 0.003 Conv +
# LSTM does not leave the level of guessing.
LR = {"conv_lstm": 1e-3}


def reads_frames(row: PaperRow, size: ExperimentSize) -> bool:
    """Whether a row is trained from frames at a size, rather than on the cached maps of the table's
    `lower` network.
    """
    return bool(row.backbone) and not (row.upper and size.frozen)


def lower_width(table: PaperTable, size: ExperimentSize) -> int:
    """The width of the table's `lower` network at a size."""
    return size.cnn if table.lower == "digit_cnn" else size.trunk


def backbone_options(row: PaperRow, size: ExperimentSize) -> dict[str, Any]:
    """The options of a row's backbone at a size."""
    return {**row.backbone_options, "width": size.trunk}
