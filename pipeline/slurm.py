"""Slurm: what `--slurm` says, Dask workers as Slurm jobs, and a script for plain sbatch."""

import re
import shlex
from collections.abc import Mapping, Sequence
from math import ceil

MOST_TASKS = 1000  # of a job array; Slurm's own limit (MaxArraySize) is 1001 unless the site has raised it
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def parse_options(text: str) -> dict[str, str]:
    """`partition=gpu,gres=gpu:1,time=04:00:00` -> {"partition": "gpu", ...}: any of sbatch's long options.

    A piece without `=` belongs to the value before it (`partition=gpu,gpu2`). ValueError for what is no option or no time.
    """
    found: dict[str, str] = {}
    last = ""
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = piece.partition("=")
        if equals and re.fullmatch(r"[a-z][a-z-]*", key) and value:
            found[key], last = value, key
        elif not equals and last:
            found[last] += f",{piece}"
        else:
            raise ValueError(
                f"--slurm: expected options of sbatch such as partition=gpu,gres=gpu:1,time=04:00:00, got {piece!r}"
            )
    if "time" in found:
        seconds(found["time"])
    return found


def seconds(time: str) -> int:
    """Slurm's way to write a time: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    match = _TIME.fullmatch(time)
    if not match:
        raise ValueError(f"--slurm time={time}: expected HH:MM:SS or D-HH:MM:SS, such as 04:00:00")
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"]:
        hours, minutes, left = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + left
    hours, minutes, left = {1: (0, parts[0], 0), 2: (0, *parts)}.get(len(parts), parts)
    return (hours * 60 + minutes) * 60 + left


def lifetime(walltime: int) -> tuple[int, int]:
    """(seconds that a worker lives, seconds by which that varies) so that jobs end before their walltime, not all at once."""
    spare = max(10, min(600, walltime // 10))
    return max(1, walltime - spare), spare // 3


def worker_arguments(options: Mapping[str, str]) -> list[str]:
    """Of `dask worker`: no memory limit beside the job's own, no dashboard of its own, a lifetime below the job's walltime."""
    arguments = ["--memory-limit", "0", "--no-dashboard"]
    if "time" in options:
        life, varies = lifetime(seconds(options["time"]))
        arguments += ["--lifetime", f"{life}s", "--lifetime-stagger", f"{varies}s"]
    return arguments


def start_workers(options: Mapping[str, str], jobs: int, *, security, interface: str, dashboard: str, logs: str):
    """A dask_jobqueue cluster of up to `jobs` jobs of one worker each, as there is work. RuntimeError without sbatch."""
    import shutil

    from dask_jobqueue import SLURMCluster

    if not shutil.which("sbatch"):
        raise RuntimeError("--slurm: no sbatch on this machine; run it where jobs are submitted from")
    cluster = SLURMCluster(
        cores=1,  # threads of a worker: it works on one shard at a time
        processes=1,
        memory="1GB",  # asked for and not used: see worker_arguments
        job_name="vidgraph",
        job_directives_skip=["#SBATCH --mem", "#SBATCH --cpus-per-task", "#SBATCH -t"],
        job_extra_directives=[f"--{key}={value}" for key, value in options.items()],
        worker_extra_args=worker_arguments(options),
        interface=interface or None,
        scheduler_options={"dashboard_address": dashboard},
        security=security,
        log_directory=logs,
    )
    cluster.adapt(minimum=1, maximum=jobs)
    return cluster


def array_script(command: Sequence[str], shards: int, options: Mapping[str, str], jobs: int, folder: str, logs: str) -> str:
    """A job-array script for sbatch: `command --shard N` for each of `shards`, at most `jobs` at a time (0: no limit).

    Where there are more shards than an array may have tasks, each task does several in a row. folder: where it runs.
    """
    each = ceil(shards / MOST_TASKS)
    tasks = ceil(shards / each)
    at_once = f"%{jobs}" if jobs else ""
    lines = ["#!/bin/bash", "#SBATCH --job-name=vidgraph", f"#SBATCH --array=0-{tasks - 1}{at_once}"]
    lines += [f"#SBATCH --{key}={value}" for key, value in options.items()]
    if "output" not in options:
        lines.append(f"#SBATCH --output={logs}/%A_%a.out")
    lines += [
        f"# {shards} shards, {each} per task. A task that is ended early loses the shard it is at: submit this script again,",
        "# finished shards are skipped. Exit code 3: clips failed; `vidgraph repair` tries them again.",
        f"cd {shlex.quote(folder)} || exit 1",
    ]
    which = "$SLURM_ARRAY_TASK_ID"
    if each > 1:
        lines.append(f"FIRST=$((SLURM_ARRAY_TASK_ID * {each}))")
        lines.append(f"LAST=$((FIRST + {each - 1} < {shards - 1} ? FIRST + {each - 1} : {shards - 1}))")
        which = '"$FIRST-$LAST"'
    lines.append(f"exec {shlex.join(command)} --shard {which}")  # exec: Slurm's SIGTERM reaches it
    return "\n".join(lines) + "\n"
