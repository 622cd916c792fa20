"""The options of an extraction, shared by `extract`, `plan`, and `finetune` without a cache."""

from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from cli._shared.device_defaults import settle
from cli._shared.options import (
    commas,
    decoder_option,
    device_option,
    frame_pattern_option,
    set_option,
    shard_numbers,
    time_limit_option,
    together,
)
from cli._shared.real_numbers import AnyNumber, RealNumber
from cli._shared.say import say
from pipeline.text.typed_options import BOX_OPTIONS, CONFIG, SAMPLING


def _one_of(names: str) -> click.Choice:
    return click.Choice(names.split())


def views_options(function):
    """Add the options that choose frames and crops."""
    options = (
        click.option(
            "--like",
            type=click.Path(path_type=Path),
            metavar="CACHE",
            help="Take all options of views and networks from this cache; those that are given "
            "here replace its own.",
        ),
        click.option("--frames", default=32, help="F, frames fed to the backbone per view."),
        click.option(
            "--sampling",
            default="segments",
            type=_one_of("segments stride linspace gos"),
            help="How frames are picked.",
        ),
        click.option(
            "--fps",
            default=6.0,
            type=AnyNumber(),
            help="Frame rate of --sampling stride, frames per second.",
        ),
        click.option(
            "--source-fps",
            type=RealNumber(min=0, min_open=True),
            help="Frame rate of the clips, frames per second; the manifest's column fps wins.  "
            "[default: by their time stamps]",
        ),
        click.option("--size", default=224, help="Side of a square view, pixels."),
        click.option(
            "--train-views", default=1, help="Random views per clip in the group train; 0 for none."
        ),
        click.option(
            "--train-crop",
            default="gos",
            type=_one_of("gos gos_floor short_side multiscale centre"),
            help="Crop of train views.",
        ),
        click.option(
            "--flip",
            default=0.5,
            type=AnyNumber(),
            help="Probability that a training view is mirrored.",
        ),
        click.option(
            "--flip-protect",
            default="",
            show_default=False,
            callback=commas,
            help="Labels never mirrored, comma-separated.",
        ),
        click.option("--test-clips", default=1, help="Test views in time per clip; 0 for none."),
        click.option(
            "--test-crops",
            default="1",
            type=_one_of("1 3 11 full"),
            help="Crops per time; full: the whole frame.",
        ),
        click.option(
            "--test-short-side",
            type=int,
            help="Short side at test, pixels.  [default: --size; 8/7 of it for 3, 11, full]",
        ),
    )
    return together(options)(function)


def network_options(function):
    """Add the options that choose what is computed and stored."""
    options = (
        click.option(
            "--keep",
            default="pooled,nodes,boxes",
            callback=commas,
            help="Fields to store: pooled, nodes, boxes, cuts (res5, last), tokens.",
        ),
        click.option(
            "--backbone",
            default="i3d_r50",
            help="A file of pipeline/backbones, an encoder (timm:NAME, hf:REPOSITORY-OR-FOLDER, "
            "torchvision:NAME), or the path of a plug-in's file, which is executed.",
        ),
        click.option(
            "--weights",
            default="imagenet",
            help="Backbone weights: imagenet (for an encoder pretrained: what its library has), "
            "none, or a checkpoint file.",
        ),
        click.option(
            "--cut",
            default="",
            show_default=False,
            help="Last cut, pooled and aligned.  [default: the last stage]",
        ),
        click.option(
            "--proposals",
            default="torchvision",
            help="Source of boxes: a file of pipeline/proposals, or the path of a plug-in's file, "
            "which is executed.",
        ),
        click.option(
            "--proposal-weights",
            help="Weights of the source of boxes: coco, none, or a file.  [default: coco]",
        ),
        click.option(
            "--proposal-size",
            type=int,
            help="Short side at which it sees whole frames, pixels.  [default: 480]",
        ),
        click.option(
            "--boxes",
            type=int,
            help="N, boxes kept per feature step; not for --proposals grid.  [default: 10]",
        ),
        click.option(
            "--annotations",
            type=click.Path(path_type=Path),
            help="File or folder of boxes, for --proposals annotations (formats: docs/stages.md).",
        ),
        click.option(
            "--nearest-boxes",
            type=RealNumber(min=0),
            metavar="SECONDS",
            help="A frame that the annotations leave out takes the boxes of the nearest frame that "
            "has some, up to so far away; for detectors that ran at 1 to 5 frames a second.  "
            "[default: 0, none]",
        ),
        click.option(
            "--frame-resize",
            type=_one_of("pil device"),
            help="Who resizes frames for the source of boxes: the decode workers with Pillow, or "
            "the device.  [default: as the cache; device for a new one on a GPU, else pil]",
        ),
        click.option(
            "--roi-pool",
            default="max",
            type=_one_of("max mean area"),
            help="Over 7x7 bins; area: over the box.",
        ),
        click.option(
            "--precision",
            type=_one_of("fp32 tf32 bf16 fp16"),
            help="Arithmetic; tf32 and fp16 need a GPU.  [default: as the cache; bf16 for a new "
            "one on a GPU, else fp32]",
        ),
        click.option(
            "--dtype",
            default="float16",
            type=_one_of("float16 float32"),
            help="Stored dtype of features.",
        ),
        decoder_option,
        click.option(
            "--allow-truncated",
            is_flag=True,
            help="Take videos that end before their container says.",
        ),
        click.option(
            "--pixel-aspect",
            default="displayed",
            type=_one_of("displayed stored"),
            help="Pixels that are not square: at the width that a player shows, or as stored "
            "(stretched).",
        ),
        frame_pattern_option,
        click.option("--seed", default=0, help="Seed of the training views."),
    )
    return together(options)(function)


def running_options(function):
    """Add the options that choose how the work is done."""
    options = (
        click.option(
            "--shard",
            "shards",
            callback=shard_numbers,
            help="Only these: 3, 10-20, or a list.  [default: all]",
        ),
        click.option(
            "--shard-bytes",
            default=2 << 30,
            type=click.IntRange(min=1),
            help="Size of a shard at most, bytes.",
        ),
        click.option(
            "--shard-size",
            default=0,
            type=click.IntRange(min=0),
            help="Clips per shard instead; 0 derives it from --shard-bytes.",
        ),
        click.option(
            "--views-for-all",
            is_flag=True,
            help="Store training and test views of every clip.  [default: training views of the "
            "split train, test views of the others; both where the manifest has folds]",
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            help="Views per forward pass.  [default: as the cache; for a new one by a short trial "
            "on a GPU, else 4]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Decode processes.  [default: 1 on a CPU, one per spare core beside a GPU]",
        ),
        time_limit_option(120.0),
        click.option("--compile", is_flag=True, help="torch.compile the backbone (slow start)."),
        click.option(
            "--compression",
            default="none",
            type=_one_of("none lzf zstd"),
            help="Compression of the shards.",
        ),
        device_option,
        set_option,
    )
    return together(options)(function)


def config_for(given: dict, manifest):
    """Build the configuration that the options name, for a manifest.

    A list of protected labels of a whole dataset is fine for a part of it: labels that no clip has
    are printed.

    Args:
        given: the options, by name.
        manifest: the clips.

    Raises:
        ValueError: --flip-protect names labels, and no clip has any of them.
    """
    from pipeline.text.suggestions import nearest

    config = config_of(given)
    protected = set(config.sampling.flip_protect)
    if not protected:
        return config

    known = set()
    for clip in manifest.clips:
        known.update(clip.labels)
    unknown = protected - known
    if not unknown:
        return config

    # Always the same one, whatever the order of a set.
    label = min(unknown)
    if unknown == protected:
        what = f"no clip has the label {label!r}"
        if len(unknown) > 1:
            what += " or another of these"
        raise ValueError(
            f"--flip-protect: {what}: {nearest(label, known)}; name labels of clips, or leave it "
            f"out"
        )
    some = f"{len(unknown)} of these {len(protected)} labels"
    say(f"--flip-protect: no clip has {some}, such as {label!r}; using the rest", err=True)
    return config


def config_of(given: dict, fixed: dict | None = None):
    """Build the ExtractConfig that the options name.

    Args:
        given: the options, by name. With `like`, only those of the command line count.
        fixed: options that a verb sets itself, whatever the command line says.

    Raises:
        ValueError: a value is not allowed, or a file of --like CACHE is gone or has changed.
    """
    from pipeline.encoder_names import is_encoder
    from pipeline.stages.config import with_settings

    given = {**given, **(fixed or {})}
    if given.get("like") is None:
        config = _plain_config(given)
    else:
        named = given_names(given) | (fixed or {}).keys()
        config = _config_like(given, named)
    config = with_settings(config, given["settings"])
    if is_encoder(config.backbone) and config.weights == "imagenet":
        # The option's default, for which encoders have a word of their own.
        config = replace(config, weights="pretrained")
    return with_known_names(config)


def with_known_names(config):
    """Return an ExtractConfig whose backbone and source of boxes have the names that records have.

    Plug-in files are given to this process; `torchvision-detector` has an underscore.

    Args:
        config: the config, with names as people write them.
    """
    from pipeline.plugins import given_name
    from pipeline.proposals import with_underscores

    return replace(
        config,
        backbone=given_name(config.backbone),
        proposals=with_underscores(given_name(config.proposals)),
    )


def given_names(given: dict) -> set[str]:
    """Return the names of the options that the command line has.

    Args:
        given: the options, by name.
    """
    context = click.get_current_context()
    named = set()
    for name in given:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            named.add(name)
    return named


def _plain_config(given: dict):
    from pipeline.stages.config import ExtractConfig
    from pipeline.views.sampling import Sampling

    given = settle(given)
    sampling = Sampling(
        test_crops=_crops(given["test_crops"]), **{key: given[key] for key in SAMPLING}
    )
    # None leaves an option out, so that the source's own default counts.
    boxes = {key: value for key, value in _box_options(given).items() if value is not None}
    return ExtractConfig(
        sampling=sampling,
        proposal_options=boxes,
        resize=given["frame_resize"],
        box_labels=_box_labels_for(given),
        **{key: given[key] for key in CONFIG},
    )


def _config_like(given: dict, named: set[str]):
    """The config of the cache that --like names, with the options of `named` replaced."""
    from pipeline.cache.reader import Cache
    from pipeline.stages.recorded import config_like, require_same_files

    cache = Cache(given["like"])
    config, _ = config_like(cache)
    replaced = _replaced_files(named, given["settings"])
    require_same_files(config, cache.config, cache.path, replaced)

    resize = given.get("frame_resize") or _resize_of_cache(given) or config.resize
    return replace(with_named(config, given, named), resize=resize)


def with_named(config, given: dict, named: set[str]):
    """Return a recorded config with the options of the command line in their place.

    Args:
        config: the ExtractConfig.
        given: the options, by name.
        named: those that count; the config's own stay for all others.
    """
    from pipeline.plugins import given_name
    from pipeline.proposals import with_underscores

    # The options of one backbone, or of one source of boxes, mean nothing to another.
    if "backbone" in named and given_name(given["backbone"]) != config.backbone:
        config = replace(config, backbone_options={}, cut="", weights=given["weights"])
    source = with_underscores(given_name(given["proposals"]))
    if "proposals" in named and source != config.proposals:
        config = replace(config, proposal_options={})

    views = {key: given[key] for key in SAMPLING if key in named}
    if "test_crops" in named:
        views["test_crops"] = _crops(given["test_crops"])
    boxes = dict(config.proposal_options)
    options_of_boxes = _box_options(given)
    for option, key in BOX_OPTIONS.items():
        if option in named:
            boxes[key] = options_of_boxes[key]
    return replace(
        config,
        sampling=replace(config.sampling, **views),
        proposal_options=boxes,
        **{key: given[key] for key in CONFIG if key in named},
    )


def _replaced_files(named: set[str], settings: dict) -> set[str]:
    """The options for files that the command line replaces in the config of --like CACHE."""
    causes = {
        "--weights": ({"weights", "backbone"}, "weights"),
        "--annotations": ({"annotations", "proposals"}, "proposal_options.file"),
        "--proposal-weights": ({"proposal_weights", "proposals"}, "proposal_options.weights"),
    }
    replaced = set()
    for flag, (options, key) in causes.items():
        if named & options or key in settings:
            replaced.add(flag)
    return replaced


def like_options(given: dict) -> dict:
    """Return the options with the batch size and the compression of --like CACHE, if it is given.

    Args:
        given: the options, by name. Those of the command line stay.
    """
    if given.get("like") is None:
        return given
    from pipeline.cache.reader import Cache
    from pipeline.stages.recorded import config_like

    _, record = config_like(Cache(given["like"]))
    taken = {}
    for name in ("batch", "compression"):
        if name not in given_names(given):
            taken[name] = record[name]
    return {**given, **taken}


def _crops(text: str) -> int | str:
    return text if text == "full" else int(text)


def _box_options(given: dict) -> dict:
    """The options of the source of boxes by their keys; None for those that are not given."""
    options = {key: given.get(option) for option, key in BOX_OPTIONS.items()}
    if options["file"] is not None:
        options["file"] = str(options["file"])
    return options


def _resize_of_cache(given: dict) -> str:
    """Who resizes frames in the cache that is written to; "" where it does not exist yet."""
    from pipeline.cache.reader import read_cache_json

    cache = given.get("cache")
    if not cache or not (Path(cache) / "cache.json").is_file():
        return ""
    return read_cache_json(Path(cache))["config"].get("resize", "pil")


def _box_labels_for(given: dict) -> bool:
    """Whether classes and tracks of boxes are stored, which caches of format 1 began without."""
    from pipeline.cache.reader import read_cache_json

    cache = given.get("cache")
    if not cache or not (Path(cache) / "cache.json").is_file():
        return True
    return read_cache_json(Path(cache))["format"] > 1
