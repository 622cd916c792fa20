"""A backbone and a head as one network that reads frames: what a cache holds is computed on the
way, and learned through.

    network = Live(build_backbone("i3d_r50", "I3D.pt"), build_head("strg", dims, 174),
    Frames(train_from="res4"))
    network(Clips(frames=frames, boxes=boxes, valid=valid)).logits      # frames uint8 [B,F,H,W,3]

A head that continues a cached map by the upper part of a backbone
(heads/interface/network_above_cut.py) and the part below its cut are then the whole network, with
the modules that the head put into it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heads.config.recipe_tables import FrameOptions
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.network_above_cut import norms_in_evaluation
from pipeline.backbones import Backbone
from pipeline.cache.fields import FIELDS, is_cut
from pipeline.regions.graphs import GRAPHS, GraphOptions, graphs_of
from pipeline.regions.roi_align import roi_align

Norm = nn.modules.batchnorm._BatchNorm


class JointNetwork(nn.Module):
    """See the top of this file. Its parameters are those of `backbone`, of which `frames` says what
    is trained, and of `head`.

    `size`: how many parameters it computes with. `cut`: what is pooled and aligned, "" for the last
    stage. `roi_pool`: how boxes become nodes. `neighbours`: M of `similar`.
    ValueError for a `train_from` that is no stage or block of the backbone, and for a head that
    continues another backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        frames: FrameOptions,
        cut: str = "",
        roi_pool: str = "max",
        neighbours: int = 10,
    ):
        super().__init__()
        self.backbone, self.head, self.frames = backbone, head, frames
        self.cut, self.roi_pool, self.neighbours = cut or backbone.last, roi_pool, neighbours
        self.needs = (
            "frames",
            *(name for name in ("boxes", "scores", "valid") if name in self._all_needs()),
        )
        self.uses = ("flip",)
        if (upper := self.upper) is not None and (upper.name, upper.options) != (
            backbone.name,
            backbone.options,
        ):
            raise ValueError(
                f"the head continues {upper.name} {upper.options}, the frames go through "
                f"{backbone.name} {backbone.options}: "
                "give the head the backbone and backbone_options of the extraction"
            )
        self._choose(frames)

    @property
    def upper(self) -> Backbone | None:
        """The part of a backbone that the head holds, if it does."""
        network = getattr(self.head, "network", None)
        return network if isinstance(network, Backbone) else None

    def _all_needs(self) -> tuple[str, ...]:
        """The head's needs, and what these are computed from."""
        own = self.head.needs
        graphs = [name for name in own if name in FIELDS and FIELDS[name].stage == "graphs"]
        more = ("boxes", "valid") if "nodes" in own or graphs else ()
        nodes = ("nodes",) if set(graphs) - {"iou"} else ()
        return tuple(dict.fromkeys((*own, *nodes, *more)))

    def _choose(self, frames: FrameOptions) -> None:
        """What is trained: units of the backbone from `train_from` on, and everything of the head
        but for units before it.
        """
        start = first_unit(self.backbone, frames.train_from)
        used = max((self.backbone._position(cut) for cut in self._cuts()), default=0)
        units = [unit for _, unit in self.backbone.units()]
        self._fixed = [
            unit for k, unit in enumerate(units) if start is None or k < start or k >= used
        ]
        self._moving = [
            unit for k, unit in enumerate(units) if start is not None and start <= k < used
        ]
        for k, (_, unit) in enumerate(self.upper.units() if self.upper is not None else ()):
            (self._fixed if start is not None and k < start else self._moving).append(unit)
        self.size = sum(p.numel() for part in (*units[:used], self.head) for p in part.parameters())
        self.backbone.requires_grad_(False)
        for unit in self._moving:
            unit.requires_grad_(True)
        for unit in self._fixed:
            unit.requires_grad_(False)
        if frames.frozen_bn:
            for norm in (m for unit in self._moving for m in unit.modules() if isinstance(m, Norm)):
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> "JointNetwork":
        super().train(mode)
        for unit in self._fixed:
            unit.eval()
        for unit in self._moving if self.frames.frozen_bn else ():
            norms_in_evaluation(unit)
        return self

    def _cuts(self) -> tuple[str, ...]:
        """The cuts that are computed from the frames."""
        names = self._all_needs()
        last = (self.cut,) if {"pooled", "nodes"} & set(names) else ()
        return tuple(dict.fromkeys((*(name for name in names if is_cut(name)), *last)))

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> what the head returns for them."""
        return self.head(self.fields(clips), want_maps)

    def fields(self, clips: Clips) -> Clips:
        """Clips with `needs` -> the fields that the head needs, as a cache would hold them, in
        float32 or autocast's dtype.
        """
        names = self._all_needs()
        maps = self.backbone.maps(self.backbone.prepare(clips.get("frames")), self._cuts())
        found = replace(
            clips,
            frames=None,
            maps={name: maps[name].transpose(1, 2) for name in names if is_cut(name)},
        )
        if "pooled" in names:
            found.pooled = maps[self.cut].float().mean((-2, -1)).transpose(1, 2)
        if "nodes" in names:
            found.nodes = roi_align(
                maps[self.cut], clips.get("boxes"), clips.get("valid"), pool=self.roi_pool
            )
        for name, tensor in self._graphs(found).items():
            setattr(found, name, tensor)
        return found

    @torch.no_grad()
    def _graphs(self, clips: Clips) -> dict[str, Tensor]:
        """The graphs that the head needs; as in a cache, no gradient goes through them."""
        which = tuple(name for name, fields in GRAPHS.items() if set(fields) & set(self.head.needs))
        if not which:
            return {}
        tensors = {name: getattr(clips, name) for name in ("boxes", "valid", "nodes")}
        arrays = {
            name: tensor.detach().cpu().numpy()
            for name, tensor in tensors.items()
            if tensor is not None
        }
        graphs = graphs_of(arrays, GraphOptions(which, self.neighbours))
        device = clips.boxes.device
        tensors = {name: torch.from_numpy(array).to(device) for name, array in graphs.items()}
        return {
            name: tensor if tensor.is_floating_point() else tensor.long()
            for name, tensor in tensors.items()
        }

    def checkpointed(self) -> None:
        """From now on no activation inside a trained unit is kept: the backward pass computes them
        again.
        """
        for unit in self._moving:
            recomputed(unit)

    def split(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A state dict of this network -> (the head's, the backbone's), under their own names.
        Units of the backbone that the head holds are the head's."""
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "backbone": {}}
        for name, tensor in state.items():
            part, _, own = name.partition(".")
            parts[part][own] = tensor
        if self.upper is not None:
            for name in self.upper.state_dict():
                if name in parts["backbone"]:
                    parts["backbone"][name] = parts["head"][f"network.{name}"]
        return parts["head"], parts["backbone"]

    @staticmethod
    def join(head: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `split`."""
        return {
            f"{part}.{name}": t
            for part, s in (("backbone", backbone), ("head", head))
            for name, t in s.items()
        }


def first_unit(backbone: Backbone, train_from: str) -> int | None:
    """The number of the first unit that is trained; None for "none". ValueError for a name that is
    no stage or block.
    """
    if train_from in ("none", "stem"):
        return None if train_from == "none" else 0
    for k, (names, _) in enumerate(backbone.units()):
        if any(name == train_from or name.startswith(f"{train_from}.") for name in names):
            return k
    stages = dict.fromkeys(("none", "stem", *backbone.stages))
    raise ValueError(
        f"train_from {train_from!r}: expected one of {', '.join(stages)}, or a block of "
        f"{backbone.name} such as "
        f"{next((c for c in backbone.cuts() if '.' in c), backbone.last)}"
    )


def recomputed(module: nn.Module) -> None:
    """Makes `module`, tensor -> tensor, keep its input only, and compute the rest again in the
    backward pass.
    """
    whole = module.forward

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return whole(x)
        return checkpoint(
            whole,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _statistics_kept(module)),
        )

    module.forward = forward


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms compute as in training but gather nothing: the second time, a batch would count
    twice.
    """
    inside = [
        conv.after[0][conv.after[1]]
        for conv in module.modules()
        if getattr(conv, "after", None) is not None
    ]
    found = (m for part in (module, *inside) for m in part.modules())
    norms = [m for m in found if isinstance(m, Norm) and m.training and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def joint_dims(backbone: Backbone, frames: int, size: int, cut: str = "", boxes: int = 0) -> Dims:
    """The sizes that a head reads behind `backbone`, of views of `frames` frames of `size` x `size`
    pixels with `boxes` boxes a step: every cut is there."""
    cut = cut or backbone.last
    maps = {
        name: (backbone.channels(name), *backbone.grid(name, (size, size)))
        for name in backbone.cuts()
    }
    return Dims(backbone.steps(frames, cut), boxes, backbone.channels(cut), maps)
