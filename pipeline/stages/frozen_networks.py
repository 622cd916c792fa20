"""The frozen networks of stage one: pixels of views in, the tensors that are stored out."""

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

Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [T,N,4], scores [T,N], valid [T,N]


class StoredShapes:
    """Shapes and checksums of what the networks of a configuration store. It computes nothing and
    needs no device.

    `cut` is the last cut; `steps` is T; `num_boxes` is N (0 when no boxes are wanted). `backbone`
    and `source` are on the CPU.
    """

    def __init__(self, config: ExtractConfig):
        self.config = config
        self.backbone = backbone_of(config)
        self.cut = config.cut or self.backbone.last
        self.steps = self.backbone.steps(config.sampling.frames, self.cut)
        self.weights_sha256 = self.backbone.weights_sha256
        self.source = _built_source(config)
        self.num_boxes = self.source.num_boxes if self.source else 0

    @property
    def frame_size(self) -> int | None:
        """Short side in pixels of the whole frames that the source of boxes looks at; None if it
        needs none.
        """
        return self.source.frame_size if self.source else None

    def record(self) -> dict:
        """The configuration for the cache's fingerprint, with the checksums of the weights that
        were loaded.
        """
        return self.config.computed(
            self.weights_sha256, self.source.weights_sha256 if self.source else ""
        )

    def grids(self, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """(h, w) of the last cut's map, as `grid`, and of each stored one, for a view of `size`
        (height, width) in pixels.
        """
        stored = {
            grid_at(cut): self.backbone.grid(cut, size)
            for cut in self.config.cuts
            if cut != self.cut
        }
        return {"grid": self.backbone.grid(self.cut, size), **stored}

    def shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """The shape of every stored tensor of a view whose pixels measure `size` (height, width),
        without the R axis.
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
        for name in self.config.keep:
            if name in known:
                shapes[name] = known[name]
            else:
                step = self.backbone.steps(frames, name)
                shapes[name] = (step, self.backbone.channels(name), *self.backbone.grid(name, size))
        return shapes


class FrozenNetworks(StoredShapes):
    """The backbone and the source of boxes that a configuration names, frozen, on one device.

    `seconds` sums what each part took. ValueError for a precision that the device does not compute
    in.
    """

    def __init__(self, config: ExtractConfig, device: str = "cpu", compile: bool = False):
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
        """Boxes of every view of a clip, in the view's own [0,1]; each frame of the video passes
        the source once.
        """
        if self.source is None:
            return [_no_boxes(self.steps)] * len(pixels.views)
        begun = time.perf_counter()
        views = boxes_of(self.source, clip, pixels, self.steps)
        self.seconds["proposals"] += time.perf_counter() - begun
        return views

    def remark(self, clip: Clip, pixels: ClipPixels) -> str:
        """What looks wrong with a clip's boxes although they can be used, in words; "" if
        nothing.
        """
        if self.source is None or not hasattr(self.source, "remark"):
            return ""
        return self.source.remark(clip, pixels.info, pixels.numbers)

    @torch.inference_mode()
    def tensors(
        self, frames: np.ndarray, boxes: np.ndarray, valid: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The computed fields of a batch of views of one size.

        frames uint8 [B,F,h,w,3]; boxes [B,T,N,4] xyxy in [0,1] of the view; valid [B,T,N]. Returns
        arrays of the stored dtype with the batch first: `pooled` [B,T,C], `nodes` [B,T,N,C] and a
        map [B,T,C,h,w] for each cut that is kept.
        """
        begun = time.perf_counter()
        keep = self.config.keep
        batch = self.backbone.prepare(torch.from_numpy(frames).to(self.device))
        maps = self.backbone.maps(batch, cuts=tuple(dict.fromkeys((*self.config.cuts, self.cut))))
        last = maps[self.cut]
        out = {cut: maps[cut].permute(0, 2, 1, 3, 4) for cut in self.config.cuts}
        if "pooled" in keep:
            out["pooled"] = last.float().mean((-2, -1)).transpose(1, 2)
        if "nodes" in keep:
            places = (
                torch.from_numpy(boxes).to(self.device),
                torch.from_numpy(valid).to(self.device),
            )
            out["nodes"] = roi_align(last, *places, pool=self.config.roi_pool)
        # Cast on the device: half the bytes cross to the host; a value that overflows becomes inf,
        # which the writer refuses.
        dtype = getattr(torch, self.config.dtype)
        arrays = {name: tensor.to(dtype).cpu().numpy() for name, tensor in out.items()}
        self.seconds["backbone"] += time.perf_counter() - begun
        return arrays


def backbone_of(config: ExtractConfig) -> Backbone:
    """The backbone that a configuration names, with its weights, in training mode on the CPU."""
    with torch.random.fork_rng(devices=[]), _wrong_types("backbone_options"):
        # Without weights the network is random, and a resumed run needs the same one. Not
        # torch.manual_seed: it would also seed the generators of GPUs, which fork_rng does not put
        # back.
        torch.default_generator.manual_seed(config.seed)
        return build_backbone(config.backbone, weights=config.weights, **config.backbone_options)


def source_of(config: ExtractConfig, device: str | torch.device):
    """The source of boxes that a configuration names, on its device; None where no boxes are
    wanted.

    On a CPU, fp32 replaces fp16: it is a hundred times faster there, and the boxes differ by
    rounding only.
    """
    source = _built_source(config)
    slow = config.precision == "fp16" and torch.device(device).type == "cpu"
    return source and source.to(device, "fp32" if slow else config.precision)


def _built_source(config: ExtractConfig):
    """The source of boxes that a configuration names, as it is built: on the CPU; None where no
    boxes are wanted.
    """
    if not config.wants_boxes:
        return None
    with _wrong_types("proposal_options"):
        return build_proposals(config.proposals, **config.proposal_options)


def boxes_of(source, clip: Clip, pixels: ClipPixels, steps: int) -> list[Boxes]:
    """The boxes of `source` for every view of a clip at its `steps` feature steps, in the view's
    own [0,1].
    """
    frames = None if pixels.frames is None else torch.from_numpy(pixels.frames)
    found, scores = source.propose(frames, clip, pixels.info, pixels.numbers)
    row_of = {number: row for row, number in enumerate(pixels.numbers)}
    source_size = (pixels.info.width, pixels.info.height)
    views = []
    for view in pixels.views:
        rows = [row_of[pixels.info.first + k] for k in step_frames(view, steps)]
        there, keep = found[rows], scores[rows] >= 0
        if not source.in_view:
            there, inside = geometry.to_view(there, view.crop, source_size, view.flip)
            keep &= inside
        views.append(geometry.pack(there, scores[rows], keep, source.num_boxes))
    return views


@contextmanager
def _wrong_types(options: str) -> Iterator[None]:
    """A text where an option takes a number is the user's slip, not ours."""
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"{options}: an option has a value of another type than it takes ({error})"
        ) from error


def _no_boxes(steps: int) -> Boxes:
    return (
        np.zeros((steps, 0, 4), np.float32),
        np.zeros((steps, 0), np.float32),
        np.zeros((steps, 0), bool),
    )
