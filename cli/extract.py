"""`vidgraph extract`: stage one, videos to cached tensors."""

import shlex
from pathlib import Path

import click

from cli._cluster import cluster_options, engine_of, sbatch_script
from cli._extraction import config_for, network_options, running_options, views_options
from cli._interrupt import stoppable
from cli._options import pick_device, say_cost
from cli._progress import progress, say_aside
from cli._say import say, warn

RESUME = "stopped; finished shards are kept, the same command resumes"


@click.command("extract")
@click.option(
    "--manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="The clips (see `vidgraph manifest`).",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that its paths start from.  [default: its own]",
)
@click.option(
    "--cache",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write to; a rerun resumes it.",
)
@views_options
@network_options
@running_options
@cluster_options
@click.option(
    "--print-sbatch",
    is_flag=True,
    help="Print a job-array script for sbatch that does this (see --slurm, --jobs).",
)
def command(**given) -> int:
    """Decode, run the frozen backbone and the source of boxes, and store the results in sharded
    HDF5.

    Shards that are complete are left alone, so the same command resumes a run that was stopped;
    several runs at the same time share the work. Clips that cannot be read are recorded in their
    shard's statistics and the exit code is 3.
    """
    if given["print_sbatch"]:
        return _print_sbatch(given)
    with stoppable(RESUME):
        from pipeline.manifests.manifest import read_manifest

        engine = engine_of(given, given["cache"] / "logs")
        if (
            engine is None and given["root"] and not given["root"].is_dir()
        ):  # elsewhere, workers see it
            raise ValueError(
                f"--root: expected the folder of the videos, there is none at {given['root']}"
            )
        manifest = read_manifest(given["manifest"], given["root"])
        options = _run_options(given, elsewhere=engine is not None)
        return run(
            config_for(given, manifest),
            manifest,
            given["cache"],
            options,
            given["shards"],
            engine=engine,
        )


def _print_sbatch(given: dict) -> int:
    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.extract import count_shards

    for name in ("dask", "scheduler", "shards"):
        if given[name] is not None:
            raise click.UsageError(
                f"--print-sbatch and --{name.removesuffix('s')}: expected one of them; leave one "
                f"out"
            )
    manifest = read_manifest(given["manifest"], given["root"])
    shards = count_shards(
        config_for(given, manifest), manifest, given["cache"], _run_options(given, elsewhere=True)
    )
    logs = given["cache"] / "logs"
    script = sbatch_script(given, shards, logs)
    logs.mkdir(
        parents=True, exist_ok=True
    )  # Slurm makes no folders, and tasks whose output has none fail without a word
    click.echo(script, nl=False)
    return 0


def run(
    config, manifest, cache: Path, options, shards=None, redo: bool = False, engine=None
) -> int:
    """Extracts with a progress display, prints what came out and returns the exit code."""
    from contextlib import ExitStack

    from pipeline.stages.extract import extract
    from pipeline.workers.memory import keep_freed_memory

    if engine is None:
        keep_freed_memory()
    elsewhere = engine is not None and bool(engine.scheduler or engine.slurm is not None)
    say_cost(config.precision, options.device, elsewhere)
    with stoppable(RESUME), ExitStack() as stack:

        def announce(todo: int, total: int):
            if todo < total:
                say(
                    f"resuming: {total - todo:,} of {total:,} clips lie in finished shards",
                    err=True,
                )
            return stack.enter_context(progress("extract", todo, "clips"))

        summary = extract(
            config, manifest, cache, options, shards, redo, announce, engine, say_aside
        )
    rate = summary.clips / max(summary.seconds, 1e-9)
    done = f"{summary.clips:,} clips, {summary.views:,} views in {summary.seconds:,.1f} s ({rate:.2f} clips/s)"
    say(f"{cache}: {done if summary.shards else 'every shard was complete already'}")
    _report_relabelled(summary.relabelled, manifest.path, cache)
    _report_warnings(summary.warnings, cache)
    return max(
        _report_failures(summary.failures, summary.asked, cache),
        _report_changed(summary.changed, cache),
    )


def _report_failures(failures: list[dict], clips: int, cache: Path) -> int:
    for failure in failures[:10]:
        say(f"  {failure['clip']}: {failure['error']}: {failure['message']}", err=True)
    if len(failures) > 10:
        say(f"  … and {len(failures) - 10:,} more, in {cache}/features/*.json", err=True)
    if failures:
        say(
            f"{len(failures):,} of {clips:,} clips failed; to retry them: {_repair(cache)}",
            err=True,
        )
    return 3 if failures else 0


def _report_warnings(warnings: list[dict], cache: Path) -> None:
    """Prints what looks wrong with clips that were stored nevertheless. It does not change the exit
    code.
    """
    for warning in warnings[:10]:
        warn(f"  warning: {warning['clip']}: {warning['message']}")
    if len(warnings) > 10:
        warn(f"  … and {len(warnings) - 10:,} more, in {cache}/features/*.json")


def _report_changed(changed: list[str], cache: Path) -> int:
    if len(changed) == 1:
        found = f"1 clip in finished shards ({changed[0]}) has another video now; to redo it"
    else:
        some = ", ".join(changed[:3]) + ", …" * (len(changed) > 3)
        found = f"{len(changed):,} clips in finished shards ({some}) have other videos now; to redo them"
    if changed:
        say(f"{found}: {_repair(cache)} --changed", err=True)
    return 3 if changed else 0


def _report_relabelled(clips: list[str], manifest: Path, cache: Path) -> None:
    if clips:
        some = ", ".join(clips[:3]) + ", …" * (len(clips) > 3)
        which = (
            "1 clip has another label or split"
            if len(clips) == 1
            else f"{len(clips):,} clips have other labels or splits"
        )
        use = f"--manifest {shlex.quote(str(manifest))}"
        warn(f"{which} in {manifest} than in the copy in {cache} ({some})")
        warn(f"train, ablate and finetune read the copy; give them {use} for the new ones")


def _repair(cache: Path) -> str:
    """The command, to be copied."""
    return f"vidgraph repair --cache {shlex.quote(str(cache))}"


def _run_options(given: dict, elsewhere: bool):
    """How the work is done; `elsewhere`, each worker finds out what its machine has."""
    from pipeline.stages.extract import RunOptions

    return RunOptions(
        device=given["device"] if elsewhere else pick_device(given["device"]),
        **{
            key: given[key]
            for key in (
                "batch",
                "workers",
                "time_limit",
                "compile",
                "compression",
                "shard_bytes",
                "shard_size",
            )
        },
    )


def default_workers(device: str) -> int:
    """Decode processes where nobody says how many; see `pipeline.stages.jobs.decoders_for`."""
    from pipeline.stages.jobs import decoders_for
    from pipeline.workers.cores import cores_here

    return decoders_for(device, cores_here())
