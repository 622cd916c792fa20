"""What a head decides for every view, such as GOS's structure, from validation to validation."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Decisions:
    """The decisions at the last validation of a phase, by what is decided."""

    def __init__(self):
        self._last: dict[str, np.ndarray] = {}

    def changed(self, decided: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Keep the present decisions, and compare them with the last ones.

        Args:
            decided: name -> array [R,...], a row per view.

        Returns:
            name -> the share of views that were decided otherwise; without names that are new.
        """
        changed = {}
        for name, present in decided.items():
            before = self._last.get(name)
            if before is not None and before.shape == present.shape:
                differs = (before != present).reshape(len(present), -1).any(1)
                changed[name] = float(differs.mean())
        self._last = {name: present.copy() for name, present in decided.items()}
        return changed

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds of them: nothing while there are none."""
        if not self._last:
            return {}
        return {"decided": {name: torch.from_numpy(last) for name, last in self._last.items()}}

    def load(self, saved: Mapping) -> None:
        """Take the decisions of a checkpoint, which may have none."""
        for name, table in saved.get("decided", {}).items():
            self._last[name] = table.numpy()
