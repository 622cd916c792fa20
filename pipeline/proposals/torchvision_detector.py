"""Torchvision's detectors as a source of boxes with classes and scores: Faster R-CNN, RetinaNet,
FCOS.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model_weights

from pipeline.proposals._detections import (
    Detections,
    Detector,
    InPrecision,
    numbered,
    require_names,
    require_scores,
)
from pipeline.proposals._rpn import file_sha256, load_exactly, read_state, require_counts
from pipeline.proposals._torch_hub import weights_file
from pipeline.text.suggestions import nearest

MODELS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)
# Pixels; longer than any frame's side.
LONGEST = 1 << 20
# What ends with the number of classes, by the kind of model: (name, rows per class).
LAST_LAYERS = (
    "roi_heads.box_predictor.cls_score.weight",
    "head.classification_head.cls_logits.weight",
)


class TorchvisionDetector(Detector):
    """A detector of torchvision. Its backbone computes in the precision of `to`, the rest in
    float32. The caller has resized the frames' short side to `frame_size`.

    Args:
        network: the detector, in evaluation mode.
        **options: those of `Detector`.
    """

    def __init__(self, network: nn.Module, **options):
        super().__init__(**options)
        self.network = network
        network.backbone = InPrecision(network.backbone)
        # The frames come in their size: no side is too long, and the short one has this length.
        network.transform.min_size = (self.frame_size,)
        network.transform.max_size = LONGEST
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "TorchvisionDetector":
        """Move the network there, in place, and return the source; ValueError for an unknown
        precision.
        """
        backbone = self.network.backbone
        backbone.to_precision(device, precision)
        for name, module in self.network.named_children():
            if name != "backbone":
                module.to(device)
        self.device = torch.device(device)
        return self

    def detect(self, frames: Tensor) -> list[Detections]:
        """Detect in frames uint8 [B,H,W,3], RGB, on the device."""
        images = list(frames.permute(0, 3, 1, 2).float() / 255)
        found = self.network(images)
        return [(one["boxes"], one["scores"], one["labels"]) for one in found]


def build(
    model: str = "fasterrcnn_resnet50_fpn",
    weights: str = "coco",
    size: int = 480,
    num_boxes: int = 10,
    min_score: float = 0.05,
    nms: float = 0.5,
    batch: int = 4,
    class_names: Sequence[str] | str = (),
    seed: int = 0,
) -> TorchvisionDetector:
    """Build the source "torchvision_detector".

    Args:
        model: a name of MODELS.
        weights: "coco" (torchvision's, downloaded once into torch's cache), a file (a state dict of
            that model, with any number of classes), or "none" (random; for tests).
        size: short side, in pixels, of the frames. Torchvision's own default is 800.
        num_boxes: N.
        min_score: detections below it are left out.
        nms: overlap (IoU) above which the weaker of two boxes of a class is left out.
        batch: frames per pass.
        class_names: names of the classes of a file of weights, without the background. COCO's are
            known.
        seed: of random weights.

    Raises:
        ValueError: a bad value, or a file whose keys are not this network's.
    """
    source = "torchvision_detector"
    require_counts(source, size=size, num_boxes=num_boxes, batch=batch)
    require_scores(source, min_score=min_score, nms=nms)
    if model not in MODELS:
        raise ValueError(f"proposals {source!r}: model {model!r}: {nearest(model, MODELS)}")

    entry = get_model_weights(model).DEFAULT
    listed, state, sha256 = entry.meta["categories"], None, ""
    count = len(listed)
    if weights != "none":
        path = weights_file(entry.url, source) if weights == "coco" else Path(weights)
        with torch.device("meta"):
            names = getattr(detection, model)(weights=None, weights_backbone=None).state_dict()
        state, sha256 = read_state(path, names), file_sha256(path)
        count = _classes_in(state, names, count, path)
    if class_names or count != len(listed):
        listed = ["__background__", *require_names(source, class_names, count - 1)]

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = getattr(detection, model)(weights=None, weights_backbone=None, num_classes=count)
    if state is not None:
        load_exactly(network, state, path)
    _choose(network, num_boxes, min_score, nms)
    network.eval().requires_grad_(False)
    real, number_of = numbered(listed)
    return TorchvisionDetector(
        network,
        size=size,
        num_boxes=num_boxes,
        batch=batch,
        min_score=min_score,
        class_names=real,
        number_of=number_of,
        sha256=sha256,
    )


def _classes_in(state: dict[str, Tensor], names: dict[str, Tensor], count: int, path: Path) -> int:
    """How many classes, with the background, a state dict has; `count` where it does not say."""
    for name in LAST_LAYERS:
        if name in names and name in state:
            # A layer of anchors has rows for each anchor and class.
            rows, per_class = state[name].shape[0], names[name].shape[0] // count
            if rows % per_class:
                raise ValueError(
                    f"{path}: {name} has {rows} rows, expected a multiple of {per_class}"
                )
            return rows // per_class
    return count


def _choose(network: nn.Module, num_boxes: int, min_score: float, nms: float) -> None:
    """Set what a detector returns; two-stage detectors keep these numbers with their heads."""
    chooser = getattr(network, "roi_heads", network)
    chooser.score_thresh, chooser.nms_thresh = min_score, nms
    chooser.detections_per_img = num_boxes
