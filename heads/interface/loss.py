"""The loss of a batch, and the device and precision that it is computed with."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks.precision import dtype_of, refuse_fp16_on_cpu
from pipeline.workers.engines import pick_device

Loss = Callable[[Tensor, Tensor], Tensor]


class LossNotFinite(RuntimeError):
    """The loss became NaN or infinite: these weights are lost, the last checkpoint is not."""


def device_for(name: str, precision: str) -> torch.device:
    """A device from "auto", "cpu" or "cuda"; ValueError when it is not there, or cannot compute in
    `precision`.
    """
    dtype_of(precision)  # refuses an unknown name
    device = torch.device(pick_device(name))
    refuse_fp16_on_cpu(precision, device)
    return device


def loss_of(target: str, weights: Tensor | None = None) -> Loss:
    """(logits [B,K], targets) -> scalar: cross-entropy with class ids [B] for "single", the mean
    over classes of the binary cross-entropy of a sigmoid with targets [B,K] for "multi". `weights`
    [K] by class, for "single": the mean over the batch of weight times loss."""
    if target == "multi":
        return F.binary_cross_entropy_with_logits
    if weights is None:
        return F.cross_entropy
    return lambda logits, targets: (
        F.cross_entropy(logits, targets, weights, reduction="sum") / len(targets)
    )
