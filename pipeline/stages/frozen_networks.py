"""The frozen networks of stage one: pixels of views in, the stored tensors out."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.backbones import Backbone, HasTokens, build_backbone, freeze
from pipeline.cache.fields import grid_at
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Clip
from pipeline.networks.precision import set_float32
from pipeline.networks.transfers import Arriving, Stopwatch, Transfers
from pipeline.proposals import build_proposals
from pipeline.regions import boxes as geometry
from pipeline.regions.roi_align import roi_align
from pipeline.stages.config import ExtractConfig
from pipeline.video.view_pixels import ClipPixels, short_side, step_frames
from pipeline.views.sampling import View

# boxes [T,N,4], scores [T,N], valid [T,N]
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]


# The fields that say where boxes are.
BOXES = ("boxes", "scores", "valid")


class ClipRegions:
    """The boxes of a clip's frames. On a device they may still have to be computed.

    Attributes:
        clip: the clip.
        info: what is known of its video.
        numbers: K frames of the file.
        frames: these frames, uint8 [K,H,W,3]; None if the source needs none, or has seen them.
        found: boxes [K,N,4] in [0,1] of the frame, or of the view if the source says so, and
            scores [K,N]; None until they are known.
    """

    def __init__(self, clip: Clip, pixels: ClipPixels):
        """Remember a clip, but not the pixels of its views, whose memory is wanted back.

        Args:
            clip: the clip.
            pixels: its decoded frames and views.
        """
        self.clip, self.info, self.numbers = clip, pixels.info, pixels.numbers
        self.frames: np.ndarray | None = pixels.frames
        self.found: tuple[np.ndarray, np.ndarray] | None = None

    def of_view(self, source, view: View, steps: int) -> Boxes:
        """Return the boxes of a view.

        Args:
            source: the source that found them.
            view: a view of the clip.
            steps: T.

        Returns:
            boxes [T,N,4] in [0,1] of the view, scores [T,N], valid [T,N].
        """
        info, (boxes, scores) = self.info, self.found
        row_of = {number: row for row, number in enumerate(self.numbers)}
        rows = [row_of[info.first + k] for k in step_frames(view, steps)]
        boxes, scores = boxes[rows], scores[rows]
        keep = scores >= 0
        if not source.in_view:
            size = (info.width, info.height)
            boxes, inside = geometry.to_view(boxes, view.crop, size, view.flip)
            keep &= inside
        return geometry.pack(boxes, scores, keep, source.num_boxes)


@dataclass
class BatchRow:
    """A view in a batch; without pixels it is a black view whose values nobody stores.

    Attributes:
        pixels: uint8 [F,h,w,3].
        view: the view.
        regions: its clip's boxes; None if no boxes are wanted.
    """

    pixels: np.ndarray | None = None
    view: View | None = None
    regions: ClipRegions | None = None


class Computed:
    """The fields of a batch, which may still be on their way from the device.

    Attributes:
        bytes: that they take on the host.
    """

    def __init__(self, arriving: Arriving, boxes: dict[str, np.ndarray], watch: Stopwatch, seconds):
        """Remember a batch; `FrozenNetworks.launch` makes it."""
        self._arriving, self._boxes, self._watch = arriving, boxes, watch
        self._seconds = seconds
        self.bytes = arriving.bytes

    def wait(self) -> dict[str, np.ndarray]:
        """Wait for the device, in any thread, once.

        Returns:
            Field -> array [B, ...].
        """
        arrays = self._arriving.wait()
        proposals, backbone = self._watch.seconds()
        self._seconds["proposals"] += proposals
        self._seconds["backbone"] += backbone
        return self._boxes | arrays


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
        if "tokens" in self.config.keep:
            known["tokens"] = self._token_shape()
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

    def _token_shape(self) -> tuple[int, int, int]:
        """(S, P, C) of the field `tokens`; ValueError for a backbone without such tokens."""
        if not isinstance(self.backbone, HasTokens):
            raise ValueError(
                f"--keep tokens: {self.config.backbone} has no class or register tokens: leave "
                f"tokens out"
            )
        return self.backbone.token_shape(self.config.sampling.frames, self.cut)


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
        set_float32(config.precision)
        self.backbone = freeze(
            self.backbone, precision=config.precision, device=device, compile=compile
        )
        if self.source:
            self.source = self.source.to(device, config.precision)
        self.transfers = Transfers(self.device)
        self.seconds: dict[str, float] = defaultdict(float)

    def regions(self, clip: Clip, pixels: ClipPixels) -> ClipRegions | None:
        """Find the boxes of a clip's frames. Each frame of the video is looked at once.

        A network on a CUDA device looks at the clips of a whole batch together, in `launch`.

        Args:
            clip: the clip.
            pixels: its decoded frames and views.

        Returns:
            The boxes; None if no boxes are wanted.

        Raises:
            BoxesError: the source has none for this clip.
        """
        if self.source is None:
            return None
        regions = ClipRegions(clip, pixels)
        if not self._proposes_in_batches():
            watch = Stopwatch(torch.device("cpu"))
            propose_now(self.source, regions, self.config.resize)
            watch.mark()
            self.seconds["proposals"] += watch.seconds()[0]
        return regions

    def _proposes_in_batches(self) -> bool:
        return self.device.type == "cuda" and hasattr(self.source, "launch")

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
    def launch(self, rows: Sequence[BatchRow], size: tuple[int, int]) -> Computed:
        """Have the device compute the fields of a batch of views of one size.

        On CUDA it is waited for once, for the boxes of its region proposal network. By then the
        backbone has its work.

        Args:
            rows: B views.
            size: their (height, width) in pixels.

        Returns:
            "pooled" [B,T,C], "nodes" [B,T,N,C], "tokens" [B,S,P,C], a map [B,T,C,h,w] for each
            cut, as far as the config keeps them, and the boxes, in the dtypes that are stored.
        """
        frames = [row.pixels for row in rows]
        pixels = self.transfers.rows(frames, (self.config.sampling.frames, *size, 3))
        watch = Stopwatch(self.device)
        proposed = self._propose(rows)
        watch.mark()

        cuts = tuple(dict.fromkeys((*self.config.cuts, self.cut)))
        prepared = self.backbone.prepare(pixels)
        tokens = None
        if "tokens" in self.config.keep:
            maps, tokens = self.backbone.maps_with_tokens(prepared, cuts, self.cut)
        else:
            maps = self.backbone.maps(prepared, cuts=cuts)
        last = maps[self.cut]  # [B,C,T,h,w]
        out = {cut: maps[cut].permute(0, 2, 1, 3, 4) for cut in self.config.cuts}
        if "pooled" in self.config.keep:
            out["pooled"] = last.float().mean((-2, -1)).transpose(1, 2)
        if tokens is not None:
            out["tokens"] = tokens

        boxes = self._boxes_of(rows, proposed)
        if "nodes" in self.config.keep:
            boxes_here = self.transfers.whole(boxes["boxes"])
            valid_here = self.transfers.whole(boxes["valid"])
            out["nodes"] = roi_align(last, boxes_here, valid_here, pool=self.config.roi_pool)

        # Cast and put in order on the device, so that half the bytes cross to the host, and the
        # thread that writes need not gather them. A value that overflows becomes infinite, which
        # the writer refuses.
        dtype = getattr(torch, self.config.dtype)
        ready = {name: tensor.to(dtype).contiguous() for name, tensor in out.items()}
        watch.mark()
        return Computed(self.transfers.out(ready), boxes, watch, self.seconds)

    def _propose(self, rows: Sequence[BatchRow]) -> list[tuple[list[ClipRegions], Arriving]]:
        """Have the device look at the frames of all clips of a batch that it has not seen yet.

        Clips with frames of one size are looked at together.
        """
        clips: dict[int, ClipRegions] = {}
        for row in rows:
            if row.regions is not None and row.regions.found is None:
                clips[id(row.regions)] = row.regions
        by_size: dict[tuple[int, ...], list[ClipRegions]] = {}
        for regions in clips.values():
            by_size.setdefault(regions.frames.shape[1:], []).append(regions)

        proposed = []
        for together in by_size.values():
            frames = [self.transfers.whole(regions.frames) for regions in together]
            for regions in together:
                regions.frames = None
            whole = at_size(torch.cat(frames), self.source.frame_size, self.config.resize)
            found = self.transfers.out({"found": self.source.launch(whole)})
            proposed.append((together, found))
        return proposed

    def _boxes_of(
        self, rows: Sequence[BatchRow], proposed: list[tuple[list[ClipRegions], Arriving]]
    ) -> dict[str, np.ndarray]:
        """The boxes of every row; those of rows without any are zeros."""
        for clips, arriving in proposed:
            found, first = arriving.wait()["found"], 0
            for regions in clips:
                of_clip = found[first : first + len(regions.numbers)]
                regions.found = of_clip[..., :4], of_clip[..., 4]
                first += len(of_clip)
        boxes = np.zeros((len(rows), self.steps, self.num_boxes, 4), np.float32)
        scores, valid = boxes[..., 0].copy(), np.zeros(boxes.shape[:-1], bool)
        for k, row in enumerate(rows):
            if row.regions is not None:
                of_view = row.regions.of_view(self.source, row.view, self.steps)
                boxes[k], scores[k], valid[k] = of_view
        return {"boxes": boxes, "scores": scores, "valid": valid}


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


def backbone_of_cache(config: ExtractConfig, cache: Cache) -> Backbone:
    """Build the backbone that made a cache, with its weights.

    Args:
        config: the cache's config, with the file where the weights are now.
        cache: the cache.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ValueError: as for `backbone_of`, the weights are others, or this version of the backbone
            computes something else.
    """
    backbone = backbone_of(config)
    found, wanted = backbone.weights_sha256 or "none", cache.config["weights"]
    if found != wanted:
        raise ValueError(
            f"weights {config.weights}: not those that {cache.path} was extracted with (SHA-256 "
            f"{found[:12]}, expected {wanted[:12]}); pass --weights with that file"
        )
    made_by = cache.config.get("backbone_version", 1)
    if backbone.version != made_by:
        raise ValueError(
            f"{cache.path}: {backbone.name} of version {made_by} made it, this is version "
            f"{backbone.version}, which computes something else with these options: extract again "
            f"into another folder"
        )
    return backbone


def source_of(config: ExtractConfig, device: str | torch.device):
    """Build the source of boxes of a config.

    Args:
        config: the config.
        device: where it computes. On a CPU, fp32 replaces tf32, which it lacks, and fp16, which is
            a hundred times slower there. The boxes differ by rounding only.

    Returns:
        The source; None if no boxes are wanted.

    Raises:
        ValueError: unknown name or options, or weights that do not fit.
    """
    source = _built_source(config)
    not_there = config.precision in ("tf32", "fp16") and torch.device(device).type == "cpu"
    return source and source.to(device, "fp32" if not_there else config.precision)


def _built_source(config: ExtractConfig):
    """The source of boxes on the CPU; None if no boxes are wanted."""
    if not config.wants_boxes:
        return None
    with _wrong_types("proposal_options"):
        return build_proposals(config.proposals, **config.proposal_options)


@torch.inference_mode()
def propose_now(source, regions: ClipRegions, resize: str) -> None:
    """Find the boxes of a clip's frames, and wait for them.

    Args:
        source: a source of boxes.
        regions: the clip, whose boxes are set.
        resize: how frames get the size that the source reads, see `at_size`.
    """
    frames = None
    if regions.frames is not None:
        frames = at_size(torch.from_numpy(regions.frames), source.frame_size, resize)
    regions.found = source.propose(frames, regions.clip, regions.info, regions.numbers)
    regions.frames = None


def boxes_of(
    source, clip: Clip, pixels: ClipPixels, steps: int, resize: str = "pil"
) -> list[Boxes]:
    """Find the boxes of every view of a clip.

    Args:
        source: a source of boxes.
        clip: the clip.
        pixels: its decoded frames and views.
        steps: T.
        resize: how frames get the size that the source reads, see `at_size`.

    Returns:
        For each view, boxes [T,N,4] in [0,1] of the view, scores [T,N], valid [T,N].
    """
    regions = ClipRegions(clip, pixels)
    propose_now(source, regions, resize)
    return [regions.of_view(source, view, steps) for view in pixels.views]


def at_size(frames: Tensor, size: int, resize: str) -> Tensor:
    """Give whole frames the size that a source of boxes reads.

    Args:
        frames: uint8 [K,H,W,3]; with "pil" they have that size, because a decode worker resized
            them.
        size: pixels of the short side.
        resize: "pil", or "device": bilinear with antialiasing, rounded to whole numbers, wherever
            the frames are. Pixels of the two differ by 1 of 255 at most.

    Returns:
        uint8 [K,H',W',3].
    """
    height, width = short_side(*frames.shape[1:3], size)
    if resize == "pil" or (height, width) == tuple(frames.shape[1:3]):
        return frames
    images = frames.permute(0, 3, 1, 2).float()
    resized = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@contextmanager
def _wrong_types(options: str) -> Iterator[None]:
    """Turn a TypeError into a ValueError: the user gave text where an option takes a number."""
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"{options}: an option has a value of another type than it takes ({error})"
        ) from error
