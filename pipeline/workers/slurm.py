"""Slurm: what `--slurm` says, Dask workers as Slurm jobs, and a script for plain sbatch."""

import asyncio
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from math import ceil
from tempfile import TemporaryDirectory

from pipeline.text.printable import has_unseen

RETRY = 60.0  # seconds until a job that sbatch refused is submitted again
MOST_TASKS = (
    1000  # of a job array; Slurm's own limit (MaxArraySize) is 1001 unless the site has raised it
)
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def parse_options(text: str) -> dict[str, str]:
    """`partition=gpu,gres=gpu:1,time=04:00:00` -> {"partition": "gpu", ...}: any of sbatch's long
    options.

    A piece without `=` belongs to the value before it (`partition=gpu,gpu2`). A value may stand in
    quotes, as in a script. ValueError for what is no option or no time.
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
                f"--slurm: expected options of sbatch such as "
                f"partition=gpu,gres=gpu:1,time=04:00:00, got {piece!r}"
            )
    for key, value in found.items():
        found[key] = (re.fullmatch(r'"([^"]+)"', value) or (value, value))[1]
        _refuse_odd(f"--slurm: expected {key}", found[key])
    if "time" in found:
        seconds(found["time"])
    return found


def _refuse_odd(expected: str, value: str) -> None:
    """ValueError for a value that would not stay one value in a job script (#SBATCH
    --key=value).
    """
    if has_unseen(value) or re.search(r'["\\]', value):
        raise ValueError(
            f"{expected} without line ends, backslashes and quotes in it, got {value!r}"
        )


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
    """(seconds that a worker lives, seconds by which that varies) so that jobs end before their
    walltime, not all at once.
    """
    spare = max(10, min(600, walltime // 10))
    return max(1, walltime - spare), spare // 3


def worker_arguments(options: Mapping[str, str]) -> list[str]:
    """Of `dask worker`: no memory limit beside the job's own, no web server, a lifetime below the
    job's walltime.
    """
    arguments = [
        "--memory-limit",
        "0",
        "--no-dashboard",
        "--worker-class",
        "pipeline.workers.dask_nodes.QuietWorker",
    ]
    if "time" in options:
        life, varies = lifetime(seconds(options["time"]))
        arguments += ["--lifetime", f"{life}s", "--lifetime-stagger", f"{varies}s"]
    return arguments


def start_workers(
    options: Mapping[str, str],
    jobs: int,
    *,
    security,
    interface: str,
    dashboard: str,
    logs: str,
    say: Callable[[str], None],
):
    """A dask_jobqueue cluster of up to `jobs` jobs of one worker each, as there is work.

    RuntimeError without sbatch, ValueError with its words if it refuses the first job; that it
    refuses a later one is said.
    """
    import shutil

    from dask_jobqueue import SLURMCluster

    from pipeline.workers import dask_nodes, dask_worker

    if not shutil.which("sbatch"):
        raise RuntimeError(
            "--slurm: no sbatch on this machine; run it where jobs are submitted from"
        )
    output = _printed(logs, "vidgraph-%J")
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folders
    submissions = _Submissions(say)
    cluster = SLURMCluster(
        job_cls=_job_class(submissions),
        scheduler_cls=dask_nodes.QuietScheduler,
        python=shlex.join([sys.executable, dask_worker.__file__]),
        cores=1,  # threads of a worker: it works on one shard at a time
        processes=1,
        memory="1GB",  # asked for and not used: see worker_arguments
        job_name="vidgraph",
        job_directives_skip=["#SBATCH --mem", "#SBATCH --cpus-per-task", "#SBATCH -t"],
        job_extra_directives=[directive(*pair) for pair in {"output": output, **options}.items()],
        worker_extra_args=worker_arguments(options),
        interface=interface or None,
        scheduler_options={"dashboard_address": dashboard or None, "dashboard": bool(dashboard)},
        security=security,
    )
    cluster.worker_spec.update(
        cluster.new_worker_spec()
    )  # the first job, to be waited for: adapt() submits the others
    cluster.sync(_started, cluster)
    if not submissions.taken:
        cluster.close()
        raise ValueError(
            f"--slurm: expected a job that sbatch takes; it says: {submissions.said}; mend these "
            f"options"
        )
    cluster.adapt(minimum=1, maximum=jobs)
    return cluster


async def _started(cluster) -> None:
    await cluster


@dataclass
class _Submissions:
    """How many jobs sbatch took, and what it said of the last one that it refused."""

    say: Callable[[str], None]
    taken: int = 0
    said: str = ""

    def refused(self, said: str) -> None:
        if self.taken and said != self.said:
            self.say(
                f"Slurm takes no further job for now, the run goes on with what it has: {said}"
            )
        self.said = said


def _job_class(submissions: _Submissions):
    """The class of jobs that are tried again when sbatch refused them: a site's limit, or a
    controller that restarts.

    Dask would log a traceback, count the job as there for ever, and fail to end.
    """
    from dask_jobqueue.slurm import SLURMJob
    from distributed.core import Status
    from distributed.deploy.spec import ProcessInterface

    class Job(SLURMJob):
        def __init__(self, *given, security=None, **more):
            super().__init__(*given, security=_quoted(security), **more)

        @contextmanager
        def job_file(self) -> Iterator[str]:
            """Writes the script to a private folder: in /tmp, others could replace it before sbatch
            reads it.
            """
            with TemporaryDirectory(prefix="vidgraph-") as folder:
                path = os.path.join(folder, "job.sh")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(self.job_script())
                yield path

        async def start(self) -> None:
            try:
                await super().start()
                submissions.taken += 1
            except RuntimeError as error:
                submissions.refused(refusal(str(error)))
                await ProcessInterface.start(self)  # there, without a number
                asyncio.get_running_loop().call_later(RETRY, self.forget)

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed  # which the cluster asserts of what is not yet collected

        def forget(self) -> None:
            """The cluster no longer has it, and submits another if there is work."""
            if cluster := self._cluster and self._cluster():
                cluster.worker_spec.pop(self.name, None)
                cluster.workers.pop(self.name, None)

    return Job


def _quoted(security):
    """A copy whose file names are quoted for the shell: dask_jobqueue writes them into its script
    as they are.
    """
    if security is None:
        return None
    quoted = copy(security)
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        setattr(quoted, name, shlex.quote(getattr(security, name)))
    return quoted


def refusal(text: str) -> str:
    """What sbatch itself said, in dask_jobqueue's account of a command that failed; the whole
    account where it said nothing.
    """
    said = filter(None, map(str.strip, text.partition("stderr:")[2].splitlines()))
    return ", ".join(said) or " ".join(text.split())


def _printed(folder: str, name: str) -> str:
    """The file for a job's output; Slurm replaces % in `name`. ValueError if a script cannot hold
    the path.
    """
    _refuse_odd("job scripts: expected the path of the folder of logs", folder)
    return f"{folder.replace('%', '%%')}/{name}.out"


def directive(key: str, value: str) -> str:
    """An option as sbatch reads it in a script, where a blank would end the value and # the
    line.
    """
    return f"--{key}={value}" if re.fullmatch(r"[^\s\"'#\\]+", value) else f'--{key}="{value}"'


def array_script(
    command: Sequence[str],
    shards: int,
    options: Mapping[str, str],
    jobs: int,
    folder: str,
    logs: str,
) -> str:
    """A job-array script for sbatch: `command --shard N` for each of `shards`, at most `jobs` at a
    time (0: no limit).

    Where there are more shards than an array may have tasks, each task does several in a row.
    folder: where it runs.

    ValueError for names with line ends or other control characters: they would become lines of the
    script.
    """
    for what, text in (
        ("the working folder", folder),
        *(("every word of the command", word) for word in command),
    ):
        if has_unseen(text):
            raise ValueError(
                f"job scripts: expected {what} without line ends and other control characters, "
                f"got {text!r}; rename it"
            )
    each = ceil(shards / MOST_TASKS)
    tasks = ceil(shards / each)
    at_once = f"%{jobs}" if jobs else ""
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=vidgraph",
        f"#SBATCH --array=0-{tasks - 1}{at_once}",
    ]
    printed = _printed(os.path.join(folder, logs), "%A_%a")  # wherever it is submitted from
    lines += [f"#SBATCH {directive(*pair)}" for pair in {"output": printed, **options}.items()]
    lines += [
        f"# {shards} shards, {each} per task. A task that is ended early loses the shard it is "
        f"at: submit this script again,",
        "# finished shards are skipped. Exit code 3: clips failed; `vidgraph repair` tries them "
        "again.",
        f"cd {shlex.quote(folder)} || exit 1",
    ]
    which = "$SLURM_ARRAY_TASK_ID"
    if each > 1:
        lines.append(f"FIRST=$((SLURM_ARRAY_TASK_ID * {each}))")
        lines.append(
            f"LAST=$((FIRST + {each - 1} < {shards - 1} ? FIRST + {each - 1} : {shards - 1}))"
        )
        which = '"$FIRST-$LAST"'
    lines.append(f"exec {shlex.join(command)} --shard {which}")  # exec: Slurm's SIGTERM reaches it
    return "\n".join(lines) + "\n"
