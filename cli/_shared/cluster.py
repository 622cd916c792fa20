"""The options that choose the machines of a stage: --dask, --scheduler, --slurm."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cli._shared.options import together
from cli._shared.say import warn

_FILE = click.Path(path_type=Path)
_LISTENS = re.compile(r"[^\s/]*:[0-9]{1,5}")
_NOT_IN_JOBS = ("--slurm", "--jobs", "--print-sbatch", "--stop-after")


def place_options(jobs: str):
    """Make the decorator that adds --dask, --scheduler, --slurm and the options that go with them.

    Args:
        jobs: the help of --jobs.
    """
    options = (
        click.option(
            "--dask",
            type=click.IntRange(min=1),
            help="Work in this many processes here, one per GPU (Dask).",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Work on the Dask cluster there, such as tls://node1:8786.",
        ),
        click.option(
            "--slurm",
            metavar="KEY=VALUE,…",
            help="Work in Slurm jobs: options of sbatch, partition=gpu,gres=gpu:1,time=04:00:00.",
        ),
        click.option("--jobs", type=click.IntRange(min=1), help=jobs),
        click.option(
            "--interface",
            default="",
            help="Network interface on which Slurm's nodes reach this machine, such as ib0.",
        ),
        click.option(
            "--dashboard",
            default="",
            show_default=False,
            metavar="HOST:PORT",
            help="Where Dask's dashboard listens, without a password: at 127.0.0.1:8787 every "
            "user of this machine can read "
            "it, at :8787 everybody on the network.  [default: no dashboard]",
        ),
        click.option(
            "--tls-ca",
            type=_FILE,
            help="Certificate authority (PEM) of all connections; with --tls-cert, --tls-key.  "
            "[default: with --dask and --slurm, made for the run]",
        ),
        click.option(
            "--tls-cert",
            type=_FILE,
            help="Certificate (PEM) of scheduler, workers and this client.",
        ),
        click.option("--tls-key", type=_FILE, help="Its private key (PEM)."),
    )
    return together(options)


cluster_options = place_options(
    "Slurm jobs at the same time, at most.  [default: 1; of a job array, all]"
)


gpus_option = click.option(
    "--gpus",
    metavar="all|0,1,…",
    help="Work on these GPUs of this machine, with a process and the cores near it for each.",
)


def engine_of(given: dict, logs: Path, threads: int = 1):
    """Build the engine that the options name.

    Args:
        given: the options of `place_options` and perhaps `gpus_option`, by name.
        logs: folder for the output of Slurm jobs.
        threads: jobs that a worker gets at a time.

    Returns:
        A DaskEngine, or None to work in this process.

    Raises:
        click.UsageError: options that do not go together.
    """
    places = ("dask", "scheduler", "slurm", "gpus")
    named = [name for name in places if given.get(name) is not None]
    if len(named) > 1:
        raise click.UsageError(
            f"--{named[0]} and --{named[1]}: expected one of them, got both; leave one out"
        )
    if given["scheduler"] == "":
        raise click.UsageError(
            "--scheduler: expected an address such as tls://node1:8786, got nothing"
        )
    listens = given["dashboard"]
    if listens and (not _LISTENS.fullmatch(listens) or int(listens.rpartition(":")[2]) > 65535):
        raise click.UsageError(
            f"--dashboard: expected HOST:PORT or :PORT, such as 127.0.0.1:8787, got "
            f"{given['dashboard']!r}"
        )
    tls = _tls(given, named)
    if given["jobs"] and named != ["slurm"]:
        raise click.UsageError(
            "--jobs goes with --slurm only; with --dask, give the number of processes to --dask"
        )
    if not named:
        return None
    from pipeline.workers.engines import DaskEngine
    from pipeline.workers.gpus import chosen_gpus
    from pipeline.workers.slurm import parse_options

    gpus: tuple[str, ...] = ()
    if named == ["gpus"]:
        if given["device"] == "cpu":
            raise click.UsageError("--gpus and --device cpu: expected one of them, got both")
        gpus = tuple(chosen_gpus(given["gpus"]))
    return DaskEngine(
        workers=given["dask"] or given["jobs"] or len(gpus) or 1,
        threads=threads,
        gpus=gpus,
        scheduler=given["scheduler"] or "",
        slurm=None if given["slurm"] is None else parse_options(given["slurm"]),
        dashboard=given["dashboard"],
        interface=given["interface"],
        tls=tls,
        logs=str(logs),
        say=warn,
    )


def _tls(given: dict, named: list[str]):
    files = [given[f"tls_{part}"] for part in ("ca", "cert", "key")]
    if not any(files):
        return None
    if not all(files) or not named:
        raise click.UsageError(
            "--tls-ca, --tls-cert, --tls-key: expected all three, with --dask, --scheduler or "
            "--slurm"
        )
    from pipeline.workers.engines import TlsFiles

    return TlsFiles(*files)


def sbatch_script(given: dict, shards: int, logs: Path, settled: Sequence[str] = ()) -> str:
    """Write the job array that does what this command line does.

    Args:
        given: the options of `place_options`, by name.
        shards: how many shards there are; the array has at most as many jobs.
        logs: folder for the output of the jobs.
        settled: further words of the command: what all jobs have to agree on.
    """
    import os

    from pipeline.workers.slurm import array_script, parse_options

    # By its path: a job may find another vidgraph, or none, on its own.
    program = Path(sys.executable).with_name("vidgraph")
    if program.exists():
        command = [str(program)]
    else:
        # Safe in any working folder: cli/__init__.py takes that folder off the module path.
        command = [sys.executable, "-m", "cli"]

    options = parse_options(given["slurm"] or "")
    # A job runs this command line without the options that made it an array.
    return array_script(
        [*command, *without(sys.argv[1:], _NOT_IN_JOBS), *settled],
        shards,
        options,
        given["jobs"] or 0,
        os.getcwd(),
        str(logs),
    )


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Remove options and their values from a command line. --print-sbatch takes no value."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in names:
            # The value of "--slurm VALUE" is the next argument, that of "--slurm=VALUE" is not.
            skip = not equals and name != "--print-sbatch"
        else:
            kept.append(argument)
    return kept
