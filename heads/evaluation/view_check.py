"""Check, before anything is trained, that a head can read the views of every split.

Training and test views may differ in size: a centre crop of 224 pixels beside test crops of 256. A
head that is tied to a size would otherwise fail in the first evaluation, an epoch or days later.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from heads.data.splits import SplitViews
from heads.interface.clips import Clips, clips_of
from pipeline.cache.fields import grid_at

# Views of a split whose sizes are compared; they are spread evenly over it.
LOOKED_AT = 64


def check_cached_views(
    head: nn.Module,
    name: str,
    part: SplitViews,
    fields: Sequence[str],
    device: torch.device | str = "cpu",
) -> None:
    """Run a head on one cached view of each size that a split has.

    Args:
        head: on `device`; it is in evaluation mode afterwards.
        name: of the head, for the message.
        part: the split.
        fields: what the head reads.
        device: where it computes.

    Raises:
        ValueError: the head cannot read such a view.
    """
    for row in _rows_of_each_size(part, fields):
        clips = clips_of(part.group.batch([row], list(fields))).to(device)
        clip = part.group.clips[row]
        check_view(head, name, clips, f"split {part.split}, clip {clip}")


def check_view(network: nn.Module, name: str, clips: Clips, where: str) -> None:
    """Run a head or a network on views in evaluation mode.

    Args:
        network: it is in evaluation mode afterwards.
        name: of the head, for the message.
        clips: the views.
        where: what they are, for the message.

    Raises:
        ValueError: it cannot read them.
    """
    network.eval()
    try:
        with torch.inference_mode():
            network(clips)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{where}: head {name} cannot read this view, and would fail when the split is "
            f"evaluated: {reason}"
        ) from error


def _rows_of_each_size(part: SplitViews, fields: Sequence[str]) -> list[int]:
    """One row of the group for each size among some views of the split."""
    rows = part.all_rows()[0]
    if not len(rows):
        return []
    grids = []
    for name in fields:
        if name == "grid" or name.startswith(grid_at("")):
            grids.append(name)
    if not grids:
        return [int(rows[0])]

    spread = rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(int))]
    sizes = part.group.batch([int(row) for row in spread], grids)
    firsts: dict[tuple, int] = {}
    for k, row in enumerate(spread):
        size = tuple([tuple(sizes[name][k].tolist()) for name in grids])
        firsts.setdefault(size, int(row))
    return list(firsts.values())
