"""`vidgraph extract`: stage one, videos to cached tensors."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from cli._shared.cluster import cluster_options, engine_of, gpus_option, sbatch_script
from cli._shared.extraction import (
    config_for,
    like_options,
    network_options,
    running_options,
    views_options,
)
from cli._shared.interrupt import stoppable
from cli._shared.options import commas, pick_device, plugin_option, say_cost
from cli._shared.progress import progress, say_aside
from cli._shared.real_numbers import RealNumber
from cli._shared.say import say, warn
from pipeline.text.counted import agree, counted

# The value of --accept-failures without a file; no file can have this name.
EVERY_CLIP = "\0"
# Errors after which a second attempt may end otherwise, with the same video.
WORTH_RETRYING = ("DecodeTimeout", "DecoderDied")
RESUME = "stopped; finished shards are kept, the same command resumes"


@click.command("extract")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="The clips (see `vidgraph manifest`); needed unless --add takes those of the cache.",
)
@click.option(
    "--add",
    callback=commas,
    default="",
    show_default=False,
    help="Fields to add to the cache, such as res4,nodes; or views, for more views alone. Options "
    "that are not given are the cache's.",
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
@gpus_option
@click.option(
    "--stop-after",
    type=RealNumber(min=0, min_open=True, infinite=True),
    metavar="SECONDS",
    help="Begin no shard that would not be complete by then, and do not wait for other runs. "
    "Report this run's shards alone, without reading those of others (inf: this without a limit). "
    "The tasks of --print-sbatch have it.",
)
@plugin_option
@cluster_options
@click.option(
    "--accept-failures",
    is_flag=False,
    flag_value=EVERY_CLIP,
    metavar="[FILE]",
    help="Go on without clips that fail (exit code 0), now and in later commands; with a FILE of "
    "clip ids, one per line, without these alone.",
)
@click.option(
    "--print-sbatch",
    is_flag=True,
    help="Print a job-array script for sbatch that does this (see --slurm, --jobs).",
)
def command(**given) -> int:
    """Decode videos, run the frozen networks, and store the results in sharded HDF5.

    Complete shards are skipped, so the same command resumes a stopped run. Several runs at the same
    time share the work. A cache grows by what it lacks: clips of a newer manifest, views, fields.
    Clips that cannot be read are recorded in their shard's statistics, and the exit code is then 3,
    unless they are accepted (--accept-failures).
    """
    if given["add"]:
        with stoppable(RESUME):
            return _add(given)
    if given["manifest"] is None:
        raise click.UsageError(
            "--manifest: expected the clips; only --add takes those of the cache"
        )
    given = like_options(given)
    if given["print_sbatch"]:
        return _print_sbatch(given)
    with stoppable(RESUME):
        from pipeline.manifests.manifest import read_manifest

        engine = _engine_of(given)
        # With an engine only the workers need to see the videos.
        if engine is None and given["root"] and not given["root"].is_dir():
            raise ValueError(
                f"--root: expected the folder of the videos, there is no folder {given['root']}"
            )
        manifest = read_manifest(given["manifest"], given["root"])
        options = _run_options(given, elsewhere=engine is not None)
        config = config_for(given, manifest)
        return _start(given, config, manifest, options, engine)


def _start(given: dict, config, manifest, options, engine) -> int:
    """Extract to --cache, and say what this process leaves alone; return the exit code."""
    if engine is None:
        _say_unused_gpus(options.device)
    return run(
        config,
        manifest,
        given["cache"],
        options,
        given["shards"],
        engine=engine,
        accept=_clips_to_accept(given["accept_failures"], manifest),
    )


def _engine_of(given: dict):
    """Where shards are worked on. A worker decodes one, computes one and hashes one at a time."""
    from pipeline.stages.extract_shards import SHARDS_AT_ONCE

    return engine_of(given, given["cache"] / "logs", SHARDS_AT_ONCE)


def _say_unused_gpus(device: str) -> None:
    """Say that this process leaves GPUs of its machine alone."""
    if device != "cuda":
        return
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        warn(f"1 of the {count} GPUs here works: --gpus all has all of them work")


def _add(given: dict) -> int:
    """Add fields, views or clips to a cache, with its own options where none are given."""
    from cli._shared.growth import added_to

    if given["print_sbatch"]:
        raise click.UsageError("--print-sbatch and --add: expected one of them, got both")
    engine = _engine_of(given)
    config, manifest, options = added_to(given, _run_options(given, elsewhere=engine is not None))
    return _start(given, config, manifest, options, engine)


def _clips_to_accept(given: str | None, manifest) -> frozenset[str]:
    """The clips whose failures are accepted; ValueError if a file names none of the manifest's."""
    if given is None:
        return frozenset()
    known = frozenset(clip.clip for clip in manifest.clips)
    if given == EVERY_CLIP:
        return known

    from pipeline.text.suggestions import nearest
    from pipeline.text.text_files import read_names

    named = read_names(given, "a text file with one clip id per line")
    # A list of a whole dataset is fine for a part of it.
    if named and known.isdisjoint(named):
        raise ValueError(
            f"--accept-failures {given}: no clip of {manifest.path} is {named[0]!r}: "
            f"{nearest(named[0], known)}; expected clip ids, one per line"
        )
    return frozenset(named)


def _print_sbatch(given: dict) -> int:
    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.extract import count_shards

    for name in ("dask", "scheduler", "gpus", "shards"):
        if given[name] is not None:
            raise click.UsageError(
                f"--print-sbatch and --{name.removesuffix('s')}: expected one of them, got both"
            )
    manifest = read_manifest(given["manifest"], given["root"])
    config = config_for(given, manifest)
    shards = count_shards(config, manifest, given["cache"], _run_options(given, elsewhere=True))
    logs = given["cache"] / "logs"
    # What nobody asked for is chosen here, and not by whichever job comes first.
    settled: list[str] = []
    if given["precision"] is None:
        settled += ["--precision", config.precision]
    if given["frame_resize"] is None:
        settled += ["--frame-resize", config.resize]
    script = sbatch_script(given, shards, logs, settled)
    # Slurm makes no folders. A task whose output has none fails without a message.
    logs.mkdir(parents=True, exist_ok=True)
    click.echo(script, nl=False)
    return 0


def run(
    config,
    manifest,
    cache: Path,
    options,
    shards=None,
    redo: bool = False,
    engine=None,
    stage: str | None = None,
    accept: frozenset[str] = frozenset(),
) -> int:
    """Extract with a progress display, print what came out, and return the exit code.

    Args:
        config, manifest, cache, options, shards, redo, engine: as for
            `pipeline.stages.extract.extract`.
        accept: clips that may fail; the cache records those that did.
    """
    from contextlib import ExitStack

    from pipeline.stages.bottleneck import describe_work
    from pipeline.stages.extract import extract
    from pipeline.workers.memory import keep_freed_memory

    # With an engine, no network runs in this process.
    if engine is None:
        keep_freed_memory()
    elsewhere = engine is not None and bool(engine.scheduler or engine.slurm is not None)
    say_cost(config.precision, options.device, elsewhere)
    with stoppable(RESUME), ExitStack() as stack:

        def announce(todo: int, total: int):
            # A clip has several places in a cache that grew.
            if total > len(manifest.clips):
                if todo:
                    lack = agree(todo, "lacks", "lack")
                    say(f"adding what {counted(todo, 'clip')} {lack}", err=True)
            elif 0 < todo < total:
                verb = agree(total - todo, "is", "are")
                finished = f"{total - todo:,} of {counted(total, 'clip')} {verb}"
                say(f"resuming: {finished} in finished shards", err=True)
            return stack.enter_context(progress("extract", todo, "clips"))

        summary = extract(
            config, manifest, cache, options, shards, redo, announce, engine, say_aside, stage
        )
    rate = summary.clips / max(summary.seconds, 1e-9)
    if summary.shards:
        say(
            f"{cache}: {counted(summary.clips, 'clip')}, {counted(summary.views, 'view')} in "
            f"{summary.seconds:,.1f} s ({rate:.2f} clips/s)"
        )
        pace = describe_work(summary.work, summary.seconds)
        if pace:
            say(pace)
    elif not summary.left:
        say(f"{cache}: every shard was complete already")
    _report_boxes(summary.boxes)
    if summary.left:
        say(
            f"{cache}: {counted(summary.left, 'shard')} {agree(summary.left, 'is', 'are')} left, "
            f"because the time was up (--stop-after); the same command continues"
        )
    _report_relabelled(summary.relabelled, manifest.path, cache)
    _report_removed(summary.removed, manifest.path, cache)
    _report_warnings(summary.warnings, cache)
    # A clip with views in several shards may have failed in each of them.
    failed = list({failure["clip"]: failure for failure in summary.failures}.values())
    asked = min(summary.asked, len(manifest.clips))
    failures = _without_accepted(failed, asked, cache, accept)
    # Either of them may find something wrong, which is exit code 3.
    return max(
        _report_failures(failures, asked, cache),
        _report_changed(summary.changed, cache),
    )


def _without_accepted(
    failures: list[dict], clips: int, cache: Path, accept: frozenset[str]
) -> list[dict]:
    """Record accepted failures, print how many there are, and return the others."""
    from pipeline.cache.accepted import accept_clips

    # Also without the option: earlier commands may have accepted some.
    accepted = accept_clips(cache, [one for one in failures if one["clip"] in accept])
    left = [one for one in failures if one["clip"] not in accepted]
    known = [one["clip"] for one in failures if one["clip"] in accepted]
    if known:
        say(
            f"{len(known):,} of {counted(clips, 'clip')} failed and "
            f"{agree(len(known), 'is', 'are')} accepted ({_first(known)}): later commands leave "
            f"{agree(len(known), 'it', 'them')} out; to retry: {_repair(cache)} --accepted",
            err=True,
        )
    return left


def _report_failures(failures: list[dict], clips: int, cache: Path) -> int:
    for failure in failures[:10]:
        say(f"  {failure['clip']}: {failure['error']}: {failure['message']}", err=True)
    if len(failures) > 10:
        say(f"  … and {len(failures) - 10:,} more, in {cache}/features/*.json", err=True)
    if not failures:
        return 0

    failed = f"{len(failures):,} of {counted(clips, 'clip')} failed"
    unlisted = sum(failure["error"] == "MissingBoxes" for failure in failures)
    them = agree(len(failures), "it", "them")
    # A broken file fails again, however often it is read.
    if any(map(_is_worth_retrying, failures)):
        warn(f"{failed}; to retry {them}: {_repair(cache)}")
    elif unlisted < len(failures):
        files = agree(len(failures) - unlisted, "its file is", "their files are")
        warn(f"{failed}; once {files} mended or replaced: {_repair(cache)}")
    else:
        warn(failed)
    if unlisted:
        warn(
            f"the file of boxes does not list {agree(unlisted, 'one', f'{unlisted:,}')} of the "
            f"clips: extract to another --cache with a file that does, with --set "
            f"proposal_options.key=stem if it names videos, or with --set "
            f"proposal_options.allow_missing=true to have no boxes there"
        )
    warn(f"to go on without {them}: the same command with --accept-failures")
    return 3


def _is_worth_retrying(failure: dict) -> bool:
    """Whether the machine, and not the video, may be the reason of a failure."""
    return failure["error"] in WORTH_RETRYING or "not enough memory" in failure["message"]


def _report_boxes(boxes: Mapping[str, int]) -> None:
    """Print how many views and steps have no box."""
    if not boxes:
        return
    views, steps = boxes["views"], boxes["steps"]
    say(
        f"boxes: {boxes['empty_steps']:,} of {counted(steps, 'step')} and {boxes['empty_views']:,} "
        f"of {counted(views, 'view')} have none"
    )


def _report_warnings(warnings: list[dict], cache: Path) -> None:
    """Print what looks wrong with clips that were stored anyway. The exit code stays 0."""
    for warning in warnings[:10]:
        warn(f"  warning: {warning['clip']}: {warning['message']}")
    if len(warnings) > 10:
        warn(f"  … and {len(warnings) - 10:,} more, in {cache}/features/*.json")


def _report_changed(changed: list[str], cache: Path) -> int:
    if not changed:
        return 0
    if len(changed) == 1:
        found = f"1 clip in finished shards ({changed[0]}) has another video now; to redo it"
    else:
        found = (
            f"{len(changed):,} clips in finished shards ({_first(changed)}) have other videos now; "
            f"to redo them"
        )
    say(f"{found}: {_repair(cache)} --changed", err=True)
    return 3


def _first(clips: list[str]) -> str:
    """The first three names of a list."""
    text = ", ".join(clips[:3])
    if len(clips) > 3:
        text += ", …"
    return text


def _report_relabelled(clips: list[str], manifest: Path, cache: Path) -> None:
    if not clips:
        return
    if len(clips) == 1:
        which = "1 clip has another label or split"
    else:
        which = f"{len(clips):,} clips have other labels or splits"
    use = f"--manifest {shlex.quote(str(manifest))}"
    warn(f"{which} in {manifest} than in the copy in {cache} ({_first(clips)})")
    warn(f"train, ablate and finetune read the copy; give them {use} for the new ones")


def _report_removed(clips: list[str], manifest: Path, cache: Path) -> None:
    if clips:
        warn(
            f"{counted(len(clips), 'clip')} of {cache} ({_first(clips)}) "
            f"{agree(len(clips), 'is', 'are')} not in {manifest}: kept in the cache, but left out "
            "of training from its own manifest"
        )


def _repair(cache: Path) -> str:
    """The command that repairs a cache, ready to be copied."""
    return f"vidgraph repair --cache {shlex.quote(str(cache))}"


def _run_options(given: dict, elsewhere: bool):
    """Collect the options of a run. On other machines each worker picks its own device."""
    from pipeline.stages.extract import RunOptions

    device = given["device"]
    if not elsewhere:
        device = pick_device(device)
    names = [
        "batch",
        "workers",
        "time_limit",
        "compile",
        "compression",
        "shard_bytes",
        "shard_size",
        "views_for_all",
        "stop_after",
    ]
    return RunOptions(device=device, **{name: given[name] for name in names})


def default_workers(device: str) -> int:
    """The default number of decode processes; see `pipeline.stages.jobs.decoders_for`."""
    from pipeline.stages.jobs import decoders_for
    from pipeline.workers.cores import cores_here

    return decoders_for(device, cores_here())
