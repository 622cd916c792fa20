"""Run a trained head on one view: its scores, and the maps of `head(clips, want_maps=True)`.

docs/show.md has the table of the maps' names and shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from heads.data.missing_fields import how_to_add
from heads.data.splits import fields_for
from heads.drawing.backbone_output import BlockOutput, recorded_blocks
from heads.evaluation.metrics import scores_of
from heads.evaluation.one_structure import structure_named
from heads.evaluation.saved_heads import load_trained
from heads.interface.clips import MissingFields, clips_of
from pipeline.cache.reader import Cache, Group


@dataclass
class HeadResult:
    """What a trained head returns for one view.

    Attributes:
        run: the run's folder.
        head: the head's name in the zoo.
        checkpoint: which weights, "best" or "last".
        classes: the K class names.
        scores: [K], as the recipe's `scores` makes them.
        scores_kind: "softmax", "sigmoid" or "logits".
        maps: the head's maps without their batch axis, padding included.
        cells: (h, w) of the map that the head reads; None where it reads none.
        own_scores: [K], where `structure` names another one: the scores with the view's own.
        structure: whose structure head `gos` computed with; "" for the view's own.
        space: operations that head `gos` chooses from.
        edges: pairs of supernodes of head `gos`.
        blocks: what the Event Adaptive Blocks make, where the head runs such a part of a backbone.
    """

    run: Path
    head: str
    checkpoint: str
    classes: tuple[str, ...]
    scores: np.ndarray
    scores_kind: str
    maps: dict[str, np.ndarray]
    cells: tuple[int, int] | None = None
    own_scores: np.ndarray | None = None
    structure: str = ""
    space: Sequence[str] = ()
    edges: Sequence[tuple[int, int]] = ()
    blocks: Sequence[BlockOutput] = ()

    @property
    def best(self) -> int:
        """The class with the highest score; of equal scores, the first."""
        return int(self.scores.argmax())

    def by_point(self, kind: str) -> dict[str, np.ndarray]:
        """Return the maps named `kind` or `kind.POINT`, by point; "" for the plain name."""
        found = {}
        for name, values in self.maps.items():
            if name == kind or name.startswith(f"{kind}."):
                found[name[len(kind) + 1 :]] = values
        return found


def run_head(
    run: str | Path, cache: Cache, group: Group, row: int, checkpoint: str = "", structure: str = ""
) -> HeadResult:
    """Run the head of a run on one view, on the CPU.

    Args:
        run: the run's folder.
        cache: the cache that holds the view.
        group: the view's group.
        row: the view's row in the group.
        checkpoint: "best" or "last"; "" for the one that the run's figures use.
        structure: one structure of head `gos` (see `one_structure.structure_named`); "" for the
            view's own.

    Returns:
        The scores and maps of the view.

    Raises:
        ValueError: the run does not fit the cache (see `load_trained`), or the cache lacks
            fields that the head reads.
    """
    trained = load_trained(Path(run), cache, checkpoint)
    head, recipe = trained.head.eval(), trained.recipe
    try:
        fields = fields_for(head, group)
    except MissingFields as error:
        raise ValueError(how_to_add(cache, recipe.head.name, error.names)) from None

    clips = clips_of(group.batch([row], fields))
    own_scores = None
    blocks: list[BlockOutput] = []
    with torch.inference_mode():
        if structure:
            chosen, _ = structure_named(structure, head, cache)
            own_scores = scores_of(head(clips).logits.float().numpy(), recipe.scores)[0]
            head.force(chosen)
        with recorded_blocks(head, blocks):
            out = head(clips, want_maps=True)
    return HeadResult(
        run=Path(run),
        head=recipe.head.name,
        checkpoint=trained.checkpoint,
        classes=trained.classes,
        scores=scores_of(out.logits.float().numpy(), recipe.scores)[0],
        scores_kind=recipe.scores,
        maps={name: tensor[0].float().numpy() for name, tensor in out.maps.items()},
        cells=_cells(head, clips.maps),
        own_scores=own_scores,
        structure=structure,
        space=getattr(head, "space", ()),
        edges=getattr(head, "edges", ()),
        blocks=blocks,
    )


def _cells(head: torch.nn.Module, maps: dict[str, torch.Tensor]) -> tuple[int, int] | None:
    """(h, w) of the map that a head's attention or saliency covers."""
    # EAN's saliency covers its own map, where a backbone continues the cached one.
    objects = getattr(getattr(head, "head", None), "objects", None)
    if objects is not None:
        return tuple(objects.grid)
    if not maps:
        return None
    return tuple(next(iter(maps.values())).shape[-2:])
