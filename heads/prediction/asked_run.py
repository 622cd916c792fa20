"""A trained run with all that its features were made with, so that new videos get the same.

A run records the options of its extraction. One of an earlier version does not: its cache must be
there. A run that trained its backbone too brings that backbone along.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from heads.config.recipe import Recipe
from heads.evaluation.saved_heads import SavedHead, feature_differences, read_saved
from heads.interface.run_records import RUN
from heads.runs import run_files
from heads.runs.start_weights import phase_checkpoint
from pipeline.cache.fields import FIELDS, LABELS, is_cut
from pipeline.cache.reader import Cache
from pipeline.regions.graphs import GRAPHS, NEEDS
from pipeline.stages.config import ExtractConfig
from pipeline.stages.recorded import (
    MovedFiles,
    backbone_of,
    box_options_of,
    config_like,
    require_same_files,
)

# M of the similarity graph where no record says it: the default of `vidgraph graphs`.
NEIGHBOURS = 10
# Fields that an extraction always writes, and those that come with "boxes".
WRITTEN = ("frames", "crop", "flip", "time", "grid")
WITH_BOXES = ("scores", "valid")
# Options of a backbone that say how weights were loaded: the network is the same without them.
OF_LOADING = ("fresh", "inflate")


@dataclass(frozen=True)
class AskedRun:
    """A run that can be asked about videos.

    Attributes:
        folder: the run folder.
        saved: its checkpoint.
        head: with the checkpoint's weights, on the CPU.
        config: of the extraction: the run's, with test views and what the head reads alone.
        batch: views per forward pass of the extraction.
        graphs: the graphs that the head reads.
        neighbours: M of the graph "similar".
        tracks: whether the head reads tracks that `vidgraph graphs --tracks` computed.
        own_backbone: whether the checkpoint's own backbone computes the features.
        other_boxes: whether boxes come from another file than at the training.
    """

    folder: Path
    saved: SavedHead
    head: nn.Module
    config: ExtractConfig
    batch: int
    graphs: tuple[str, ...]
    neighbours: int
    tracks: bool
    own_backbone: bool
    other_boxes: bool

    @property
    def recipe(self) -> Recipe:
        """The recipe, of one phase, that trained the head."""
        return self.saved.recipe

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return self.saved.classes

    def require_same_networks(self, computed: Mapping[str, Any]) -> None:
        """Check that an extraction computes what the run was trained on.

        Args:
            computed: the config of the extraction, with checksums of the loaded weights.

        Raises:
            ValueError: it computes something else. The message names what differs.
        """
        trained_on = dict(self.saved.saved["about"]["config"])
        computed, ignored = dict(computed), []
        if self.own_backbone:
            ignored.append("weights")
            for config in (trained_on, computed):
                options = config["backbone_options"]
                kept = {key: value for key, value in options.items() if key not in OF_LOADING}
                config["backbone_options"] = kept
        if self.other_boxes:
            for config in (trained_on, computed):
                options = config.get("proposal_options", {})
                config["proposal_options"] = options | {"file": "another"}
        differing = feature_differences(trained_on, computed, ignored=ignored)
        if differing:
            raise ValueError(
                f"{self.folder}: the features of new videos would not be those that the run was "
                f"trained on: {'; '.join(differing)}"
            )


def open_run(
    folder: str | Path,
    *,
    checkpoint: str = "",
    phase: str = "",
    like: str | Path | None = None,
    moved: MovedFiles | None = None,
    allow_truncated: bool = False,
    settings: Mapping[str, str] | None = None,
) -> AskedRun:
    """Open a run that will be asked about videos.

    Args:
        folder: the run folder, of `train`, `ablate` or `finetune`.
        checkpoint: "best", "last", or "" for the one that the run's own figures come from.
        phase: what this phase of the recipe ended with, in place of `checkpoint`.
        like: a cache that has the options of the extraction; None for the run's record of them.
        moved: where the files of the extraction are now. Annotated boxes may be another file.
        allow_truncated: also take videos with fewer frames than they promise.
        settings: values that replace those of the recipe's table `evaluate`.

    Raises:
        ValueError: no run there, nothing says how its features were made, or a file of the
            extraction is gone or has changed.
    """
    folder, moved = Path(folder), moved or MovedFiles()
    if phase:
        checkpoint = phase_checkpoint(folder, phase)
    saved = read_saved(folder, checkpoint, settings)
    record = _record_of(folder, saved, like)
    config = ExtractConfig.from_dict(record["asked"])
    config = replace(config, backbone=backbone_of(config, moved))

    own_backbone = "backbone" in saved.saved
    if own_backbone:
        # The run computed in float32 from frames, so nothing may be rounded on the way.
        config = replace(config, weights=str(saved.path.absolute()), dtype="float32")
    elif moved.weights is not None:
        config = replace(config, weights=os.path.abspath(moved.weights))
    config, other_boxes = _with_boxes(config, moved)

    head = saved.build()
    graphs = record.get("graphs", {})
    wanted = _graphs_of(head, graphs.get("which", ()))
    read = (*head.needs, *getattr(head, "uses", ()))
    tracks = graphs.get("tracks", False) and "track" in read
    keep = _fields_of(head, wanted, config)
    if tracks and "nodes" in config.keep:
        # Boxes were linked by their features, too.
        keep = tuple(dict.fromkeys((*keep, "nodes")))
    # Training views are never read here; a cache may have had no test views.
    views = replace(config.sampling, train_views=0, test_clips=max(1, config.sampling.test_clips))
    config = replace(
        config,
        keep=keep,
        sampling=views,
        allow_truncated=config.allow_truncated or allow_truncated,
    )
    replaced = {"--weights"} if own_backbone else set()
    if other_boxes:
        replaced.add("--annotations")
    require_same_files(config, saved.saved["about"]["config"], folder, replaced)
    return AskedRun(
        folder,
        saved,
        head,
        config,
        record.get("batch", 4),
        wanted,
        graphs.get("neighbours") or NEIGHBOURS,
        tracks,
        own_backbone,
        other_boxes,
    )


def _record_of(folder: Path, saved: SavedHead, like: str | Path | None) -> Mapping[str, Any]:
    """How the run's features were made: by a cache that is given, the run's record, its cache."""
    about = run_files.read_json(folder / "run.json", RUN)
    if like is not None:
        return config_like(Cache(like))[1]
    if "extraction" in about:
        return about["extraction"]

    earlier = f"{folder}: this run does not record how its features were made"
    advice = "pass --like CACHE with a copy of that cache, or train the run again"
    path = about.get("cache")
    if path is None:
        raise ValueError(f"{earlier}, and names no cache; pass --like CACHE, or train it again")
    if not (Path(path) / "cache.json").is_file():
        raise ValueError(f"{earlier}, and its cache {path} is gone; {advice}")
    cache = Cache(path)
    if cache.fingerprint != saved.saved["about"]["fingerprint"]:
        raise ValueError(f"{earlier}, and {path} is another cache now; {advice}")
    return config_like(cache)[1]


def _with_boxes(config: ExtractConfig, moved: MovedFiles) -> tuple[ExtractConfig, bool]:
    """The config with its files of boxes where they are now, and whether boxes are others."""
    options = box_options_of(config, moved, "the boxes of this run (SOURCE) come")
    return replace(config, proposal_options=options), moved.annotations is not None


def _graphs_of(head: nn.Module, stored: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The graphs that a head needs, and those that it uses and the run's cache had."""
    uses = getattr(head, "uses", ())
    wanted = []
    for graph, fields in GRAPHS.items():
        used = graph in stored and any(name in uses for name in fields)
        if used or any(name in head.needs for name in fields):
            wanted.append(graph)
    return tuple(wanted)


def _fields_of(head: nn.Module, graphs: tuple[str, ...], config: ExtractConfig) -> tuple[str, ...]:
    """The fields to extract: what the head reads, and what its graphs are computed from."""
    names = list(head.needs)
    for name in getattr(head, "uses", ()):
        if name in config.keep:
            names.append(name)
    for graph in graphs:
        names += NEEDS[graph]

    keep = []
    for name in dict.fromkeys(names):
        if name in WITH_BOXES or name in LABELS:
            keep.append("boxes")
        elif is_cut(name) or _is_extracted(name):
            keep.append(name)
    # A head that reads nothing of this still needs views.
    return tuple(dict.fromkeys(keep)) or ("pooled",)


def _is_extracted(name: str) -> bool:
    """Whether an extraction stores a field where it is asked for."""
    return name in FIELDS and FIELDS[name].stage == "features" and name not in WRITTEN
