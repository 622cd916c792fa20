"""Fine-tune end to end: frames -> backbone -> RoIAlign -> head.

    recipe, phase = frames_phase(read_recipe("gos_table1"), "joint")
    finetune(recipe, "runs/gos_table1-seed0", phase, cache=Cache("cache"))

With a cache, the backbone, its weights, the views and the boxes are the cache's. Before the first
mini-batch the logits from the frames are compared with those from the cache. Without one, an
`ExtractConfig` names them: the phase that trains a backbone comes before any cache.

heads/finetuning/frames_run.py has the loop and the run folder, heads/finetuning/video_views.py the
frames.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heads.config.recipe import PLAIN, Recipe, command_of, recipe_from
from heads.config.recipe_tables import PLAIN_BACKBONE_LR, FrameOptions, Phase
from heads.data.splits import cache_dims, print_excluded
from heads.evaluation.saved_heads import require_same_backbone
from heads.finetuning.agreement import check_agreement
from heads.finetuning.data_parallel import ProcessGroup, join_processes
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.frame_training import FrameRunOptions, new_network
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.finetuning.video_views import BOXES, PlannedCache, VideoViews
from heads.interface.clips import Dims, MissingFields
from heads.interface.loss import device_for
from heads.interface.run_records import RUN
from heads.runs import run_files as runs
from heads.runs.manifest_record import warn_if_seen
from heads.runs.start_weights import checkpoint_of, other_classifier, take_weights
from heads.training.study import Result, Study
from heads.zoo import LAST, build_head
from pipeline.backbones import Backbone, build_backbone
from pipeline.cache.asked import extraction_record
from pipeline.cache.fields import FIELDS, is_cut
from pipeline.manifests.manifest import Manifest
from pipeline.networks.memory_format import lay_out
from pipeline.stages.config import ExtractConfig, clip_opener
from pipeline.stages.frozen_networks import (
    backbone_of,
    backbone_of_cache,
    labels_of,
    source_of,
)
from pipeline.stages.jobs import decoders_for
from pipeline.stages.repair import MovedFiles, as_extracted
from pipeline.stages.shard_composer import RunOptions
from pipeline.workers.cores import cores_here
from pipeline.workers.waiting import PrintLine, print_nothing

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache

# M of the similarity graph where no cache says it: the default of `vidgraph graphs`.
NEIGHBOURS = 10


@dataclass(frozen=True)
class SourceOptions:
    """Where frames and views come from.

    Attributes:
        fresh: whether every epoch draws new training views instead of the cache's; None for new
            ones where there is no cache.
        moved: where the files of the cache's extraction are now.
        workers: decode processes; None for what suits the device.
        time_limit: seconds for a clip.
        check: whether logits from the frames are first compared with those from the cache.
    """

    fresh: bool | None = None
    moved: MovedFiles = field(default_factory=MovedFiles)
    workers: int | None = None
    time_limit: float = 120.0
    check: bool = True


def frames_phase(recipe: Recipe, name: str = "", **frames: Any) -> tuple[Recipe, Phase]:
    """Find the phase of a recipe that reads frames.

    Args:
        recipe: the whole recipe. One without phases becomes one of a single phase that reads
            frames, in which the backbone learns at a tenth of the head's rate.
        name: of the phase; "" for the first that reads frames.
        **frames: values to replace in the phase's `FrameOptions`.

    Returns:
        (the recipe with the replaced values, the phase).

    Raises:
        ValueError: no such phase, or it reads the cache.
    """
    if not recipe.phases:
        if name not in ("", PLAIN):
            # Raises the error for a phase that the recipe does not have.
            recipe.phase(name)
        own = FrameOptions(backbone_lr=PLAIN_BACKBONE_LR)
        only = Phase(PLAIN, recipe.train, reads="frames", frames=own)
        recipe = replace(recipe, train=None, phases=(only,))

    if name:
        phase = recipe.phase(name)
    else:
        phase = next((one for one in recipe.phases if one.reads == "frames"), None)
    if phase is None or phase.reads != "frames":
        which = f"the phases of recipe {recipe.name} read"
        if phase is not None:
            which = f"phase {phase.name} of recipe {recipe.name} reads"
        raise ValueError(f"{which} the cache: run `{command_of(recipe, phase)}`")

    changed = replace(phase, frames=replace(phase.frames, **frames))
    phases = list(recipe.phases)
    phases[recipe.phases.index(phase)] = changed
    return replace(recipe, phases=tuple(phases)), changed


def finetune(
    recipe: Recipe,
    folder: Path | str,
    phase: Phase,
    *,
    cache: "Cache | None" = None,
    config: ExtractConfig | None = None,
    manifest: Manifest | None = None,
    start: Path | None = None,
    source_options: SourceOptions | None = None,
    options: FrameRunOptions | None = None,
    device: str = "auto",
    say: PrintLine = print,
) -> Result:
    """Train a phase of a recipe from frames and evaluate it on val and test.

    Args:
        recipe: the whole recipe.
        folder: of the run.
        phase: the phase to train (see `frames_phase`).
        cache: the cache whose views and backbone are trained on.
        config: of an extraction; in place of a cache, with `manifest`.
        manifest: labels and splits; None for the cache's copy.
        start: a run's folder or checkpoint. The head starts with its weights, and so does the
            backbone where the run trained it. None: the phase before, if the phase starts from
            one.
        source_options: where frames and views come from; None for the defaults.
        options: how the run works; None for the defaults.
        device: "auto", "cpu", "cuda" or "cuda:N".
        say: prints a line.

    Returns:
        The result.

    Raises:
        ValueError: recipe, cache, videos and weights do not agree; raised before the first step.
    """
    options, source_options = options or FrameRunOptions(), source_options or SourceOptions()
    if source_options.fresh is None:
        source_options = replace(source_options, fresh=cache is None)
    if (cache is None) == (config is None) or (cache is None and manifest is None):
        raise ValueError(
            "expected a cache, or else a configuration of an extraction and a manifest"
        )

    folder = Path(folder)
    with join_processes(device_for(device, options.precision)) as (processes, own_device):
        if not processes.first:
            say = print_nothing
        if options.resume:
            recipe, phase = _as_it_began(recipe, phase, folder, say)
        setup = _Setup(recipe, phase, cache, config, manifest, source_options, options, own_device)
        # Before there is a folder, so that a wrong start leaves none.
        if not (folder / "last.pt").exists():
            setup.check_start(start, folder)
        for part in setup.parts.values():
            print_excluded(part, say)

        with setup.video_views(processes, say) as source:

            def begin(network: JointNetwork) -> None:
                setup.begin(network, start, folder, source, say)

            return train_frames(
                recipe,
                folder,
                setup.network,
                source,
                setup.classes,
                options,
                phase=phase.name,
                processes=processes,
                say=say,
                about=setup.about(start),
                conditions={"fresh": source_options.fresh},
                notes=setup.notes(),
                begin=begin,
            )


def _as_it_began(
    recipe: Recipe, phase: Phase, folder: Path, say: PrintLine
) -> tuple[Recipe, Phase]:
    """Recipe and phase with the backbone's learning rate of the run in `folder`.

    Earlier versions trained the backbone of a recipe without phases at the head's own rate. Such a
    run goes on as it began.
    """
    path = folder / "run.json"
    if phase.name != PLAIN or phase.frames.backbone_lr != PLAIN_BACKBONE_LR or not path.exists():
        return recipe, phase
    before = recipe_from(runs.read_json(path, RUN)["recipe"], str(folder))
    of_all = FrameOptions().backbone_lr
    if [one.frames.backbone_lr for one in before.phases if one.name == PLAIN] != [of_all]:
        return recipe, phase
    say(f"{folder}: the backbone goes on with the head's learning rate, as the run began")
    phase = replace(phase, frames=replace(phase.frames, backbone_lr=of_all))
    return replace(recipe, phases=(phase,)), phase


class _Setup:
    """Configuration, splits and network of one call of `finetune`."""

    def __init__(
        self,
        recipe: Recipe,
        phase: Phase,
        cache: "Cache | None",
        config: ExtractConfig | None,
        manifest: Manifest | None,
        source_options: SourceOptions,
        options: FrameRunOptions,
        device: torch.device,
    ):
        self.whole, self.phase, self.recipe = recipe, phase, recipe.of(phase)
        self.cache, self.source_options = cache, source_options
        self.options, self.device = options, device

        # The videos are those of the extraction; labels and splits may be another manifest's.
        extracted = manifest
        if cache is not None:
            config, extracted, _ = as_extracted(cache.path, RunOptions(), source_options.moved)
        self.config = _with_boxes(config, _needs_boxes(self.recipe, config), cache is None)
        self.manifest = manifest or extracted
        self.clips = {clip.clip: clip for clip in extracted.clips}
        self.root = extracted.root

        self.backbone = self._backbone()
        self.source = None
        if source_options.fresh or cache is None:
            self.source = source_of(self.config, device)
        self.dims, self.frame_dims = self._dims()

        views = cache or PlannedCache(str(self.manifest.path), self.manifest, config.sampling)
        self.study = Study(
            views, self.manifest, self.dims, device, options.precision, options.order_seed
        )
        self.classes = self.study.classes(self.recipe)
        self.parts = self.study.split(self.recipe, self.classes)
        self.network = self._network()

    def _backbone(self) -> Backbone:
        """The backbone with the weights of the extraction."""
        if self.cache is None:
            return backbone_of(self.config)
        return backbone_of_cache(self.config, self.cache)

    def _dims(self) -> tuple[Dims, Dims]:
        """Two sets of sizes: those that the run records, and those of frames.

        The recorded ones are the cache's, where there is one.
        """
        sampling, boxes = self.config.sampling, 0
        stored = None if self.cache is None else cache_dims(self.cache)
        box_classes = 0 if stored is None else stored.box_classes
        if self.config.wants_boxes:
            boxes = self.source.num_boxes if stored is None else stored.N
            if stored is None and "box_class" in labels_of(self.source, self.config):
                box_classes = len(self.source.class_names)
        frames = joint_dims(
            self.backbone, sampling.frames, sampling.size, self.config.cut, boxes, box_classes
        )
        return (stored or frames), frames

    def _network(self) -> JointNetwork:
        """The network, on its device."""
        group = None if self.cache is None else self.cache["train"]
        neighbours = NEIGHBOURS
        if group is not None and "similar" in group.fields:
            neighbours = group.shape("similar")[-1]
        try:
            network = new_network(
                _with_cut_of(self.recipe, self.dims),
                self.backbone,
                self.frame_dims,
                len(self.classes),
                self.options.seed,
                self.phase.frames,
                cut=self.config.cut,
                roi_pool=self.config.roi_pool,
                neighbours=neighbours,
            )
        except MissingFields as error:
            raise ValueError(
                f"head {self.recipe.head.name} needs {', '.join(error.names)}: the cache has no "
                f"boxes, or {self.backbone.name} no such cut"
            ) from None

        # A cache that lacks what the head reads cannot evaluate it, so its sizes do not count.
        if group is not None:
            for name in network.head.needs:
                if name not in group.fields and (is_cut(name) or name in FIELDS):
                    self.dims = self.frame_dims
        # Memory formats that suit the device, before the network moves there.
        lay_out(network.backbone, self.device)
        return network.to(self.device)

    def video_views(self, processes: ProcessGroup, say: PrintLine) -> VideoViews:
        """The source of frames; its decode processes start with the first view."""
        workers = self.source_options.workers
        if workers is None:
            cores = cores_here() // processes.local_size
            workers = decoders_for(self.device.type, cores)
        cut = self.config.cut or self.backbone.last
        return VideoViews(
            self.config,
            self.parts,
            self.clips,
            clip_opener(self.root, self.config),
            self.backbone.steps(self.config.sampling.frames, cut),
            cache=self.cache,
            source=self.source,
            fresh=self.source_options.fresh,
            device=self.device,
            workers=workers,
            time_limit=self.source_options.time_limit,
            say=say,
        )

    def about(self, start: Path | None) -> dict[str, Any]:
        """What tells this run from others, as heads/training/training_run.py records it."""
        if self.cache is not None:
            fingerprint, config = self.cache.fingerprint, self.cache.config
        else:
            boxes_sha256 = self.source.weights_sha256 if self.source else ""
            computed = self.config.computed(
                self.backbone.weights_sha256, boxes_sha256, self.backbone.version
            )
            # Tuples become lists, as in what run.json gives back.
            config = json.loads(json.dumps(computed))
            # These say how weights were loaded. The network is the same without them.
            for name in ("fresh", "inflate"):
                config["backbone_options"].pop(name, None)
            text = json.dumps([config, self.manifest.sha256], sort_keys=True)
            fingerprint = hashlib.sha256(text.encode()).hexdigest()

        about = {
            "dims": self.dims.as_dict(),
            "manifest": self.study.manifest_record,
            "fingerprint": fingerprint,
            "config": config,
        }
        if start is not None:
            about["start"] = str(start)
        return about

    def notes(self) -> dict[str, Any]:
        """Further entries of run.json: the cache, and how its features were made."""
        if self.cache is None:
            return {"extraction": {"asked": self.config.as_asked()}}
        # As the cache was made, but with the files where they are now.
        record = extraction_record(self.cache.path)
        asked = self.config.as_asked() | {"keep": record["asked"]["keep"]}
        return {
            "cache": str(self.cache.path.resolve()),
            "extraction": {**record, "asked": asked},
        }

    def begin(
        self,
        network: JointNetwork,
        start: Path | None,
        folder: Path,
        source: VideoViews,
        say: PrintLine,
    ) -> None:
        """Load the start weights, then compare frames and cache; before the first mini-batch."""
        other_backbone = False
        if self.phase.name == PLAIN and self.phase.frames.train_from == "none":
            say(
                f"the backbone stays frozen; --train-from {network.backbone.last} trains its last "
                f"stage, --train-from stem all of it"
            )
        path = self.check_start(start, folder)
        if path is None:
            self._say_random(say)
        else:
            saved = runs.load_checkpoint(path)
            choice = self.recipe.head
            other = other_classifier(path, network.head, choice, self.frame_dims, self.classes)
            say(take_weights(network.head, path, self.phase, other))
            warn_if_seen(path, saved["about"].get("manifest"), self.manifest, say)
            if "backbone" in saved:
                other_backbone = self._load_backbone(network, path, saved["backbone"], say)

        if self.cache is None:
            say("no cache: no logits to compare with")
        elif not self.source_options.check:
            say("logits from the frames and from the cache are not compared (--no-check)")
        elif other_backbone:
            say(
                f"{self.cache.path} was extracted before the backbone of {path} was trained: no "
                "logits to compare with"
            )
        else:
            say(check_agreement(network, self.cache, source, self.parts["train"]))

    def _say_random(self, say: PrintLine) -> None:
        """Print what starts from random weights."""
        say("the head starts from random weights; --start RUN starts it from a trained one")
        frames = self.phase.frames
        random = (self.config.weights or "none") == "none"
        if random and frames.train_from != "none" and frames.backbone_lr < 1:
            say(
                f"the backbone starts from random weights too, and learns at "
                f"{frames.backbone_lr:g} of the head's rate; --backbone-lr 1 trains both alike"
            )

    def _load_backbone(
        self, network: JointNetwork, path: Path, state: Mapping[str, torch.Tensor], say: PrintLine
    ) -> bool:
        """Load a trained backbone; return whether it differs from the cache's."""
        # Whether the weights change decides if the cache can still be compared with.
        before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
        try:
            network.backbone.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{path}: a backbone of other options: {reason}") from None

        after = network.backbone.state_dict()
        if all(tensor.equal(before[name]) for name, tensor in after.items()):
            return False
        say(f"the backbone starts with the weights of {path}")
        return self.cache is not None

    def check_start(self, start: Path | None, folder: Path) -> Path | None:
        """The checkpoint that the phase starts from, if any.

        ValueError where it does not exist, or belongs to another backbone than the cache's.
        """
        path = self._start_path(start, folder)
        if path is not None and self.cache is not None:
            saved = runs.load_checkpoint(path)
            require_same_backbone(saved["about"]["config"], self.cache)
        return path

    def _start_path(self, start: Path | None, folder: Path) -> Path | None:
        if start is not None:
            return checkpoint_of(start)
        if self.phase.start != "previous":
            return None
        names = [one.name for one in self.whole.phases]
        previous = names[names.index(self.phase.name) - 1]
        path = folder / f"{previous}.pt"
        if not path.exists():
            raise ValueError(
                f"phase {self.phase.name} starts from phase {previous}, which {folder} does not "
                "hold: train it there first, or name a run with --start"
            )
        return path


def _with_cut_of(recipe: Recipe, dims: Dims) -> Recipe:
    """Return a recipe whose head reads the last map of these views, where it leaves that open.

    Frames would give every map of the backbone, also those that the cache does not hold.
    """
    head = recipe.head
    if head.options.get("cut") != LAST or not dims.maps:
        return recipe
    return replace(recipe, head=replace(head, options={**head.options, "cut": dims.last_cut}))


def _needs_boxes(recipe: Recipe, config: ExtractConfig) -> bool:
    """Whether the head of a recipe of one phase reads boxes, or what is computed from them."""
    sampling, boxes = config.sampling, config.proposal_options.get("num_boxes", 10)
    # The meta device takes no memory and draws no random numbers.
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, **config.backbone_options)
        # Heads that read classes of boxes are asked for their needs, too.
        dims = joint_dims(backbone, sampling.frames, sampling.size, config.cut, boxes, 1)
        # Only the names of the fields matter, so no weights are read.
        options = {key: value for key, value in recipe.head.options.items() if key != "weights"}
        needs = build_head(recipe.head.name, dims, 2, **options).needs
    # A field with an axis of boxes, or of their neighbours, is made from boxes.
    axes = [set(FIELDS[name].dims) for name in needs if name in FIELDS]
    return any(names & {"N", "M"} for names in axes)


def _with_boxes(config: ExtractConfig, needed: bool, planned: bool) -> ExtractConfig:
    """The configuration without boxes where none are needed.

    With boxes where they are, if the cache is only planned: an existing cache has already decided.
    """
    if needed:
        return replace(config, keep=("nodes",)) if planned else config
    kept = tuple([name for name in config.keep if name not in (*BOXES, "nodes")])
    return replace(config, keep=kept or ("pooled",))
