"""What `vidgraph reproduce` trains: RSTG's Table 1 and DyReg-GNN's Tables 5 and 6, in many sizes.

A row is a recipe of the package with some options. Its figures are the paper's, in percent, by
task. A size says how much of the paper's experiment fits a budget: how many classes, videos and
channels, how many epochs, and how hard the videos are. Every table that is written states what
the size changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heads.config.recipe import Recipe, read_recipe

# Adam's learning rates. At 0.001 the graphs need twice as many videos. At 0.003 Conv + LSTM stays
# at the level of guessing.
LR = 3e-3
LR_OF_HEAD = {"conv_lstm": 1e-3}
# A digit network that is trained along with the head: all of it.
JOINT_FRAMES = {"train_from": "stem", "frozen_bn": False}


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper's table.

    Attributes:
        name: of its run folders.
        title: its name in the paper.
        recipe: name of the recipe.
        paper: task -> accuracy in percent, where the paper states one.
        head: options of the head that differ from the recipe's.
        backbone: the network that is trained from frames. "": only the head is trained, on maps
            of the table's pre-trained network.
        backbone_options: options of `backbone` beside its width.
        shares_lower: the lower part of `backbone` is the table's pre-trained network. A size may
            freeze it, and train the rest with the head on its maps.
        fresh: the row starts from random weights where a size lets rows start from their own runs
            on an easier task. It has no figure for other tasks, where nothing tells it apart.
    """

    name: str
    title: str
    recipe: str
    paper: Mapping[str, float]
    head: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    shares_lower: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class ExperimentSize:
    """How large a reproduction is.

    Attributes:
        name: of the size.
        minutes: one seed of all rows and tasks on one CPU core, estimated from the time of a
            mini-batch.
        classes: digit classes, at least; a task whose digits all differ may need more.
        videos: number of train, val and test videos.
        cnn: channels of the digit network.
        width: of heads.
        trunk: channels of the first stage of networks that are trained from frames.
        epochs: of every run, or task -> epochs.
        batch: videos in a mini-batch.
        seeds: runs per row, where the command names no number.
        end_to_end: fraction of the training videos for rows that are trained from frames.
        task: options of the task (`pipeline.digits`) that differ from the paper's.
        graph: options of the head rstg or dyreg that differ from the recipe's, so that it learns
            from few videos.
        frozen: rows that share their lower part with the pre-trained network are trained on its
            maps.
        place_steps: mini-batches in which the digit network learns class and place from whole
            frames of all tasks (`heads.reproduction.place_training`). All tasks then share it.
            0: it learns single digits alone, for each task.
        joint: the digit network is trained on, together with each head, from frames of videos
            that are never repeated. Else it is frozen.
        starts: task -> the easier task whose run of the same row and seed it starts from. Both
            have the same labels.
        warm_up: mini-batches in which the learning rate rises.
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
    place_steps: int = 0
    joint: bool = False
    starts: Mapping[str, str] = field(default_factory=dict)
    warm_up: int = 0

    def epochs_of(self, task: str) -> int:
        """Return for how many epochs a task is trained."""
        return self.epochs if isinstance(self.epochs, int) else self.epochs[task]


@dataclass(frozen=True)
class PaperTable:
    """One paper's experiment.

    Attributes:
        name: of the table, on the command line.
        title: of the written table.
        tasks: tasks of `pipeline.digits`; each is trained with every row.
        rows: the rows of the paper's table.
        sizes: smallest first.
        lower: the network that is pre-trained on single digits and frozen. Rows that are not
            trained from frames share a cache of its last map.
        lower_options: options of `lower` beside its width.
        gpu: a minute on a GPU counts as so many minutes of a CPU core when a size is chosen. It
            is a guess that nobody has measured.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    sizes: tuple[ExperimentSize, ...]
    lower: str = "digit_cnn"
    lower_options: Mapping[str, Any] = field(default_factory=lambda: {"pixels": "unit"})
    gpu: float = 200.0


def size_for(
    table: PaperTable, budget: float, device: str, seeds: int | None = None
) -> ExperimentSize:
    """Return the largest size of a table that fits a budget.

    Args:
        table: the paper's experiment.
        budget: minutes.
        device: "cpu" or "cuda".
        seeds: runs per row; default the size's own number.

    Raises:
        ValueError: the budget is below 0.
    """
    if not budget >= 0:
        raise ValueError(f"budget: expected minutes from 0, got {budget:g}")
    minutes = budget * (table.gpu if device == "cuda" else 1.0)
    # The smallest size takes 0 minutes, so that one always fits.
    return [size for size in table.sizes if size.minutes * (seeds or size.seeds) <= minutes][-1]


def recipe_of(row: PaperRow, size: ExperimentSize, task: str) -> Recipe:
    """Return a row's recipe with the widths, epochs and batch of a size.

    Adam with a cosine schedule replaces the papers' plain SGD: its rates suit trainings of
    hundreds of thousands of videos.

    Args:
        row: a row of a table.
        size: a size of the same table.
        task: a task of the same table.
    """
    recipe = read_recipe(row.recipe)
    phase = recipe.all_phases[0].name
    head = recipe.head.name
    options: dict[str, Any] = dict(row.head)
    if head == "mean_lstm":
        options["hidden"] = max(64, size.width)
    elif head == "conv_lstm":
        options |= {"width": size.width, "hidden": max(64, size.width)}
    elif head == "rstg":
        options |= {"width": size.width, **size.graph}
    elif head == "dyreg":
        options |= {"width": size.width, "offset_width": size.width}
        options |= {"backbone_options": backbone_options(row, size), **size.graph}

    training = {
        "epochs": size.epochs_of(task),
        "batch": size.batch,
        "optimiser": "adam",
        "lr": LR_OF_HEAD.get(head, LR),
        # Adam has no nesterov, and stop_below is for "plateau": the recipes' own would be refused.
        "nesterov": False,
        "schedule": "cosine",
        "warm_up": size.warm_up,
        "stop_below": 0.0,
        "clip_norm": 1.0,
    }
    settings = {f"head.{key}": value for key, value in options.items()}
    settings |= {f"phases.{phase}.train.{key}": value for key, value in training.items()}
    if row.backbone and not reads_frames(row, size):
        settings |= {f"phases.{phase}.reads": "cache", f"phases.{phase}.frames": {}}
    if trains_lower(row, size):
        settings |= {f"phases.{phase}.reads": "frames", f"phases.{phase}.frames": JOINT_FRAMES}
    return read_recipe(row.recipe, settings)


def reads_frames(row: PaperRow, size: ExperimentSize) -> bool:
    """Return whether a row is trained from frames, rather than on cached maps."""
    own = bool(row.backbone) and not (row.shares_lower and size.frozen)
    return own or trains_lower(row, size)


def trains_lower(row: PaperRow, size: ExperimentSize) -> bool:
    """Return whether a row trains the table's pre-trained network along with its head."""
    return size.joint and not row.backbone


def has_row(row: PaperRow, size: ExperimentSize, task: str) -> bool:
    """Return whether a row is trained on a task."""
    return task in size.starts or not row.fresh


def start_of(row: PaperRow, size: ExperimentSize, task: str) -> str:
    """Return the task whose run of this row a run starts from; "" for random weights.

    Rows with a network of their own always start from random weights.
    """
    if row.fresh or row.backbone:
        return ""
    return size.starts.get(task, "")


def lower_width(table: PaperTable, size: ExperimentSize) -> int:
    """Return the width of a table's pre-trained network."""
    return size.cnn if table.lower == "digit_cnn" else size.trunk


def backbone_options(row: PaperRow, size: ExperimentSize) -> dict[str, Any]:
    """Return the options of a row's backbone."""
    return {**row.backbone_options, "width": size.trunk}


# ---- RSTG


def _rstg(
    name: str,
    title: str,
    scheduler: str,
    sync3: float | None,
    sync5: float | None,
    positions: str = "none",
    fresh: bool = False,
) -> PaperRow:
    """Return a row with RSTG's graph; `sync3` and `sync5` are the paper's figures."""
    paper = {}
    if sync3 is not None:
        paper["sync3"] = sync3
    if sync5 is not None:
        paper["sync5"] = sync5
    head = {"scheduler": scheduler, "positions": positions}
    return PaperRow(name, title, "rstg_table1_rstg", paper, head, fresh=fresh)


RSTG_ROWS = (
    PaperRow("mean_lstm", "Mean + LSTM", "rstg_table1_mean_lstm", {"sync3": 77.0}),
    PaperRow("conv_lstm", "Conv + LSTM", "rstg_table1_conv_lstm", {"sync3": 95.0, "sync5": 39.7}),
    PaperRow("i3d", "I3D", "rstg_table1_i3d", {"sync5": 90.6}, backbone="digit_i3d"),
    PaperRow("nl", "Non-Local", "rstg_table1_nl", {"sync5": 93.5}, backbone="digit_nl"),
    _rstg("space_only", "RSTG: Space-Only", "space_only", 61.3, None),
    _rstg("time_only", "RSTG: Time-Only", "time_only", 89.7, None),
    _rstg("homogeneous", "RSTG: Homogeneous", "homogeneous", 95.7, 58.3),
    _rstg("one_temporal", "RSTG: 1-temp", "one_temporal", 97.0, 74.1),
    _rstg("all_temporal", "RSTG: All-temp", "all_temporal", 98.9, 94.5),
    _rstg("positional", "RSTG: Positional All-temp", "all_temporal", None, 97.2, "both"),
    _rstg(
        "all_temporal_fresh", "All-temp from random weights", "all_temporal", None, None, fresh=True
    ),
)
# The recipe's graph, which is the released one on SyncMNIST, but for these choices. Messages go along
# edges alone, as in the paper: the released code has twice as many. Layer norms follow messages and
# updates, and attention is by dot products, as the released code has it on Something-Something.
SOFT_GRAPH = {"neighbourhood": "edges", "attention": "dot", "inner_norm": True}
# Every row on five digits starts from its own on three, as in sec. 3.1.1.
FROM_THREE = {"sync5": "sync3"}
RSTG_SIZES = (
    ExperimentSize(
        name="tiny",
        minutes=0,
        classes=5,
        # Each of the eleven labels occurs in training.
        videos=(120, 12, 12),
        cnn=4,
        width=4,
        trunk=2,
        epochs=1,
        batch=12,
        end_to_end=0.2,
        task={"reach": 30, "none_in": 5},
        graph=SOFT_GRAPH,
        place_steps=2,
        starts=FROM_THREE,
        warm_up=1,
    ),
    ExperimentSize(
        name="small",
        minutes=55,
        classes=5,
        videos=(24000, 500, 2000),
        cnn=24,
        width=24,
        trunk=4,
        epochs=3,
        batch=8,
        end_to_end=0.1,
        task={"reach": 30},
        graph=SOFT_GRAPH,
        place_steps=3600,
        starts=FROM_THREE,
        warm_up=300,
    ),
    ExperimentSize(
        name="middle",
        minutes=200,
        classes=5,
        videos=(20000, 1000, 2000),
        cnn=32,
        width=48,
        trunk=8,
        epochs=8,
        end_to_end=0.2,
        task={"reach": 20},
        graph=SOFT_GRAPH,
        place_steps=3600,
        joint=True,
        starts=FROM_THREE,
        warm_up=300,
    ),
    ExperimentSize(
        name="large",
        minutes=900,
        classes=10,
        videos=(60000, 2000, 5000),
        cnn=64,
        width=128,
        trunk=16,
        epochs=10,
        graph=SOFT_GRAPH,
        place_steps=3600,
        joint=True,
        starts=FROM_THREE,
        warm_up=300,
    ),
    ExperimentSize(
        name="paper",
        minutes=50000,
        classes=10,
        videos=(600000, 10000, 10000),
        cnn=512,
        width=512,
        trunk=64,
        epochs=5,
        joint=True,
        starts=FROM_THREE,
    ),
)
RSTG = PaperTable("rstg", "RSTG (NeurIPS 2019), Table 1", ("sync3", "sync5"), RSTG_ROWS, RSTG_SIZES)


# ---- DyReg-GNN

RESNET18 = {"stages": 3, "grey": True}
# Two digits that do or do not move together: an easy question.
EASY_TASK = {
    "digits": 2,
    "canvas": 128,
    "size": 64,
    "reach": 100,
    "frames": 4,
    "none_in": 2,
}
# A graph that learns from few videos.
EAGER_GRAPH = {"variant": "released", "iterations": 1, "anchors": "grid", "start": 1.0}


def _dyreg(name: str, title: str, regions: str, figure: float, table: int = 5) -> PaperRow:
    """Return a row of DyReg-GNN's Table 5 or 6; `figure` is the paper's."""
    return PaperRow(
        name,
        title,
        recipe=f"dyreg_table{table}_multisync",
        paper={"multisync": figure},
        head={"regions": regions},
        backbone="resnet18",
        backbone_options=RESNET18,
        shares_lower=True,
    )


DYREG_ROWS = (
    _dyreg("r18", "ResNet-18", "none", 52.29, table=6),
    _dyreg("fixed", "+ GNN, Fixed", "fixed", 78.85),
    _dyreg("static", "Static", "static", 81.48),
    _dyreg("semantic", "DyReg-Semantic", "semantic", 82.41, table=6),
    _dyreg("constant_time", "Ct-Time", "constant_time", 86.77),
    _dyreg("lite", "DyReg-Lite", "lite", 91.43, table=6),
    _dyreg("position_only", "Pos-Only", "position_only", 93.41),
    _dyreg("dyreg", "DyReg", "dynamic", 95.09),
)
DYREG_SIZES = (
    ExperimentSize(
        name="tiny",
        minutes=0,
        classes=3,
        videos=(12, 6, 6),
        # The pre-trained network is a part of the trunk, so there is no digit_cnn to size.
        cnn=0,
        width=4,
        trunk=4,
        epochs=1,
        batch=6,
        task=EASY_TASK,
        graph=EAGER_GRAPH,
        frozen=True,
    ),
    ExperimentSize(
        name="small",
        minutes=12,
        classes=3,
        videos=(8000, 500, 1000),
        cnn=0,
        width=32,
        trunk=16,
        epochs=3,
        task=EASY_TASK,
        graph=EAGER_GRAPH,
        frozen=True,
    ),
    ExperimentSize(
        name="middle",
        minutes=120,
        classes=3,
        videos=(6000, 500, 1000),
        cnn=0,
        width=32,
        trunk=16,
        epochs=8,
        task={"digits": 3, "reach": 40},
    ),
    ExperimentSize(
        name="large",
        minutes=1500,
        classes=5,
        videos=(20000, 1000, 2000),
        cnn=0,
        width=32,
        trunk=32,
        epochs=8,
    ),
    ExperimentSize(
        name="paper",
        minutes=100000,
        classes=10,
        videos=(600000, 10000, 10000),
        cnn=0,
        width=32,
        trunk=64,
        epochs=5,
    ),
)
DYREG = PaperTable(
    "dyreg",
    "DyReg-GNN (NeurIPS 2021), Tables 5 and 6",
    ("multisync",),
    DYREG_ROWS,
    DYREG_SIZES,
    lower="resnet18",
    lower_options={**RESNET18, "stages": 2},
)

TABLES = {table.name: table for table in (RSTG, DYREG)}
