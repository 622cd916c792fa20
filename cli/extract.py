"""`vidgraph extract`: stage one, videos to cached tensors."""

from pathlib import Path

import click

from cli._cluster import cluster_options, engine_of, sbatch_script
from cli._interrupt import stoppable
from cli._options import commas, device_option, pick_device, set_option, shard_numbers
from cli._progress import progress

RESUME = "stopped; finished shards are kept, the same command resumes"


def _one_of(names: str) -> click.Choice:
    return click.Choice(names.split())


def _views(function):
    """The options that say which frames and which crops."""
    options = (
        click.option("--frames", default=32, help="F, frames fed to the backbone per view."),
        click.option(
            "--sampling", default="segments", type=_one_of("segments stride linspace gos"), help="How frames are picked."
        ),
        click.option("--fps", default=6.0, help="Frame rate of --sampling stride, frames per second."),
        click.option("--size", default=224, help="Side of a square view, pixels."),
        click.option("--train-views", default=1, help="Random views per clip in the group train; 0 for none."),
        click.option(
            "--train-crop", default="gos", type=_one_of("gos short_side multiscale centre"), help="Crop of train views."
        ),
        click.option("--flip", default=0.5, help="Probability that a training view is mirrored."),
        click.option("--flip-protect", default="", callback=commas, help="Labels never mirrored, comma-separated."),
        click.option("--test-clips", default=1, help="Test views in time per clip; 0 for none."),
        click.option("--test-crops", default="1", type=_one_of("1 3 11 full"), help="Crops per time; full: the whole frame."),
        click.option(
            "--test-short-side", type=int, help="Short side at test, pixels.  [default: --size; 8/7 of it for 3, 11, full]"
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _networks(function):
    """The options that say what is computed and kept."""
    options = (
        click.option(
            "--keep", default="pooled,nodes,boxes", callback=commas, help="Fields to store: pooled, nodes, boxes, cuts (res5)."
        ),
        click.option("--backbone", default="i3d_r50", help="A file of pipeline/backbones."),
        click.option("--weights", default="imagenet", help="Backbone weights: imagenet, none, or a checkpoint file."),
        click.option("--cut", default="", help="Last cut, pooled and aligned; the last stage unless given."),
        click.option("--proposals", default="torchvision", help="Source of boxes: a file of pipeline/proposals."),
        click.option("--proposal-weights", help="Weights of the source of boxes: coco, none, or a file."),
        click.option("--proposal-size", type=int, help="Short side at which it sees whole frames, pixels.  [default: 480]"),
        click.option("--boxes", type=int, help="N, boxes kept per feature step.  [default: 10]"),
        click.option("--annotations", type=click.Path(path_type=Path), help="File of boxes, for --proposals annotations."),
        click.option("--roi-pool", default="max", type=_one_of("max mean area"), help="Over 7x7 bins; area: over the box."),
        click.option("--precision", default="fp32", type=_one_of("fp32 bf16 fp16"), help="Arithmetic; no fp16 on a CPU."),
        click.option("--dtype", default="float16", type=_one_of("float16 float32"), help="Stored dtype of features."),
        click.option("--decoder", default="decord", type=_one_of("decord pyav torchcodec"), help="Video decoder."),
        click.option("--allow-truncated", is_flag=True, help="Take videos that end before their container says."),
        click.option("--seed", default=0, help="Seed of the training views."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _running(function):
    """The options that say how the work is done."""
    options = (
        click.option("--shard", "shards", callback=shard_numbers, help="Only these: 3, 10-20, or a list.  [default: all]"),
        click.option("--shard-bytes", default=2 << 30, type=click.IntRange(min=1), help="Target size of a shard, bytes."),
        click.option(
            "--shard-size",
            default=0,
            type=click.IntRange(min=0),
            help="Clips per shard instead; 0 derives it from --shard-bytes.",
        ),
        click.option("--batch", default=4, type=click.IntRange(min=1), help="Views per forward pass."),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Decode processes.  [default: 1 on a CPU, one per spare core beside a GPU]",
        ),
        click.option("--time-limit", default=120.0, help="Seconds a clip may take to decode."),
        click.option("--compile", is_flag=True, help="torch.compile the backbone (slow start)."),
        click.option("--compression", default="none", type=_one_of("none lzf zstd"), help="Compression of the shards."),
        device_option,
        set_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command("extract")
@click.option("--manifest", required=True, type=click.Path(path_type=Path), help="The clips (see `vidgraph manifest`).")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that its paths start from.  [default: its own]")
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Folder to write to; a rerun resumes it.")
@_views
@_networks
@_running
@cluster_options
@click.option("--print-sbatch", is_flag=True, help="Print a job-array script for sbatch that does this (see --slurm, --jobs).")
def command(**given) -> int:
    """Decode, run the frozen backbone and the source of boxes, and store the results in sharded HDF5.

    Shards that are complete are left alone, so the same command resumes a run that was stopped; several runs at the same time
    share the work. Clips that cannot be read are recorded in their shard's statistics and the exit code is 3.
    """
    if given["print_sbatch"]:
        return _print_sbatch(given)
    with stoppable(RESUME):
        from pipeline.manifest import read_manifest

        engine = engine_of(given, given["cache"] / "logs")
        manifest = read_manifest(given["manifest"], given["root"])
        options = _run_options(given, elsewhere=engine is not None)
        return run(_config(given), manifest, given["cache"], options, given["shards"], engine=engine)


def _print_sbatch(given: dict) -> int:
    from pipeline.extract import count_shards
    from pipeline.manifest import read_manifest

    for name in ("dask", "scheduler", "shards"):
        if given[name] is not None:
            raise click.UsageError(f"--print-sbatch and --{name.removesuffix('s')}: expected one of them; leave one out")
    manifest = read_manifest(given["manifest"], given["root"])
    shards = count_shards(_config(given), manifest, given["cache"], _run_options(given, elsewhere=True))
    logs = given["cache"] / "logs"
    logs.mkdir(parents=True, exist_ok=True)  # Slurm makes no folders, and tasks whose output has none fail without a word
    click.echo(sbatch_script(given, shards, logs), nl=False)
    return 0


def run(config, manifest, cache: Path, options, shards=None, redo: bool = False, engine=None) -> int:
    """Extracts with a progress display, prints what came out and returns the exit code."""
    from contextlib import ExitStack

    from pipeline.extract import extract
    from pipeline.memory import keep_freed_memory

    if engine is None:
        keep_freed_memory()
    with stoppable(RESUME), ExitStack() as stack:

        def announce(todo: int, total: int):
            if todo < total:
                click.echo(f"resuming: {total - todo:,} of {total:,} clips lie in finished shards", err=True)
            return stack.enter_context(progress("extract", todo, "clips"))

        summary = extract(config, manifest, cache, options, shards, redo, announce, engine)
    rate = summary.clips / max(summary.seconds, 1e-9)
    done = f"{summary.clips:,} clips, {summary.views:,} views in {summary.seconds:,.1f} s ({rate:.2f} clips/s)"
    click.echo(f"{cache}: {done if summary.shards else 'every shard was complete already'}")
    return max(_report_failures(summary.failures, summary.asked, cache), _report_changed(summary.changed, cache))


def _report_failures(failures: list[dict], clips: int, cache: Path) -> int:
    for failure in failures[:10]:
        click.echo(f"  {failure['clip']}: {failure['error']}: {failure['message']}", err=True)
    if len(failures) > 10:
        click.echo(f"  … and {len(failures) - 10:,} more, in {cache}/features/*.json", err=True)
    if failures:
        click.echo(f"{len(failures):,} of {clips:,} clips failed; to retry them: vidgraph repair --cache {cache}", err=True)
    return 3 if failures else 0


def _report_changed(changed: list[str], cache: Path) -> int:
    if len(changed) == 1:
        found = f"1 clip in finished shards ({changed[0]}) has another video now; to redo it"
    else:
        some = ", ".join(changed[:3]) + ", …" * (len(changed) > 3)
        found = f"{len(changed):,} clips in finished shards ({some}) have other videos now; to redo them"
    if changed:
        click.echo(f"{found}: vidgraph repair --cache {cache} --changed", err=True)
    return 3 if changed else 0


def _config(given: dict):
    from pipeline.config import ExtractConfig, with_settings
    from pipeline.sample import Sampling

    crops = given["test_crops"]
    sampling = Sampling(
        test_crops=crops if crops == "full" else int(crops),
        **{key: given[key] for key in ("frames", "sampling", "fps", "size", "train_views", "train_crop")},
        **{key: given[key] for key in ("flip", "flip_protect", "test_clips", "test_short_side")},
    )
    boxes = {
        "weights": given["proposal_weights"],
        "size": given["proposal_size"],
        "num_boxes": given["boxes"],
        "file": given["annotations"] and str(given["annotations"]),
    }
    config = ExtractConfig(
        sampling=sampling,
        proposal_options={key: value for key, value in boxes.items() if value is not None},
        **{key: given[key] for key in ("backbone", "weights", "cut", "keep", "proposals", "roi_pool", "precision")},
        **{key: given[key] for key in ("dtype", "seed", "decoder", "allow_truncated")},
    )
    return with_settings(config, given["settings"])


def _run_options(given: dict, elsewhere: bool):
    """How the work is done; `elsewhere`, each worker finds out what its machine has."""
    from pipeline.extract import RunOptions

    return RunOptions(
        device=given["device"] if elsewhere else pick_device(given["device"]),
        **{
            key: given[key] for key in ("batch", "workers", "time_limit", "compile", "compression", "shard_bytes", "shard_size")
        },
    )


def default_workers(device: str) -> int:
    """Decode processes where nobody says how many; see `pipeline.extract.decoders_for`."""
    import os

    from pipeline.extract import decoders_for

    return decoders_for(device, os.cpu_count() or 1)
