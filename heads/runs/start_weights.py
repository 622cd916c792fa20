"""Weights from one run, or one phase, to the next.

A checkpoint's "state" holds the weights of a head under the names that the head has, whatever else
it holds beside them.
"""

from pathlib import Path

from torch import nn

from heads.config.recipe import PLAIN, Recipe, recipe_from
from heads.config.recipe_tables import Phase
from heads.interface.run_records import RUN
from heads.runs import run_files as runs


def default_checkpoint(folder: Path) -> str:
    """ "best" where the recipe asks for it and validation found one, else "last"."""
    wanted = runs.read_json(folder / "run.json", RUN)["recipe"]["evaluate"]["checkpoint"]
    return "best" if wanted == "best" and (folder / "best.pt").exists() else "last"


def phase_checkpoint(folder: Path, phase: str) -> str:
    """The name of the checkpoint that a phase of the run in `folder` ended with; ValueError, with
    the nearest names, for a phase that its recipe does not have, and for one that was not trained
    to its end.
    """
    recipe = recipe_from(runs.read_json(folder / "run.json", RUN)["recipe"], str(folder))
    if not recipe.phases:
        raise ValueError(
            f"{folder}: recipe {recipe.name} has no phases to choose phase {phase!r} "
            f"from; leave it out"
        )
    if not (folder / f"{recipe.phase(phase).name}.pt").exists():
        there = [one.name for one in recipe.phases if (folder / f"{one.name}.pt").exists()]
        raise ValueError(
            f"{folder}: phase {phase} was not trained to its end there; those that were: "
            f"{', '.join(there) or 'none'}"
        )
    return phase


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a run's folder stands for, which is the one its figures come from; a file
    is itself.
    """
    return path if path.is_file() else path / f"{default_checkpoint(path)}.pt"


def recipe_of(checkpoint: Path) -> Recipe:
    """The recipe of one phase whose head a checkpoint holds."""
    saved = runs.load_checkpoint(checkpoint)
    return recipe_from(saved["about"]["recipe"], str(checkpoint)).of(saved.get("phase", PLAIN))


def take_weights(head: nn.Module, path: Path, phase: Phase) -> str:
    """Puts the weights of a checkpoint into the head of a phase, those whose names both have and
    `phase.take` names; returns what was done, in words. ValueError for a weight of another shape,
    and where none is taken.
    """
    theirs, own = runs.load_checkpoint(path)["state"], head.state_dict()
    wanted = {
        k: t
        for k, t in theirs.items()
        if not phase.take or any(k.startswith(name) for name in phase.take)
    }
    taken = {k: t for k, t in wanted.items() if k in own}
    for name in (name for name, tensor in taken.items() if tensor.shape != own[name].shape):
        raise ValueError(
            f"phase {phase.name}: {name} has the shape {list(own[name].shape)}, in {path} "
            f"{list(taken[name].shape)}; give the "
            "head the options of the phase before, or name in `take` which weights are taken"
        )
    if not taken:
        raise ValueError(
            f"phase {phase.name}: {path} has no weight that the head "
            f"{type(head).__name__} could take"
        )
    head.load_state_dict({**own, **taken})
    fresh = [name for name in own if name not in taken]
    said = f"; fresh: {', '.join(fresh[:5])}{', …' if len(fresh) > 5 else ''}" if fresh else ""
    return f"phase {phase.name}: starts from {path.name}{said}"
