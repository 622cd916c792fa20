"""The settings that PySlowFast saves beside its weights: its configuration, as text.

Names of weights do not tell how pixels were normalised, where a block has its stride, or which kind
of non-local block was trained. This text does.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.backbones._checkpoint_keys import KINETICS_MEAN, KINETICS_STD

_SECTION = re.compile(r"^([A-Z0-9_]+):")
_KEY = re.compile(r"^  ([A-Za-z0-9_]+):(.*)$")
_WORD = re.compile(r"[^\s,\[\]'\"{}]+")
# PySlowFast's words for the kinds of `NonLocal`.
_KINDS = {"softmax": "gaussian", "dot_product": "dot_product"}

# Data sets whose frames OpenCV reads, or that are turned round to be like those.
_NORMALISED_AS_BGR = ("ssv2", "charades")
_BGR_DATASETS = (*_NORMALISED_AS_BGR, "ptvssv2", "ptvcharades")


@dataclass(frozen=True)
class Settings:
    """Parts of PySlowFast's configuration.

    Attributes:
        words: (section, key) -> the words of its value, lists flattened.
    """

    words: dict[tuple[str, str], list[str]]

    def numbers(self, section: str, key: str) -> list[float]:
        """Return the numbers of a value; [] if it is absent or has other words."""
        try:
            return [float(word) for word in self.words.get((section, key), [])]
        except ValueError:
            return []

    def is_true(self, section: str, key: str) -> bool:
        """Return whether a value is there and true."""
        return self.words.get((section, key), []) in (["true"], ["True"])

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of RGB that was subtracted from pixels in [0,1]."""
        return self._pixels("MEAN", KINETICS_MEAN)

    @property
    def std(self) -> tuple[float, ...]:
        """The deviation of RGB by which they were divided."""
        return self._pixels("STD", KINETICS_STD)

    @property
    def bgr(self) -> bool:
        """Whether the network sees blue first: its frames may be read so, and reversed once."""
        frames_are_bgr = self._dataset in _BGR_DATASETS
        if self._dataset == "ava":
            frames_are_bgr = self.is_true("AVA", "BGR")
        return frames_are_bgr != self.is_true("DATA", "REVERSE_INPUT_CHANNEL")

    @property
    def _dataset(self) -> str:
        return " ".join(self.words.get(("TRAIN", "DATASET"), []))

    def _pixels(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = self.numbers("DATA", key)
        if len(values) != 3:
            return default
        # Frames are normalised as they are read, before their channels are reversed.
        is_rgb = self._dataset not in _NORMALISED_AS_BGR
        return tuple(values if is_rgb else values[::-1])

    def objection(self, options: dict, has_non_local: bool) -> str:
        """Say what the network computes that a backbone with these options does not.

        Args:
            options: the backbone's options.
            has_non_local: whether the weights have non-local blocks.

        Returns:
            A text with what to do; "" if there is nothing.
        """
        if self.is_true("RESNET", "STRIDE_1X1"):
            return (
                "its RESNET.STRIDE_1X1 puts strides into the 1×1 convolutions, ours are in the "
                "3×3 ones; take one trained without it"
            )
        if any(value != 1 for value in self.numbers("RESNET", "SPATIAL_DILATIONS")):
            return (
                "its RESNET.SPATIAL_DILATIONS dilates a stage, no backbone here does; take the "
                "Kinetics model that it was started from"
            )
        if not has_non_local:
            return ""

        if any(value != 1 for value in self.numbers("NONLOCAL", "GROUP")):
            return (
                "its NONLOCAL.GROUP cuts time into pieces, ours looks at all of it; take one "
                "trained with groups of 1"
            )
        kind = _KINDS.get(" ".join(self.words.get(("NONLOCAL", "INSTANTIATION"), [])), "")
        if kind and options.get("non_local") != kind:
            return (
                f"its non-local blocks are of another kind; pass --set "
                f"backbone_options.non_local={kind}"
            )
        pool = self.numbers("NONLOCAL", "POOL")
        has_pool = any(value > 1 for value in pool)
        if pool and options.get("non_local_pool") != has_pool:
            return (
                f"its NONLOCAL.POOL is not that of the backbone; pass --set "
                f"backbone_options.non_local_pool={str(has_pool).lower()}"
            )
        return ""

    def fold(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make weights see RGB with the mean and deviation of these settings.

        Args:
            state: the weights, in our names.

        Returns:
            A new state dict.
        """
        folded = dict(state)
        folded["pixel_mean"] = torch.tensor(self.mean)
        folded["pixel_std"] = torch.tensor(self.std)
        if self.bgr:
            folded["stem.conv1.weight"] = state["stem.conv1.weight"].flip(1)
        return folded


def settings_of(saved: object) -> Settings | None:
    """Return the settings in what a file held; None if it has none.

    Args:
        saved: what was read.
    """
    text = saved.get("cfg") if isinstance(saved, dict) else None
    if not isinstance(text, str):
        return None
    words: dict[tuple[str, str], list[str]] = {}
    section, key = "", ""
    for line in text.splitlines():
        found = _SECTION.match(line)
        if found:
            section, key = found[1], ""
            continue
        found = _KEY.match(line)
        if found:
            key, line = found[1], found[2]
            words[section, key] = []
        if key:
            # A list has one value a line, each behind dashes.
            for word in _WORD.findall(line):
                if word.strip("-"):
                    words[section, key].append(word)
    known = any(name == "DATA" for name, _ in words)
    return Settings(words) if known else None
