"""One run of a study, as the study file asks for it."""

from dataclasses import dataclass
from pathlib import Path

from heads.config.recipe import Recipe


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        recipe: what is trained.
        folder: the run folder.
        seed: fixes the initial weights and dropout.
        phase: the only phase to train; "": the first consecutive phases that read the cache.
        start: a run folder or checkpoint whose weights the first phase starts from; None: fresh
            weights, or those of the phase before, as the phase says.
    """

    recipe: Recipe
    folder: Path
    seed: int = 0
    phase: str = ""
    start: Path | None = None
