"""The region proposal network (RPN) of torchvision's `fasterrcnn_resnet50_fpn`: ResNet-50, feature
pyramid and the RPN's head. The rest of the detector, classes and refined boxes, is not built.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from pipeline.networks.precision import dtype_of
from pipeline.proposals._rpn import (
    best_of_level,
    clip_to,
    file_sha256,
    fold,
    in_batches,
    launched,
    load_exactly,
    padded,
    place,
    read_state,
    require_counts,
    suppress,
)
from pipeline.proposals._torch_hub import weights_file

ANCHORS = ((32,), (64,), (128,), (256,), (512,))  # side in pixels, one per pyramid level
RATIOS = (0.5, 1.0, 2.0)  # height / width
MULTIPLE = 32  # the coarsest stride of the ResNet

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class TorchvisionRPN:
    """Class-agnostic boxes of whole frames: the best N by objectness, after suppression within each
    level of the pyramid.

    Convolutions run in the precision of `to`; logits, boxes and suppression run in float32. The
    caller has resized the frames' short side to `frame_size`.

    Args:
        body: ResNet-50 with its pyramid, without batch norms.
        head: the head of the region proposal network.
        size, num_boxes, nms, batch: see `build`.
        sha256: checksum of the file of weights; "" for none.
    """

    in_view = False

    def __init__(
        self,
        body: nn.Module,
        head: RPNHead,
        size: int,
        num_boxes: int,
        nms: float,
        batch: int,
        sha256: str,
    ):
        self.frame_size, self.num_boxes, self.weights_sha256 = size, num_boxes, sha256
        self.nms, self.batch = nms, batch
        self.body, self.head = body, head
        self.anchors = AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS))
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "TorchvisionRPN":
        """Move the network there, in place, and return the source; ValueError for an unknown
        precision.
        """
        place(self.body, device, precision)
        place(self.head.conv, device, precision)
        # The last two layers are 1 % of the work and decide the order of the boxes: with bf16
        # logits hundreds of them tie.
        place(self.head.cls_logits, device, "fp32")
        place(self.head.bbox_pred, device, "fp32")
        self.dtype, self.device = dtype_of(precision), torch.device(device)
        self.mean = torch.tensor(IMAGENET_MEAN, device=device)
        self.std = torch.tensor(IMAGENET_STD, device=device)
        return self

    def propose(self, frames: Tensor, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Propose boxes for frames uint8 [K,H,W,3], RGB.

        Returns:
            boxes [K,N,4] in [0,1] of the frame, and scores [K,N], -1 where a frame has fewer than
            N boxes.
        """
        return in_batches(frames, self.batch, self.device, self.num_boxes, self._propose)

    def launch(self, frames: Tensor) -> Tensor:
        """Propose boxes for frames of its device uint8 [K,H,W,3], without waiting for the device.

        Returns:
            float32 [K,N,5]: what `propose` returns, the score last.
        """
        return launched(frames, self.batch, self.num_boxes, self._propose)

    def _propose(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        images = padded(frames, self.mean, self.std, MULTIPLE, self.dtype)
        maps = list(self.body(images).values())
        hidden, logits, deltas = [], [], []
        for level in maps:
            h = self.head.conv(level).float()
            scores = self.head.cls_logits(h).permute(0, 2, 3, 1)  # [B,h,w,A]
            moves = self.head.bbox_pred(h).permute(0, 2, 3, 1)  # [B,h,w,A·4]
            hidden.append(h)
            logits.append(scores.flatten(1))
            # [B,h,w,A·4] -> [B,h·w·A,4]
            deltas.append(moves.flatten(1).unflatten(1, (-1, 4)))

        sizes = [tuple(frames.shape[1:3])]
        # One image stands for the batch: every frame of a clip has the same anchors.
        anchors = self.anchors(ImageList(images[:1], sizes), hidden)[0]
        anchors = anchors.split([level.shape[1] for level in logits])
        chosen = [best_of_level(*level) for level in zip(logits, deltas, anchors, strict=True)]
        # Suppression is within a level, so each box keeps the number of its own.
        scores, boxes = (torch.cat(part, 1) for part in zip(*chosen, strict=True))
        levels = torch.cat([torch.full_like(level[0][0], k) for k, level in enumerate(chosen)])
        return suppress(clip_to(boxes, *sizes[0]), scores, levels, self.num_boxes, self.nms)


def build(
    weights: str = "coco",
    size: int = 480,
    num_boxes: int = 10,
    nms: float = 0.7,
    batch: int = 8,
    bn_eps: float = 0.0,
    seed: int = 0,
) -> TorchvisionRPN:
    """Build the source "torchvision".

    Args:
        weights: "coco" (torchvision's, downloaded once into torch's cache), a file (a state dict of
            fasterrcnn_resnet50_fpn), or "none" (random; for tests).
        size: short side, in pixels, of the frames. detectron2's default is 800, at 2.8 times the
            cost.
        num_boxes: N.
        nms: overlap (IoU) above which the weaker box is dropped.
        batch: frames per pass.
        bn_eps: of the frozen batch norms. torchvision's COCO weights go with 0, a network trained
            from scratch with 1e-5.
        seed: of random weights.

    Raises:
        ValueError: a bad value, or a file whose keys are not this network's.
    """
    require_counts("torchvision", size=size, num_boxes=num_boxes, batch=batch)
    if not 0 < nms <= 1:
        raise ValueError(
            f"proposals 'torchvision': nms={nms!r}; expected an overlap above 0, at most 1"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
        )
        head = RPNHead(body.out_channels, len(RATIOS))

    sha256 = ""
    if weights == "none":
        # Identity norms would double the variance in each of 16 blocks, and saturate the scores.
        for name, norm in body.named_modules():
            if name.endswith("bn3"):
                norm.weight.fill_(0.2)
    else:
        path = _coco_file() if weights == "coco" else Path(weights)
        network = nn.ModuleDict({"backbone": body, "rpn": nn.ModuleDict({"head": head})})
        load_exactly(network, _rpn_state(path, network.state_dict()), path)
        sha256 = file_sha256(path)

    _fold_all(body, bn_eps)
    for network in (body, head):
        network.eval().requires_grad_(False)
    return TorchvisionRPN(body, head, size, num_boxes, nms, batch, sha256)


def _coco_file() -> Path:
    """The file where torch keeps torchvision's COCO weights."""
    return weights_file(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url, "torchvision")


def _rpn_state(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of backbone and RPN in a file: no box head, no batch counters, and names as
    torchvision writes them today.
    """
    saved = read_state(path, names)
    other = _other_detector(saved)
    if other:
        raise ValueError(f"{path}: these are not the weights of this network: {other}")
    state = {}
    for key, value in saved.items():
        # Written before torchvision 0.14.
        if key in ("rpn.head.conv.weight", "rpn.head.conv.bias"):
            key = key.replace("conv.", "conv.0.0.")
        if not key.startswith("roi_heads.") and not key.endswith(".num_batches_tracked"):
            state[key] = value
    return state


def _other_detector(names: Collection[str]) -> str:
    """What a file holds that is a known detector, but not this one; "" for any other."""
    if any(name.startswith("proposal_generator.") for name in names):
        return "they are detectron2's; pass --proposals detectron2"
    if any(name.startswith("backbone.fpn.inner_blocks.0.1.") for name in names):
        return (
            "they are of fasterrcnn_resnet50_fpn_v2, which has norms in its pyramid; take "
            "fasterrcnn_resnet50_fpn, or weights=coco"
        )
    if any(name.startswith("backbone.body.0.0.") for name in names):
        return "they are of a detector on MobileNet; take fasterrcnn_resnet50_fpn, or weights=coco"
    return ""


def _fold_all(body: nn.Module, eps: float) -> None:
    """Fold every batch norm of a torchvision ResNet (bn1 after conv1, and so on; the shortcut's is
    a Sequential's second).
    """
    for parent in list(body.modules()):
        names = dict(parent.named_children())
        pairs = [(f"conv{k}", f"bn{k}") for k in (1, 2, 3)] + [("0", "1")]
        for conv, norm in pairs:
            if isinstance(names.get(norm), FrozenBatchNorm2d):
                names[norm].eps = eps
                fold(names[conv], names[norm])
                setattr(parent, norm, nn.Identity())
