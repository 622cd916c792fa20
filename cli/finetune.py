"""`vidgraph finetune`: end to end, from frames through the backbone to the head."""

import os
from pathlib import Path

import click

from cli._shared.extraction import config_of, network_options, views_options
from cli._shared.interrupt import stoppable
from cli._shared.options import (
    device_option,
    plugin_option,
    say_cost,
    set_option,
    time_limit_option,
    together,
)
from cli._shared.real_numbers import AnyNumber
from cli._shared.say import say
from cli._shared.training import short_options, with_short_options
from pipeline.text.typed_options import SAMPLING

# Options of `vidgraph extract` that describe frames and networks. A cache records them. A run
# without a cache takes them from the command line.
OF_EXTRACTION = (
    "like",
    *SAMPLING,
    *("test_crops", "backbone", "cut", "proposals", "proposal_size", "boxes", "roi_pool"),
    *("decoder", "allow_truncated", "pixel_aspect", "frame_pattern", "frame_resize"),
)
# Files of the extraction. With a cache these options say where they are now.
MOVED = ("weights", "annotations", "proposal_weights")
# Tables of the extraction that --set changes if there is no cache.
CONFIG = ("backbone_options", "proposal_options", "sampling")
RESUME = "stopped; the last checkpoint is kept, the same command continues from it"


def _running(function):
    """Add the options that choose how the work is done."""
    options = (
        click.option(
            "--precision",
            default="fp32",
            type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
            help="Mixed precision.",
        ),
        click.option(
            "--accumulate",
            default=0,
            show_default=False,
            help="Parts of a mini-batch, one after the other.  [default: the recipe's]",
        ),
        click.option(
            "--checkpointing",
            is_flag=True,
            help="Compute the backbone's activations twice, not keep them.",
        ),
        click.option(
            "--checkpoint-every",
            default=500,
            type=click.IntRange(min=1),
            help="Mini-batches between checkpoints, beside one per epoch.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Decode processes.  [default: 1; beside a GPU, one per spare core]",
        ),
        time_limit_option(120.0),
        click.option(
            "--check/--no-check",
            default=True,
            help="Compare live with cached logits before the first step.",
        ),
        click.option(
            "--resume/--no-resume",
            default=True,
            help="Continue what is in the run folder, or start over.",
        ),
        device_option,
        set_option,
    )
    return together(options)(function)


def _trained(function):
    """Add the options that choose what is trained, and from which weights."""
    options = (
        click.option(
            "--phase",
            default="",
            show_default=False,
            help="Phase of the recipe.  [default: the first that reads frames]",
        ),
        click.option(
            "--start",
            type=click.Path(path_type=Path, exists=True),
            help="Run folder or checkpoint that the weights come from.  [default: the phase "
            "before, in the run folder]",
        ),
        click.option(
            "--train-from",
            help="The backbone is trained from this stage or block on, such as res4 or res4.3; "
            "stem: all of the backbone; none: the head alone.  [default: the recipe's; none for a "
            "recipe without phases]",
        ),
        click.option(
            "--frozen-bn/--train-bn",
            default=None,
            help="Batch norms of the backbone.  [default: the recipe's]",
        ),
        click.option(
            "--backbone-lr",
            type=AnyNumber(),
            help="Factor of the backbone's learning rate.  [default: the recipe's; 0.1 for a "
            "recipe without phases]",
        ),
        click.option(
            "--views",
            type=click.Choice(["cached", "fresh"]),
            help="Training views: those of the cache, or new ones in every epoch.  [default: "
            "cached, if there is a cache]",
        ),
    )
    return together(options)(function)


@click.command("finetune")
@click.argument("recipe", required=False)
@click.option(
    "--study",
    help="Train all members of a study, one after another, in place of a RECIPE: a TOML file, or "
    "the name of a study of the package.",
)
@click.option(
    "--list",
    "only_list",
    is_flag=True,
    help="With --study: check every member, print them, and train none.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="The cache of the head: its views, boxes and backbone.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Labels and splits.  [default: the cache's copy]",
)
@click.option(
    "--folds",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --study: train on every fold of a cross-validation, the manifests in this folder, "
    "as `vidgraph manifest folds` writes them. The table is over the folds.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the videos.  [default: as at the extraction]",
)
@click.option(
    "--runs", default="runs", type=click.Path(path_type=Path), help="Folder of run folders."
)
@click.option(
    "--name",
    help="The run's or the study's folder in it.  [default: RECIPE-seedSEED, "
    "RECIPE-PHASE-seedSEED without a cache, the study's name]",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Initialisation, dropout, order and draws of the views.",
)
@_trained
@short_options
@_running
@plugin_option
@click.pass_context
def command(ctx, **given) -> int:
    """Train the head of RECIPE with its backbone, from frames, and evaluate it on val and test.

    With --cache, frames and networks are those of the extraction. Before the first step, the logits
    from frames must equal those from the cache. Without --cache, the options of `vidgraph extract`
    choose frames and networks: this trains a backbone before its cache is made. Its checkpoints are
    weights for `vidgraph extract --weights RUN/best.pt`. Several GPUs: `torchrun --nproc-per-node 8
    --no-python -- vidgraph finetune ...`.

    A recipe without phases is trained as it stands, with --train-from. Exit code 3: frames or boxes
    of some clips could not be read.

    \b
    vidgraph finetune --study ean_table8_blocks --manifest something-something-v1.csv

    With --study, every member has a folder in that of the study, and the command ends with their
    table. The study may set options of the extraction. The same command continues a stopped study
    and tries failed members again (exit code 3).
    """
    if (given["recipe"] is None) == (given["study"] is None):
        got = "neither" if given["recipe"] is None else "both"
        raise click.UsageError(f"expected RECIPE or --study STUDY, got {got}")
    if given["only_list"] and given["study"] is None:
        raise click.UsageError("--list prints the members of a study: pass --study STUDY")
    if given["study"] is not None and _is_given(ctx, "seed"):
        raise click.UsageError("--seed: a study has its own seeds; change them in its file")
    if given["folds"] is not None and given["study"] is None:
        raise click.UsageError("--folds trains the members of a study: pass --study STUDY")
    if given["folds"] is not None and given["manifest"] is not None:
        raise click.UsageError("--manifest and --folds: expected one of them, got both")
    if given["cache"] is None and given["manifest"] is None and given["folds"] is None:
        raise click.UsageError(
            "expected --cache, or --manifest (with --study also --folds) and the options of "
            "`vidgraph extract`"
        )
    if given["cache"] is not None:
        for parameter in ctx.command.params:
            if parameter.name in OF_EXTRACTION and _is_given(ctx, parameter.name):
                raise click.UsageError(
                    f"{parameter.opts[0]}: the cache fixes this; leave it out, or train without "
                    f"--cache"
                )
    with stoppable(RESUME):
        return _run(ctx, given)


@click.command()
@views_options
@network_options
def _of_extraction(**given) -> None:
    """Not a command: it exists for its options, which `finetune` takes over."""


command.params += [p for p in _of_extraction.params if p.name in (*OF_EXTRACTION, *MOVED)]


def _is_given(ctx: click.Context, name: str) -> bool:
    """Return whether the command line has this option."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _run(ctx: click.Context, given: dict) -> int:
    from heads.finetuning.finetune import SourceOptions
    from heads.finetuning.frame_training import FrameRunOptions
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.repair import MovedFiles
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    cache = None if given["cache"] is None else Cache(given["cache"])
    settings = given.pop("settings")
    if given["study"] is None:
        settings = with_short_options(given["recipe"] or "", settings, given, reads="frames")

    # Without a cache, --set also changes tables of the extraction's configuration.
    recipe_settings, extraction = {}, {}
    for key, value in settings.items():
        if cache is None and key.partition(".")[0] in CONFIG:
            extraction[key] = value
        else:
            recipe_settings[key] = value
    frames = {}
    for key in ("train_from", "frozen_bn", "backbone_lr"):
        if given[key] is not None:
            frames[key] = given[key]

    if given["study"] is None:
        # A phase that cannot be trained here is said before any file is read.
        _recipe_and_phase(given, recipe_settings, frames)

    # Defaults of `vidgraph extract` do not count: only a file that was named has moved.
    files = dict.fromkeys(MOVED)
    for key in MOVED:
        if _is_given(ctx, key):
            files[key] = given[key]
    moved = MovedFiles(given["root"], *files.values())
    # None without --views: whether there is a cache then decides.
    fresh = given["views"] and given["views"] == "fresh"
    source_options = SourceOptions(
        fresh, moved, given["workers"], given["time_limit"], given["check"]
    )
    options = FrameRunOptions(
        given["seed"],
        **{
            key: given[key]
            for key in ("precision", "accumulate", "checkpointing", "checkpoint_every", "resume")
        },
    )
    if os.environ.get("RANK", "0") == "0":
        say_cost(given["precision"], given["device"])

    config = None
    if cache is None:
        # Nothing is stored, so these options are not asked for.
        fixed = {"keep": ("pooled",), "precision": "fp32", "dtype": "float32"}
        # A run stays what it is on any device.
        fixed["frame_resize"] = given["frame_resize"] or "pil"
        # A study has them among its own keys, so that its table records them.
        own = {} if given["study"] is not None else extraction
        config = config_of({**given, "settings": own}, fixed)
    shared = {
        "cache": cache,
        "config": config,
        "manifest": read_manifest(given["manifest"], given["root"]) if given["manifest"] else None,
        "start": given["start"],
        "source_options": source_options,
        "options": options,
        "device": given["device"],
        "say": say,
    }
    if given["study"] is not None:
        of_extraction = []
        # With a cache such an option says where a file is now.
        if cache is None:
            for name in (*OF_EXTRACTION, *MOVED):
                if _is_given(ctx, name):
                    of_extraction.append(name)
        return _run_study(given, recipe_settings, extraction, frames, of_extraction, shared)
    return _run_recipe(given, recipe_settings, frames, shared)


def _run_study(
    given: dict,
    settings: dict,
    extraction: dict,
    frames: dict,
    of_extraction: list[str],
    shared: dict,
) -> int:
    """Train a study; the arguments are those of `_run_recipe`.

    Args:
        extraction: keys of the extraction that --set gives.
        of_extraction: options of the extraction that the command line has.
    """
    from cli._shared.frames_study import run_study
    from heads.training.folds import read_folds

    folds = read_folds(given["folds"], given["root"]) if given["folds"] else {}
    alike = ("cache", "config", "manifest", "source_options")
    checked = {key: shared[key] for key in alike}
    more = {key: value for key, value in shared.items() if key not in alike}
    return run_study(
        given["study"],
        settings,
        extraction,
        of_extraction,
        given["runs"],
        given["name"],
        given["only_list"],
        checked | {"phase": given["phase"], "frames": frames},
        more,
        folds,
    )


def _recipe_and_phase(given: dict, settings: dict, frames: dict) -> tuple:
    """(the recipe, the recipe with the table [phases.frames] of other options, its phase)."""
    from heads.config.recipe import read_recipe
    from heads.finetuning.finetune import frames_phase

    plain = read_recipe(given["recipe"], settings)
    return plain, *frames_phase(plain, given["phase"], **frames)


def _run_recipe(given: dict, settings: dict, frames: dict, shared: dict) -> int:
    """Train one recipe.

    Args:
        given: the options of the command.
        settings: keys of the recipe that --set gives.
        frames: keys of the table [phases.frames] that other options give.
        shared: the arguments of `finetune` that do not depend on the recipe.
    """
    from cli._shared.figures import duration, print_figures
    from heads.finetuning.finetune import finetune

    plain, recipe, phase = _recipe_and_phase(given, settings, frames)
    # With a cache, all phases of a recipe share the folder that `vidgraph train` uses.
    if not plain.phases:
        name = f"{recipe.name}-frames"
    elif shared["cache"] is None:
        name = f"{recipe.name}-{phase.name}"
    else:
        name = recipe.name

    folder = given["runs"] / (given["name"] or f"{name}-seed{given['seed']}")
    result = finetune(recipe, folder, phase, **shared)
    # Under torchrun only the first process prints.
    if os.environ.get("RANK", "0") != "0":
        return 0
    title = (
        f"{recipe.name}, {phase.name}, seed {given['seed']}: {result.parameters:,} parameters, "
        f"epoch {result.best_epoch}"
    )
    print_figures(title, result.metrics)
    say(f"{duration(result)}; {result.folder}")
    # torchrun takes any other code than 0 for a crash.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return 3 if result.undecoded and alone else 0
