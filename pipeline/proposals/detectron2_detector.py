"""The detection models of detectron2 as a source of boxes with classes and scores.

detectron2 is imported only when this source is built; nothing else needs it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.proposals._detections import (
    Detections,
    Detector,
    InPrecision,
    numbered,
    require_names,
    require_scores,
)
from pipeline.proposals._model_zoo import why_no_detectron2
from pipeline.proposals._rpn import file_sha256, load_exactly, read_state, require_counts
from pipeline.proposals.detectron2 import merged_config, weights_of

MODELS = ("GeneralizedRCNN", "RetinaNet")
# The config has these, and some versions keep them with the weights.
DERIVED = (".cell_anchors.", "pixel_mean", "pixel_std", ".num_batches_tracked")


class Detectron2Detector(Detector):
    """A detection model of detectron2. Its backbone computes in the precision of `to`, the rest in
    float32. The caller has resized the frames' short side to `frame_size`.

    Args:
        network: the model, in evaluation mode.
        bgr: whether it reads blue first.
        **options: those of `Detector`.
    """

    def __init__(self, network: nn.Module, bgr: bool, **options):
        super().__init__(**options)
        self.network, self.bgr = network, bgr
        network.backbone = InPrecision(network.backbone)
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "Detectron2Detector":
        """Move the network there, in place, and return the source; ValueError for an unknown
        precision.
        """
        self.network.to(device)
        self.network.backbone.to_precision(device, precision)
        self.device = torch.device(device)
        return self

    def detect(self, frames: Tensor) -> list[Detections]:
        """Detect in frames uint8 [B,H,W,3], RGB, on the device."""
        frames = frames.flip(-1) if self.bgr else frames
        images = frames.permute(0, 3, 1, 2).float()
        height, width = frames.shape[1:3]
        found = self.network(
            [{"image": image, "height": height, "width": width} for image in images]
        )
        every = [one["instances"] for one in found]
        return [(one.pred_boxes.tensor, one.scores, one.pred_classes) for one in every]


def build(
    config: str = "COCO-Detection/faster_rcnn_R_50_FPN_3x",
    weights: str = "coco",
    size: int = 480,
    num_boxes: int = 10,
    min_score: float = 0.05,
    nms: float = 0.5,
    batch: int = 4,
    class_names: Sequence[str] | str = (),
    seed: int = 0,
) -> Detectron2Detector:
    """Build the source "detectron2_detector".

    Args:
        config: a name in detectron2's model zoo, or a YAML file, of a Faster R-CNN, Mask R-CNN or
            RetinaNet.
        weights: "coco", a file (.pkl of the model zoo, or a .pth checkpoint), or "none" (random;
            for tests). "coco" is the model zoo's for that name, or what the YAML file calls
            MODEL.WEIGHTS; it is downloaded once.
        size: short side, in pixels, of the frames. detectron2's own default is 800.
        num_boxes: N.
        min_score: detections below it are left out.
        nms: overlap (IoU) above which the weaker of two boxes of a class is left out.
        batch: frames per pass.
        class_names: names of the classes; () for those that detectron2 knows for the config's data
            set, else numbers.
        seed: of random weights.

    Raises:
        ValueError: detectron2 is not installed or does not load; a bad value; a config of no such
            model; a file whose keys are not this network's.
    """
    source = "detectron2_detector"
    require_counts(source, size=size, num_boxes=num_boxes, batch=batch)
    require_scores(source, min_score=min_score, nms=nms)
    reason = why_no_detectron2()
    if reason:
        raise ValueError(f"proposals {source!r} needs detectron2: {reason}")
    from detectron2.modeling import build_model

    cfg = merged_config(config)
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind not in MODELS:
        raise ValueError(
            f"proposals {source!r}: config {config!r} is a {kind}; expected one of "
            f"{', '.join(MODELS)} with detections (for boxes without classes: detectron2)"
        )
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", False
    cfg.TEST.DETECTIONS_PER_IMAGE = num_boxes
    head = cfg.MODEL.RETINANET if kind == "RetinaNet" else cfg.MODEL.ROI_HEADS
    head.SCORE_THRESH_TEST, head.NMS_THRESH_TEST = float(min_score), float(nms)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build_model(cfg)

    sha256 = ""
    if weights != "none":
        path = weights_of(config, cfg) if weights == "coco" else Path(weights)
        load_exactly(network, _state(path, network), path)
        sha256 = file_sha256(path)
    network.eval().requires_grad_(False)
    if not class_names:
        class_names = _known_names(cfg, head.NUM_CLASSES)
    names, number_of = numbered(require_names(source, class_names, head.NUM_CLASSES))
    return Detectron2Detector(
        network,
        cfg.INPUT.FORMAT == "BGR",
        size=size,
        num_boxes=num_boxes,
        batch=batch,
        min_score=min_score,
        class_names=names,
        number_of=number_of,
        sha256=sha256,
    )


def _state(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """The weights in a file; masks, which give no boxes, are left out, and what the config gives is
    the network's own.
    """
    own = network.state_dict()
    state = {}
    for key, value in read_state(path, own).items():
        left = any(part in key for part in DERIVED) or key.startswith("roi_heads.mask_")
        if not left:
            state[key] = value
    for key, value in own.items():
        if any(part in key for part in DERIVED):
            state[key] = value
    return state


def _known_names(cfg, count: int) -> Sequence[str]:
    """The names that detectron2 has for the data set of a config; () without any."""
    from detectron2.data import MetadataCatalog

    for name in cfg.DATASETS.TRAIN:
        names = getattr(MetadataCatalog.get(name), "thing_classes", None)
        if names and len(names) == count:
            return names
    return ()
