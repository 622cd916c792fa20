"""End to end: frames -> backbone -> RoIAlign -> head, from where a head and its frozen backbone
stopped, or from scratch.

    recipe, phase = frames_phase(read_recipe("gos_table1"), "joint")
    finetune(recipe, "runs/gos_table1-seed0", phase, cache=Cache("cache"))

With a cache the backbone, its weights, the views and the boxes are the cache's, and before the
first mini-batch the logits from the frames are compared with those from the cache. Without one an
`ExtractConfig` says what they are: the phase that trains a backbone comes before any cache. The
loop and the run folder: heads/finetuning/end_to_end.py. The frames:
heads/finetuning/video_views.py.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heads.config.recipe import PLAIN, Recipe, command_of
from heads.config.recipe_tables import Phase
from heads.data.splits import cache_dims, print_excluded
from heads.evaluation.saved_heads import require_same_backbone
from heads.finetuning.agreement import compare
from heads.finetuning.data_parallel import ProcessGroup, joined
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.frame_training import FrameRunOptions, new_network
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.finetuning.video_views import BOXES, PlannedCache, VideoViews
from heads.interface.clips import Dims, MissingFields
from heads.interface.loss import device_for
from heads.runs import run_files as runs
from heads.runs.manifest_record import warn_if_seen
from heads.runs.start_weights import checkpoint_of, take_weights
from heads.training.study import Result, Study
from heads.zoo import build_head
from pipeline.backbones import Backbone, build_backbone
from pipeline.cache.fields import FIELDS, is_cut
from pipeline.manifests.manifest import Manifest
from pipeline.networks.memory_format import lay_out
from pipeline.stages.config import ExtractConfig, clip_opener
from pipeline.stages.extract import decoders_for
from pipeline.stages.frozen_networks import backbone_of, source_of
from pipeline.stages.repair import MovedFiles, as_extracted
from pipeline.stages.shard_composer import RunOptions
from pipeline.workers.cores import cores_here
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


@dataclass(frozen=True)
class SourceOptions:
    """Where frames and views come from.

    `fresh`: every epoch draws new training views, in place of those of the cache (None: where there
    is no cache). `moved`: where the files of the cache's extraction are now. `workers`: decode
    processes (None: what suits the device); `time_limit`: seconds for a clip. `check`: compare live
    and cached logits first.
    """

    fresh: bool | None = None
    moved: MovedFiles = field(default_factory=MovedFiles)
    workers: int | None = None
    time_limit: float = 120.0
    check: bool = True


def frames_phase(recipe: Recipe, name: str = "", **frames: Any) -> tuple[Recipe, Phase]:
    """(the recipe, its phase `name` or first phase that reads frames), with fields of `Frames`
    replaced by those in `frames`.

    A recipe without phases becomes one of a single phase that reads frames. ValueError for a phase
    that reads the cache.
    """
    if not recipe.phases:
        if name not in ("", PLAIN):
            recipe.phase(name)
        recipe = replace(recipe, train=None, phases=(Phase(PLAIN, recipe.train, reads="frames"),))
    there = [phase for phase in recipe.phases if phase.reads == "frames"]
    phase = recipe.phase(name) if name else next(iter(there), None)
    if phase is None or phase.reads != "frames":
        which = (
            f"phase {phase.name} of recipe {recipe.name} reads"
            if phase
            else f"the phases of recipe {recipe.name} read"
        )
        raise ValueError(f"{which} the cache: run `{command_of(recipe, phase)}`")
    changed = replace(phase, frames=replace(phase.frames, **frames))
    phases = tuple(changed if one.name == phase.name else one for one in recipe.phases)
    return replace(recipe, phases=phases), changed


def finetune(
    recipe: Recipe,
    folder: Path | str,
    phase: Phase,
    *,
    cache: "Cache | None" = None,
    config: ExtractConfig | None = None,
    manifest: Manifest | None = None,
    start: Path | None = None,
    reading: SourceOptions | None = None,
    how: FrameRunOptions | None = None,
    device: str = "auto",
    say: PrintLine = print,
) -> Result:
    """Trains a phase of `recipe` that reads frames (see `frames_phase`) and evaluates it on val and
    test.

    Either `cache`, or `config` and `manifest`. Labels and splits come from `manifest`, by default
    the cache's copy. `start`: a run's folder or checkpoint whose weights the head starts with (and
    the backbone, where the run trained it); by default the phase before in `folder`, if the phase
    starts from one. ValueError, before the first step, for whatever does not agree.
    """
    how, reading = how or FrameRunOptions(), reading or SourceOptions()
    if reading.fresh is None:
        reading = replace(reading, fresh=cache is None)
    if (cache is None) == (config is None) or (cache is None and manifest is None):
        raise ValueError(
            "expected either a cache, or a configuration of an extraction and a manifest"
        )
    with joined(device_for(device, how.precision)) as (world, where):
        made = _Setup(recipe, phase, cache, config, manifest, reading, how, where)
        say = say if world.first else _silent
        if not (Path(folder) / "last.pt").exists():
            made.check_start(start, Path(folder))  # before there is a folder
        for part in made.parts.values():
            print_excluded(part, say)
        with made.footage(world) as source:
            return train_frames(
                recipe,
                folder,
                made.network,
                source,
                made.classes,
                how,
                phase=phase.name,
                world=world,
                say=say,
                about=made.about(start),
                reading={"fresh": reading.fresh},
                noted={} if cache is None else {"cache": str(cache.path.resolve())},
                begin=lambda network: made.begin(network, start, Path(folder), source, say),
            )


class _Setup:
    """What a call of `finetune` is about, put together: configuration, splits, network."""

    def __init__(
        self,
        recipe: Recipe,
        phase: Phase,
        cache: "Cache | None",
        config: ExtractConfig | None,
        manifest: Manifest | None,
        reading: SourceOptions,
        how: FrameRunOptions,
        device: torch.device,
    ):
        self.whole, self.phase, self.recipe = recipe, phase, recipe.of(phase)
        self.cache, self.reading, self.how, self.device = cache, reading, how, device
        own = manifest
        if cache is not None:
            config, own, _ = as_extracted(cache.path, RunOptions(), reading.moved)
        self.config = _with_boxes(config, _needs_boxes(self.recipe, config), cache is None)
        self.manifest = manifest or own
        self.clips = {clip.clip: clip for clip in own.clips}
        self.root = own.root
        self.backbone = self._backbone()
        self.source = source_of(self.config, device) if reading.fresh or cache is None else None
        self.dims, self.live = self._dims()
        place = cache or PlannedCache(str(self.manifest.path), self.manifest, config.sampling)
        self.study = study = Study(
            place, self.manifest, self.dims, device, how.precision, how.order_seed
        )
        self.classes = study.classes(self.recipe)
        self.parts = study.split(self.recipe, self.classes)
        self.network = self._network()

    def _backbone(self) -> Backbone:
        """The backbone with the weights that the cache was extracted with."""
        backbone = backbone_of(self.config)
        found = backbone.weights_sha256 or "none"
        if self.cache is not None and found != (wanted := self.cache.config["weights"]):
            raise ValueError(
                f"weights {self.config.weights}: not those that {self.cache.path} was extracted "
                f"with (SHA-256 {found[:12]}, "
                f"there {wanted[:12]}); pass --weights with that file"
            )
        return backbone

    def _dims(self) -> tuple[Dims, Dims]:
        """The sizes that the run remembers, which are the cache's where it has all that the head
        needs, and those of frames.
        """
        sampling, boxes = self.config.sampling, 0
        stored = None if self.cache is None else cache_dims(self.cache)
        if self.config.wants_boxes:
            boxes = stored.N if stored is not None else self.source.num_boxes
        live = joint_dims(self.backbone, sampling.frames, sampling.size, self.config.cut, boxes)
        return (stored or live), live

    def _network(self) -> JointNetwork:
        options = {
            "cut": self.config.cut,
            "roi_pool": self.config.roi_pool,
            "neighbours": _neighbours(self.cache),
        }
        try:
            build = (self.backbone, self.live, len(self.classes), self.how.seed, self.phase.frames)
            network = new_network(self.recipe, *build, **options)
        except MissingFields as error:
            raise ValueError(
                f"head {self.recipe.head.name} needs {', '.join(error.names)}: the cache has no "
                f"boxes, or {self.backbone.name} "
                "no such cut"
            ) from None
        if self.cache is not None:
            group = self.cache["train"]
            if not all(
                name in group.fields
                for name in network.head.needs
                if is_cut(name) or name in FIELDS
            ):
                self.dims = self.live
        lay_out(network.backbone, self.device)
        return network.to(self.device)

    def footage(self, world: ProcessGroup) -> VideoViews:
        """The frames; its decode processes start with the first view."""
        workers = self.reading.workers
        if workers is None:
            workers = decoders_for(self.device.type, cores_here() // world.local)
        return VideoViews(
            self.config,
            self.parts,
            self.clips,
            clip_opener(self.root, self.config),
            self.backbone.steps(self.config.sampling.frames, self.config.cut or self.backbone.last),
            cache=self.cache,
            source=self.source,
            fresh=self.reading.fresh,
            device=self.device,
            workers=workers,
            time_limit=self.reading.time_limit,
        )

    def about(self, start: Path | None) -> dict[str, Any]:
        """What makes this run another than others, beside the recipe and the seeds; as
        heads/training/training_run.py has it.
        """
        if self.cache is not None:
            about = {"fingerprint": self.cache.fingerprint, "config": self.cache.config}
        else:
            boxes = self.source.weights_sha256 if self.source else ""
            config = json.loads(
                json.dumps(self.config.computed(self.backbone.weights_sha256, boxes))
            )
            for name in (
                "fresh",
                "inflate",
            ):  # say how weights were loaded; the network is the same without them
                config["backbone_options"].pop(name, None)
            text = json.dumps([config, self.manifest.sha256], sort_keys=True)
            about = {"fingerprint": hashlib.sha256(text.encode()).hexdigest(), "config": config}
        about = {"dims": self.dims.as_dict(), "manifest": self.study.manifest_record, **about}
        return about if start is None else {**about, "start": str(start)}

    def begin(
        self,
        network: JointNetwork,
        start: Path | None,
        folder: Path,
        source: VideoViews,
        say: PrintLine,
    ) -> None:
        """Before the first mini-batch: the weights to start with, and whether the frames give what
        the cache gives.
        """
        moved = False
        if (path := self.check_start(start, folder)) is not None:
            saved = runs.load_checkpoint(path)
            say(take_weights(network.head, path, self.phase))
            warn_if_seen(path, saved["about"].get("manifest"), self.manifest, say)
            if "backbone" in saved:
                moved = self._take_backbone(network, path, saved["backbone"], say)
        if self.cache is None:
            say("no cache: no logits to compare with")
        elif not self.reading.check:
            say("live and cached logits are not compared (--no-check)")
        elif moved:
            say(
                f"{self.cache.path} was extracted before the backbone of {path} was trained: no "
                f"logits to compare with"
            )
        else:
            say(compare(network, self.cache, source, self.parts["train"]))

    def _take_backbone(
        self, network: JointNetwork, path: Path, state: Mapping[str, torch.Tensor], say: PrintLine
    ) -> bool:
        """Takes a trained backbone over; whether it is another one than the cache's."""
        before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
        try:
            network.backbone.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{path}: a backbone of other options: {str(error).splitlines()[-1].strip()}"
            ) from None
        if all(
            tensor.equal(before[name]) for name, tensor in network.backbone.state_dict().items()
        ):
            return False
        say(f"the backbone starts with the weights of {path}")
        return self.cache is not None

    def check_start(self, start: Path | None, folder: Path) -> Path | None:
        """The checkpoint that the phase starts from, if any; ValueError where it is not there, or
        of another backbone than the cache."""
        path = self._start(start, folder)
        if path is not None:
            saved = runs.load_checkpoint(path)
            if self.cache is not None:
                require_same_backbone(saved["about"]["config"], self.cache)
        return path

    def _start(self, start: Path | None, folder: Path) -> Path | None:
        """The checkpoint that the phase starts from, if any."""
        if start is not None:
            return checkpoint_of(start)
        if self.phase.start != "previous":
            return None
        names = [one.name for one in self.whole.phases]
        previous = self.whole.phases[names.index(self.phase.name) - 1]
        path = folder / f"{previous.name}.pt"
        if not path.exists():
            raise ValueError(
                f"phase {self.phase.name} starts from phase {previous.name}, which {folder} does "
                f"not hold: train it there "
                "first, or name a run with --start"
            )
        return path


def _needs_boxes(recipe: Recipe, config: ExtractConfig) -> bool:
    """Whether the head of a recipe of one phase reads boxes, or what is computed from them."""
    sampling, boxes = config.sampling, config.proposal_options.get("num_boxes", 10)
    with torch.device("meta"):  # no memory, no random numbers
        backbone = build_backbone(config.backbone, **config.backbone_options)
        dims = joint_dims(backbone, sampling.frames, sampling.size, config.cut, boxes)
        options = {key: value for key, value in recipe.head.options.items() if key != "weights"}
        needs = build_head(recipe.head.name, dims, 2, **options).needs
    return any({"N", "M"} & set(FIELDS[name].dims) for name in needs if name in FIELDS)


def _with_boxes(config: ExtractConfig, needed: bool, planned: bool) -> ExtractConfig:
    """The configuration as far as it is worked through: without boxes where none are needed, with
    them where they are and no cache has decided against them (it is only `planned`)."""
    if needed:
        return replace(config, keep=("nodes",)) if planned else config
    return replace(
        config,
        keep=tuple(name for name in config.keep if name not in (*BOXES, "nodes")) or ("pooled",),
    )


def _neighbours(cache: "Cache | None") -> int:
    """M of the cache's similarity graph; what stage two takes by default where there is none."""
    group = None if cache is None else cache["train"]
    return group.shape("similar")[-1] if group is not None and "similar" in group.fields else 10


def _silent(line: str) -> None:
    """Says nothing."""
