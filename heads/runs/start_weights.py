"""Pass weights from one run, or one phase, to the next.

Key "state" of a checkpoint holds the weights of a head under the names that the head gives them.

A run may start from one with other classes. Then the classifier stays fresh, and everything else
is loaded. So RSTG starts each network for five digits from its own for three (sec. 3.1.1).
"""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from heads.config.recipe import PLAIN, Recipe, recipe_from
from heads.config.recipe_tables import HeadChoice, Phase
from heads.interface.clips import Dims
from heads.interface.run_records import METRICS, RUN
from heads.runs import run_files
from heads.zoo import build_head


def default_checkpoint(folder: Path, phase: str = "") -> str:
    """Return the name of the checkpoint that a run's figures come from.

    Args:
        folder: the run folder.
        phase: the phase that the checkpoints belong to; "" is the one whose figures are in
            metrics.json, if there are any.

    Returns:
        "best" if the phase or the recipe asks for it and validation found one, else "last".
    """
    recipe = run_files.read_json(folder / "run.json", RUN)["recipe"]
    if not phase and (folder / "metrics.json").exists():
        phase = run_files.read_json(folder / "metrics.json", METRICS).get("phase", "")
    wanted = recipe["evaluate"]["checkpoint"]
    for one in recipe.get("phases", ()):
        # Runs of earlier versions had no such key.
        if one["name"] == phase and one.get("checkpoint"):
            wanted = one["checkpoint"]
    if wanted == "best" and (folder / "best.pt").exists():
        return "best"
    return "last"


def phase_checkpoint(folder: Path, phase: str) -> str:
    """Return the name of the checkpoint that a phase ended with.

    Args:
        folder: the run folder.
        phase: the name of a phase of its recipe.

    Raises:
        ValueError: the recipe has no such phase (the message names the nearest), or the phase was
            not trained to its end.
    """
    recipe = recipe_from(run_files.read_json(folder / "run.json", RUN)["recipe"], str(folder))
    if not recipe.phases:
        raise ValueError(
            f"{folder}: recipe {recipe.name} has no phases to choose phase {phase!r} from; leave "
            f"it out"
        )
    if not (folder / f"{recipe.phase(phase).name}.pt").exists():
        trained = []
        for one in recipe.phases:
            if (folder / f"{one.name}.pt").exists():
                trained.append(one.name)
        raise ValueError(
            f"{folder}: phase {phase} was not trained to its end; phases that were: "
            f"{', '.join(trained) or 'none'}"
        )
    return phase


def checkpoint_of(path: Path) -> Path:
    """Return the checkpoint that a path stands for.

    Args:
        path: a run folder, or a checkpoint.

    Returns:
        The checkpoint that the run's figures come from; `path` itself if it is a file.
    """
    return path if path.is_file() else path / f"{default_checkpoint(path)}.pt"


def recipe_of(checkpoint: Path) -> Recipe:
    """Return the recipe, of one phase, whose head a checkpoint holds."""
    saved = run_files.load_checkpoint(checkpoint)
    recipe = recipe_from(saved["about"]["recipe"], str(checkpoint))
    return recipe.of(saved.get("phase", PLAIN))


def other_classifier(
    path: Path, head: nn.Module, choice: HeadChoice, dims: Dims, classes: Sequence[str]
) -> tuple[str, ...]:
    """Return the weights of a head that cannot come from a checkpoint of other classes.

    Args:
        path: the checkpoint.
        head: the head that gets the weights.
        choice: what it was built from.
        dims: the sizes that it was built for.
        classes: its classes, in the order of their ids.

    Returns:
        The names of the weights whose shape depends on the number of classes; none if the
        checkpoint has the same classes.
    """
    if run_files.load_checkpoint(path)["about"]["classes"] == list(classes):
        return ()
    # Only shapes matter, so no weights are read.
    options = {key: value for key, value in choice.options.items() if key != "weights"}
    with torch.device("meta"), warnings.catch_warnings():
        # A head that loads a part of its weights is told that the meta device drops them.
        warnings.simplefilter("ignore")
        larger = build_head(choice.name, dims, len(classes) + 1, **options).state_dict()
    names = []
    for name, tensor in head.state_dict().items():
        if name in larger and larger[name].shape != tensor.shape:
            names.append(name)
    return tuple(names)


def take_weights(
    head: nn.Module, path: Path, phase: Phase, classifier: Collection[str] = ()
) -> str:
    """Load weights of a checkpoint into the head of a phase.

    It loads the weights whose names both have and that start with a name in `phase.take` (all of
    them if `take` is empty).

    Args:
        head: the head that gets the weights.
        path: the checkpoint.
        phase: the phase that starts.
        classifier: weights that stay fresh, because the checkpoint has other classes (see
            `other_classifier`).

    Returns:
        One line for a person: what was loaded, and which weights stay as they were initialised.

    Raises:
        ValueError: a weight has another shape, or no weight can be loaded.
    """
    saved, initial = run_files.load_checkpoint(path), head.state_dict()
    taken = {}
    for name, tensor in saved["state"].items():
        asked = not phase.take or name.startswith(tuple(phase.take))
        # A head of other parts has weights that this one lacks: they are not needed.
        if not asked or name not in initial or name in classifier:
            continue
        if tensor.shape != initial[name].shape:
            raise ValueError(
                f"phase {phase.name}: {name} has the shape {list(initial[name].shape)}, in {path} "
                f"{list(tensor.shape)}; give the head the options of the phase before, or list "
                f"in `take` which weights to load"
            )
        taken[name] = tensor
    # A head that is a classifier alone still gets the backbone that was trained with it.
    if not taken and not (classifier and "backbone" in saved):
        raise ValueError(
            f"phase {phase.name}: {path} has no weight that the head {type(head).__name__} could "
            f"take"
        )

    # The weights that are not taken stay as the seed initialised them.
    head.load_state_dict({**initial, **taken})
    line = f"phase {phase.name}: starts from {path.name}"
    if classifier:
        line += f"; fresh, because the classes differ: {', '.join(classifier)}"
    fresh = [name for name in initial if name not in taken and name not in classifier]
    if fresh:
        more = ", …" if len(fresh) > 5 else ""
        line += f"; fresh: {', '.join(fresh[:5])}{more}"
    return line
