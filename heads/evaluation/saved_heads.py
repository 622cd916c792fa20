"""Load a trained head from its run folder, check that a cache fits it, and predict with it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from heads.config.recipe import PLAIN, Recipe, recipe_from
from heads.data.splits import cache_dims, require_split_views
from heads.evaluation.ensemble import VideoScores
from heads.evaluation.head_predictor import compute_figures, open_store
from heads.evaluation.head_predictor import predict as predict_views
from heads.interface.clips import Dims, dims_from
from heads.interface.loss import device_for
from heads.interface.run_records import RUN
from heads.runs import run_files
from heads.runs.head_versions import refuse_changed_head
from heads.runs.start_weights import default_checkpoint
from heads.zoo import build_head
from pipeline.cache.identity import differing_keys, flat
from pipeline.cache.joined import open_caches
from pipeline.cache.reader import Cache
from pipeline.files.atomic_files import sha256_of
from pipeline.manifests.manifest import Manifest
from pipeline.text import as_typed

# The keys of a cache's configuration that say which views and fields it has and how they were
# stored. A run may be evaluated on a cache that differs in these alone: the rest decides what the
# features are.
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
# Those that decide where boxes are. A cache without boxes has none of them.
OF_BOXES = {"proposals", "proposal_options", "roi_pool", "resize"}
# What is known of the boxes' classes and tracks.
OF_LABELS = ("box_classes", "box_tracks")


@dataclass(frozen=True)
class TrainedHead:
    """A run's head with the weights of a checkpoint.

    Attributes:
        checkpoint: the checkpoint's name, such as "best".
        head: on the CPU.
        recipe: the recipe, of one phase, that trained it.
        classes: class names in the order of their ids.
        own_cache: whether the cache is the one that the run was trained on.
        manifest: the run's record of its manifest (see `heads.runs.manifest_record`); None for a
            run of an earlier version.
        dims: the sizes that the head was built for.
        seed: the run's seed.
        folder: the run folder.
        fingerprint: of the cache that the run was trained on.
    """

    checkpoint: str
    head: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    own_cache: bool
    manifest: Mapping | None = None
    dims: Dims | None = None
    seed: int = 0
    folder: Path | None = None
    fingerprint: str = ""


def load_run(folder: Path | str, cache: Cache | Path | str, checkpoint: str = "") -> TrainedHead:
    """Load the head of a finished run, with its weights, on the CPU.

    Args:
        folder: the run folder that `vidgraph train` made.
        cache: the cache whose views the head will read, or its path. It may be another one than
            the run's if the same backbone and options made its features.
        checkpoint: "best", "last", or "" for the one that the run's own figures come from.

    Returns:
        The trained head: `head` (an nn.Module), `recipe` and `classes`.

    Raises:
        ValueError: no run there, a cache of other features, or weights that do not fit the head.
    """
    cache = open_caches(cache)
    return load_trained(Path(folder), cache, checkpoint)


def predict(
    run: TrainedHead,
    cache: Cache | Path | str,
    split: str = "test",
    *,
    manifest: Manifest | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> VideoScores:
    """Compute one score per video and class from the cached test views of a split.

    Nothing is written. `vidgraph evaluate` computes the same scores and keeps them in the run's
    folder.

    Args:
        run: what `load_run` returned.
        cache: the cache, or its path.
        split: "train", "val" or "test"; its clips need test views in the cache.
        manifest: labels and splits; None for the cache's own copy.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" or "fp16".

    Returns:
        `scores` [V, K] of the videos `clips` [V] for `classes` [K], aggregated over a video's views
        as the run's recipe says, and `targets` where the split has labels.

    Raises:
        ValueError: the split has no test views, or its labels are none of the run's classes.
        LossNotFinite: the head's logits are NaN or infinite.
    """
    cache = open_caches(cache)
    manifest = manifest or cache.manifest
    target = device_for(device, precision)

    views = require_split_views(cache, "test", split, manifest, run.classes, run.recipe.data)
    head = run.head.to(target)
    store = open_store([head], cache, [views], run.recipe, "disk", target)
    predictions = predict_views(head, views, store, run.recipe, precision)
    _, scores = compute_figures(predictions, views, run.recipe)
    return VideoScores(views.clips, run.classes, scores, views.targets)


@dataclass(frozen=True)
class SavedHead:
    """A checkpoint of a run, read and not yet built.

    Attributes:
        checkpoint: its name, such as "best".
        path: its file.
        saved: what the file holds.
        recipe: the recipe, of one phase, that trained the head.
        classes: class names in the order of their ids.
        dims: the sizes that the head was built for.
    """

    checkpoint: str
    path: Path
    saved: Mapping
    recipe: Recipe
    classes: tuple[str, ...]
    dims: Dims

    def build(self) -> nn.Module:
        """Build the head with its weights, on the CPU; ValueError if they do not fit."""
        choice = self.recipe.head
        head = build_head(choice.name, self.dims, len(self.classes), **choice.options)
        try:
            head.load_state_dict(self.saved["state"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{self.path}: weights of another head: {reason}") from None
        return head


def read_saved(
    folder: Path, checkpoint: str = "", settings: Mapping[str, str] | None = None
) -> SavedHead:
    """Read a checkpoint of a run.

    Args:
        folder: the run folder.
        checkpoint: "best", "last", a phase's name, or "" for the one of the run's own figures.
        settings: values that replace those of the recipe's table `evaluate`.

    Raises:
        ValueError: no run there, one on generated frames, or a head that computes something
            else now.
    """
    name = checkpoint or default_checkpoint(folder)
    path = folder / f"{name}.pt"
    saved = run_files.load_checkpoint(path)
    about = saved["about"]
    refuse_changed_head(
        path, about, "Train it anew; its figures and predictions of that time stay in its folder"
    )
    table = about["recipe"]
    options = {**table["evaluate"], **(settings or {})}
    recipe = recipe_from({**table, "evaluate": options}, str(folder))
    recipe = recipe.of(saved.get("phase", PLAIN))
    if "dims" not in about or "config" not in about:
        raise ValueError(
            f"{folder}: this run was trained on generated frames and not on videos; expected a run "
            f"on a cache of `vidgraph extract`, or from its videos"
        )
    classes, dims = tuple(about["classes"]), dims_from(about["dims"])
    return SavedHead(name, path, saved, recipe, classes, dims)


def load_trained(
    folder: Path, cache: Cache, checkpoint: str = "", settings: Mapping[str, str] | None = None
) -> TrainedHead:
    """Load the head of a run for the views of a cache.

    Args:
        folder: the run folder.
        cache: the cache whose views the head will read.
        checkpoint: "best", "last", a phase's name, or "" for the one of the run's own figures.
        settings: values that replace those of the recipe's table `evaluate`.

    Raises:
        ValueError: no run there, a cache of other features, or weights that do not fit the head.
    """
    found = read_saved(folder, checkpoint, settings)
    about = found.saved["about"]

    config = _config_of(found.saved, cache, found.path)
    # A cache that has got more fields, or more training views, has the same test views.
    own_cache = cache.fingerprint == about["fingerprint"] and config == about["config"]
    own_cache = own_cache and _same_test_views(cache.config, config)
    if not own_cache:
        _require_same_features(config, cache)
    _require_same_channels(found.dims, cache)

    record, seed = about.get("manifest"), about.get("seed", 0)
    return TrainedHead(
        found.checkpoint,
        found.build(),
        found.recipe,
        found.classes,
        own_cache,
        record,
        found.dims,
        seed,
        folder,
        about["fingerprint"],
    )


def _same_test_views(config: Mapping, other: Mapping) -> bool:
    """Whether two configurations give clips the same test views, whatever is kept of them."""
    compared = []
    for one in (config, other):
        sampling = {**(one.get("sampling") or {}), "train_views": 0}
        compared.append({**one, "keep": (), "sampling": sampling})
    return compared[0] == compared[1]


def require_same_backbone(config: Mapping, cache: Cache) -> None:
    """Check that a cache's features come from a backbone, whatever its weights were.

    Args:
        config: the configuration of another cache.
        cache: the cache.

    Raises:
        ValueError: another backbone, or other options of it.
    """
    _require_same_features(config, cache, ("backbone", "backbone_options", "backbone_version"))


def _config_of(saved: Mapping, cache: Cache, path: Path) -> Mapping:
    """Return the configuration that a cache must have for the head of a checkpoint.

    If the run trained its backbone too, the cache must come from a backbone in the run's
    checkpoints. A cache of the backbone before that training is refused.
    """
    config, phase = saved["about"]["config"], saved.get("phase", PLAIN)
    if "backbone" not in saved:
        return config

    # Several files of a run may hold the same backbone, and the cache may come from any of them.
    others = [path.with_name(f"{name}.pt") for name in ("best", "last", phase)]
    # The checkpoint itself first: then no other file need be read for its checksum.
    for file in dict.fromkeys((path, *others)):
        if not file.exists() or cache.config["weights"] != sha256_of(file):
            continue
        if _has_backbone(file, saved["backbone"]):
            return {**config, "weights": cache.config["weights"]}
    if recipe_from(saved["about"]["recipe"]).phase(phase).frames.train_from == "none":
        return config
    raise ValueError(
        f"{path.parent} trained its backbone too, and {cache.path} has features of another "
        f"backbone: leave --cache out to evaluate from frames, or extract a cache with "
        f"--weights {path}"
    )


def trained_its_backbone(folder: Path, checkpoint: str = "") -> bool:
    """Return whether a run trained a backbone beside its head, so that no cache has its features.

    Args:
        folder: the run folder.
        checkpoint: as for `read_saved`.
    """
    path = folder / f"{checkpoint or default_checkpoint(folder)}.pt"
    saved = run_files.load_checkpoint(path)
    if "backbone" not in saved:
        return False
    phase = recipe_from(saved["about"]["recipe"]).phase(saved.get("phase", PLAIN))
    no_cache = run_files.read_json(folder / "run.json", RUN).get("cache") is None
    return no_cache or phase.frames.train_from != "none"


def _has_backbone(file: Path, backbone: Mapping) -> bool:
    """Return whether a checkpoint holds these weights of a backbone."""
    stored = run_files.load_checkpoint(file).get("backbone", {})
    if stored.keys() != backbone.keys():
        return False
    return all(tensor.equal(stored[name]) for name, tensor in backbone.items())


def _require_same_features(config: Mapping, cache: Cache, keys: Iterable[str] = ()) -> None:
    """Raise ValueError unless the cache's features were computed as `config` says.

    `keys`: the keys to compare; () for all that decide the features.
    """
    differing = feature_differences(config, cache.config, keys)
    if differing:
        raise ValueError(
            f"{cache.path}: its features are not those that the run was trained on: "
            f"{'; '.join(differing)}"
        )


def feature_differences(
    config: Mapping, other: Mapping, keys: Iterable[str] = (), ignored: Iterable[str] = ()
) -> list[str]:
    """Compare what decides the features of two caches.

    What decides boxes does not count where one of the caches has none: a head that reads boxes
    misses them by name, and no other field depends on them. The same holds for classes and tracks.

    Args:
        config: the configuration of a run's cache, "there" in the texts.
        other: that of another one, "here".
        keys: the keys to compare; () for all that decide the features.
        ignored: keys that do not count.

    Returns:
        A text for each key that differs.
    """
    keys = set(keys) or (config.keys() | other.keys()) - VIEWS_ONLY
    if "proposals" not in config or "proposals" not in other:
        keys -= OF_BOXES
    for name in OF_LABELS:
        if name not in config or name not in other:
            keys.discard(name)
    keys -= set(ignored)
    there = flat({key: value for key, value in config.items() if key in keys})
    here = flat({key: value for key, value in other.items() if key in keys})
    differing = []
    for key in differing_keys(there, here):
        differing.append(f"{as_typed(there, [key])} there, {as_typed(here, [key])} here")
    return differing


def _require_same_channels(dims: Dims, cache: Cache) -> None:
    """Raise ValueError unless the cache's features have the channels that a head was built for."""
    cached = cache_dims(cache)
    pairs = [("nodes and pooled features", dims.C, cached.C)]
    for cut, size in dims.maps.items():
        if cut in cached.maps:
            pairs.append((cut, size[0], cached.maps[cut][0]))
    for name, wanted, found in pairs:
        # 0: there are no such features. `fields_of` reports them if the head needs them.
        if wanted and found and wanted != found:
            raise ValueError(
                f"{cache.path}: {name} have {found} channels, the run's checkpoint {wanted}"
            )
