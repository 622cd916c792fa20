"""Faults of runs with several processes, of runs that end early, and of what is added to a cache.

`faults.FAULTS` lists them beside the others; what a fault is stands there.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.workers.claims import read_claim
from tests.support.fault_lab import (
    CLIPS,
    Lab,
    Run,
    differences,
    done,
    half_written,
    signalled,
    until,
)

# The client of --gpus takes the defaults of GPUs; the processes compute on the CPU, and the cache
# has to be the one that was made there.
ON_GPUS = ("--gpus", "all", "--device", "auto", "--precision", "fp32", "--frame-resize", "pil")
# Every try of a shard is noted, however short it was.
NOTE_ALL = {"pipeline.workers.tries.SHORTEST": 0.0}
# Jobs that end in the middle of their shards, one after the other.
JOBS = 3


def claims_of(cache: Path, pid: int) -> int:
    """How many shards of a cache a process has claimed."""
    # The cache's own files have claims, too.
    claims = cache.glob("features/**/*.claim")
    states = [read_claim(path.with_suffix(".h5")) for path in claims]
    return sum(state is not None and state.pid == pid for state in states)


# Processes of `--gpus`.


def gpu_worker_killed(lab: Lab, drawn: random.Random) -> str | None:
    """One of the two processes of `--gpus all` is killed, mostly while it holds several shards."""
    cache = lab.fresh()
    run = lab.extract(cache, *ON_GPUS, gpus=True)
    lab.moment(run, cache, drawn, last=CLIPS - 3)
    # Dask's processes are the client's children, as decode workers are in a run without it.
    workers = [pid for pid in run.decoders() if claims_of(cache, pid)]
    if run.code() is not None or not workers:
        return None
    worker = drawn.choice(workers)
    held, before = claims_of(cache, worker), done(cache)
    if not signalled(worker, signal.SIGKILL):
        return None
    assert run.wait() == 3, run.said()
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not (wrong := differences(cache, lab.calm)), wrong
    until(lambda: not run.members(), "its processes have ended with it", lab.soon)
    return f"it held {_several(held)}: the others did them, nothing failed"


def gpu_client_killed(lab: Lab, drawn: random.Random) -> str | None:
    """The process that was started is killed; it has the scheduler of the others."""
    cache = lab.fresh()
    run = lab.extract(cache, *ON_GPUS, gpus=True)
    lab.moment(run, cache, drawn, last=CLIPS - 3)
    run.kill(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        return None
    # Its processes may still be at a shard.
    lab.complete(cache, done(cache))
    until(lambda: not run.members(), "its processes have ended with it", lab.soon)
    return "its processes ended too; a rerun beside them completed it"


def _several(count: int) -> str:
    return "several shards" if count > 1 else "one shard"


# Runs that end before the cache is complete.


def time_is_up(lab: Lab, drawn: random.Random) -> str:
    """Run after run with `--stop-after`, two at a time, of which some are killed."""
    cache, killed = lab.fresh(), 0
    for _ in range(4):
        before = done(cache)
        seconds = f"{drawn.uniform(0.5, 4) * lab.pace:.3f}"
        runs = [lab.extract(cache, "--stop-after", seconds, workers=0) for _ in range(2)]
        if drawn.random() < 0.5:
            lab.moment(runs[0], cache, drawn, first=len(before), last=len(before) + 1)
            runs[0].kill(signal.SIGKILL)
        codes = [run.wait() for run in runs]
        killed += codes.count(-signal.SIGKILL)
        # 3: the clip that is no video was among its own.
        assert set(codes) <= {0, 3, -signal.SIGKILL}, [run.said() for run in runs]
        assert before.items() <= done(cache).items(), "a finished shard was done again"
        if -signal.SIGKILL not in codes:
            assert not half_written(cache), half_written(cache)
    lab.complete(cache, done(cache))
    some = "some of them killed" if killed else "none of them killed"
    return f"eight runs, {some}: every shard was done once, a run without it did the rest"


def killed_again_and_again(lab: Lab, drawn: random.Random) -> str | None:
    """Job after job ends in the middle of one shard: killed, or stopped as Slurm does."""
    cache, shard = lab.fresh(), drawn.randrange(CLIPS)
    for _ in range(JOBS):
        run = lab.extract(cache, "--shard", shard, settings=NOTE_ALL)

        # The claim of the job before may still be there.
        def claimed(run: Run = run) -> bool:
            return run.code() is not None or claims_of(cache, run.pid) > 0

        until(claimed, "the shard is claimed")
        time.sleep(drawn.uniform(0, lab.pace))
        run.kill(drawn.choice((signal.SIGKILL, signal.SIGTERM)))
        if run.wait() not in (-signal.SIGKILL, 130) or done(cache):
            return None
    run = lab.extract(cache, settings=NOTE_ALL)
    assert run.wait() == 3, run.said()
    assert f"shard {shard:05d}: {JOBS} processes ended before it was complete" in run.said()
    # Among what must not differ: no `NNNNN.tries` stays.
    assert not (wrong := differences(cache, lab.calm)), wrong
    return "the next run said so, and completed it; no list of tries stayed"


# What is added to a cache.


def killed_while_adding(lab: Lab, drawn: random.Random) -> str | None:
    """`extract --add`, with further clips, is killed: the same command completes it."""
    return _second_stage(lab, drawn, lab.small, lab.added, lab.add, "features/**/*.json")


def killed_while_linking(lab: Lab, drawn: random.Random) -> str | None:
    """`graphs --tracks` is killed, or one of its processes: the same command completes it."""
    return _second_stage(lab, drawn, lab.calm, lab.linked, lab.link, "graphs/*.json")


def _second_stage(
    lab: Lab,
    drawn: random.Random,
    small: Path,
    calm: Path,
    start: Callable[..., Run],
    markers: str,
) -> str | None:
    """Kill what adds files to a copy of the cache `small`, after some of them are there."""
    cache = lab.fresh()
    shutil.copytree(small, cache)
    before = done(cache)
    there_already = len(list(cache.glob(markers)))
    count = drawn.randint(there_already, len(list(calm.glob(markers))) - 2)
    child = drawn.random() < 0.5
    run = start(cache, workers=1 if child else drawn.choice((0, 1)))

    def there() -> bool:
        if run.code() is not None:
            return True
        return len(list(cache.glob(markers))) >= count and bool(run.decoders() or not child)

    until(there, "files appear")
    time.sleep(drawn.uniform(0, 0.01))
    if child:
        children = run.decoders()
        child = bool(children) and signalled(children[0], signal.SIGKILL)
    else:
        run.kill(signal.SIGKILL)
    code = run.wait()
    run.said()  # no traceback
    if code == _code_of(calm):
        assert not (wrong := differences(cache, calm)), wrong
        return "one of its processes: the run went on, nothing failed" if child else None
    added = {path: path.stat().st_ino for path in cache.glob(markers)}
    again = start(cache, workers=0)
    assert again.wait() == _code_of(calm), again.said()
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert all(path.stat().st_ino == inode for path, inode in added.items()), "done again"
    assert not (wrong := differences(cache, calm)), wrong
    who = "one of its processes" if child else "the main process"
    return f"{who}: the rerun completed it; the shards of before were left alone"


def _code_of(calm: Path) -> int:
    """What extract says of a cache with a clip that is no video; graphs have nothing to say."""
    return 0 if (calm / "graphs").exists() else 3
