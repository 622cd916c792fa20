"""Where a phase of a run begins: the weights that it starts from, and its teachers."""

from pathlib import Path

from torch import nn

from heads.config.recipe import Recipe, command_of
from heads.config.recipe_tables import Phase
from heads.papers.dyreg.distillation import Teachers
from heads.runs import run_files
from heads.training.head_builder import HeadBuilder


def previous_checkpoint(folder: Path, recipe: Recipe, phase: Phase) -> Path:
    """Return the checkpoint that the phase before left in a run's folder.

    Args:
        folder: of the run.
        recipe: the whole recipe.
        phase: a phase that starts from the one before it.

    Raises:
        ValueError: that phase was not trained there; the message has the command that does.
    """
    names = [one.name for one in recipe.all_phases]
    previous = recipe.phase(names[names.index(phase.name) - 1])
    path = folder / f"{previous.name}.pt"
    if not path.exists():
        if previous.reads == "frames":
            command = command_of(recipe, previous)
        else:
            command = f"--phase {previous.name}"
        raise ValueError(
            f"phase {phase.name} starts from phase {previous.name}, which {folder} "
            f"does not hold: run it first ({command}), or name a run with --start"
        )
    return path


def trained_teachers(
    heads: HeadBuilder, student: nn.Module, recipe: Recipe
) -> tuple[Teachers | None, list[Path]]:
    """Build the teachers of a phase, with their trained weights.

    Args:
        heads: builds the heads of the run.
        student: the head that they teach.
        recipe: of the phase.

    Returns:
        The teachers, None without any, and the checkpoints that their weights come from.
    """
    if not recipe.train.distil.teachers:
        return None, []
    taught_by = heads.teachers(recipe)
    for teacher, path in taught_by:
        teacher.load_state_dict(run_files.load_checkpoint(path)["state"])
    modules = [teacher for teacher, _ in taught_by]
    return Teachers(student, modules), [path for _, path in taught_by]
