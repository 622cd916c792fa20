"""What a trained head says of a view: its scores, and the maps of `head(clips, want_maps=True)` by
their documented names.

docs/show.md has the table of names and shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from heads.data.splits import fields_for, how_to_add
from heads.evaluation.metrics import scores_of
from heads.evaluation.saved_heads import load_trained
from heads.interface.clips import MissingFields, clips_of
from pipeline.cache.reader import Cache, Group


@dataclass
class HeadResult:
    """Of one view: `scores` [K] as the recipe's `scores_kind` makes them, of `classes`; `maps`
    without their axis B, padding included; `cells`: (h, w) of the map that the head reads, None
    where it reads none. `space` and `edges`: of head gos alone.
    """

    run: Path
    head: str
    checkpoint: str
    classes: tuple[str, ...]
    scores: np.ndarray
    scores_kind: str
    maps: dict[str, np.ndarray]
    cells: tuple[int, int] | None = None
    space: Sequence[str] = ()
    edges: Sequence[tuple[int, int]] = ()

    @property
    def best(self) -> int:
        """The class with the highest score, the lower one of equals."""
        return int(self.scores.argmax())

    def points(self, kind: str) -> dict[str, np.ndarray]:
        """The maps named `kind` or `kind.POINT`, by point; "" for the plain name."""
        named = {
            name: m for name, m in self.maps.items() if name == kind or name.startswith(f"{kind}.")
        }
        return {name[len(kind) + 1 :]: m for name, m in named.items()}


def run_head(
    run: str | Path, cache: Cache, group: Group, row: int, checkpoint: str = ""
) -> HeadResult:
    """Runs the head of a run on one view, on the CPU. ValueError where the run does not fit the
    cache, see `load_trained`, or reads fields that it does not have."""
    trained = load_trained(Path(run), cache, checkpoint)
    head, recipe = trained.head.eval(), trained.recipe
    try:
        fields = fields_for(head, group)
    except MissingFields as error:
        raise ValueError(how_to_add(cache, recipe.head.name, error.names)) from None
    clips = clips_of(group.batch([row], fields))
    with torch.inference_mode():
        out = head(clips, want_maps=True)
    maps = {name: tensor[0].float().numpy() for name, tensor in out.maps.items()}
    return HeadResult(
        Path(run),
        recipe.head.name,
        trained.checkpoint,
        trained.classes,
        scores_of(out.logits.float().numpy(), recipe.scores)[0],
        recipe.scores,
        maps,
        _cells(head, clips.maps),
        getattr(head, "space", ()),
        getattr(head, "edges", ()),
    )


def _cells(head: torch.nn.Module, maps: dict[str, torch.Tensor]) -> tuple[int, int] | None:
    """(h, w) of the map that a head's attention or saliency is over: EAN's own where a backbone
    continues the cached one.
    """
    objects = getattr(getattr(head, "head", None), "objects", None)
    if objects is not None:
        return tuple(objects.grid)
    return tuple(next(iter(maps.values())).shape[-2:]) if maps else None
