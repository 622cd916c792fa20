"""The boxes of a view, sorted into slots: slot s holds the same object at every step."""

from dataclasses import dataclass

import torch
from torch import Tensor

# What no track's number reaches: tracks are int32 in a cache.
UNTRACKED = 1 << 32
ABSENT = 1 << 40


@dataclass(frozen=True)
class Objects:
    """The objects of B views.

    Attributes:
        boxes: [B,S,T,4], centre, width and height of the view, in [0,1]; 0 where it is absent.
        kinds: int64 [B,S,T], the number of its class plus 1; 0 for none, or where it is absent.
        present: bool [B,S,T], whether slot s has a box at step t.
    """

    boxes: Tensor
    kinds: Tensor
    present: Tensor


def objects_of(
    boxes: Tensor, valid: Tensor, track: Tensor | None, box_class: Tensor | None, slots: int
) -> Objects:
    """Sort boxes into slots.

    The objects of a view have slots by rising number, as in Something-Else's release. A box
    without a number is an object by its row; these come last. Objects beyond the last slot are
    left out.

    Args:
        boxes: [B,T,N,4], xyxy in [0,1].
        valid: bool [B,T,N].
        track: int64 [B,T,N], the object that each box is, -1 for none; None: rows are objects.
        box_class: int64 [B,T,N], -1 for none; None: no box has a class.
        slots: S.

    Returns:
        The objects.
    """
    slot = _slot_of(valid, track)  # [B,T,N]
    is_here = slot[..., None] == torch.arange(slots, device=slot.device)  # [B,T,N,S]
    present = is_here.any(2)  # [B,T,S]
    row = is_here.to(torch.uint8).argmax(2)  # [B,T,S]

    # xyxy -> centre, width and height
    corners, ends = boxes[..., :2], boxes[..., 2:]
    sized = torch.cat([(corners + ends) / 2, ends - corners], -1)
    placed = sized.gather(2, row[..., None].expand(*row.shape, 4))
    placed = placed.masked_fill(~present[..., None], 0)
    if box_class is None:
        kinds = torch.zeros_like(row)
    else:
        kinds = (box_class.gather(2, row) + 1).masked_fill(~present, 0)
    return Objects(placed.transpose(1, 2), kinds.transpose(1, 2), present.transpose(1, 2))


def _slot_of(valid: Tensor, track: Tensor | None) -> Tensor:
    """Return the slot [B,T,N] of each box, counted from 0; -1 where there is no box."""
    rows = torch.arange(valid.shape[2], device=valid.device).expand(valid.shape) + UNTRACKED
    numbers = rows if track is None else torch.where(track >= 0, track, rows)
    numbers = numbers.masked_fill(~valid, ABSENT).flatten(1)  # [B,T N]

    # A slot is how many smaller numbers there are in the view, each counted once.
    ordered, order = numbers.sort(1)
    is_new = ordered[:, 1:] != ordered[:, :-1]
    rank = torch.nn.functional.pad(is_new.long().cumsum(1), (1, 0))  # [B,T N]
    slot = torch.empty_like(rank).scatter(1, order, rank).unflatten(1, valid.shape[1:])
    return slot.masked_fill(~valid, -1)
