"""Check the rows of a study that is trained from frames, before anything is trained."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from heads.config.recipe import Recipe
from heads.config.recipe_tables import Phase
from heads.config.study_file import StudyPlan, StudyRow
from heads.config.study_keys import EXTRACT
from heads.evaluation.counting import count_backbone, count_head
from heads.finetuning.finetune import SourceOptions, frames_phase
from heads.finetuning.frame_training import training_of_all_weights
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.finetuning.video_views import PlannedCache
from heads.training.cache_conditions import require_same_extraction
from heads.training.optimisers import Optimisers
from heads.training.study import Study, one_line
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.manifests.manifest import Manifest
from pipeline.stages.config import ExtractConfig, with_settings
from pipeline.stages.repair import as_extracted
from pipeline.stages.shard_composer import RunOptions
from pipeline.text.counted import counted

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


@dataclass(frozen=True)
class FramesRow:
    """A row of a study that can be trained from frames.

    Attributes:
        row: as the study has it.
        recipe: its recipe, with the options of frames that were given beside the study.
        phase: the phase to train.
        config: the extraction whose views and networks are trained on; None with a cache.
        macs: multiply-accumulates of the whole network for one view; None where they could not be
            counted.
    """

    row: StudyRow
    recipe: Recipe
    phase: Phase
    config: ExtractConfig | None
    macs: int | None


def rows_from_frames(
    plan: StudyPlan,
    *,
    cache: "Cache | None" = None,
    config: ExtractConfig | None = None,
    manifest: Manifest | None = None,
    phase: str = "",
    frames: Mapping[str, Any] | None = None,
    source_options: SourceOptions | None = None,
) -> list[FramesRow]:
    """Check every row of a study: its keys, splits and labels, and that its network can be built.

    Args:
        plan: the study.
        cache, manifest, source_options: as for `finetune`.
        config: as for `finetune`, before the study's own options of the extraction.
        phase: the phase to train; "" for the first of each recipe that reads frames.
        frames: values to replace in the phases' `FrameOptions`.

    Returns:
        One entry per row, in the study's order.

    Raises:
        ValueError: a row cannot be trained, or a cache alone would do for the study.
    """
    _refuse_torchrun()
    frames, source_options = dict(frames or {}), source_options or SourceOptions()
    if not source_options.fresh and frames.get("train_from", "none") == "none":
        _require_frames(plan)
    if cache is not None:
        require_same_extraction(plan, cache)
        config, _, _ = as_extracted(cache.path, RunOptions(), source_options.moved)
        manifest = manifest or cache.manifest
    if config is None or manifest is None:
        raise ValueError(
            "expected a cache, or else a configuration of an extraction and a manifest"
        )

    rows: list[FramesRow] = []
    problems: list[str] = []
    seen: dict[str, Any] = {}
    for row in plan.rows:
        try:
            # A cache's options were compared with the study's before.
            own = config if cache is not None else _with_own(config, row)
            recipe, chosen = frames_phase(row.recipe, phase, **frames)
            views = cache or PlannedCache(str(manifest.path), manifest, own.sampling)
            macs = _check(recipe.of(chosen), chosen, own, manifest, views, seen)
        except ValueError as error:
            problems.append(f"member {row.name}: {error}")
            continue
        rows.append(FramesRow(row, recipe, chosen, None if cache is not None else own, macs))

    if problems:
        message = problems[0]
        if len(problems) > 1:
            rest = len(problems) - 1
            message += f" ({rest} more of {counted(len(plan.rows), 'row')} cannot be trained)"
        raise ValueError(message)
    return rows


def _refuse_torchrun() -> None:
    """Raise ValueError in one of several processes of torchrun: a failed member would hang them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a study trains each member in one process: run the same command once per GPU without "
            "torchrun (CUDA_VISIBLE_DEVICES=0, 1, ...), each takes members that no other trains; "
            "a member for several GPUs is its recipe under torchrun, without --study"
        )


def _require_frames(plan: StudyPlan) -> None:
    """Raise ValueError if no row of the study needs frames."""
    if plan.varied_extraction():
        return
    for row in plan.rows:
        if any(phase.reads == "frames" for phase in row.recipe.all_phases):
            return
    raise ValueError(
        f"study {plan.name} reads a cache alone: run `{plan.command('ablate')} --cache CACHE`; to "
        f"train the backbone with it, pass --train-from, and for new views in every epoch --views "
        f"fresh"
    )


def _with_own(config: ExtractConfig, row: StudyRow) -> ExtractConfig:
    """The extraction with the options that the row sets; errors name the key as the study does."""
    for key, value in row.extract.items():
        try:
            config = with_settings(config, {key: value})
        except ValueError as error:
            text = str(error).removeprefix(f"--set {key}: ").removeprefix(f"{key}: ")
            raise ValueError(f"{EXTRACT}.{key}: {text}") from None
        except TypeError as error:
            raise ValueError(f"{EXTRACT}.{key}: {error}") from None
    return config


def _check(
    recipe: Recipe,
    phase: Phase,
    config: ExtractConfig,
    manifest: Manifest,
    views: Any,
    seen: dict[str, Any],
) -> int | None:
    """Check the splits and the network of a row; return its MACs for one view.

    Args:
        recipe: of one phase.
        phase: that phase.
        config: its extraction.
        manifest: labels and splits.
        views: the cache, or what stands for it.
        seen: what was computed for other rows, by what it depends on.
    """
    # The meta device takes no memory and draws no random numbers.
    sampling, boxes = config.sampling, config.proposal_options.get("num_boxes", 10)
    # Only shapes matter, so no weights are read.
    options = {key: value for key, value in recipe.head.options.items() if key != "weights"}
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, **config.backbone_options)
        # Heads that read classes of boxes are asked for their needs, too.
        dims = joint_dims(backbone, sampling.frames, sampling.size, config.cut, boxes, 1)

    study = Study(views, manifest, dims, torch.device("cpu"), "fp32", None)
    splits = repr((sampling, recipe.data))
    if splits not in seen:
        classes = study.classes(recipe)
        study.split(recipe, classes)
        seen[splits] = len(classes)
    count = seen[splits]

    with torch.device("meta"):
        head = build_head(recipe.head.name, dims, count, **options)
        network = JointNetwork(backbone, head, phase.frames, config.cut, config.roi_pool)
    Optimisers(network, training_of_all_weights(recipe.train, phase.frames))

    key = repr((config.backbone, config.backbone_options, dims, recipe.head, count))
    if key not in seen:
        try:
            seen[key] = _macs(network, config, count_head(recipe.head.name, dims, count, options))
        except ValueError:
            raise
        # Counting is not needed for the training.
        except Exception as error:
            seen[key] = one_line(error)
    return seen[key] if isinstance(seen[key], int) else None


def _macs(network: JointNetwork, config: ExtractConfig, head: Any) -> int:
    """MACs of the head, and of the backbone as far as the head reads it."""
    upto, size = network.last_cut(), config.sampling.size
    if not upto:
        return head.total.macs
    backbone = count_backbone(
        config.backbone,
        config.backbone_options,
        frames=config.sampling.frames,
        size=(size, size),
        upto=upto,
    )
    return head.total.macs + backbone.total.macs
