"""The loss of a batch, and the device that computes it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.networks.precision import dtype_of, refuse_on_cpu, set_float32
from pipeline.workers.engines import pick_device

# (logits [B,K], targets) -> scalar
Loss = Callable[[Tensor, Tensor], Tensor]


class LossNotFinite(RuntimeError):
    """The loss became NaN or infinite: these weights are lost, the last checkpoint is not."""


def device_for(name: str, precision: str) -> torch.device:
    """Choose a device that can compute in a precision, and have it do so.

    Args:
        name: "auto", "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" or "fp16".

    Returns:
        The device; for "auto" a GPU if there is one.

    Raises:
        ValueError: unknown name or precision, no such device, or tf32 or fp16 on a CPU.
    """
    # Only for its check of the name.
    dtype_of(precision)
    device = torch.device(pick_device(name))
    refuse_on_cpu(precision, device)
    set_float32(precision)
    return device


def loss_of(target: str, weights: Tensor | None = None) -> Loss:
    """Return the loss function for a kind of label.

    Args:
        target: "single" is cross-entropy with class ids [B]. "multi" is the binary cross-entropy
            of a sigmoid with targets [B,K], averaged over classes.
        weights: [K], a weight per class, for "single" only. The loss is then the mean over the
            batch of weight times cross-entropy.

    Returns:
        A function of (logits [B,K], targets) that returns a scalar.
    """
    if target == "multi":
        return F.binary_cross_entropy_with_logits
    if weights is None:
        return F.cross_entropy

    def weighted(logits: Tensor, targets: Tensor) -> Tensor:
        # torch's own mean divides by the sum of the weights, which differs from batch to batch.
        total = F.cross_entropy(logits, targets, weights, reduction="sum")
        return total / len(targets)

    return weighted
