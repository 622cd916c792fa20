"""From a head to the figures of a split: the logits of every test view, then one score per video.

evaluate("runs/strg-0", Cache("cache"), "test")["top1"]
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from heads.config.recipe import PLAIN, Recipe, recipe_from
from heads.data.feature_store import FeatureStore, ReadRequest, shared_pass
from heads.data.splits import SplitViews, cache_dims, fields_for, how_to_add, split_views
from heads.evaluation.metrics import aggregate, confusion, scores_of, summarise
from heads.interface.clips import Dims, MissingFields, dims_from
from heads.interface.loss import LossNotFinite, device_for, loss_of
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, refuse_if_busy
from heads.runs.manifest_record import (
    TAG,
    differences,
    manifest_record,
    own_manifest,
    seen_in_training,
    split_sha256,
)
from heads.runs.start_weights import default_checkpoint, phase_checkpoint
from heads.zoo import build_head
from pipeline.files.atomic_files import sha256_of
from pipeline.files.owners import remove_abandoned
from pipeline.files.watched_folder import WatchedFolder
from pipeline.networks.precision import autocast
from pipeline.workers.claims import version_of

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest

# What may differ between the cache of a run and one that it is evaluated on: which views and fields
# there are and how they were stored, but not what computed them.
VIEWS_ONLY = {
    "keep",
    "sampling",
    "seed",
    "decoder",
    "allow_truncated",
    "pixel_aspect",
    "frame_pattern",
    "precision",
    "dtype",
}


@dataclass
class Predictions:
    """Every test view of a part: logits [R,K] float32, the view's row in the cache's group [R], its
    video [R] in 0..V-1, the mean loss over views (NaN without labels), and the seconds of the
    head's own computing and of waiting for data; `stored` [R,...] what the head's output has under
    that name.
    """

    logits: np.ndarray
    rows: np.ndarray
    video: np.ndarray
    loss: float
    seconds: float
    stored: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadPredictor:
    """A head (on its device) that predicts the views of a part, as its recipe of one phase says."""

    head: nn.Module
    part: SplitViews
    recipe: Recipe
    precision: str

    def share(self) -> ReadRequest:
        """What it wants from a pass."""
        rows, video = self.part.all_rows()
        turns = (
            self.part.place[video] * self.part.group.per_clip + np.nonzero(self.part.rows >= 0)[1]
        )
        return ReadRequest(
            rows,
            turns,
            fields_for(self.head, self.part.group),
            self.recipe.evaluate.batch or self.recipe.train.batch,
        )


def predict(
    head: nn.Module, part: SplitViews, store: FeatureStore, recipe: Recipe, precision: str
) -> Predictions:
    """The logits of every view of `part`, the head in eval mode. LossNotFinite when one is not
    finite.
    """
    found = predict_all([HeadPredictor(head, part, recipe, precision)], store)[0]
    if isinstance(found, Exception):
        raise found
    return found


def predict_all(
    readers: Sequence[HeadPredictor], store: FeatureStore
) -> list[Predictions | Exception]:
    """What each reader predicts, in one pass over `store`; of one that failed, the exception, which
    leaves the others going.
    """
    logits: list[list[np.ndarray]] = [[] for _ in readers]
    stored: list[dict[str, list[np.ndarray]]] = [{} for _ in readers]
    failed: list[Exception | None] = [None for _ in readers]
    seconds, waiting, asked = [0.0 for _ in readers], 0.0, time.monotonic()
    for reader in readers:
        reader.head.eval()
    views = shared_pass(store, [reader.share() for reader in readers])
    with torch.inference_mode():
        for k, clips, _ in views:
            begun = time.monotonic()
            waiting += begun - asked
            try:
                if failed[k] is None:
                    with autocast(store.device, readers[k].precision):
                        out = readers[k].head(clips)
                    logits[k].append(out.logits.float().cpu().numpy())
                    for name, tensor in out.stored.items():
                        stored[k].setdefault(name, []).append(tensor.cpu().numpy())
            except Exception as error:  # whatever a head raises is that head's alone
                failed[k] = error
            asked = time.monotonic()
            seconds[k] += asked - begun
    return [
        failed[k]
        or _predictions(
            reader, logits[k], stored[k], seconds[k] + waiting
        )  # an exception is never false
        for k, reader in enumerate(readers)
    ]


def _predictions(
    reader: HeadPredictor,
    logits: list[np.ndarray],
    stored: dict[str, list[np.ndarray]],
    seconds: float,
) -> "Predictions | LossNotFinite":
    table, part = np.concatenate(logits), reader.part
    rows, video = part.all_rows()
    if not np.isfinite(table).all():
        return LossNotFinite(
            f"the head's logits on split {part.split} are not finite: its weights diverged; lower "
            f"train.lr"
        )
    loss = math.nan
    if part.targets is not None:
        loss = loss_of(reader.recipe.data.target)(
            torch.from_numpy(table), torch.from_numpy(part.targets[video])
        ).item()
    return Predictions(
        table,
        rows,
        video,
        loss,
        seconds,
        {name: np.concatenate(parts) for name, parts in stored.items()},
    )


def compute_figures(
    predictions: Predictions, part: SplitViews, recipe: Recipe
) -> tuple[dict[str, float], np.ndarray]:
    """The figures of a split ({} without labels) and its videos' scores [V,K], aggregated over
    views as the recipe says.
    """
    scores = scores_of(predictions.logits, recipe.scores)
    scores = aggregate(scores, predictions.video, len(part), recipe.evaluate.aggregate)
    if part.targets is None:
        return {}, scores
    return {**summarise(scores, part.targets), "loss": predictions.loss}, scores


def write_predictions(
    folder: Path,
    tag: str,
    predictions: Predictions,
    part: SplitViews,
    recipe: Recipe,
    classes: tuple[str, ...],
) -> dict[str, float]:
    """Writes predictions_TAG.npz and, for one label per video, confusion_TAG.csv; returns the
    figures.
    """
    found, scores = compute_figures(predictions, part, recipe)
    arrays = {
        "clip": np.array([part.group.clips[row] for row in predictions.rows]),
        "view": np.array([part.group.views[row] for row in predictions.rows]),
        "logits": predictions.logits,
        "video": predictions.video,
        "clips": np.array(part.clips),
        "classes": np.array(classes),
        **predictions.stored,
    }
    if part.targets is not None:
        arrays["targets"] = part.targets
    runs.save_predictions(folder / f"predictions_{tag}.npz", arrays)
    if part.targets is not None and part.targets.ndim == 1:
        runs.save_confusion(
            folder / f"confusion_{tag}.csv", confusion(scores, part.targets), classes
        )
    return found


def evaluate(
    folder: Path | str,
    cache: "Cache",
    split: str,
    *,
    checkpoint: str = "",
    phase: str = "",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    manifest: "Manifest | None" = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Evaluates a run's checkpoint on a split of a cache; returns the figures, {} where the split
    has no labels.

    `checkpoint`: "best", "last", or "" for what the run's own figures come from; in its place
    `phase`: what that phase of the recipe ended with. `settings`: values for the recipe's
    `evaluate` table (aggregate, scores, batch). The cache may be another one than the run's if it
    has the same features (e.g. more test views). `manifest`: labels and splits, by default those of
    the run: the cache's copy or, where that has others, the file that the run records. The files
    written to the run folder are named after the split, the phase if one was named, the fingerprint
    of a cache that is not the run's, and the checksum of a split that is not the run's: predictions
    of other clips are never overwritten.

    ValueError for a cache of another backbone, a head of other sizes, labels that the run does not
    know, an empty split, a run whose own manifest is neither in the cache nor where it was. Busy
    where a process trains in the folder, which would write files of the same names in the end.
    """
    folder, device = Path(folder), device_for(device, precision)
    watch, home = refuse_if_busy(folder, say), _home(folder)
    remove_abandoned(folder)  # what an evaluation was writing when it was killed
    there = {path.name: version_of(path) for path in folder.glob("*.pt")}
    trained = load_trained(
        folder, cache, phase_checkpoint(folder, phase) if phase else checkpoint, settings
    )
    name, head, recipe, classes = trained.checkpoint, trained.head, trained.recipe, trained.classes
    tag = f"{split}_{phase}" if phase else split
    if not trained.own_cache:
        say(
            f"{cache.path} is not the cache of this run; it has the same features, of other views "
            f"or clips"
        )
        tag += f"_{cache.fingerprint[:8]}"
    manifest, other = _manifest_for(folder, trained.manifest, cache, manifest, split, say)
    tag += f"_{other}" if other else ""
    part = split_views(cache, "test", split, manifest, classes, recipe.data)
    if part is None:
        raise ValueError(
            f"{manifest.path}: no clip in split {split!r}; its splits: "
            f"{', '.join(splits_of(manifest))}"
        )
    print_excluded(part, say)
    store = open_store([head.to(device)], cache, [part], recipe, "disk", device)
    predictions = predict(head, part, store, recipe, precision)
    home.check()
    refuse_if_busy(folder, say, watch)
    if version_of(folder / f"{name}.pt") != there.get(f"{name}.pt"):
        raise FolderBusy(
            f"{folder}: {name}.pt was trained further while it was evaluated; nothing was "
            f"written, evaluate it again"
        )
    about = {
        "checkpoint": name,
        "fingerprint": cache.fingerprint,
        "manifest": os.path.abspath(manifest.path),
    }
    with home.guarded():
        found = write_predictions(folder, tag, predictions, part, recipe, classes)
        runs.write_json(folder / f"metrics_{tag}.json", {**about, **found})
    return found


def _manifest_for(
    folder: Path,
    record: Mapping | None,
    cache: "Cache",
    given: "Manifest | None",
    split: str,
    say: Callable[[str], None],
) -> "tuple[Manifest, str]":
    """Whose labels and splits a run is evaluated with, and what its files are called after: "" for
    the run's own split.

    Args:
        record: of the run's manifest; None for a run that an earlier version made, which is taken
        to be of any manifest. given: the manifest that was asked for, if one was.
    """
    if record is None:
        return given or cache.manifest, ""
    own = own_manifest(record, given or cache.manifest)
    if given is None:
        if own is None:  # the file is gone: nobody knows which clips were the run's
            what = differences(record, manifest_record(cache.manifest))
            raise ValueError(
                f"{folder} was trained with the labels and splits of {record['path']}, which is "
                f"gone or has changed; those of "
                f"{cache.path} are others ({what}): pass --manifest with the file to use"
            )
        there = set(cache["test"].clips) if "test" in cache.groups else set()
        if any(clip.clip in there for clip in own.clips if clip.split == split):
            return own, ""
        given = cache.manifest  # a cache of other clips, with its own splits
    here = manifest_record(given)
    if what := differences(record, here):
        say(
            f"{given.path} has other labels or splits than {record['path']}, which {folder} was "
            f"trained with: {what}"
        )
        if seen := seen_in_training(own, given, split):
            say(
                f"{seen:,} clips of split {split} are among those that the run was trained on: "
                f"its figures flatter it"
            )
    same = split_sha256(record, split) == split_sha256(here, split)
    return given, "" if same else split_sha256(here, split)[:TAG]


def _home(folder: Path) -> WatchedFolder:
    """The run folder as it is now. ValueError if there is none."""
    try:
        return WatchedFolder(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: no such folder; expected the folder of a run that `vidgraph train` made"
        ) from None


@dataclass(frozen=True)
class TrainedHead:
    """A run's head with the weights of its `checkpoint`, on the CPU; its recipe of one phase and
    its classes in the order of their ids. `own_cache`: whether the cache is the one that it was
    trained on. `manifest`: what it records of its own (see `heads.runs.manifest_record`), None if
    an earlier version made it.
    """

    checkpoint: str
    head: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    own_cache: bool
    manifest: Mapping | None = None


def load_trained(
    folder: Path, cache: "Cache", checkpoint: str = "", settings: Mapping[str, str] | None = None
) -> TrainedHead:
    """The head of the run in `folder`, for views of `cache`; `checkpoint` and `settings` as for
    `evaluate`.

    ValueError for a folder without a run, a cache of other features, weights of another head.
    """
    name = checkpoint or default_checkpoint(folder)
    saved = runs.load_checkpoint(folder / f"{name}.pt")
    about = saved["about"]
    table = about["recipe"]
    recipe = recipe_from(
        {**table, "evaluate": {**table["evaluate"], **(settings or {})}}, str(folder)
    )
    recipe = recipe.of(saved.get("phase", PLAIN))
    classes, dims = tuple(about["classes"]), dims_from(about["dims"])
    config = _config_of(saved, cache, folder / f"{name}.pt")
    own = cache.fingerprint == about["fingerprint"] and config == about["config"]
    if not own:
        _same_features(config, cache)
    _same_channels(dims, cache)
    head = build_head(recipe.head.name, dims, len(classes), **recipe.head.options)
    try:
        head.load_state_dict(saved["state"])
    except RuntimeError as error:
        raise ValueError(
            f"{folder}/{name}.pt: weights of another head: {str(error).splitlines()[-1].strip()}"
        ) from None
    return TrainedHead(name, head, recipe, classes, own, about.get("manifest"))


def open_store(
    heads: Sequence[nn.Module],
    cache: "Cache",
    parts: Sequence[SplitViews],
    recipe: Recipe,
    resident: str,
    device: torch.device,
) -> FeatureStore:
    """The fields that any of the `heads` reads, for the views of the `parts` (of one split);
    ValueError with the command that would add what is missing."""
    fields: list[str] = []
    for head in heads:
        fields += fields_of(head, cache, parts[0], recipe)
    rows = np.concatenate([part.all_rows()[0] for part in parts])
    return FeatureStore(
        parts[0].group, tuple(dict.fromkeys(fields)), rows, resident, str(cache.path), device
    )


def fields_of(head: nn.Module, cache: "Cache", part: SplitViews, recipe: Recipe) -> tuple[str, ...]:
    """The fields that training or evaluating `head` on `part` reads; ValueError with the command
    that would add what is missing."""
    try:
        fields = fields_for(head, part.group)
    except MissingFields as error:
        raise ValueError(how_to_add(cache, recipe.head.name, error.names)) from None
    if part.split == "train" and recipe.data.swap_on_flip:
        fields = (*fields, "flip")
    return tuple(dict.fromkeys(fields))


def print_excluded(part: SplitViews, say: Callable[[str], None]) -> None:
    """Says which clips of a part are left out, if any."""
    left = (
        ("failed at extraction", part.failed),
        ("are not in the cache", part.absent),
        ("have other labels than those that are kept", part.others),
    )
    total = len(part) + sum(len(clips) for _, clips in left)
    for why, clips in left:
        if clips:
            shown = ", ".join(clips[:5]) + (", …" if len(clips) > 5 else "")
            say(
                f"split {part.split}: {len(clips):,} of {total:,} clips {why} and are left out: "
                f"{shown}"
            )


def splits_of(manifest: "Manifest") -> list[str]:
    """The splits that a manifest has clips in."""
    return sorted({clip.split for clip in manifest.clips})


def require_same_backbone(config: Mapping, cache: "Cache") -> None:
    """ValueError unless the cache's features are of the network that `config` names, whatever its
    weights were.
    """
    _same_features(config, cache, ("backbone", "backbone_options"))


def _config_of(saved: Mapping, cache: "Cache", path: Path) -> Mapping:
    """What a cache's features must have been computed with; where the run trained the backbone too,
    by the one in `path`.

    ValueError for a cache of the backbone as it was before.
    """
    config, phase = saved["about"]["config"], saved.get("phase", PLAIN)
    if (
        "backbone" not in saved
        or recipe_from(saved["about"]["recipe"]).phase(phase).frames.train_from == "none"
    ):
        return config
    files = dict.fromkeys(
        (path, *(path.with_name(f"{name}.pt") for name in ("best", "last", phase)))
    )
    if not any(
        file.exists() and cache.config["weights"] == sha256_of(file) and _holds(file, saved)
        for file in files
    ):
        raise ValueError(
            f"{path.parent} trained its backbone too, {cache.path} has features of another: "
            f"extract one with --weights {path}; "
            "what the run predicted from frames is in its predictions_SPLIT.npz"
        )
    return {**config, "weights": cache.config["weights"]}


def _holds(file: Path, saved: Mapping) -> bool:
    """Whether a checkpoint has the backbone of another, `saved`: several files of a run may."""
    own, theirs = saved["backbone"], runs.load_checkpoint(file).get("backbone", {})
    return own.keys() == theirs.keys() and all(
        tensor.equal(theirs[name]) for name, tensor in own.items()
    )


def _same_features(config: Mapping, cache: "Cache", keys: Iterable[str] = ()) -> None:
    """ValueError unless the cache's features were computed as `config` says, as far as `keys` tell
    (() for all).
    """
    keys = keys or sorted((config.keys() | cache.config.keys()) - VIEWS_ONLY)
    if differing := [key for key in keys if config.get(key) != cache.config.get(key)]:
        shown = "; ".join(
            f"{key} {config.get(key)!r} there, {cache.config.get(key)!r} here" for key in differing
        )
        raise ValueError(
            f"{cache.path}: its features are not those that the run was trained on: {shown}"
        )


def _same_channels(dims: Dims, cache: "Cache") -> None:
    """ValueError unless the cache's features have the channels that a head was built for."""
    here = cache_dims(cache)
    pairs = [("nodes and pooled features", dims.C, here.C)]
    pairs += [
        (cut, size[0], here.maps[cut][0]) for cut, size in dims.maps.items() if cut in here.maps
    ]
    for name, wanted, found in pairs:
        if wanted and found and wanted != found:
            raise ValueError(
                f"{cache.path}: {name} have {found} channels, the run's checkpoint {wanted}"
            )
