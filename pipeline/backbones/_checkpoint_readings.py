"""The ways to read a checkpoint's state dict as a backbone's, and what does not fit in each."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.backbones._checkpoint_keys import Project, project_of, rename
from pipeline.networks.checkpoint_names import unwrapped

# Parts that a checkpoint may lack if the caller says so: they then keep their random start.
FRESH = ("reduced", "non_local", "me", "shift", "eab", "lmc", "stack")
# Those that image networks never have, and that start as the identity or near it.
NOT_IN_IMAGES = FRESH[1:]


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint.

    Attributes:
        prefix: what was taken off the names.
        state: the tensors below the prefix, in our names and shapes.
        faults: the keys that do not fit, by what is wrong with them: "missing", "unexpected",
            "mis-shaped".
        beside: names outside the prefix that belong to something else.
        project: whose names the checkpoint has.
        names: the tensors below the prefix, as the checkpoint names them.
    """

    prefix: str
    state: dict[str, Tensor]
    faults: dict[str, list[str]]
    beside: list[str]
    project: Project
    names: dict[str, Tensor]

    @property
    def fits(self) -> bool:
        """Whether the checkpoint holds the whole network and nothing else."""
        return not self.faults and not self.beside


def readings_of(
    state: dict[str, Tensor], expected: dict[str, Tensor], inflate: str, fresh: Iterable[str]
) -> list[Reading]:
    """Return the ways to read a state dict: as it is, and without each prefix of its names.

    Args:
        state: the checkpoint's state dict.
        expected: the backbone's state dict.
        inflate: see `_checkpoints.load`.
        fresh: parts that may be missing.
    """
    readings = []
    for prefix, below, beside in unwrapped(state, expected):
        project = project_of(below, expected)
        fitted = rename(below, expected, project)
        for key in fitted.keys() & expected.keys():
            fitted[key] = _inflated(fitted[key], expected[key].shape, inflate)
        faults = _faults(fitted, expected, fresh)
        readings.append(Reading(prefix, fitted, faults, beside, project, below))
    return readings


def whole_reading(readings: list[Reading]) -> Reading | None:
    """Return the reading that holds the whole network, if one prefix alone gives it.

    Other names may stand beside it, but no second network.
    """
    whole = [reading for reading in readings if not reading.faults]
    prefixes = {reading.prefix for reading in whole}
    return whole[0] if len(prefixes) == 1 else None


def _inflated(value: Tensor, shape: torch.Size, inflate: str) -> Tensor:
    """A 2-D kernel [C',C,h,w] as [C',C,t,h,w]; any other tensor as it is."""
    if value.dim() != 4 or len(shape) != 5:
        return value
    taps = shape[2]
    kernel = value.unsqueeze(2).repeat(1, 1, taps, 1, 1)
    # The sum over the taps stays: a still clip gives what the image gave.
    if inflate == "mean":
        return kernel / taps
    # Only the middle tap stays: each frame gives what it gave as an image.
    return kernel * (torch.arange(taps) == taps // 2).to(value.dtype)[:, None, None]


def _faults(
    state: dict[str, Tensor], expected: dict[str, Tensor], fresh: Iterable[str]
) -> dict[str, list[str]]:
    """What keeps a state dict from fitting, by kind; empty if it fits."""
    fresh = set(fresh)
    missing, mis_shaped = [], []
    for key, value in expected.items():
        if key in state:
            if state[key].shape != value.shape:
                shapes = f"{list(state[key].shape)} instead of {list(value.shape)}"
                mis_shaped.append(f"{key} {shapes}")
            continue
        parts = key.split(".")
        # Ports of other frameworks' models have no batch counter, and nothing here reads it.
        if parts[-1] != "num_batches_tracked" and fresh.isdisjoint(parts):
            missing.append(key)
    unexpected = [key for key in state if key not in expected]

    faults = {}
    if missing:
        faults["missing"] = missing
    if unexpected:
        faults["unexpected"] = unexpected
    if mis_shaped:
        faults["mis-shaped"] = mis_shaped
    return faults
