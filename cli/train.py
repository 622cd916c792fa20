"""`vidgraph train`: one head from a recipe on a cache."""

from pathlib import Path

import click

from cli._shared.caches import caches_option
from cli._shared.interrupt import stoppable
from cli._shared.options import device_option, plugin_option, say_cost, set_option
from cli._shared.say import say
from cli._shared.training import short_options, with_short_options


@click.command("train")
@click.argument("recipe")
@caches_option("The cache to train on.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Labels and splits.  [default: the cache's copy]",
)
@click.option(
    "--runs", default="runs", type=click.Path(path_type=Path), help="Folder of run folders."
)
@click.option("--name", help="The run's folder in it.  [default: RECIPE-seedSEED]")
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(min=0),
    help="Initialisation, dropout and the order of the views.",
)
@device_option
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic of the head.",
)
@click.option(
    "--resident",
    default="auto",
    type=click.Choice(["auto", "gpu", "ram", "disk"]),
    help="Features in the GPU's memory, in the machine's, or read per batch; auto: the first with "
    "twice the room.",
)
@click.option(
    "--phase",
    default="",
    show_default=False,
    help="Train this phase of the recipe alone.  [default: the first that read the cache]",
)
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True),
    help="Run folder or checkpoint that the first phase starts from. Where its classes are others, "
    "the classifier stays fresh.",
)
@click.option(
    "--resume/--no-resume", default=True, help="Continue what is in the run folder, or start over."
)
@short_options
@set_option
@plugin_option
def command(
    recipe,
    cache,
    manifest,
    runs,
    name,
    seed,
    device,
    precision,
    resident,
    phase,
    start,
    resume,
    settings,
    **short,
) -> int:
    """Train the head of RECIPE, and evaluate it on val and test.

    RECIPE is a TOML file, or the name of a recipe of the package. pool, roi_pool, mean_lstm, strg,
    gos, dyreg, rstg, ean, stin and stlt are for one's own videos, the others for the papers'
    tables. If it has several phases, those that read the cache are trained one after the other;
    `--set phases.NAME.train.lr=0.1` sets a key of one of them. A stopped run continues after its
    last epoch. A finished run is read back.
    """
    from cli._shared.figures import duration, print_figures
    from heads.config.recipe import read_recipe
    from heads.training.train import train
    from pipeline.cache.joined import open_caches
    from pipeline.manifests.manifest import read_manifest
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    settings = with_short_options(recipe, settings, {**short, "phase": phase}, reads="cache")
    chosen = read_recipe(recipe, settings)
    say_cost(precision, device)
    with stoppable("stopped; finished epochs are kept, the same command resumes"):
        result = train(
            chosen,
            open_caches(cache),
            runs / (name or f"{chosen.name}-seed{seed}"),
            seed=seed,
            device=device,
            precision=precision,
            manifest=read_manifest(manifest) if manifest else None,
            resume=resume,
            resident=resident,
            say=say,
            phase=phase,
            start=start,
        )
    print_figures(
        f"{chosen.name}, seed {seed}: {result.parameters:,} parameters, epoch {result.best_epoch}",
        result.metrics,
    )
    say(f"{duration(result)}; {result.folder}")
    return 0
