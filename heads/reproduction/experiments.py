"""What an experiment of digits is: rows of a paper's table, sizes, and the recipe of each row.

A row is a recipe of the package with some options. Its figures are the paper's, in percent, by
task. A size says how much of the paper's experiment fits a budget: how many classes, videos and
channels, how many epochs, and how hard the videos are. Every table that is written states what
the size changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heads.config.recipe import Recipe, read_recipe

# Adam's learning rates. At 0.001 RSTG's graphs need twice as many videos. At 0.003 Conv + LSTM
# stays at the level of guessing, and DyReg-GNN's regions wander away from the digits.
LR = 3e-3
LR_OF_HEAD = {"conv_lstm": 1e-3, "dyreg": 1e-3}
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
    hundreds of thousands of videos. Adam has no weight decay here. It divides the decay by the size
    of the gradient, as it does with the gradient itself. So weights whose gradients are small at
    first, such as those that place DyReg-GNN's regions, would only shrink to zero.

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
        "weight_decay": 0.0,
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


def row_has_regions(row: PaperRow) -> bool:
    """Return whether a row's head pools from regions, whose places can be measured."""
    return row.head.get("regions", "none") != "none"


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
