"""`vidgraph evaluate`: a trained head on a split of a cache."""

from pathlib import Path

import click

from cli._options import device_option


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--cache", type=click.Path(path_type=Path), help="The cache to evaluate on.  [default: the run's]")
@click.option("--manifest", type=click.Path(path_type=Path), help="Labels and splits.  [default: the cache's copy]")
@click.option("--split", default="test", type=click.Choice(["train", "val", "test"]), help="Which clips, by their test views.")
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), help="Which weights.  [default: what the run's own figures use]"
)
@click.option(
    "--aggregate", type=click.Choice(["mean", "max"]), help="Over the test views of a video.  [default: the recipe's]"
)
@click.option(
    "--scores", type=click.Choice(["softmax", "sigmoid", "logits"]), help="What is aggregated.  [default: the recipe's]"
)
@device_option
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "bf16", "fp16"]), help="Arithmetic of the head.")
def command(run, cache, manifest, split, checkpoint, aggregate, scores, device, precision) -> int:
    """Evaluate the checkpoint in the folder RUN; predictions and figures are written there."""
    from cli._figures import print_figures
    from heads.evaluate import evaluate
    from heads.runs import read_json
    from pipeline.cache import Cache
    from pipeline.manifest import read_manifest
    from pipeline.memory import keep_freed_memory

    keep_freed_memory()
    found = evaluate(
        run,
        Cache(cache or read_json(run / "run.json")["cache"]),
        split,
        checkpoint=checkpoint or "",
        settings={name: value for name, value in (("aggregate", aggregate), ("scores", scores)) if value},
        device=device,
        precision=precision,
        manifest=read_manifest(manifest) if manifest else None,
        say=click.echo,
    )
    print_figures(str(run), {split: found})
    return 0
