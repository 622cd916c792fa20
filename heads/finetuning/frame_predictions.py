"""Predict a split from frames. heads/evaluation/head_predictor.py does it from a cache."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from heads.config.recipe import Recipe
from heads.data.device_lane import DeviceLane
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import Predictions
from heads.evaluation.view_check import check_view
from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.frame_training import FrameSource
from heads.finetuning.joint_network import JointNetwork
from heads.interface.loss import LossNotFinite, loss_of
from pipeline.networks.precision import autocast
from pipeline.text.counted import counted

# Views of a split that are tried, until one can be decoded.
CHECKED = 8


@dataclass(frozen=True)
class FramePredictor:
    """A network that predicts splits from frames.

    Attributes:
        network: on its device.
        source: of the frames.
        recipe: of one phase.
        classes: K, the number of classes.
        precision: "fp32", "tf32", "bf16" or "fp16".
        processes: those that train. Each predicts a part of the views, and all get the result.
    """

    network: JointNetwork
    source: FrameSource
    recipe: Recipe
    classes: int
    precision: str
    processes: ProcessGroup

    def predict(self, split: str) -> tuple[Predictions, SplitViews, list[str]]:
        """Predict every view of a split that can be decoded.

        Args:
            split: "train", "val" or "test".

        Returns:
            (predictions, the split without videos that could not be decoded, those clips).

        Raises:
            LossNotFinite: a logit is not finite.
            ValueError: no view could be decoded.
        """
        started = time.monotonic()
        part = self.source.parts[split]
        rows, video = part.all_rows()
        tables, decoded = self._compute(split, rows)
        if not np.isfinite(tables["logits"]).all():
            raise LossNotFinite(
                f"the logits on split {split} are not finite: the weights diverged; lower train.lr"
            )
        if not decoded.any():
            raise ValueError(
                f"split {split}: none of its {counted(len(part), 'clip')} can be decoded; run "
                "`vidgraph check`"
            )

        # A video that lacks one of its views is left out as a whole.
        lost = np.unique(video[~decoded])
        lost_clips = np.array(part.clips, object)[lost].tolist()
        kept = ~np.isin(video, lost)
        tables = {name: table[kept] for name, table in tables.items()}
        part = without_videos(part, lost)
        logits = tables.pop("logits")

        rows, video = part.all_rows()
        loss = math.nan
        if part.targets is not None:
            targets = torch.from_numpy(part.targets[video])
            loss = loss_of(self.recipe.data.target)(torch.from_numpy(logits), targets).item()
        seconds = time.monotonic() - started
        return Predictions(logits, rows, video, loss, seconds, tables), part, lost_clips

    @torch.inference_mode()
    def _compute(self, split: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Run the network on the views in `rows`, over all processes.

        Returns (tables [R,...] by name, decoded [R]). The tables are "logits" and what the
        head's output has under `stored`; they are 0 where a view could not be decoded.
        """
        device = next(self.network.parameters()).device
        tables: dict[str, np.ndarray] = {}
        # Numbers, not bools: the arrays of all processes are summed.
        decoded = np.zeros(len(rows), np.float32)

        indices = self.processes.part_of(np.arange(len(rows)))
        size = self.recipe.evaluate.batch or self.recipe.train.batch
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        found = self.source.batches(split, [rows[batch] for batch in batches], 0)
        self.network.eval()
        lane = DeviceLane(device)
        arriving: list[tuple[str, np.ndarray, Tensor]] = []
        with autocast(device, self.precision):
            for batch, pieces in zip(batches, found, strict=True):
                for clips, positions in pieces:
                    out = self.network(clips)
                    at = batch[positions]
                    for name, tensor in {"logits": out.logits.float(), **out.stored}.items():
                        arriving.append((name, at, lane.fetch(tensor)))
                    decoded[at] = 1
        lane.wait()
        for name, at, tensor in arriving:
            values = tensor.numpy()
            if name not in tables:
                # Rows of other processes stay 0, so that the sum puts the parts together.
                tables[name] = np.zeros((len(rows), *values.shape[1:]), values.dtype)
            tables[name][at] = values

        # A process without views has no tables: it learns their shapes from the others.
        shapes = {name: (table.shape, table.dtype.str) for name, table in tables.items()}
        shapes = self.processes.merge(shapes)
        # Where no view could be decoded, no process has tables.
        shapes.setdefault("logits", ((len(rows), self.classes), "<f4"))
        summed = {}
        for name, (shape, dtype) in sorted(shapes.items()):
            table = tables.get(name, np.zeros(shape, dtype))
            summed[name] = self.processes.sum(table, device)
        return summed, self.processes.sum(decoded, device) > 0


def without_videos(part: SplitViews, videos: np.ndarray) -> SplitViews:
    """Return a split without some of its videos.

    Args:
        part: the split.
        videos: numbers of the videos, in 0..V-1.
    """
    if not len(videos):
        return part
    kept = np.setdiff1d(np.arange(len(part)), videos)
    return replace(
        part,
        clips=tuple(np.array(part.clips, object)[kept].tolist()),
        rows=part.rows[kept],
        counts=part.counts[kept],
        targets=None if part.targets is None else part.targets[kept],
        place=part.place[kept],
    )


def check_test_views(network: JointNetwork, name: str, source: FrameSource) -> None:
    """Run the network on one view of every split but train, before anything is trained.

    Args:
        network: on its device; it is in evaluation mode afterwards.
        name: of the head, for the message.
        source: of the frames.

    Raises:
        ValueError: the network cannot read such a view.
    """
    for split, part in source.parts.items():
        if split == "train":
            continue
        # The first video that can be decoded; one bad video is no reason to stop here.
        first = [np.array([row]) for row in part.all_rows()[0][:CHECKED]]
        batches = source.batches(split, first, 0)
        for pieces in batches:
            for clips, _ in pieces:
                check_view(network, name, clips, f"split {split}")
            if pieces:
                break
        batches.close()
