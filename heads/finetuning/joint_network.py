"""A backbone and a head as one network that reads frames, and computes what a cache would hold.

    backbone, head = build_backbone("i3d_r50", "I3D.pt"), build_head("strg", dims, 174)
    network = JointNetwork(backbone, head, FrameOptions(train_from="res4"))
    network(Clips(frames=frames, boxes=boxes, valid=valid)).logits      # frames uint8 [B,F,H,W,3]

A head may continue a cached map with the upper part of a backbone
(heads/interface/network_above_cut.py). Such a head and the part below its cut are then the whole
network, with the modules that the head put into it.
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
from pipeline.backbones import Backbone, NonLocal
from pipeline.cache.fields import FIELDS, LABELS, is_cut
from pipeline.regions.graphs import GRAPHS, GraphOptions, graphs_of, graphs_of_tensors
from pipeline.regions.roi_align import roi_align

Norm = nn.modules.batchnorm._BatchNorm


class JointNetwork(nn.Module):
    """A backbone with a head behind it; its input are frames.

    Args:
        backbone: computes the maps.
        head: reads what a cache would hold.
        frames: which weights of the backbone are trained.
        cut: the map that is pooled and that boxes are aligned on; "" for the last stage.
        roi_pool: how boxes become nodes, "max", "mean" or "area".
        neighbours: M, nodes per row of the field `similar`.

    Attributes:
        needs: fields of `Clips` that it reads: frames, and boxes where the head wants them.
        size: how many parameters it computes with.
        trained_norms: names of the modules whose norms are trained although `frames.frozen_bn`
            freezes the others: non-local blocks that are still the identity.

    Raises:
        ValueError: `train_from` is no stage or block of the backbone, or the head continues
            another backbone.
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
        wanted = self._all_needs()
        boxes = [name for name in ("boxes", "scores", "valid", "box_class") if name in wanted]
        self.needs = ("frames", *boxes)
        self.uses = ("flip",)
        if "track" in wanted:
            # Tracks that no source gives are linked here.
            self.uses += LABELS

        upper = self.backbone_in_head
        if upper is not None:
            above, below = (upper.name, upper.options), (backbone.name, backbone.options)
            if above != below:
                raise ValueError(
                    f"the head continues {above[0]} {above[1]}, the frames go through {below[0]} "
                    f"{below[1]}: give the head the backbone and backbone_options of the extraction"
                )
        self._select_trained(frames)

    @property
    def backbone_in_head(self) -> Backbone | None:
        """The part of a backbone that the head holds; None where it holds none."""
        network = getattr(self.head, "network", None)
        return network if isinstance(network, Backbone) else None

    def _all_needs(self) -> tuple[str, ...]:
        """The head's needs, and the fields that these are computed from."""
        needs = self.head.needs
        graphs = {name for name in needs if name in FIELDS and FIELDS[name].stage == "graphs"}
        more = []
        # iou compares boxes alone, the other graphs and tracks compare features.
        if graphs - {"iou"} or "track" in needs:
            more.append("nodes")
        if graphs or "nodes" in needs or "track" in needs:
            more += ["boxes", "valid"]
        return tuple(dict.fromkeys((*needs, *more)))

    def _select_trained(self, frames: FrameOptions) -> None:
        """Require gradients of what is trained.

        That is the backbone's units from `train_from` on, and all of the head but for units of
        the backbone that lie before it.
        """
        start = first_unit(self.backbone, frames.train_from)
        units = [unit for _, unit in self.backbone.units()]
        # Units after the last cut that is read never run.
        used = max([self.backbone._position(cut) for cut in self._cuts()], default=0)
        self._trained_units, self._fixed_units = [], []
        for k, unit in enumerate(units):
            trained = start is not None and start <= k < used
            (self._trained_units if trained else self._fixed_units).append(unit)
        if self.backbone_in_head is not None:
            for k, (_, unit) in enumerate(self.backbone_in_head.units()):
                # With train_from "none" the head's own part is trained as a whole.
                trained = start is None or k >= start
                (self._trained_units if trained else self._fixed_units).append(unit)

        self.size = 0
        for module in (*units[:used], self.head):
            self.size += sum([parameter.numel() for parameter in module.parameters()])

        # Units that the head does not need stay fixed, too.
        self.backbone.requires_grad_(False)
        for unit in self._trained_units:
            unit.requires_grad_(True)
        for unit in self._fixed_units:
            unit.requires_grad_(False)
        self.trained_norms = ()
        if frames.frozen_bn:
            for unit in self._trained_units:
                for module in unit.modules():
                    if isinstance(module, Norm):
                        module.requires_grad_(False)
            self.trained_norms = self._train_fresh_blocks()

    def _train_fresh_blocks(self) -> tuple[str, ...]:
        """Let the norms of fresh non-local blocks learn; return the blocks' names.

        With a frozen scale of 0 no weight of such a block would ever move. The released code of
        non-local networks, which has no norm in these blocks where it freezes norms, starts them
        as the identity too, and trains all of them. The statistics stay 0 and 1.
        """
        fresh = []
        for unit in self._trained_units:
            for module in unit.modules():
                if isinstance(module, NonLocal) and module.is_identity:
                    module.bn.requires_grad_(True)
                    fresh.append(module)
        names = []
        for name, module in self.named_modules():
            if module in fresh:
                names.append(name)
        return tuple(names)

    def train(self, mode: bool = True) -> "JointNetwork":
        """Set training mode; fixed units and frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for unit in self._fixed_units:
            unit.eval()
        if self.frames.frozen_bn:
            for unit in self._trained_units:
                norms_in_evaluation(unit)
        return self

    def _cuts(self) -> tuple[str, ...]:
        """The cuts that are computed from the frames."""
        names = self._all_needs()
        cuts = list(filter(is_cut, names))
        if {"pooled", "nodes", "tokens"} & set(names):
            cuts.append(self.cut)
        return tuple(dict.fromkeys(cuts))

    def last_cut(self) -> str:
        """Return the last cut that is computed from the frames; "" where the head reads none."""
        return max(self._cuts(), key=self.backbone._position, default="")

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Run the backbone and the head.

        Args:
            clips: with the fields of `needs`.
            want_maps: whether the head returns its maps.

        Returns:
            What the head returns.
        """
        return self.head(self.fields(clips), want_maps)

    def fields(self, clips: Clips) -> Clips:
        """Compute the fields that the head needs, as a cache would hold them.

        Args:
            clips: with the fields of `needs`.

        Returns:
            The fields, in float32 or in autocast's dtype.
        """
        names = self._all_needs()
        prepared, tokens = self.backbone.prepare(clips.get("frames")), None
        if "tokens" in names:
            maps, tokens = self.backbone.maps_with_tokens(prepared, self._cuts(), self.cut)
        else:
            maps = self.backbone.maps(prepared, self._cuts())
        # The backbone computes [B,C,T,h,w]; a cache stores [B,T,C,h,w].
        stored = {name: maps[name].transpose(1, 2) for name in filter(is_cut, names)}
        found = replace(clips, frames=None, tokens=tokens, maps=stored)
        if "pooled" in names:
            found.pooled = maps[self.cut].float().mean((-2, -1)).transpose(1, 2)
        if "nodes" in names:
            boxes, valid = clips.get("boxes"), clips.get("valid")
            found.nodes = roi_align(maps[self.cut], boxes, valid, pool=self.roi_pool)
        for name, tensor in self._graphs(found).items():
            setattr(found, name, tensor)
        return found

    @torch.no_grad()
    def _graphs(self, clips: Clips) -> dict[str, Tensor]:
        """The graphs that the head needs; as in a cache, no gradient goes through them."""
        which = []
        for name, fields in GRAPHS.items():
            if not set(fields).isdisjoint(self.head.needs):
                which.append(name)
        tracks = "track" in self.head.needs and clips.track is None
        if not which and not tracks:
            return {}

        # Stage two's own code makes the graphs, where the network computes, so that they equal the
        # cached ones.
        given = {}
        for name in ("boxes", "valid", "nodes", "box_class"):
            tensor = getattr(clips, name)
            if tensor is not None:
                given[name] = tensor.detach()

        found: dict[str, Tensor] = {}
        if which:
            found = graphs_of_tensors(given, GraphOptions(tuple(which), self.neighbours))
        if tracks:
            # Boxes are linked by scipy, on the CPU.
            arrays = {name: tensor.cpu().numpy() for name, tensor in given.items()}
            linked = graphs_of(arrays, GraphOptions((), self.neighbours, tracks=True))["track"]
            found["track"] = torch.from_numpy(linked).to(clips.boxes.device)
        for name, tensor in found.items():
            # Indices are small integers, which torch cannot index with.
            found[name] = tensor if tensor.is_floating_point() else tensor.long()
        return found

    def checkpoint_activations(self) -> None:
        """Recompute activations of trained units in the backward pass instead of keeping them."""
        for unit in self._trained_units:
            recompute_in_backward(unit)

    def split(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split a state dict of this network.

        Args:
            state: by this network's names.

        Returns:
            (the head's, the backbone's), under their own names. Units of the backbone that the
            head holds have the head's weights in both.
        """
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "backbone": {}}
        for name, tensor in state.items():
            part, _, inner_name = name.partition(".")
            parts[part][inner_name] = tensor
        if self.backbone_in_head is not None:
            for name in self.backbone_in_head.state_dict():
                if name in parts["backbone"]:
                    parts["backbone"][name] = parts["head"][f"network.{name}"]
        return parts["head"], parts["backbone"]

    @staticmethod
    def join(head: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join the two state dicts of `split` into one of this network."""
        state = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
        state.update({f"head.{name}": tensor for name, tensor in head.items()})
        return state


def first_unit(backbone: Backbone, train_from: str) -> int | None:
    """Return the number of the backbone's first trained unit.

    Args:
        backbone: the backbone.
        train_from: "none", "stem", or a stage or block such as "res4" or "res4.3".

    Returns:
        The number of the unit; None for "none".

    Raises:
        ValueError: a name that is no stage or block.
    """
    if train_from == "none":
        return None
    if train_from == "stem":
        return 0
    for k, (names, _) in enumerate(backbone.units()):
        for name in names:
            if name == train_from or name.startswith(f"{train_from}."):
                return k

    stages = dict.fromkeys(("none", "stem", *backbone.stages))
    blocks = [cut for cut in backbone.cuts() if "." in cut]
    example = blocks[0] if blocks else backbone.last
    raise ValueError(
        f"train_from {train_from!r} (--train-from): expected one of {', '.join(stages)}, or a "
        f"block of {backbone.name} such as {example}; stem trains all of the backbone"
    )


def recompute_in_backward(module: nn.Module) -> None:
    """Make a module that returns a tensor keep only its input for the backward pass."""
    forward = module.forward

    def contexts() -> tuple:
        return nullcontext(), _no_statistics(module)

    # A block of another library may take more than its input, such as positions.
    def checkpointed(*inputs, **options) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        # The reentrant form needs an input that requires a gradient, which frames do not.
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    module.forward = checkpointed


@contextmanager
def _no_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms compute as in training without updating their statistics.

    The second forward pass would otherwise count a batch twice.
    """
    # A module that was inserted after a convolution is not among its submodules.
    parts = [module]
    for conv in module.modules():
        after = getattr(conv, "after", None)
        if after is not None:
            parts.append(after[0][after[1]])

    saved = []
    for part in parts:
        for norm in part.modules():
            if isinstance(norm, Norm) and norm.training and norm.track_running_stats:
                saved.append((norm, norm.momentum, norm.num_batches_tracked.clone()))
    # running = (1 - momentum) running + momentum batch
    for norm, _, _ in saved:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def joint_dims(
    backbone: Backbone,
    frames: int,
    size: int,
    cut: str = "",
    boxes: int = 0,
    box_classes: int = 0,
) -> Dims:
    """Return the sizes that a head reads behind a backbone; every cut is available.

    Args:
        backbone: the backbone.
        frames: F, frames per view.
        size: side of the square frames, pixels.
        cut: as in `JointNetwork`.
        boxes: N, boxes per step.
        box_classes: how many classes boxes have.

    Returns:
        The sizes.
    """
    cut = cut or backbone.last
    maps = {}
    for name in backbone.cuts():
        maps[name] = (backbone.channels(name), *backbone.grid(name, (size, size)))
    steps, channels = backbone.steps(frames, cut), backbone.channels(cut)
    return Dims(steps, boxes, channels, maps, box_classes)
