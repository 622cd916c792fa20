"""The distance of a trained head's regions from annotated boxes, and that before training."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from heads.data.feature_store import FeatureStore, shared_pass
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import HeadPredictor
from heads.evaluation.saved_heads import TrainedHead
from heads.interface.clips import Clips
from heads.interface.random_streams import INIT, reseed
from heads.interface.region_distance import BEFORE, RegionDistance
from heads.zoo import build_head
from pipeline.cache.fields import is_cut
from pipeline.networks.precision import autocast


def has_regions(head: nn.Module) -> bool:
    """Return whether a head looks at regions, and so has a distance from boxes."""
    return bool(getattr(head, "has_regions", False))


class BoxesOfViews(Protocol):
    """Knows the annotated boxes of views, such as `heads.data.annotated_boxes.AnnotatedBoxes`."""

    def of(self, rows: np.ndarray, steps: int) -> tuple[Tensor, Tensor]:
        """Return boxes [B,T,N,4] in [0,1] and valid [B,T,N] of rows [B] of a group."""
        ...


def region_figures(
    trained: TrainedHead,
    part: SplitViews,
    store: FeatureStore,
    boxes: BoxesOfViews,
    precision: str = "fp32",
) -> tuple[dict[str, float], int]:
    """Compute Dist (see `heads.interface.region_distance`) after and before training.

    Before training is a head of the same options with the fresh weights of the run's seed.

    Args:
        trained: the run's head, which has regions, on the store's device.
        part: the split's views.
        store: the features that the head reads.
        boxes: the annotated boxes of the views.
        precision: of the head's arithmetic.

    Returns:
        `FIGURES`, and each with `BEFORE` behind its name; none without a box. The number of boxes.
    """
    after = _distance(trained.head, trained, part, store, boxes, precision)
    figures = after.figures()
    if figures:
        fresh = _fresh_head(trained).to(store.device)
        before = _distance(fresh, trained, part, store, boxes, precision)
        for name, value in before.figures().items():
            figures[f"{name}{BEFORE}"] = value
    return figures, after.boxes


def _distance(
    head: nn.Module,
    trained: TrainedHead,
    part: SplitViews,
    store: FeatureStore,
    boxes: BoxesOfViews,
    precision: str,
) -> RegionDistance:
    """Run a head on all views of a split, and measure its regions."""
    found = RegionDistance()
    request = HeadPredictor(head.eval(), part, trained.recipe, precision).request()
    with torch.inference_mode():
        for _, clips, some in shared_pass(store, [request]):
            with autocast(store.device, precision):
                maps = head(clips, want_maps=True).maps
            annotated, valid = boxes.of(request.rows[some], _steps(clips))
            found.add(maps, annotated.to(store.device), valid.to(store.device))
    return found


def _steps(clips: Clips) -> int:
    """Return T of a batch."""
    for name, tensor in clips.tensors().items():
        if is_cut(name) or name in ("pooled", "nodes", "boxes"):
            return tensor.shape[1]
    raise ValueError(f"expected a field with steps, got {', '.join(clips.tensors())}")


def _fresh_head(trained: TrainedHead) -> nn.Module:
    """Build the head of a run with the weights that its seed gave it before training."""
    recipe, cpu = trained.recipe, torch.device("cpu")
    # The caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        reseed(cpu, trained.seed, INIT)
        return build_head(
            recipe.head.name, trained.dims, len(trained.classes), **recipe.head.options
        )
