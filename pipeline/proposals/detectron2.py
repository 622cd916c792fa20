"""The region proposal network of a detectron2 model, by default `COCO-Detection/rpn_R_50_FPN_1x`
(GOS's boxes).

detectron2 is imported only when this source is built; nothing else needs it.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.memory_format import guard
from pipeline.networks.precision import dtype_of
from pipeline.proposals._model_zoo import config_file, fetched, weights_url, why_no_detectron2
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
from pipeline.text.printable import first_line


class Detectron2RPN:
    """Class-agnostic boxes of whole frames: the best N by objectness, after suppression within each
    level of the pyramid.

    Pixel order, mean and scale are the config's. Convolutions run in the precision of `to`, the
    rest in float32. The caller has resized the frames' short side to `frame_size`.

    Args:
        cfg: detectron2's config.
        backbone: detectron2's, without batch norms.
        generator: detectron2's region proposal network.
        size, batch: see `build`.
        sha256: checksum of the file of weights; "" for none.
    """

    in_view = False

    def __init__(
        self, cfg, backbone: nn.Module, generator: nn.Module, size: int, batch: int, sha256: str
    ):
        self.frame_size, self.num_boxes = size, cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        self.batch, self.weights_sha256 = batch, sha256
        self.backbone, self.generator = backbone, generator
        self.bgr = cfg.INPUT.FORMAT == "BGR"
        self.pixel_mean, self.pixel_std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        head = generator.rpn_head
        # These two layers stay in float32, whatever the precision of those before them.
        for layer in (head.objectness_logits, head.anchor_deltas):
            layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].float(),))
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "Detectron2RPN":
        """Move the network there, in place, and return the source; ValueError for an unknown
        precision.
        """
        place(self.backbone, device, precision)
        place(self.generator.rpn_head.conv, device, precision)
        # As in the torchvision source: hundreds of bf16 logits would tie. Anchors need exact
        # pixels.
        guard(self.generator.rpn_head.to(device))
        self.generator.anchor_generator.to(device)
        self.dtype, self.device = dtype_of(precision), torch.device(device)
        self.mean = torch.tensor(self.pixel_mean, device=device, dtype=torch.float32)
        self.std = torch.tensor(self.pixel_std, device=device, dtype=torch.float32)
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
        from detectron2.structures import ImageList

        frames = frames.flip(-1) if self.bgr else frames
        multiple = max(1, self.backbone.size_divisibility)
        images = padded(frames, self.mean, self.std, multiple, self.dtype)
        features = self.backbone(images)
        # Without the padding: boxes are clipped to the frame.
        size = tuple(frames.shape[1:3])
        if frames.device.type != "cpu":
            return self._propose_at_once(features, size)

        found, _ = self.generator(ImageList(images, [size] * len(frames)), features, None)
        boxes = frames.new_zeros((len(frames), self.num_boxes, 4), dtype=torch.float32)
        logits = boxes.new_full(boxes.shape[:2], -torch.inf)
        for row, one in enumerate(found):
            count = min(len(one), self.num_boxes)
            boxes[row, :count] = one.proposal_boxes.tensor[:count]
            logits[row, :count] = one.objectness_logits[:count]
        return boxes, logits

    def _propose_at_once(
        self, features: dict[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """What detectron2's generator finds, for all frames at once.

        Its own code goes from frame to frame, and waits for the device several times in each.
        """
        maps = [features[name] for name in self.generator.in_features]
        all_logits, all_deltas = self.generator.rpn_head(maps)
        scales = self.generator.box2box_transform.weights
        best_scores, best_boxes, levels = [], [], []
        anchors = self.generator.anchor_generator(maps)
        for level, of_level in enumerate(zip(all_logits, all_deltas, anchors, strict=True)):
            logits, deltas, level_anchors = of_level
            # [B,A,h,w] -> [B,h·w·A], and [B,A·4,h,w] -> [B,h·w·A,4]
            logits = logits.permute(0, 2, 3, 1).flatten(1)
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            moves = torch.stack(
                [deltas[..., k].float() / scale for k, scale in enumerate(scales)], -1
            )
            scores, boxes = best_of_level(logits.float(), moves, level_anchors.tensor)
            best_scores.append(scores)
            best_boxes.append(boxes)
            levels.append(torch.full_like(scores[0], level))
        return suppress(
            clip_to(torch.cat(best_boxes, 1), *size),
            torch.cat(best_scores, 1),
            torch.cat(levels),
            self.num_boxes,
            self.generator.nms_thresh,
        )


def build(
    config: str = "COCO-Detection/rpn_R_50_FPN_1x",
    weights: str = "coco",
    size: int = 480,
    num_boxes: int = 10,
    nms: float = 0.7,
    batch: int = 8,
    seed: int = 0,
) -> Detectron2RPN:
    """Build the source "detectron2".

    Args:
        config: a name in detectron2's model zoo, or a YAML file.
        weights: "coco", a file (.pkl of the model zoo, or a .pth checkpoint), or "none" (random;
            for tests). "coco" is the model zoo's for that name, or what the YAML file calls
            MODEL.WEIGHTS; it is downloaded once.
        size: short side, in pixels, of the frames. detectron2's own default is 800.
        num_boxes: N.
        nms: overlap (IoU) above which the weaker box is dropped.
        batch: frames per pass.
        seed: of random weights.

    Raises:
        ValueError: detectron2 is not installed or does not load; a bad value; a config without a
            standard RPN; a file whose keys are not this network's.
    """
    require_counts("detectron2", size=size, num_boxes=num_boxes, batch=batch)
    reason = why_no_detectron2()
    if reason:
        raise ValueError(f"proposals 'detectron2' needs detectron2: {reason}")
    from detectron2.modeling import build_backbone, build_proposal_generator

    cfg = _config(config, num_boxes, nms)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = build_backbone(cfg)
        generator = build_proposal_generator(cfg, backbone.output_shape())

    sha256 = ""
    if weights != "none":
        path = weights_of(config, cfg) if weights == "coco" else Path(weights)
        network = nn.ModuleDict({"backbone": backbone, "proposal_generator": generator})
        load_exactly(network, _rpn_state(path, network.state_dict()), path)
        sha256 = file_sha256(path)
    for conv in backbone.modules():
        if _is_frozen_norm(getattr(conv, "norm", None)):
            fold(conv, conv.norm)
            conv.norm = None
    for network in (backbone, generator):
        network.eval().requires_grad_(False)
    return Detectron2RPN(cfg, backbone, generator, size, batch, sha256)


def merged_config(name: str):
    """Return detectron2's config for a YAML file or a name in the model zoo; ValueError if there is
    none.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    try:
        is_file = _is_file(name)
        path = Path(name) if is_file else config_file(name)
        # Some of the model zoo's own files compute their anchors, which is code.
        cfg.merge_from_file(str(path), allow_unsafe=not is_file)
    except Exception as error:
        # An unknown name, a missing file, broken YAML and an unknown key raise different errors.
        raise ValueError(
            f"proposals 'detectron2': config {name!r}: expected a detectron2 YAML file or a name "
            f"in its model zoo ({first_line(error)})"
        ) from error
    return cfg


def _config(name: str, num_boxes: int, nms: float):
    """detectron2's config for a YAML file or a name in the model zoo. ValueError if there is none,
    or it has no standard RPN.
    """
    cfg = merged_config(name)
    model = cfg.MODEL.META_ARCHITECTURE
    generator, head = cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.RPN.HEAD_NAME
    known_model = model in ("ProposalNetwork", "GeneralizedRCNN")
    if not known_model or (generator, head) != ("RPN", "StandardRPNHead"):
        raise ValueError(
            f"proposals 'detectron2': config {name!r} is a {model} with {generator} and {head}; "
            "expected a ProposalNetwork or GeneralizedRCNN with RPN and StandardRPNHead"
        )
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.RPN.NMS_THRESH = num_boxes, float(nms)
    return cfg


def _is_file(config: str) -> bool:
    """Whether a config is a person's own YAML file; else it is a name in the model zoo, which may
    end in .yaml too.
    """
    return Path(config).suffix in (".yaml", ".yml") and Path(config).is_file()


def weights_of(config: str, cfg) -> Path:
    """Return the file of weights that belongs to a config; ValueError if there is none."""
    try:
        address = cfg.MODEL.WEIGHTS if _is_file(config) else weights_url(config)
        if not address:
            raise ValueError(
                f"{config} names no MODEL.WEIGHTS; pass weights=FILE, or weights=none for random "
                f"ones"
            )
        beside = Path(config).parent / address
        if "://" not in address and not Path(address).exists() and beside.is_file():
            return beside
        return fetched(address)
    except ValueError as error:
        raise ValueError(
            f"proposals 'detectron2': no weights for config {config!r}: {error}"
        ) from None


def _rpn_state(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The weights of backbone and RPN in a file. Left out are heads, anchors and pixel statistics;
    the config gives the last two.
    """
    state = read_state(path, names)
    wanted = ("backbone.", "proposal_generator.")
    derived = (".cell_anchors.", ".num_batches_tracked")
    found = {}
    for key, value in state.items():
        if key.startswith(wanted) and not any(part in key for part in derived):
            found[key] = value
    if not found and any(key.startswith("rpn.head.") for key in state):
        raise ValueError(f"{path}: the weights are torchvision's; pass --proposals torchvision")
    if not found:
        raise ValueError(
            f"{path}: expected the weights of a whole network (backbone.*, proposal_generator.*), "
            f"got others ({', '.join(list(state)[:3])}), such as those of ImageNet that a training "
            f"begins with, or of another program; pass weights=FILE"
        )
    return found


def _is_frozen_norm(norm) -> bool:
    from detectron2.layers import FrozenBatchNorm2d

    return isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d))
