"""What the region proposal networks share: weights files, folded batch norms, precision, frames in
batches, and from the network's outputs to the best boxes.
"""

import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.files.atomic_files import sha256_of
from pipeline.networks.checkpoint_files import read_checkpoint
from pipeline.networks.checkpoint_names import other_states, states, unwrapped
from pipeline.networks.memory_format import lay_out
from pipeline.networks.precision import dtype_of
from pipeline.text.printable import first_line

PRE_NMS = 1000  # boxes per level that reach the suppression
MIN_SIDE = 1e-3  # pixels; smaller boxes are dropped
# On a device that is not waited for, so many times the frames of `batch` are computed at once.
LAUNCHED_TIMES = 4
MAX_LOG = math.log(1000 / 16)  # no box grows to more than 62.5 times its anchor


def require_counts(source: str, **values: int) -> None:
    """Raise ValueError unless each of these options of a source is a whole number from 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"proposals {source!r}: {name}={value!r}; expected a whole number from 1"
            )


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal; ValueError if it cannot be read."""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a file") from error


def read_state(path: str | Path, names: Collection[str]) -> dict[str, Tensor]:
    """Read the state dict in a file of torch, or in a pickle of arrays such as detectron2's.

    It reads tensors and arrays only: no code in it is ever run.

    The state dict may be alone, or in the tables that training programs keep it in. What wrappers
    put before its names is taken off.

    Args:
        path: the file.
        names: the names that the network has.

    Raises:
        ValueError: the file is missing, is of no such kind, holds anything but tensors and arrays,
            holds no state dict, or holds several such networks.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such weights file; expected a state dict written by torch.save, or "
            f"weights=coco"
        )
    try:
        state = read_checkpoint(path)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path}: not a file of tensors written by torch.save, nor a pickle of arrays "
            f"({first_line(error)})"
        ) from error

    # Training programs keep the weights beside optimisers and averages, under names of their own.
    tables = [("", table) for table in states(state)] or list(other_states(state))
    readings = []
    for key, table in tables:
        for prefix, below, _ in unwrapped(table, names):
            readings.append((key, prefix, below))
    if not readings:
        raise ValueError(
            f"{path}: expected a state dict (names -> tensors), alone or under the key 'model' or "
            f"'state_dict'"
        )

    # The reading with most of the network's names; `load_exactly` says what it lacks.
    known = [len(below.keys() & set(names)) for _, _, below in readings]
    complete = []  # where the file has all of the network's names
    for (key, prefix, _), count in zip(readings, known, strict=True):
        where = " ".join(filter(None, (key, prefix)))
        if count == len(names) and where not in complete:
            complete.append(where)
    if len(complete) > 1:
        raise ValueError(
            f"{path}: holds several such networks, below {', '.join(map(repr, complete))}; save "
            f"one of them alone"
        )
    return readings[known.index(max(known))][2]


def load_exactly(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load weights whose names and shapes must be the module's own.

    Args:
        module: the network; it is changed in place.
        state: the weights.
        where: the file, for messages.

    Raises:
        ValueError: names the keys that differ, three of each kind.
    """
    expected = module.state_dict()
    misshaped = []
    for key in expected:
        if key in state and state[key].shape != expected[key].shape:
            misshaped.append(f"{key} {tuple(state[key].shape)} != {tuple(expected[key].shape)}")
    differing = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": misshaped,
    }

    faults = []
    for kind, keys in differing.items():
        if keys:
            more = " ..." if len(keys) > 3 else ""
            faults.append(f"{len(keys)} {kind}: {', '.join(keys[:3])}{more}")
    if faults:
        raise ValueError(f"{where}: these are not the weights of this network: {'; '.join(faults)}")
    module.load_state_dict(state)


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Fold a frozen batch norm into the convolution before it, in place.

    Args:
        conv: the convolution.
        norm: has weight, bias, running_mean, running_var and eps.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)


def place(module: nn.Module, device, precision: str) -> None:
    """Move a network to its device, dtype and memory format, in place.

    Raises:
        ValueError: unknown precision, or the weights were rounded to fewer bits before.
    """
    dtype, now = dtype_of(precision), next(module.parameters()).dtype
    if now not in (torch.float32, dtype):
        raise ValueError(
            f"precision {precision}: these weights were rounded to {now} before; build the source "
            f"again"
        )
    lay_out(module.to(device=device, dtype=dtype), device)


def padded(frames: Tensor, mean: Tensor, std: Tensor, multiple: int, dtype: torch.dtype) -> Tensor:
    """Normalise frames, and pad them with zeros at the right and bottom.

    Args:
        frames: uint8 [B,H,W,3].
        mean: [3], of pixels in 0..255, on the device of the frames.
        std: [3], likewise.
        multiple: of which both sides of the result are.
        dtype: of the result.

    Returns:
        [B,3,H',W'] in channels last.
    """
    batch, height, width, _ = frames.shape
    below, beside = -height % multiple, -width % multiple
    images = torch.zeros(
        (batch, height + below, width + beside, 3), dtype=dtype, device=frames.device
    )
    images[:, :height, :width] = ((frames.float() - mean) / std).to(dtype)
    return images.permute(0, 3, 1, 2)


@torch.inference_mode()
def in_batches(
    frames: Tensor,
    batch: int,
    device,
    num_boxes: int,
    propose: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[np.ndarray, np.ndarray]:
    """Run a region proposal network over frames, some at a time.

    Args:
        frames: uint8 [K,H,W,3].
        batch: frames at a time.
        device: where they are computed.
        num_boxes: N.
        propose: frames [B,H,W,3] -> boxes [B,n,4] in pixels and objectness logits [B,n], best
            first; n <= N. A frame with fewer boxes ends with logits of minus infinity.

    Returns:
        numpy float32 boxes [K,N,4] in [0,1] of the frame, and scores [K,N] (the sigmoid). Rows
        after a frame's last box have score -1 and a box of zeros.
    """
    if torch.device(device).type != "cpu":
        found = launched(frames.to(device), batch, num_boxes, propose).cpu().numpy()
        return np.ascontiguousarray(found[..., :4]), np.ascontiguousarray(found[..., 4])

    count, height, width, _ = frames.shape
    boxes = np.zeros((count, num_boxes, 4), dtype=np.float32)
    scores = np.full((count, num_boxes), -1, dtype=np.float32)
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    row = 0
    for some in frames.split(batch):
        for found, logits in zip(*propose(some), strict=True):
            # Frame by frame: the sigmoid of a longer row may differ in its last bit.
            known = logits[logits > -torch.inf]
            boxes[row, : len(known)] = (found[: len(known)].float() / size).clamp(0, 1)
            scores[row, : len(known)] = known.float().sigmoid()
            row += 1
    return boxes, scores


def launched(
    frames: Tensor,
    batch: int,
    num_boxes: int,
    propose: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Run a region proposal network over frames on a device, without waiting for it.

    Args:
        frames: uint8 [K,H,W,3] on the device.
        batch, num_boxes, propose: as for `in_batches`. LAUNCHED_TIMES as many frames are computed
            at a time, because a GPU has the memory, and each pass costs the host some time.

    Returns:
        float32 [K,N,5] on the device: boxes in [0,1] of the frame, then the score. Rows after a
        frame's last box have score -1 and a box of zeros.
    """
    height, width = frames.shape[1:3]
    found = frames.new_zeros((len(frames), num_boxes, 5), dtype=torch.float32)
    found[..., 4] = -1
    # Made on the device from numbers: a tensor of the host would be waited for.
    size = torch.empty(4, dtype=torch.float32, device=frames.device)
    size[0::2], size[1::2] = width, height
    step = batch * LAUNCHED_TIMES
    for start in range(0, len(frames), step):
        boxes, logits = propose(frames[start : start + step])
        rows = found[start : start + step, : boxes.shape[1]]
        known = logits > -torch.inf
        rows[..., :4] = (boxes.float() / size).clamp(0, 1) * known[..., None]
        rows[..., 4] = torch.where(known, logits.float().sigmoid(), -1)
    return found


def best_of_level(logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best PRE_NMS boxes of a level of the pyramid.

    A delta moves an anchor's centre by (dx, dy) times its size, and multiplies its size by
    exp(dw, dh) (Faster R-CNN, eq. 2).

    Args:
        logits: objectness [B,A] of A anchors.
        deltas: [B,A,4].
        anchors: [A,4] xyxy in pixels.

    Returns:
        logits [B,P], and boxes [B,P,4] in pixels.
    """
    scores, index = logits.topk(min(PRE_NMS, logits.shape[1]), dim=1)
    deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    anchors = anchors[index]
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=MAX_LOG).exp()
    return scores, torch.cat([centre - half, centre + half], -1)


def clip_to(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes [...,4] in pixels to the frame (not to its padding)."""
    # No tensor of limits: it would have to come from the host, and the device would be waited for.
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).flatten(-2)


def suppress(
    boxes: Tensor, scores: Tensor, levels: Tensor, num_boxes: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Suppress overlapping boxes greedily, in all frames at once, up to the best N of each.

    A kept box removes the boxes of its own level that overlap it. N steps over all frames cost less
    than full suppression of thousands of boxes frame by frame, and take as long on any input.

    Args:
        boxes: [B,P,4] in pixels.
        scores: [B,P].
        levels: [P], the level of the pyramid that each comes from.
        num_boxes: N.
        threshold: overlap (IoU) above which a box is removed.

    Returns:
        boxes [B,N,4] and scores [B,N], best first: the first N of what full suppression keeps. A
        frame with fewer ends with boxes of zeros and scores of minus infinity.
    """
    rows = torch.arange(len(boxes), device=boxes.device)
    size = boxes[..., 2:] - boxes[..., :2]
    areas = size.prod(-1)
    # A frame that overflows in low precision has boxes or scores that are not finite.
    alive = (size >= MIN_SIDE).all(-1) & scores.isfinite()
    kept, valid = [], []
    for _ in range(min(num_boxes, scores.shape[1])):
        best = torch.where(alive, scores, -torch.inf).argmax(1)
        kept.append(best)
        valid.append(alive[rows, best])
        box = boxes[rows, best][:, None]
        sides = boxes[..., 2:].minimum(box[..., 2:]) - boxes[..., :2].maximum(box[..., :2])
        shared = sides.clamp(min=0).prod(-1)
        overlap = shared / (areas + areas[rows, best][:, None] - shared)
        alive &= (overlap <= threshold) | (levels != levels[best][:, None])
        alive[rows, best] = False
    # Once none is alive, none comes alive again: what is missing is missing at the end.
    kept, valid = torch.stack(kept, 1), torch.stack(valid, 1)
    best_boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4))
    best_scores = scores.gather(1, kept)
    return (
        torch.where(valid[..., None], best_boxes, 0),
        torch.where(valid, best_scores, -torch.inf),
    )
