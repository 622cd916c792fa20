"""Build the heads of a run: those of its phases, and the heads that teach them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from heads.config.recipe import Recipe
from heads.config.recipe_tables import Phase
from heads.data.missing_fields import how_to_add
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import fields_of
from heads.evaluation.view_check import check_cached_views
from heads.interface.clips import MissingFields
from heads.interface.random_streams import INIT, reseed
from heads.runs.start_weights import checkpoint_of, recipe_of
from heads.training.optimisers import Optimisers
from heads.training.study import Study
from heads.zoo import build_head


class HeadBuilder:
    """Build heads from a run's seed, on the study's device.

    Args:
        study: what the runs of the study share.
        recipe: the run's recipe, with all its phases.
        classes: class names in the order of their ids.
        seed: the run's seed.
        folder: the run folder, where earlier phases leave the weights of teachers.
    """

    def __init__(
        self, study: Study, recipe: Recipe, classes: tuple[str, ...], seed: int, folder: Path
    ):
        self.study, self.recipe, self.classes = study, recipe, classes
        self.seed, self.folder = seed, folder

    def new(self, recipe: Recipe) -> nn.Module:
        """Build the head of a recipe of one phase, with weights that the seed alone fixes.

        Raises:
            ValueError: the head needs fields that the cache lacks; the message has the command
                that adds them.
        """
        study, head = self.study, recipe.head
        reseed(study.device, self.seed, INIT)
        try:
            module = build_head(head.name, study.dims, len(self.classes), **head.options)
        except MissingFields as error:
            raise ValueError(how_to_add(study.cache, head.name, error.names)) from None
        return module.to(study.device)

    def teachers(self, recipe: Recipe) -> list[tuple[nn.Module, Path]]:
        """Build the heads that teach a phase.

        Args:
            recipe: of one phase.

        Returns:
            Each head, with new weights, and the checkpoint of its trained ones. The checkpoint of
            an earlier phase of this run need not exist yet.
        """
        phases = {phase.name for phase in self.recipe.all_phases}
        teachers = []
        for name in recipe.train.distil.teachers:
            if name in phases:
                head, path = self.new(self.recipe.of(name)), self.folder / f"{name}.pt"
            else:
                path = checkpoint_of(Path(name))
                head = self.new(recipe_of(path))
            teachers.append((head, path))
        return teachers

    def fields(
        self, phases: Sequence[Phase], parts: Mapping[str, SplitViews]
    ) -> dict[str, tuple[str, ...]]:
        """Return what a run reads of each split, over all its phases.

        Every head and an optimiser for it is built once, and reads one view of each size. So wrong
        options, and test views that do not fit, are found before training starts.

        Args:
            phases: the phases that the run trains.
            parts: split -> its views.
        """
        names: dict[str, list[str]] = {split: [] for split in parts}
        for phase in phases:
            recipe = self.recipe.of(phase)
            head = self.new(recipe)
            teachers = [teacher for teacher, _ in self.teachers(recipe)]
            Optimisers(head, recipe.train)
            for split, part in parts.items():
                # Teachers see the training views only.
                readers = [head, *teachers] if split == "train" else [head]
                for reader in readers:
                    fields = fields_of(reader, self.study.cache, part, recipe)
                    check_cached_views(reader, recipe.head.name, part, fields, self.study.device)
                    names[split] += fields
        return {split: tuple(dict.fromkeys(fields)) for split, fields in names.items()}
