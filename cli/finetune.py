"""`vidgraph finetune`: end to end, from frames through the backbone to the head."""

import os
from pathlib import Path

import click

from cli._shared.extraction import SAMPLING, config_of, network_options, views_options
from cli._shared.interrupt import stoppable
from cli._shared.options import (
    device_option,
    plugin_option,
    say_cost,
    set_option,
    time_limit_option,
    together,
)
from cli._shared.say import say

# Options of `vidgraph extract` that describe frames and networks. A cache records them. A run
# without a cache takes them from the command line.
OF_EXTRACTION = (
    *SAMPLING,
    *("test_crops", "backbone", "cut", "proposals", "proposal_size", "boxes", "roi_pool"),
    *("decoder", "allow_truncated", "pixel_aspect", "frame_pattern"),
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
            help="First stage or block that is trained; stem: all, none.  [default: the recipe's]",
        ),
        click.option(
            "--frozen-bn/--train-bn",
            default=None,
            help="Batch norms of the backbone.  [default: the recipe's]",
        ),
        click.option(
            "--backbone-lr",
            type=float,
            help="Factor of the backbone's learning rate.  [default: the recipe's]",
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
@click.argument("recipe")
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
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the videos.  [default: as at the extraction]",
)
@click.option(
    "--runs", default="runs", type=click.Path(path_type=Path), help="Folder of run folders."
)
@click.option(
    "--name",
    help="The run's folder in it.  [default: RECIPE-seedSEED, RECIPE-PHASE-seedSEED without a "
    "cache]",
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Initialisation, dropout, order and draws of the views.",
)
@_trained
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

    A recipe without phases is trained as it stands, with --train-from. Exit code 3: some clips
    could not be decoded.
    """
    if given["cache"] is None and given["manifest"] is None:
        raise click.UsageError(
            "expected --cache, or --manifest and the options of `vidgraph extract`"
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
    from cli._shared.figures import print_figures
    from heads.config.recipe import read_recipe
    from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
    from heads.finetuning.frame_training import FrameRunOptions
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.repair import MovedFiles
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    cache = None if given["cache"] is None else Cache(given["cache"])
    settings = given.pop("settings")

    # Without a cache, --set also changes tables of the extraction's configuration.
    recipe_settings, extraction = {}, {}
    for key, value in settings.items():
        if cache is None and key.partition(".")[0] in CONFIG:
            extraction[key] = value
        else:
            recipe_settings[key] = value

    keys = ("train_from", "frozen_bn", "backbone_lr")
    plain = read_recipe(given["recipe"], recipe_settings)
    recipe, phase = frames_phase(
        plain, given["phase"], **{key: given[key] for key in keys if given[key] is not None}
    )

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

    # With a cache, all phases of a recipe share the folder that `vidgraph train` uses.
    if not plain.phases:
        name = f"{recipe.name}-frames"
    elif cache is None:
        name = f"{recipe.name}-{phase.name}"
    else:
        name = recipe.name

    config = None
    if cache is None:
        # Nothing is stored, so these options are not asked for.
        fixed = {"keep": ("pooled",), "precision": "fp32", "dtype": "float32"}
        config = config_of({**given, **fixed, "settings": extraction})
    result = finetune(
        recipe,
        given["runs"] / (given["name"] or f"{name}-seed{given['seed']}"),
        phase,
        cache=cache,
        config=config,
        manifest=read_manifest(given["manifest"], given["root"]) if given["manifest"] else None,
        start=given["start"],
        source_options=source_options,
        options=options,
        device=given["device"],
        say=say,
    )
    # Under torchrun only the first process prints.
    if os.environ.get("RANK", "0") != "0":
        return 0
    title = (
        f"{recipe.name}, {phase.name}, seed {given['seed']}: {result.parameters:,} parameters, "
        f"epoch {result.best_epoch}"
    )
    print_figures(title, result.metrics)
    share = 100 * result.waiting / max(result.seconds, 1e-9)
    say(
        f"{result.epochs} epochs in {result.seconds:.1f} s, {share:.1f} % of it waiting for data; "
        f"{result.folder}"
    )
    # torchrun takes any other code than 0 for a crash.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return 3 if result.undecoded and alone else 0
