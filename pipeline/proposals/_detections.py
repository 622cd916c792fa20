"""What the detectors share: names of classes, precision of the convolutions, and from a library's
detections to N rows of a frame.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.precision import dtype_of
from pipeline.proposals._rpn import place

# One frame's boxes [n,4] in pixels, scores [n], and class numbers [n] of the library.
Detections = tuple[Tensor, Tensor, Tensor]


class InPrecision(nn.Module):
    """A backbone that computes in one dtype, between layers that compute in float32.

    Args:
        backbone: returns maps by name.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.dtype = backbone, torch.float32

    def to_precision(self, device, precision: str) -> None:
        """Move the backbone there, in place; ValueError for an unknown precision."""
        place(self.backbone, device, precision)
        self.dtype = dtype_of(precision)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return float32 maps of images [B,3,H,W]."""
        maps = self.backbone(images.to(self.dtype))
        return {name: features.float() for name, features in maps.items()}

    def __getattr__(self, name: str):
        # Detectors ask their backbone for its channels and sizes.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)


class Detector:
    """A source of boxes with classes: the best N detections of each frame, by score.

    A subclass has `detect`, and moves its network in `to`.

    Args:
        size, num_boxes, batch, min_score: see the `build` of a source.
        class_names: the names of the classes by their numbers in a cache.
        number_of: the number in a cache of each class number of the library; -1 for none.
        sha256: checksum of the file of weights; "" for none.
    """

    in_view = False
    labels = ("box_class",)

    def __init__(
        self,
        size: int,
        num_boxes: int,
        batch: int,
        min_score: float,
        class_names: Sequence[str],
        number_of: Sequence[int],
        sha256: str,
    ):
        self.frame_size, self.num_boxes, self.batch = size, num_boxes, batch
        self.min_score, self.weights_sha256 = min_score, sha256
        self.class_names = tuple(class_names)
        self.number_of = torch.tensor([*number_of, -1])
        self.device = torch.device("cpu")

    def detect(self, frames: Tensor) -> list[Detections]:
        """Detect in frames uint8 [B,H,W,3], RGB, on the device."""
        raise NotImplementedError

    def propose(self, frames: Tensor, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Detect objects in frames uint8 [K,H,W,3], RGB.

        Returns:
            boxes [K,N,4] in [0,1] of the frame, and scores [K,N], -1 where a frame has fewer than
            N boxes.
        """
        boxes, scores, _ = self.propose_labelled(frames, clip, info, numbers)
        return boxes, scores

    def propose_labelled(
        self, frames: Tensor, clip, info, numbers
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Detect objects, and say their classes.

        Returns:
            boxes and scores as `propose`, and "box_class" -> int32 [K,N], -1 for none.
        """
        found = self.launch(frames.to(self.device)).cpu().numpy()
        boxes, scores = np.ascontiguousarray(found[..., :4]), np.ascontiguousarray(found[..., 4])
        return boxes, scores, {"box_class": found[..., 5].astype(np.int32)}

    @torch.inference_mode()
    def launch(self, frames: Tensor) -> Tensor:
        """Detect objects in frames of its device uint8 [K,H,W,3].

        Returns:
            float32 [K,N,6]: the box in [0,1] of the frame, its score and its class. Rows after a
            frame's last box have score -1, class -1 and a box of zeros.
        """
        height, width = frames.shape[1:3]
        rows = []
        for some in frames.split(self.batch):
            for found in self.detect(some):
                rows.append(self._rows(found, width, height))
        return torch.stack(rows)

    def _rows(self, found: Detections, width: int, height: int) -> Tensor:
        """N rows of one frame [N,6]."""
        boxes, scores, classes = found
        boxes, scores = boxes.float(), scores.float()
        # Random weights, and low precision, may overflow.
        good = torch.isfinite(boxes).all(-1) & (scores >= self.min_score)
        boxes, scores, classes = boxes[good], scores[good], classes[good]
        order = scores.argsort(descending=True, stable=True)[: self.num_boxes]

        rows = boxes.new_zeros((self.num_boxes, 6))
        rows[:, 4:] = -1
        size = boxes.new_tensor([width, height, width, height])
        rows[: len(order), :4] = (boxes[order] / size).clamp(0, 1)
        rows[: len(order), 4] = scores[order]
        number_of = self.number_of.to(classes.device)
        known = classes[order].clamp(-1, len(number_of) - 2)
        rows[: len(order), 5] = number_of[known].float()
        return rows


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of real classes, and the number among them of each of a library's classes.

    Args:
        names: by the library's numbers. "__background__" and "N/A" are no classes.
    """
    real = [name for name in names if name not in ("__background__", "N/A")]
    real = list(dict.fromkeys(real))
    place_of = {name: k for k, name in enumerate(real)}
    return tuple(real), [place_of.get(name, -1) for name in names]


def require_names(source: str, given: Sequence[str] | str, count: int) -> tuple[str, ...]:
    """Return the names of a network's own classes.

    Args:
        source: the source's name, for the message.
        given: a list, or one text with commas; () for numbers from 0.
        count: how many classes the network has.

    Raises:
        ValueError: another number of names, or the same name twice.
    """
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    names = tuple(map(str, given)) or tuple(map(str, range(count)))
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"proposals {source!r}: class_names has {len(set(names))} different names, expected "
            f"{count}, one per class of these weights"
        )
    return names


def require_scores(source: str, **values: float) -> None:
    """Raise ValueError unless each of these options is a number from 0 to 1."""
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 1:
            raise ValueError(
                f"proposals {source!r}: {name}={value!r}; expected a number from 0 to 1"
            )
