"""What a network that reads frames predicts for a split; heads/evaluation/head_predictor.py does the same
for a head on a cache.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from heads.config.recipe import Recipe
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import Predictions
from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.frame_training import FrameSource
from heads.finetuning.joint_network import JointNetwork
from heads.interface.loss import LossNotFinite, loss_of
from pipeline.networks.precision import autocast


@dataclass(frozen=True)
class FramePredictor:
    """`network` (on its device) on the frames of `source`, as a `recipe` of one phase says, for so
    many `classes`; in a `world` of several processes each takes a share of the views, and all know
    the result.
    """

    network: JointNetwork
    source: FrameSource
    recipe: Recipe
    classes: int
    precision: str
    world: ProcessGroup

    def predict(self, split: str) -> tuple[Predictions, SplitViews, list[str]]:
        """The logits of every view of a split that could be had, the split without the videos that
        could not, and these.

        LossNotFinite where a logit is not finite; ValueError where no view could be had.
        """
        begun = time.monotonic()
        part = self.source.parts[split]
        rows, video = part.all_rows()
        tables, seen = self._compute(split, rows)
        if not np.isfinite(tables["logits"]).all():
            raise LossNotFinite(
                f"the logits on split {split} are not finite: the weights diverged; lower train.lr"
            )
        if not seen.any():
            raise ValueError(
                f"split {split}: none of its {len(part)} clips can be decoded; run `vidgraph check`"
            )
        gone = np.unique(video[~seen])
        lost, kept = [part.clips[k] for k in gone], ~np.isin(video, gone)
        tables = {name: table[kept] for name, table in tables.items()}
        part, logits = _without(part, gone), tables.pop("logits")
        (rows, video), loss = part.all_rows(), math.nan
        if part.targets is not None:
            loss = loss_of(self.recipe.data.target)(
                torch.from_numpy(logits), torch.from_numpy(part.targets[video])
            ).item()
        return Predictions(logits, rows, video, loss, time.monotonic() - begun, tables), part, lost

    @torch.inference_mode()
    def _compute(self, split: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """("logits" and what the head's output has under `stored` by name, each [R,...], 0 where a
        view could not be had; whether it could [R])."""
        device, own, seen = (
            next(self.network.parameters()).device,
            {},
            np.zeros(len(rows), np.float32),
        )
        mine, size = (
            self.world.share(np.arange(len(rows))),
            self.recipe.evaluate.batch or self.recipe.train.batch,
        )
        places = [mine[start : start + size] for start in range(0, len(mine), size)]
        self.network.eval()
        with autocast(device, self.precision):
            for place, pieces in zip(
                places, self.source.batches(split, [rows[p] for p in places], 0), strict=True
            ):
                for clips, at in pieces:
                    out = self.network(clips)
                    for name, tensor in {"logits": out.logits.float(), **out.stored}.items():
                        values = tensor.cpu().numpy()
                        if name not in own:
                            own[name] = np.zeros((len(rows), *values.shape[1:]), values.dtype)
                        own[name][place[at]] = values
                    seen[place[at]] = 1
        shapes = self.world.union(
            {name: (table.shape, table.dtype.str) for name, table in own.items()}
        )
        shapes.setdefault("logits", ((len(rows), self.classes), "<f4"))  # no process had a view
        tables = {
            name: self.world.sum(own.get(name, np.zeros(shape, dtype)), device)
            for name, (shape, dtype) in sorted(shapes.items())
        }
        return tables, self.world.sum(seen, device) > 0


def _without(part: SplitViews, videos: np.ndarray) -> SplitViews:
    """A split without the videos of these numbers."""
    if not len(videos):
        return part
    kept = np.setdiff1d(np.arange(len(part)), videos)
    targets = None if part.targets is None else part.targets[kept]
    clips = tuple(part.clips[k] for k in kept)
    return replace(
        part,
        clips=clips,
        rows=part.rows[kept],
        counts=part.counts[kept],
        targets=targets,
        place=part.place[kept],
    )
