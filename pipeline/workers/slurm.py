"""Slurm: the options of `--slurm`, Dask workers as Slurm jobs, and a script for plain sbatch."""

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
# Tasks of a job array: Slurm's own limit (MaxArraySize) is 1001 unless the site has raised it.
MOST_TASKS = 1000
# Of a job array: a task starts Python, torch and CUDA, which takes as long as some shards.
SHARDS_PER_TASK = 8
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def parse_options(text: str) -> dict[str, str]:
    """Parse the value of `--slurm`: any of sbatch's long options.

    Args:
        text: such as `partition=gpu,gres=gpu:1,time=04:00:00`. A piece without `=` belongs to the
            value before it (`partition=gpu,gpu2`). A value may be in double quotes.

    Returns:
        The options by name, such as {"partition": "gpu", "gres": "gpu:1", "time": "04:00:00"}.

    Raises:
        ValueError: a piece is no option, or the time is not one.
    """
    options: dict[str, str] = {}
    last = ""
    pieces = [piece.strip() for piece in text.split(",")]
    for piece in pieces:
        if not piece:
            continue
        key, equals, value = piece.partition("=")
        if equals and re.fullmatch(r"[a-z][a-z-]*", key) and value:
            options[key] = value
            last = key
        elif not equals and last:
            options[last] += f",{piece}"
        else:
            raise ValueError(
                f"--slurm: expected options of sbatch such as "
                f"partition=gpu,gres=gpu:1,time=04:00:00, got {piece!r}"
            )

    for key, value in options.items():
        quoted = re.fullmatch(r'"([^"]+)"', value)
        if quoted:
            options[key] = quoted[1]
        _require_one_value(f"--slurm: expected {key}", options[key])
    if "time" in options:
        seconds(options["time"])
    return options


def _require_one_value(expected: str, value: str) -> None:
    """ValueError for a value that would not stay one in a job script (#SBATCH --key=value)."""
    if has_unseen(value) or re.search(r'["\\]', value):
        raise ValueError(
            f"{expected} without line ends, backslashes and quotes in it, got {value!r}"
        )


def seconds(time: str) -> int:
    """Return the seconds of a time as Slurm writes it.

    Args:
        time: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises:
        ValueError: another form.
    """
    match = _TIME.fullmatch(time)
    if not match:
        raise ValueError(f"--slurm time={time}: expected HH:MM:SS or D-HH:MM:SS, such as 04:00:00")
    parts = [int(part) for part in match["rest"].split(":")]

    days = 0
    if match["days"]:
        days = int(match["days"])
        parts += [0] * (3 - len(parts))  # after days the first part is hours
    elif len(parts) == 1:
        parts = [0, *parts, 0]  # one part alone is minutes
    elif len(parts) == 2:
        parts = [0, *parts]
    hours, minutes, rest = parts
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def lifetime(walltime: int) -> tuple[int, int]:
    """Return how long a Dask worker lives, so that it ends before its job's walltime.

    A tenth of the walltime is left, at least 10 s and at most 600 s. At the end of its life a
    worker gives its shards back, and Dask waits up to 30 s for it to end. Dask does not count this
    as a death. A shard that takes longer therefore starts again in every job, and `tries` has it
    said. Choose a walltime into which several shards fit.

    Args:
        walltime: seconds that Slurm gives the job.

    Returns:
        (seconds, seconds by which they vary), so that the workers do not all end at once.
    """
    spare = max(10, min(600, walltime // 10))
    return max(1, walltime - spare), spare // 3


def worker_arguments(options: Mapping[str, str]) -> list[str]:
    """Return the arguments of `dask worker` in a Slurm job.

    There is no memory limit besides the job's own and no web server. The worker's lifetime is
    shorter than the job's.

    Args:
        options: sbatch's, as `parse_options` returns them.
    """
    arguments = ["--memory-limit", "0", "--no-dashboard"]
    arguments += ["--worker-class", "pipeline.workers.dask_nodes.QuietWorker"]
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
    threads: int = 1,
):
    """Start a Dask cluster of Slurm jobs with one worker each, as many as there is work for.

    The cluster submits a new job in place of one that has ended, and again one that sbatch refused.

    Args:
        options: sbatch's, as `parse_options` returns them.
        jobs: at most so many.
        security: Dask's `Security` with file names that the nodes can read.
        interface: the network by which the nodes reach this machine; "" for the default.
        dashboard: HOST:PORT, "" for none.
        logs: a folder for the jobs' output, made if needed.
        say: prints a line when sbatch refuses a later job.
        threads: of each worker, which gets as many jobs at a time.

    Returns:
        The `dask_jobqueue.SLURMCluster`.

    Raises:
        RuntimeError: there is no sbatch on this machine.
        ValueError: sbatch refuses the first job, or `logs` has a name that no script can hold.
    """
    import shutil

    from dask_jobqueue import SLURMCluster

    from pipeline.workers import dask_nodes, dask_worker

    if not shutil.which("sbatch"):
        raise RuntimeError(
            "--slurm: no sbatch on this machine; run it where jobs are submitted from"
        )
    directives = {"output": _output_file(logs, "vidgraph-%J"), **options}
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folders
    submissions = _Submissions(say)
    cluster = SLURMCluster(
        job_cls=_job_class(submissions),
        scheduler_cls=dask_nodes.QuietScheduler,
        python=shlex.join([sys.executable, dask_worker.__file__]),
        cores=threads,  # threads of a worker, whatever cores its job has
        processes=1,
        memory="1GB",  # required, but unused: see worker_arguments
        job_name="vidgraph",
        job_directives_skip=["#SBATCH --mem", "#SBATCH --cpus-per-task", "#SBATCH -t"],
        job_extra_directives=[directive(key, value) for key, value in directives.items()],
        worker_extra_args=worker_arguments(options),
        interface=interface or None,
        scheduler_options={"dashboard_address": dashboard or None, "dashboard": bool(dashboard)},
        security=security,
    )
    # The first job is submitted here, to see whether sbatch takes it; adapt() submits the others.
    cluster.worker_spec.update(cluster.new_worker_spec())
    cluster.sync(_started, cluster)
    if not submissions.accepted:
        cluster.close()
        raise ValueError(
            f"--slurm: expected a job that sbatch takes; it says: {submissions.refusal}; correct "
            f"these options"
        )
    cluster.adapt(minimum=1, maximum=jobs)
    return cluster


async def _started(cluster) -> None:
    await cluster


@dataclass
class _Submissions:
    """What sbatch has done with the jobs of a cluster.

    Attributes:
        say: prints a line.
        accepted: how many jobs it took.
        refusal: its words about the last job that it refused.
    """

    say: Callable[[str], None]
    accepted: int = 0
    refusal: str = ""

    def refused(self, words: str) -> None:
        if self.accepted and words != self.refusal:
            self.say(
                f"Slurm takes no further job for now; continuing with those that it has: {words}"
            )
        self.refusal = words


def _job_class(submissions: _Submissions):
    """The class of jobs that are submitted again when sbatch refused them.

    A site's limit, or a controller that restarts, makes sbatch refuse. Dask alone would log a
    traceback, count the job as present for ever, and fail to end.
    """
    from dask_jobqueue.slurm import SLURMJob
    from distributed.core import Status
    from distributed.deploy.spec import ProcessInterface

    class Job(SLURMJob):
        def __init__(self, *args, security=None, **kwargs):
            super().__init__(*args, security=_quoted(security), **kwargs)

        @contextmanager
        def job_file(self) -> Iterator[str]:
            # In a private folder: in /tmp, others could replace the script before sbatch reads it.
            with TemporaryDirectory(prefix="vidgraph-") as folder:
                path = os.path.join(folder, "job.sh")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(self.job_script())
                yield path

        async def start(self) -> None:
            try:
                await super().start()
                submissions.accepted += 1
            except RuntimeError as error:
                submissions.refused(refusal(str(error)))
                # To Dask the job has started, without a number; `forget` removes it later.
                await ProcessInterface.start(self)
                asyncio.get_running_loop().call_later(RETRY, self.forget)

        async def close(self) -> None:
            await super().close()
            # The cluster asserts it of jobs that are not yet collected.
            self.status = Status.closed

        def forget(self) -> None:
            """Remove this job from the cluster, which submits another one if there is work."""
            cluster = self._cluster and self._cluster()
            if cluster:
                cluster.worker_spec.pop(self.name, None)
                cluster.workers.pop(self.name, None)

    return Job


def _quoted(security):
    """A copy of a `Security` with file names quoted for the shell.

    dask_jobqueue writes them into its script as they are.
    """
    if security is None:
        return None
    quoted = copy(security)
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        setattr(quoted, name, shlex.quote(getattr(security, name)))
    return quoted


def refusal(text: str) -> str:
    """Return sbatch's own words from dask_jobqueue's error about a command that failed.

    Args:
        text: the error's message.

    Returns:
        What sbatch printed, on one line; the whole message if it printed nothing.
    """
    lines = [line.strip() for line in text.partition("stderr:")[2].splitlines()]
    words = ", ".join(line for line in lines if line)
    return words or " ".join(text.split())


def _output_file(folder: str, name: str) -> str:
    """The file for a job's output; Slurm replaces % in `name`, but not in `folder`."""
    _require_one_value("job scripts: expected the path of the folder of logs", folder)
    return f"{folder.replace('%', '%%')}/{name}.out"


def directive(key: str, value: str) -> str:
    """Return an option as sbatch reads it in a script.

    A value with a blank or # is quoted: they would end the value and the line.
    """
    if re.fullmatch(r"[^\s\"'#\\]+", value):
        return f"--{key}={value}"
    return f'--{key}="{value}"'


def array_script(
    command: Sequence[str],
    shards: int,
    options: Mapping[str, str],
    jobs: int,
    folder: str,
    logs: str,
) -> str:
    """Write a job-array script for sbatch, whose tasks share the shards among them.

    Each task runs the same command, which takes shard after shard that no other one has claimed.
    Where the options say how long a job may take, it begins no shard that would not be complete by
    then. It reports its own shards alone. A task that starts when all is done ends at once.

    Args:
        command: the words of the command. `--stop-after SECONDS` has to be one of its options.
        shards: the number of shards.
        options: sbatch's, as `parse_options` returns them.
        jobs: at most so many tasks run at a time; 0 for no limit.
        folder: the working folder of the command.
        logs: the folder for the tasks' output, relative to `folder`. It lies in the cache.

    Returns:
        The text of the script.

    Raises:
        ValueError: a name has line ends or other control characters, which would become lines of
            the script.
    """
    _require_one_line("the working folder", folder)
    for word in command:
        _require_one_line("every word of the command", word)

    tasks = _tasks(shards, jobs)
    array = f"0-{tasks - 1}"
    if jobs:
        array += f"%{jobs}"
    # An absolute path: the script may be submitted from any folder.
    output = _output_file(os.path.join(folder, logs), "%A_%a")
    lines = ["#!/bin/bash", "#SBATCH --job-name=vidgraph", f"#SBATCH --array={array}"]
    for key, value in {"output": output, **options}.items():
        lines.append(f"#SBATCH {directive(key, value)}")

    words = list(command)
    # Without an end, too: a task then reads nothing of what the others have finished.
    life = str(lifetime(seconds(options["time"]))[0]) if "time" in options else "inf"
    words += ["--stop-after", life]
    # Starting Python only to find that nothing is left would take longer than this look.
    done = shlex.quote(os.path.join(os.path.dirname(logs) or ".", "features"))
    lines += [
        f"# {shards} shards, which {tasks} tasks share. Where shards are left when all tasks have "
        f"ended, submit this script",
        "# again. Exit code 3: clips failed; `vidgraph repair` tries them again.",
        f"cd {shlex.quote(folder)} || exit 1",
        f"if [ \"$(find {done} -name '[0-9]*.json' 2>/dev/null | wc -l)\" -ge {shards} ]; then",
        "    echo 'every shard was complete already'; exit 0",
        "fi",
        # exec: Slurm's SIGTERM then reaches the command.
        f"exec {shlex.join(words)}",
    ]
    return "\n".join(lines) + "\n"


def _tasks(shards: int, jobs: int) -> int:
    """How many tasks an array has: enough for jobs that end early, and not one for each shard."""
    return max(1, min(shards, MOST_TASKS, max(jobs, ceil(shards / SHARDS_PER_TASK))))


def _require_one_line(what: str, text: str) -> None:
    if has_unseen(text):
        raise ValueError(
            f"job scripts: expected {what} without line ends and other control characters, "
            f"got {text!r}; rename it"
        )
