"""What the region proposal networks share: weights files, batch norm folded away, precision, frames
in batches, and from the network's numbers to the best boxes."""

import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.files.atomic_files import sha256_of
from pipeline.networks.checkpoint_names import other_states, states, unwrapped
from pipeline.networks.memory_format import lay_out
from pipeline.networks.precision import dtype_of
from pipeline.text.printable import first_line

PRE_NMS = 1000  # boxes per level that reach the suppression
MIN_SIDE = 1e-3  # pixels; smaller boxes are dropped
MAX_LOG = math.log(1000 / 16)  # no box grows to more than 62.5 times its anchor


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, in hexadecimal. ValueError if it cannot be read."""
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); expected a file") from error


def read_state(path: str | Path, own: Collection[str]) -> dict[str, Tensor]:
    """The state dict in a torch file, alone or in the tables that training programs keep it in,
    without what wrappers put before its names. Tensors only: no code in it is ever run.

    own: the names that the network has. ValueError if the file is missing, is no torch file, holds
    anything but tensors, or holds no state dict, or several such networks.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such weights file; expected a state dict written by torch.save, or "
            f"weights=coco"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # damage raises EOFError, KeyError, RuntimeError, UnpicklingError and more
        first = first_line(error)
        raise ValueError(
            f"{path}: not a file of tensors written by torch.save ({first.split('. ')[0][:120]})"
        ) from error
    tables = [("", table) for table in states(state)] or list(other_states(state))
    readings = [
        (key, prefix, below) for key, table in tables for prefix, below, _ in unwrapped(table, own)
    ]
    if not readings:
        raise ValueError(
            f"{path}: expected a state dict (names -> tensors), alone or under the key 'model' or "
            f"'state_dict'"
        )
    known = [len(below.keys() & set(own)) for _, _, below in readings]
    complete = [
        reading[:2] for reading, count in zip(readings, known, strict=True) if count == len(own)
    ]
    best = dict.fromkeys(complete)
    if len(best) > 1:
        places = ", ".join(repr(" ".join(filter(None, place))) for place in best)
        raise ValueError(
            f"{path}: holds several such networks, below {places}; save one of them alone"
        )
    return readings[known.index(max(known))][2]


def load_exactly(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load `state`, whose keys and shapes must be the module's own; ValueError names those that
    differ, three of each kind.
    """
    own = module.state_dict()
    shared = [key for key in own if key in state]
    differing = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} != {tuple(own[k].shape)}"
            for k in shared
            if state[k].shape != own[k].shape
        ],
    }
    told = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}"
        for kind, keys in differing.items()
        if keys
    ]
    if told:
        raise ValueError(f"{where}: these are not the weights of this network: {'; '.join(told)}")
    module.load_state_dict(state)


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Put a frozen batch norm (weight, bias, running_mean, running_var, eps; eval only) into the
    convolution before it.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = torch.zeros_like(norm.bias) if conv.bias is None else conv.bias
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias, requires_grad=False)


def place(module: nn.Module, device, precision: str) -> None:
    """Move a network, in place, to its device, dtype and memory format. ValueError for an unknown
    precision, or if its weights were already rounded to fewer bits than now asked for."""
    dtype, now = dtype_of(precision), next(module.parameters()).dtype
    if now not in (torch.float32, dtype):
        raise ValueError(
            f"precision {precision}: these weights were rounded to {now} before; build the source "
            f"again"
        )
    lay_out(module.to(device=device, dtype=dtype), device)


def padded(frames: Tensor, mean: Tensor, std: Tensor, multiple: int, dtype: torch.dtype) -> Tensor:
    """frames uint8 [B,H,W,3] -> [B,3,H',W'] of `dtype`, channels last: normalised, then zeros up to
    a multiple at the right and bottom. mean and std [3] are in units of 0..255, on the device of
    the frames.
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
    propose: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Run `propose` over frames uint8 [K,H,W,3], `batch` at a time on `device`.

    It gives, for every frame, boxes [n,4] in pixels and objectness logits [n], best first. Returns
    numpy float32 boxes [K,N,4] in [0,1] of the frame and scores [K,N] (the sigmoid), with score -1
    and zero boxes after a frame's last.
    """
    count, height, width, _ = frames.shape
    boxes = np.zeros((count, num_boxes, 4), dtype=np.float32)
    scores = np.full((count, num_boxes), -1, dtype=np.float32)
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    row = 0
    for some in frames.split(batch):
        for found, logits in propose(some.to(device)):
            found, logits = found[:num_boxes].float().cpu(), logits[:num_boxes].float().cpu()
            boxes[row, : len(found)] = (found / size).clamp(0, 1)
            scores[row, : len(logits)] = logits.sigmoid()
            row += 1
    return boxes, scores


def best_of_level(logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The best `PRE_NMS` of a level: logits [B,A], deltas [B,A,4], anchors [A,4] -> logits [B,P],
    boxes [B,P,4] in pixels.

    A delta moves an anchor's centre by (dx, dy) times its size, and multiplies its size by exp(dw,
    dh) (Faster R-CNN, eq. 2).
    """
    scores, index = logits.topk(min(PRE_NMS, logits.shape[1]), dim=1)
    deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    anchors = anchors[index]
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=MAX_LOG).exp()
    return scores, torch.cat([centre - half, centre + half], -1)


def clip_to(boxes: Tensor, height: int, width: int) -> Tensor:
    """boxes [...,4] in pixels, clipped to the frame (not to its padding)."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def suppress(
    boxes: Tensor, scores: Tensor, levels: Tensor, num_boxes: int, threshold: float
) -> list[tuple[Tensor, Tensor]]:
    """Greedy suppression for all frames at once, stopped after the best N: boxes [B,P,4], scores
    [B,P], levels [P].

    A kept box removes those of its own level whose overlap (IoU) is above `threshold`. Gives for
    each frame boxes [n,4] and scores [n], n <= N, best first: the first N of what full suppression
    keeps. N steps over all frames cost less than sorting out thousands of boxes frame by frame, and
    have the same length on any input.
    """
    batch, rows = len(boxes), torch.arange(len(boxes), device=boxes.device)
    size = boxes[..., 2:] - boxes[..., :2]
    areas = size.prod(-1)
    alive = (size >= MIN_SIDE).all(-1) & scores.isfinite()
    kept, valid = [], []
    for _ in range(min(num_boxes, scores.shape[1])):
        best = torch.where(alive, scores, -torch.inf).argmax(1)
        kept.append(best)
        valid.append(alive[rows, best])
        box = boxes[rows, best][:, None]
        shared = (
            (boxes[..., 2:].minimum(box[..., 2:]) - boxes[..., :2].maximum(box[..., :2]))
            .clamp(min=0)
            .prod(-1)
        )
        overlap = shared / (areas + areas[rows, best][:, None] - shared)
        alive &= (overlap <= threshold) | (levels != levels[best][:, None])
        alive[rows, best] = False
    kept, valid = torch.stack(kept, 1), torch.stack(valid, 1)
    return [(boxes[b, kept[b][valid[b]]], scores[b, kept[b][valid[b]]]) for b in range(batch)]
