"""One run of a study, as the study file asks for it."""

from dataclasses import dataclass
from pathlib import Path

from heads.config.recipe import Recipe


@dataclass(frozen=True)
class Member:
    """One run of a study: what is trained, with which seed, and into which folder. `phase`: only
    this phase of the recipe ("": the first consecutive ones that read the cache). `start`: a run's
    folder or checkpoint whose weights the first phase starts from, if it starts from a previous
    one.
    """

    recipe: Recipe
    folder: Path
    seed: int = 0
    phase: str = ""
    start: Path | None = None
