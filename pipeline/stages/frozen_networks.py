"""The frozen networks of stage one: pixels of views in, the stored tensors out."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.backbones import Backbone, build_backbone, freeze
from pipeline.cache.fields import grid_at
from pipeline.manifests.manifest import Clip
from pipeline.proposals import build_proposals
from pipeline.regions import boxes as geometry
from pipeline.regions.roi_align import roi_align
from pipeline.stages.config import ExtractConfig
from pipeline.video.view_pixels import ClipPixels, step_frames

# boxes [T,N,4], scores [T,N], valid [T,N]
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]


class StoredShapes:
    """The shapes and checksums of what a config stores. It computes nothing and needs no device.

    Attributes:
        config: the config.
        backbone: the backbone, on the CPU.
        cut: the last cut, whose map is pooled and aligned.
        steps: T.
        weights_sha256: of the backbone's weights, "" without any.
        source: the source of boxes, on the CPU; None if no boxes are wanted.
        num_boxes: N; 0 if no boxes are wanted.
    """

    def __init__(self, config: ExtractConfig):
        """Build the networks and load their weights.

        Args:
            config: the config.

        Raises:
            ValueError: unknown names or options, or weights that do not fit.
        """
        self.config = config
        self.backbone = backbone_of(config)
        self.cut = config.cut or self.backbone.last
        self.steps = self.backbone.steps(config.sampling.frames, self.cut)
        self.weights_sha256 = self.backbone.weights_sha256
        self.source = _built_source(config)
        self.num_boxes = self.source.num_boxes if self.source else 0

    @property
    def frame_size(self) -> int | None:
        """The short side, in pixels, of the whole frames that the source of boxes reads.

        None if it reads none.
        """
        return self.source.frame_size if self.source else None

    def record(self) -> dict:
        """Return the config for the cache's fingerprint, with the checksums of loaded weights."""
        source_sha256 = self.source.weights_sha256 if self.source else ""
        return self.config.computed(self.weights_sha256, source_sha256, self.backbone.version)

    def grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Return the true sizes of a view's maps.

        Args:
            size: (height, width) of the view in pixels.

        Returns:
            "grid" -> (h, w) of the last cut's map, and "grid.CUT" -> (h, w) of each other stored
            one.
        """
        grids = {"grid": self.backbone.grid(self.cut, size)}
        for cut in self.config.cuts:
            if cut != self.cut:
                grids[grid_at(cut)] = self.backbone.grid(cut, size)
        return grids

    def shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a view's stored tensors.

        Args:
            size: (height, width) of the view in pixels.

        Returns:
            Field -> shape without the axis R.
        """
        frames, steps, boxes = self.config.sampling.frames, self.steps, self.num_boxes
        channels = self.backbone.channels(self.cut)
        known = {
            "pooled": (steps, channels),
            "boxes": (steps, boxes, 4),
            "scores": (steps, boxes),
            "valid": (steps, boxes),
            "nodes": (steps, boxes, channels),
        }
        shapes = {
            "frames": (frames,),
            "crop": (6,),
            "flip": (),
            **dict.fromkeys(self.grids(size), (2,)),
        }
        # What is not known by name is a map at a cut.
        for name in self.config.keep:
            if name in known:
                shapes[name] = known[name]
            else:
                step = self.backbone.steps(frames, name)
                shapes[name] = (step, self.backbone.channels(name), *self.backbone.grid(name, size))
        return shapes


class FrozenNetworks(StoredShapes):
    """The backbone and the source of boxes of a config, frozen, on one device.

    Attributes:
        device: the device.
        seconds: "backbone" and "proposals" -> seconds spent in it.
    """

    def __init__(self, config: ExtractConfig, device: str = "cpu", compile: bool = False):
        """Build the networks, load their weights and move them to a device.

        Args:
            config: the config.
            device: "cpu" or "cuda".
            compile: whether `torch.compile` compiles the backbone.

        Raises:
            ValueError: as for `StoredShapes`, or the device does not compute in the precision.
        """
        super().__init__(config)
        self.device = torch.device(device)
        self.backbone = freeze(
            self.backbone, precision=config.precision, device=device, compile=compile
        )
        if self.source:
            self.source = self.source.to(device, config.precision)
        self.seconds: dict[str, float] = defaultdict(float)

    @torch.inference_mode()
    def boxes(self, clip: Clip, pixels: ClipPixels) -> list[Boxes]:
        """Find the boxes of every view of a clip. Each frame of the video is looked at once.

        Args:
            clip: the clip.
            pixels: its decoded frames and views.

        Returns:
            For each view, boxes in [0,1] of the view, scores, and which are valid.
        """
        if self.source is None:
            return [_no_boxes(self.steps)] * len(pixels.views)
        begun = time.perf_counter()
        views = boxes_of(self.source, clip, pixels, self.steps)
        self.seconds["proposals"] += time.perf_counter() - begun
        return views

    def remark(self, clip: Clip, pixels: ClipPixels) -> str:
        """Return what looks wrong with a clip's boxes although they can be used.

        Args:
            clip: the clip.
            pixels: its decoded frames.

        Returns:
            A text; "" if nothing looks wrong.
        """
        if self.source is None or not hasattr(self.source, "remark"):
            return ""
        return self.source.remark(clip, pixels.info, pixels.numbers)

    @torch.inference_mode()
    def tensors(
        self, frames: np.ndarray, boxes: np.ndarray, valid: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute the fields of a batch of views of one size.

        Args:
            frames: uint8 [B,F,h,w,3].
            boxes: float32 [B,T,N,4], xyxy in [0,1] of the view.
            valid: bool [B,T,N].

        Returns:
            Arrays of the stored dtype: "pooled" [B,T,C], "nodes" [B,T,N,C], and a map
            [B,T,C,h,w] for each cut, as far as the config keeps them.
        """
        begun = time.perf_counter()
        keep = self.config.keep
        batch = self.backbone.prepare(torch.from_numpy(frames).to(self.device))
        maps = self.backbone.maps(batch, cuts=tuple(dict.fromkeys((*self.config.cuts, self.cut))))
        last = maps[self.cut]  # [B,C,T,h,w]

        out = {cut: maps[cut].permute(0, 2, 1, 3, 4) for cut in self.config.cuts}
        if "pooled" in keep:
            out["pooled"] = last.float().mean((-2, -1)).transpose(1, 2)
        if "nodes" in keep:
            boxes_here = torch.from_numpy(boxes).to(self.device)
            valid_here = torch.from_numpy(valid).to(self.device)
            out["nodes"] = roi_align(last, boxes_here, valid_here, pool=self.config.roi_pool)

        # Cast on the device, so that half the bytes cross to the host. A value that overflows
        # becomes infinite, which the writer refuses.
        dtype = getattr(torch, self.config.dtype)
        arrays = {name: tensor.to(dtype).cpu().numpy() for name, tensor in out.items()}
        self.seconds["backbone"] += time.perf_counter() - begun
        return arrays


def backbone_of(config: ExtractConfig) -> Backbone:
    """Build the backbone of a config, with its weights.

    Args:
        config: the config.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ValueError: unknown name or options, or weights that do not fit.
    """
    with torch.random.fork_rng(devices=[]), _wrong_types("backbone_options"):
        # Without weights the network is random, and a resumed run needs the same one. Not
        # `torch.manual_seed`: it also seeds the generators of GPUs, which `fork_rng` would not
        # restore.
        torch.default_generator.manual_seed(config.seed)
        return build_backbone(config.backbone, weights=config.weights, **config.backbone_options)


def source_of(config: ExtractConfig, device: str | torch.device):
    """Build the source of boxes of a config.

    Args:
        config: the config.
        device: where it computes. On a CPU, fp32 replaces fp16: fp16 is a hundred times slower
            there, and the boxes differ by rounding only.

    Returns:
        The source; None if no boxes are wanted.

    Raises:
        ValueError: unknown name or options, or weights that do not fit.
    """
    source = _built_source(config)
    slow = config.precision == "fp16" and torch.device(device).type == "cpu"
    return source and source.to(device, "fp32" if slow else config.precision)


def _built_source(config: ExtractConfig):
    """The source of boxes on the CPU; None if no boxes are wanted."""
    if not config.wants_boxes:
        return None
    with _wrong_types("proposal_options"):
        return build_proposals(config.proposals, **config.proposal_options)


def boxes_of(source, clip: Clip, pixels: ClipPixels, steps: int) -> list[Boxes]:
    """Find the boxes of every view of a clip.

    Args:
        source: a source of boxes.
        clip: the clip.
        pixels: its decoded frames and views.
        steps: T.

    Returns:
        For each view, boxes [T,N,4] in [0,1] of the view, scores [T,N], valid [T,N].
    """
    frames = None if pixels.frames is None else torch.from_numpy(pixels.frames)
    found, scores = source.propose(frames, clip, pixels.info, pixels.numbers)
    row_of = {number: row for row, number in enumerate(pixels.numbers)}
    source_size = (pixels.info.width, pixels.info.height)
    views = []
    for view in pixels.views:
        rows = [row_of[pixels.info.first + k] for k in step_frames(view, steps)]
        boxes, keep = found[rows], scores[rows] >= 0
        if not source.in_view:
            boxes, inside = geometry.to_view(boxes, view.crop, source_size, view.flip)
            keep &= inside
        views.append(geometry.pack(boxes, scores[rows], keep, source.num_boxes))
    return views


@contextmanager
def _wrong_types(options: str) -> Iterator[None]:
    """Turn a TypeError into a ValueError: the user gave text where an option takes a number."""
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"{options}: an option has a value of another type than it takes ({error})"
        ) from error


def _no_boxes(steps: int) -> Boxes:
    boxes = np.zeros((steps, 0, 4), np.float32)
    return boxes, boxes[..., 0].copy(), np.zeros((steps, 0), bool)
