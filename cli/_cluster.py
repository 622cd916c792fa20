"""Options that say on which machines a stage runs, and what they mean."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cli._options import together
from cli._say import warn

_FILE = click.Path(path_type=Path)
_LISTENS = re.compile(r"[^\s/]*:[0-9]{1,5}")
_NOT_IN_JOBS = ("--slurm", "--jobs", "--print-sbatch")


def place_options(jobs: str):
    """Decorator: --dask, --scheduler or --slurm, and what belongs to them; `jobs` is the help of
    --jobs.
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
            help="Network by which Slurm's nodes reach this machine, such as ib0.",
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


def engine_of(given: dict, logs: Path):
    """The engine that the options name, or None for this process; logs: folder for what Slurm jobs
    print.
    """
    named = [name for name in ("dask", "scheduler", "slurm") if given[name] is not None]
    if len(named) > 1:
        raise click.UsageError(
            f"--{named[0]} and --{named[1]}: expected one place to work at; leave one out"
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
            "--jobs: expected it with --slurm; --dask says how many processes work here"
        )
    if not named:
        return None
    from pipeline.workers.engines import DaskEngine
    from pipeline.workers.slurm import parse_options

    return DaskEngine(
        workers=given["dask"] or given["jobs"] or 1,
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


def sbatch_script(given: dict, shards: int, logs: Path) -> str:
    """The job array that does what this command line would do; see
    `pipeline.workers.slurm.array_script`.
    """
    import os

    from pipeline.workers.slurm import array_script, parse_options

    program = Path(sys.executable).with_name("vidgraph")
    command = (
        [str(program)] if program.exists() else [sys.executable, "-m", "cli"]
    )  # cli/__init__.py is careful
    options = parse_options(given["slurm"] or "")
    return array_script(
        [*command, *without(sys.argv[1:], _NOT_IN_JOBS)],
        shards,
        options,
        given["jobs"] or 0,
        os.getcwd(),
        str(logs),
    )


def without(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some of its options and their values; --print-sbatch has none."""
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in names:
            skip = not equals and name != "--print-sbatch"
        else:
            kept.append(argument)
    return kept
