"""A small region proposal network, fitted on a CPU in half a minute: torchvision's on four narrow
convolutions.

It is for videos whose objects have about one size, such as generated digits. Every cell has one
square anchor, of the median size of the boxes that it was fitted to. `fit` writes the weights that
`build` reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from pipeline.networks.memory_format import lay_out
from pipeline.networks.precision import dtype_of
from pipeline.proposals._rpn import (
    best_of_level,
    clip_to,
    file_sha256,
    in_batches,
    launched,
    load_exactly,
    padded,
    place,
    read_state,
    require_counts,
    suppress,
)
from pipeline.regions.boxes import iou

STRIDE = 4  # pixels per cell of the map
WIDTH = 16  # channels
MEAN, STD = 0.0, 255.0  # of a pixel in 0..255: the network sees [0,1]


class Net(nn.Module):
    """Four convolutions and the head of a region proposal network.

    Frames [B,3,H,W] in [0,1], with sides that are multiples of STRIDE, become the objectness and
    the box deltas of the anchor at every cell.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width, stride in (
            (3, WIDTH // 2, 2),
            (WIDTH // 2, WIDTH, 2),
            (WIDTH, WIDTH, 1),
            (WIDTH, WIDTH, 1),
        ):
            layers += [nn.Conv2d(width_in, width, 3, stride, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
        self.body = nn.Sequential(*layers)
        self.head = RPNHead(WIDTH, 1)
        # The anchor's side in pixels, stored with the weights.
        self.register_buffer("anchor", torch.tensor(0.0))

    def anchors(self) -> AnchorGenerator:
        """Return what makes the anchor of every cell."""
        return AnchorGenerator(((self.anchor.item(),),), ((1.0,),))


class DigitRPN:
    """Class-agnostic boxes of whole frames: the best N by objectness after suppression, without
    those below `min_score`.

    Args:
        net: a network that was fitted.
        size, num_boxes, min_score, nms, batch: see `build`.
        sha256: checksum of its file.
    """

    in_view = False

    def __init__(
        self,
        net: Net,
        size: int,
        num_boxes: int,
        min_score: float,
        nms: float,
        batch: int,
        sha256: str,
    ):
        self.frame_size, self.num_boxes, self.weights_sha256 = size, num_boxes, sha256
        self.min_score, self.nms, self.batch = min_score, nms, batch
        self.net, self.anchors = net, net.anchors()
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "DigitRPN":
        """Move the network there, in place, and return the source; ValueError for an unknown
        precision.
        """
        place(self.net, device, precision)
        self.dtype, self.device = dtype_of(precision), torch.device(device)
        self.mean, self.std = (torch.full((3,), value, device=device) for value in (MEAN, STD))
        return self

    def propose(self, frames: Tensor, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Propose boxes for frames uint8 [K,H,W,3], RGB.

        Returns:
            boxes [K,N,4] in [0,1] of the frame, and scores [K,N], -1 where a frame has fewer than
            N boxes.
        """
        with one_thread():
            boxes, scores = in_batches(
                frames, self.batch, self.device, self.num_boxes, self._propose
            )
        weak = scores < self.min_score
        boxes[weak], scores[weak] = 0, -1
        return boxes, scores

    def launch(self, frames: Tensor) -> Tensor:
        """Propose boxes for frames of its device uint8 [K,H,W,3], without waiting for the device.

        Returns:
            float32 [K,N,5]: what `propose` returns, the score last.
        """
        found = launched(frames, self.batch, self.num_boxes, self._propose)
        strong = found[..., 4:] >= self.min_score
        nothing = found.new_zeros(5)
        nothing[4:] = -1
        return torch.where(strong, found, nothing)

    def _propose(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        images = padded(frames, self.mean, self.std, STRIDE, self.dtype)
        features = self.net.body(images)
        # [B,1,h,w] and [B,4,h,w]
        logits, deltas = (part[0].float() for part in self.net.head([features]))
        size = tuple(frames.shape[1:3])
        anchors = self.anchors(ImageList(images[:1], [size]), [features])[0].float()
        scores, boxes = best_of_level(logits.flatten(1), deltas.flatten(2).mT, anchors)
        # Suppression keeps N of them; far more would cost time and change nothing.
        scores, boxes = scores[:, : 8 * self.num_boxes], boxes[:, : 8 * self.num_boxes]
        levels = scores.new_zeros(scores.shape[1])  # there is one level
        return suppress(clip_to(boxes, *size), scores, levels, self.num_boxes, self.nms)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core inside this context."""
    # The maps are so small that a second core costs more than it saves. Where that core is busy it
    # costs ten times more: 200 to 400 frames a second in place of 3,400 (on a loaded machine).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(
    path: str | Path,
    frames: np.ndarray,
    boxes: np.ndarray,
    steps: int = 300,
    batch: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Fit the network, and write its weights.

    The same arguments give the same weights on the same machine.

    Args:
        path: the file of weights.
        frames: uint8 [M,H,W,3], RGB.
        boxes: [M,n,4] xyxy in pixels; one with an area of 0 is no box.
        steps: mini-batches.
        batch: frames in each.
        lr: the highest learning rate of a one-cycle schedule.
        seed: of weights, mini-batches and anchors.
        say: gets a line every 100 steps.

    Returns:
        `path`.

    Raises:
        ValueError: frames without boxes, or counts that differ.
    """
    if frames.ndim != 4 or boxes.shape[::2] != (len(frames), 4) or not len(frames):
        raise ValueError(
            f"fit: expected frames [M,H,W,3] and boxes [M,n,4], got {list(frames.shape)} and "
            f"{list(boxes.shape)}"
        )
    sides = boxes[..., 2:] - boxes[..., :2]
    is_box = (sides > 0).all(-1)
    if not is_box.any():
        raise ValueError("fit: expected boxes with an area, got none")
    net = _fresh(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        # torchvision draws the anchors that it learns from.
        torch.default_generator.manual_seed(seed)
        net.anchor.fill_(float(np.median(np.sqrt(sides[is_box].prod(-1)))))
        _descend(net, frames, boxes, is_box, steps, batch, lr, np.random.default_rng(seed), say)
    torch.save(net.state_dict(), path)
    return Path(path)


def _fresh(seed: int) -> Net:
    """A new network from `seed` alone; torch's generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Net()


def _descend(net, frames, boxes, is_box, steps, batch, lr, rng, say) -> None:
    # Nobody reads the boxes that it returns while it learns.
    few = {"training": 1, "testing": 1}
    # A handful of a frame's anchors touch an object: 16 are drawn per frame, half of them such, so
    # that the two kinds are in balance.
    rpn = RegionProposalNetwork(net.anchors(), net.head, 0.6, 0.3, 16, 0.5, few, few, 0.7)
    lay_out(net, "cpu").train()
    mean, std = (torch.full((3,), value) for value in (MEAN, STD))
    optimiser = torch.optim.AdamW(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        rows = rng.integers(len(frames), size=batch)
        images = padded(torch.from_numpy(frames[rows]), mean, std, STRIDE, torch.float32)
        targets = [{"boxes": torch.from_numpy(boxes[row][is_box[row]]).float()} for row in rows]
        sizes = [frames.shape[1:3]] * batch
        # torchvision's own module has the loss; its boxes are not used.
        _, losses = rpn(ImageList(images, sizes), {"0": net.body(images)}, targets)
        loss = losses["loss_objectness"] + losses["loss_rpn_box_reg"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if say and (step + 1) % 100 == 0:
            say(f"step {step + 1}/{steps}: loss {loss.item():.4f}")


def recall(
    source, frames: np.ndarray, boxes: np.ndarray, threshold: float = 0.5
) -> tuple[float, float]:
    """Measure a source of boxes against true boxes.

    Args:
        source: its `propose` is called.
        frames: uint8 [M,H,W,3].
        boxes: the true ones, [M,n,4] xyxy in pixels; one with an area of 0 is no box.
        threshold: overlap (IoU) from which a box counts as found.

    Returns:
        The share of true boxes that are found, and boxes proposed per true box.
    """
    found, scores = source.propose(torch.from_numpy(frames), None, None, ())
    found = np.where(scores[..., None] < 0, 0, found)
    height, width = frames.shape[1:3]
    overlap = iou(boxes / np.array([width, height, width, height]), found)
    true = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    share = (overlap.max(-1) >= threshold)[true].mean()
    return float(share), float((scores >= 0).sum() / true.sum())


def build(
    weights: str,
    size: int = 64,
    num_boxes: int = 6,
    min_score: float = 0.5,
    nms: float = 0.5,
    batch: int = 64,
) -> DigitRPN:
    """Build the source "digit_rpn".

    Args:
        weights: a file that `fit` wrote.
        size: short side, in pixels, of the frames: that of the frames it was fitted on.
        num_boxes: N.
        min_score: objectness in [0,1] below which a box is left out.
        nms: overlap (IoU) above which the weaker of two boxes is left out.
        batch: frames per pass.

    Raises:
        ValueError: a bad value, or a file that `fit` did not write.
    """
    require_counts("digit_rpn", size=size, num_boxes=num_boxes, batch=batch)
    for name, value in (("min_score", min_score), ("nms", nms)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"proposals 'digit_rpn': {name}={value!r}; expected a number from 0 to 1"
            )
    net = _fresh(0)
    load_exactly(net, read_state(weights, net.state_dict()), weights)
    net.eval().requires_grad_(False)
    return DigitRPN(net, size, num_boxes, min_score, nms, batch, file_sha256(weights))
