"""The region proposal network of a detectron2 model, `COCO-Detection/rpn_R_50_FPN_1x` unless told
otherwise (GOS's boxes).

detectron2 is imported only when this source is built; nothing else needs it.
"""

import pickle
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.memory_format import guard
from pipeline.networks.precision import dtype_of
from pipeline.proposals._model_zoo import config_file, fetched, weights_url, why_no_detectron2
from pipeline.proposals._rpn import (
    file_sha256,
    fold,
    in_batches,
    load_exactly,
    padded,
    place,
    read_state,
)
from pipeline.text.printable import first_line

# What an array needs in order to come out of a pickle; everything else that one could call is
# refused.
HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class Detectron2RPN:
    """Class-agnostic boxes of whole frames: the best N by objectness after suppression within each
    pyramid level.

    Pixel order, mean and scale are the config's. Convolutions run in the precision of `to`, the
    rest in float32. Frames are taken at the size they come in: the caller has resized their short
    side to `frame_size`.
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
        for layer in (head.objectness_logits, head.anchor_deltas):
            layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0].float(),))
        self.to("cpu", "fp32")

    def to(self, device, precision: str = "fp32") -> "Detectron2RPN":
        """Moves the network there, in place, and returns itself. ValueError for an unknown
        precision.
        """
        place(self.backbone, device, precision)
        place(self.generator.rpn_head.conv, device, precision)
        # As in the torchvision source: bf16 logits would tie by the hundred, and anchors need their
        # pixels exact.
        guard(self.generator.rpn_head.to(device))
        self.generator.anchor_generator.to(device)
        self.dtype, self.device = dtype_of(precision), torch.device(device)
        self.mean, self.std = (
            torch.tensor(v, device=device, dtype=torch.float32)
            for v in (self.pixel_mean, self.pixel_std)
        )
        return self

    def propose(self, frames: Tensor, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """frames uint8 [K,H,W,3] RGB -> boxes [K,N,4] in [0,1] of the frame, scores [K,N]; -1 where
        there are fewer than N.
        """
        return in_batches(frames, self.batch, self.device, self.num_boxes, self._propose)

    def _propose(self, frames: Tensor) -> list[tuple[Tensor, Tensor]]:
        from detectron2.structures import ImageList

        frames = frames.flip(-1) if self.bgr else frames
        images = padded(
            frames, self.mean, self.std, max(1, self.backbone.size_divisibility), self.dtype
        )
        sizes = [tuple(frames.shape[1:3])] * len(frames)
        found, _ = self.generator(ImageList(images, sizes), self.backbone(images), None)
        return [(each.proposal_boxes.tensor, each.objectness_logits) for each in found]


def build(
    config: str = "COCO-Detection/rpn_R_50_FPN_1x",
    weights: str = "coco",
    size: int = 480,
    num_boxes: int = 10,
    nms: float = 0.7,
    batch: int = 8,
    seed: int = 0,
) -> Detectron2RPN:
    """The source "detectron2".

    config: a name in detectron2's model zoo, or a YAML file. weights: "coco" (the model zoo's for
    that name, or what the YAML file calls MODEL.WEIGHTS; downloaded once), a file (.pkl of the
    model zoo, or a .pth checkpoint), or "none" (random, from `seed`; for tests). size: short side
    in pixels of the frames it is given (detectron2's own default is 800). num_boxes: N. nms:
    overlap above which the weaker box is dropped. batch: frames per pass. ValueError if detectron2
    is not installed or does not load, for a bad value, for a config without a standard RPN, or for
    a file whose keys are not this network's.
    """
    for name, value in (("size", size), ("num_boxes", num_boxes), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"proposals 'detectron2': {name}={value!r}; expected a whole number from 1"
            )
    if reason := why_no_detectron2():
        raise ValueError(f"proposals 'detectron2' needs detectron2: {reason}")
    from detectron2.modeling import build_backbone, build_proposal_generator

    cfg = _config(config, num_boxes, nms)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = build_backbone(cfg)
        generator = build_proposal_generator(cfg, backbone.output_shape())
    sha256 = ""
    if weights != "none":
        path = _weights_of(config, cfg) if weights == "coco" else Path(weights)
        network = nn.ModuleDict({"backbone": backbone, "proposal_generator": generator})
        load_exactly(network, _rpn_state(path, network.state_dict()), path)
        sha256 = file_sha256(path)
    for conv in backbone.modules():
        if _is_frozen_norm(getattr(conv, "norm", None)):
            fold(conv, conv.norm)
            conv.norm = None
    return Detectron2RPN(
        cfg,
        backbone.eval().requires_grad_(False),
        generator.eval().requires_grad_(False),
        size,
        batch,
        sha256,
    )


def _config(name: str, num_boxes: int, nms: float):
    """detectron2's config for a YAML file or a name in the model zoo. ValueError if there is none,
    or no standard RPN in it.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    try:
        ours = _is_file(name)
        path = Path(name) if ours else config_file(name)
        cfg.merge_from_file(
            str(path), allow_unsafe=not ours
        )  # some of the model zoo's own files compute their anchors
    except Exception as error:  # an unknown name, a missing file, broken YAML and an unknown key each raise something else
        raise ValueError(
            f"proposals 'detectron2': config {name!r}: expected a detectron2 YAML file or a name "
            f"in its model zoo"
            f" ({first_line(error)})"
        ) from error
    model, generator, head = (
        cfg.MODEL.META_ARCHITECTURE,
        cfg.MODEL.PROPOSAL_GENERATOR.NAME,
        cfg.MODEL.RPN.HEAD_NAME,
    )
    if model not in ("ProposalNetwork", "GeneralizedRCNN") or (generator, head) != (
        "RPN",
        "StandardRPNHead",
    ):
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


def _weights_of(config: str, cfg) -> Path:
    """The file of weights that belongs to a config. ValueError if there is none."""
    try:
        address = cfg.MODEL.WEIGHTS if _is_file(config) else weights_url(config)
        if not address:
            raise ValueError(
                f"{config} names no MODEL.WEIGHTS; pass weights=FILE, or weights=none for random "
                f"ones"
            )
        beside = Path(config).parent / address
        return (
            beside
            if "://" not in address and not Path(address).exists() and beside.is_file()
            else fetched(address)
        )
    except ValueError as error:
        raise ValueError(
            f"proposals 'detectron2': no weights for config {config!r}: {error}"
        ) from None


class _Arrays(pickle.Unpickler):
    """Reads a pickle of arrays; ValueError for anything that would call other code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in HARMLESS:
            raise ValueError(
                f"it wants to run {module}.{name}, which a file of arrays has no need of"
            )
        return super().find_class(module, name)


def _rpn_state(path: Path, own: Collection[str]) -> dict[str, Tensor]:
    """What the file holds for backbone and RPN. Left out: heads; and anchors and pixel statistics,
    which the config gives.
    """
    if path.suffix == ".pkl":
        try:
            with open(path, "rb") as file:
                loaded = _Arrays(file, encoding="latin1").load()
            state = {key: torch.as_tensor(value) for key, value in loaded.get("model", {}).items()}
        except FileNotFoundError:
            raise ValueError(
                f"{path}: no such weights file; expected one of detectron2's model zoo, or "
                f"weights=coco"
            ) from None
        except Exception as error:  # a damaged pickle raises whatever it happens to trip
            raise ValueError(
                f"{path}: not a file of weights of detectron2's model zoo ({error})"
            ) from error
    else:
        state = read_state(path, own)
    wanted = ("backbone.", "proposal_generator.")
    derived = (".cell_anchors.", ".num_batches_tracked")
    found = {
        key: value
        for key, value in state.items()
        if key.startswith(wanted) and not any(part in key for part in derived)
    }
    if not found:
        raise ValueError(
            f"{path}: expected the weights of a whole network (backbone.*, proposal_generator.*), "
            f"got others, such as those of "
            "ImageNet that a training begins with; pass weights=FILE"
        )
    return found


def _is_frozen_norm(norm) -> bool:
    from detectron2.layers import FrozenBatchNorm2d

    return isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d))
