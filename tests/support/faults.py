"""Injects faults into running extractions, and checks what must be true of the cache afterwards.

Each fault is a function of the laboratory (`fault_lab.Lab`) and a generator of random numbers. It
injects itself once and returns what happened in a few words; None if the run was over before. It
raises AssertionError if a promise was broken.

`python -m tests.support.faults` injects all of them, as often as `make test-slow` does, and prints
the table of docs/faults.md.
"""

import argparse
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.fault_lab import (
    BROKEN,
    CLIPS,
    COARSE,
    FAT,
    MORE,
    Lab,
    Run,
    differences,
    done,
    failures,
    half_written,
    signalled,
    until,
)
from tests.support.faults_of_workers import (
    claims_of,
    gpu_client_killed,
    gpu_worker_killed,
    killed_again_and_again,
    killed_while_adding,
    killed_while_linking,
    time_is_up,
)

Fault = Callable[[Lab, random.Random], str | None]
RESUMES = "the same command resumes"


class CannotBeMade(Exception):
    """The fault cannot be injected on this machine; the message says why."""


# A process is killed.


def main_process_killed(lab: Lab, drawn: random.Random) -> str | None:
    cache = lab.fresh()
    run = lab.extract(cache)
    lab.moment(run, cache, drawn)
    run.kill(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        return None
    before, left, claims = done(cache), half_written(cache), claims_of(cache, run.pid)
    lab.complete(cache, before)
    until(lambda: not run.members(), "its decode workers have ended with it", lab.soon)
    if claims > 1:
        return "it held several shards, whose claims and part files the rerun removed"
    if left:
        return "it left a claim or part files, which the rerun removed"
    return "it left nothing half-written"


def decode_worker_killed(lab: Lab, drawn: random.Random) -> str | None:
    cache = lab.fresh()
    run = lab.extract(cache, "--workers", 2)
    lab.moment(run, cache, drawn)
    workers = run.decoders()
    if not workers:
        return None
    worker = drawn.choice(workers)
    state = "at work" if "libdecord" in _read(worker, "maps") else "starting"
    met = signalled(worker, signal.SIGKILL)
    assert run.wait() == 3, run.said()
    assert not (wrong := differences(cache, lab.calm)), wrong
    return f"it was {state}: the run went on, nothing failed" if met else None


# Somebody stops the run.


def ctrl_c(lab: Lab, drawn: random.Random) -> str | None:
    return _interrupted(lab, drawn, signal.SIGINT, all_of_it=True)


def sigterm(lab: Lab, drawn: random.Random) -> str | None:
    return _interrupted(lab, drawn, signal.SIGTERM, all_of_it=drawn.random() < 0.5)


def _interrupted(lab: Lab, drawn: random.Random, number: int, all_of_it: bool) -> str | None:
    cache = lab.fresh()
    run = lab.extract(cache)
    lab.moment(run, cache, drawn)
    if len(done(cache)) == CLIPS or run.code() is not None:
        return None
    run.kill(number, all_of_it)
    code = run.wait(lab.soon)
    if code == 3 and len(done(cache)) == CLIPS:
        return None
    assert code == 130, (code, run.said())
    assert RESUMES in run.said()
    assert not half_written(cache), half_written(cache)
    lab.complete(cache, done(cache))
    return f"ended within {lab.soon:.0f} s with exit code 130, nothing half-written"


# The disk.


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of `size` bytes. CannotBeMade where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        raise CannotBeMade("this user may not mount a small file system (tmpfs)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def disk_full(lab: Lab, drawn: random.Random) -> str:
    files = [path for path in lab.calm.rglob("*") if path.is_file()]
    whole = sum(-(-path.stat().st_size // 4096) * 4096 for path in files)  # in whole pages
    with small_disk(lab.fresh(), drawn.randrange(8192, int(0.95 * whole))) as disk:
        run = lab.extract(disk / "cache", workers=0)
        assert run.wait() == 1, run.said()
        assert "No space left" in run.said(), run.said()
        assert not _unfinished(disk / "cache"), _unfinished(disk / "cache")
        before = done(disk / "cache")
        _remount(disk, "size=64m")
        lab.complete(disk / "cache", before)
    return "ended with one line and exit code 1, nothing half-written"


def disk_filled_by_another(lab: Lab, drawn: random.Random) -> str | None:
    """While a shard is written, another program takes the rest of the disk but for some pages."""
    calm, pages = lab.coarse_calm, drawn.randrange(8)
    written = drawn.randrange((calm / "features/00000.h5").stat().st_size)
    with small_disk(lab.fresh(), 16 << 20) as disk:
        cache, count = disk / "cache", drawn.randrange(2)
        run = lab.extract(cache, *COARSE)

        def grown() -> bool:
            if run.code() is not None:
                return True
            return len(done(cache)) >= count and _written(cache) >= written

        until(grown, "a shard grows")
        _fill(disk, pages)
        code = run.wait()
        if code == 3:  # it needed no more room
            return None
        assert code == 1, (code, run.said())
        assert "No space left" in run.said(), run.said()
        assert not _unfinished(cache), _unfinished(cache)
        (disk / "other").unlink()
        lab.complete(cache, done(cache), calm)
    return "ended with one line and exit code 1, nothing half-written"


def _written(cache: Path) -> int:
    """Bytes of the shards that are being written."""
    with suppress(FileNotFoundError):  # it has just been finished
        return sum(path.stat().st_size for path in (cache / "features").glob("*.h5.*.part"))
    return 0


def _fill(disk: Path, pages: int) -> None:
    """Fill a disk but for some pages, while others write."""
    with open(disk / "other", "wb") as other:
        while (free := os.statvfs(disk).f_bavail - pages) > 0:
            with suppress(OSError):
                os.posix_fallocate(other.fileno(), os.fstat(other.fileno()).st_size, free * 4096)


def _unfinished(cache: Path) -> list[str]:
    """The files of shards that are not complete."""
    files = half_written(cache)
    for path in cache.glob("features/*.h5"):
        if not path.with_suffix(".json").exists():
            files.append(path.name)
    return files


def cache_read_only(lab: Lab, drawn: random.Random) -> str:
    state = drawn.choice(("not begun", "half done", "complete"))
    with small_disk(lab.fresh(), 64 << 20) as disk:
        cache = disk / "cache"
        if state == "half done":
            shards = f"0-{drawn.randrange(BROKEN, CLIPS - 1)}"
            assert lab.extract(cache, "--shard", shards, workers=0).wait() == 3
        elif state == "complete":
            shutil.copytree(lab.calm, cache)
        before = done(cache)
        _remount(disk, "ro")
        run = lab.extract(cache, workers=0)
        code = run.wait()
        if state == "complete":
            assert (code, "every shard was complete" in run.said()) == (3, True), run.said()
        else:
            assert code == 1, (code, run.said())
            assert "Read-only file system" in run.said(), run.said()
        assert done(cache) == before
        _remount(disk, "rw")
        lab.complete(cache, before)
    if state == "complete":
        return "complete: all is well"
    return f"{state}: ended with one line and exit code 1"


# Decode workers in trouble.


def decoder_hangs(lab: Lab, drawn: random.Random) -> str | None:
    """A worker is stopped where it is: it neither ends nor answers any more."""
    cache = lab.fresh()
    run = lab.extract(cache, "--time-limit", 3)
    # The last clips are decoded well before their shards are done.
    lab.moment(run, cache, drawn, first=1, last=CLIPS - 4)
    workers = run.decoders()
    if run.code() is not None or not workers:
        return None
    # A worker that still starts has five minutes.
    if "libdecord" not in _read(workers[0], "maps"):
        return None
    signalled(workers[0], signal.SIGSTOP)
    assert run.wait() == 3, run.said()
    return _failed_and_mended(lab, cache, lab.calm, "DecodeTimeout")


def _failed_and_mended(lab: Lab, cache: Path, calm: Path, error: str) -> str | None:
    """Check that only failed clips differ, and that `repair` makes the cache as undisturbed."""
    always = failures(calm)
    failed = {clip: kind for clip, kind in failures(cache).items() if always.get(clip) != kind}
    if not failed:
        assert not differences(cache, calm)
        return None
    assert set(failed.values()) == {error}, failed
    shards = [f"{int(clip.removeprefix('clip')):05d}" for clip in failed]
    assert not (wrong := differences(cache, calm, but=shards)), wrong
    redone = (*shards, f"{BROKEN:05d}")
    before = {shard: mark for shard, mark in done(cache).items() if shard not in redone}
    code, said = lab.asked("repair", "--cache", cache, "--device", "cpu", "--workers", 0)
    assert code == (3 if always else 0), said
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not (wrong := differences(cache, calm)), wrong
    return f"the clip was recorded as failed ({error}), the others went on, repair brought it"


def worker_out_of_memory(lab: Lab, drawn: random.Random) -> str | None:
    """Its address space is limited, so that allocations for a clip of large frames fail."""
    cache, room = lab.fresh(), drawn.randrange(60, 200) << 20

    def limit(worker: int) -> bool:
        # Before that its libraries would not load, which is another fault.
        loaded = "libdecord" in _read(worker, "maps")
        if loaded:
            most = int(_read(worker, "statm").split()[0]) * resource.getpagesize() + room
            resource.prlimit(worker, resource.RLIMIT_AS, (most, most))
        return loaded

    return _at_the_fat_clip(lab, cache, limit)


def worker_killed_by_the_kernel(lab: Lab, drawn: random.Random) -> str | None:
    """SIGKILL whenever a worker has the clip of large frames open, as where memory is short."""
    cache, wait = lab.fresh(), drawn.uniform(0, 0.05)

    def kill(worker: int) -> bool:
        time.sleep(wait)
        os.kill(worker, signal.SIGKILL)
        return True

    return _at_the_fat_clip(lab, cache, kill)


def _at_the_fat_clip(lab: Lab, cache: Path, act: Callable[[int], bool]) -> str | None:
    """Call `act(worker)` on every worker that has the clip open, until it returns True."""
    calm, fat = lab.memory_calm, str(lab.memory_world / f"clip{FAT}.mp4")
    run = lab.extract(cache, world=lab.memory_world)
    harmed: set[int] = set()
    while run.code() is None:
        for worker in set(run.decoders()) - harmed:
            with suppress(ProcessLookupError, IndexError):  # it has just ended
                if _has_open(worker, fat) and act(worker):
                    harmed.add(worker)
        time.sleep(0.001)
    if not harmed:
        return None
    assert run.wait() == (3 if failures(cache) else 0), run.said()
    kinds = set(failures(cache).values())
    if not kinds:
        assert not differences(cache, calm)
        return None
    return _failed_and_mended(lab, cache, calm, kinds.pop())


def _has_open(pid: int, path: str) -> bool:
    try:
        return any(
            os.readlink(f"/proc/{pid}/fd/{number}") == path
            for number in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text()
    except OSError:
        return ""


# The cluster.


def dask_scheduler_lost(lab: Lab, drawn: random.Random) -> str | None:
    cache, file = lab.fresh(), lab.folder / "scheduler.json"
    file.unlink(missing_ok=True)
    loopback = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    scheduler = lab.start((*loopback, "--port", 0, "--scheduler-file", file), "scheduler")
    until(file.exists, "the scheduler is there")
    worker = lab.start(
        ("--scheduler-file", file, "--nthreads", 1, "--no-nanny", "--no-dashboard"), "worker"
    )
    until(lambda: "tcp://" in file.read_text(), "it says where")
    run = lab.extract(cache, "--scheduler", json.loads(file.read_text())["address"])
    lab.moment(run, cache, drawn)
    over = len(done(cache)) == CLIPS
    scheduler.kill(signal.SIGKILL)
    code = run.wait()
    try:
        if over and code == 3:
            return None
        assert code == 1, (code, run.said())
        early = "expected a running Dask scheduler" in run.said()
        if not early:
            assert "scheduler is gone" in run.said(), run.said()
            assert RESUMES in run.said(), run.said()
        lab.complete(cache, done(cache))  # its worker may still be at a shard
    finally:
        worker.kill(signal.SIGKILL, True)
    when = "before it was connected: " if early else ""
    return f"{when}ended with one line and exit code 1; a rerun beside its workers completed it"


# Files that change.


def video_changed(lab: Lab, drawn: random.Random) -> str:
    """A video is replaced between two runs.

    What is finished is left alone, but named; `repair --changed` redoes it.
    """
    world, cache = lab.folder / f"world-{drawn.getrandbits(32):x}", lab.fresh()
    count = drawn.choice((CLIPS - 2, CLIPS - 1))
    shutil.copytree(lab.world, world)
    clip = drawn.randrange(BROKEN + 1, CLIPS)
    changed = f"{clip:05d}"
    assert lab.extract(cache, "--shard", f"0-{count}", world=world, workers=0).wait() == 3
    before = done(cache)
    shutil.copy(lab.changed_world / f"clip{CLIPS - 1}.mp4", world / f"clip{clip}.mp4")
    run = lab.extract(cache, world=world, workers=0)
    assert run.wait() == 3, run.said()
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    others = differences(cache, lab.calm, but=[changed])
    assert not [name for name in others if name.endswith(".h5")]
    shard = f"features/{changed}.h5"
    old = (cache / shard).read_bytes() == (lab.calm / shard).read_bytes()
    named = f"(clip{clip}) has another video now" in run.said()
    assert old == named == (changed in before), run.said()
    command = ("repair", "--cache", cache, "--changed", "--device", "cpu", "--workers", 0)
    code, said = lab.asked(*command)
    assert code == 3, said  # for the one that is no video
    redone = (changed, f"{BROKEN:05d}")
    same = {name: mark for name, mark in before.items() if name not in redone}
    assert same.items() <= done(cache).items(), "a finished shard was done again"
    fresh = lab.fresh()
    assert lab.extract(fresh, "--shard", clip, world=world, workers=0).wait() == 0
    assert (cache / shard).read_bytes() == (fresh / shard).read_bytes()
    shutil.rmtree(world)
    if changed in before:
        return (
            "its shard was finished: it stays as it was, the rerun names the clip, "
            "`repair --changed` redoes it"
        )
    return "its shard was not finished: it has the new video"


def input_changed(lab: Lab, drawn: random.Random) -> str:
    """A clip's start or the file of boxes has changed: the rerun is refused.

    Its rows would not fit those that are there.
    """
    world, cache = lab.folder / f"world-{drawn.getrandbits(32):x}", lab.fresh()
    shutil.copytree(lab.world, world)
    name = drawn.choice(("manifest.csv", "boxes.csv"))
    shards = f"0-{drawn.randrange(BROKEN, CLIPS - 1)}"
    assert lab.extract(cache, "--shard", shards, world=world, workers=0).wait() == 3
    before, lines = done(cache), (world / name).read_bytes().splitlines(keepends=True)
    changed = drawn.randrange(1, len(lines))
    if name == "boxes.csv":
        del lines[changed]
    else:
        cells = [b",start\n", *[b",\n"] * (len(lines) - 1)]
        cells[changed] = b",0.125\n"
        lines = [line.rstrip() + cell for line, cell in zip(lines, cells, strict=True)]
    (world / name).write_bytes(b"".join(lines))
    run = lab.extract(cache, world=world, workers=0)
    assert run.wait() == 2, run.said()
    key = "manifest" if name == "manifest.csv" else "proposal_options.file"
    assert key in run.said(), run.said()
    assert done(cache) == before
    shutil.copy(lab.world / name, world / name)
    assert lab.extract(cache, world=world, workers=0).wait() == 3
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not [found for found in differences(cache, lab.calm) if found.endswith(".h5")]
    shutil.rmtree(world)
    return (
        f"{name}: refused with one line and exit code 2; with the old one, the rerun completed it"
    )


def killed_while_growing(lab: Lab, drawn: random.Random) -> str | None:
    """A cache that gets clips and a field loses its run: the rerun completes it."""
    calm, small = lab.grown, lab.small
    cache = lab.fresh()
    shutil.copytree(small, cache)
    # Shards, and files of the added field, that are there at the moment.
    markers, before = list((calm / "features").rglob("*.json")), done(cache)
    count = drawn.randint(len(before), len(markers) - 1)
    run = lab.extract(cache, *MORE)

    def there() -> bool:
        found = len(list((cache / "features").rglob("*.json")))
        return run.code() is not None or found >= count

    until(there, "shards appear")
    time.sleep(drawn.uniform(0, lab.pace))
    run.kill(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        return None
    assert lab.extract(cache, *MORE, workers=0).wait() == 3
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not (wrong := differences(cache, calm)), wrong
    return "the rerun completed it; the shards of before were left alone"


def shard_changed(lab: Lab, drawn: random.Random) -> str:
    """A bit of a shard's files is flipped, or a file is gone."""
    cache = lab.fresh()
    shutil.copytree(lab.calm, cache)
    shard = drawn.choice([k for k in range(CLIPS) if k != BROKEN])
    damage = drawn.choice(("flipped bit", "cut short", "gone"))
    path = cache / f"features/{shard:05d}{drawn.choice(('.h5', '.json'))}"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        place = drawn.randrange(len(data))
        data[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(data if damage == "flipped bit" else data[:place])
    before = {name: mark for name, mark in done(cache).items() if int(name) not in (shard, BROKEN)}
    code, said = lab.asked("verify", "--cache", cache, "--workers", 0)
    assert code == 3, said
    assert f"{shard:05d}" in said or f"missing: {shard}" in said, said
    code, said = lab.asked("repair", "--cache", cache, "--device", "cpu", "--workers", 0)
    assert code == 3, said
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not (wrong := differences(cache, lab.calm)), wrong
    return f"{path.suffix}, {damage}: verify found it, repair mended it"


# Clocks.


def clocks_jump(lab: Lab, drawn: random.Random) -> str:
    """Two runs at once whose clocks, and the times of their files, jump by years.

    No shard is done twice.
    """
    cache = lab.fresh()
    runs = [lab.extract(cache, clock=True, workers=0) for _ in range(2)]
    while any(run.code() is None for run in runs):
        _shake(cache, drawn)
        time.sleep(0.002)
    assert [run.code() for run in runs] == [3, 3], [run.said() for run in runs]
    assert sum(map(_clips, runs)) == CLIPS, [run.said() for run in runs]
    lab.complete(cache, done(cache))
    return "two runs at once: every shard was done once"


def clocks_jump_after_a_kill(lab: Lab, drawn: random.Random) -> str | None:
    """What a killed run left is dated years off; the next run takes over at once all the same."""
    cache = lab.fresh()
    run = lab.extract(cache, clock=True, workers=0)
    lab.moment(run, cache, drawn)
    run.kill(signal.SIGKILL)
    if run.wait() != -signal.SIGKILL:
        return None
    _shake(cache, drawn)
    before = done(cache)
    again = lab.extract(cache, clock=True, workers=0)
    assert again.wait() == 3, again.said()
    assert before.items() <= done(cache).items(), "a finished shard was done again"
    assert not (wrong := differences(cache, lab.calm)), wrong
    return "a killed run's claims and part files: taken over at once"


def _shake(cache: Path, drawn: random.Random) -> None:
    for name in half_written(cache):
        when = drawn.choice((0, 10**9, time.time() + 10**9))
        with suppress(FileNotFoundError):
            os.utime(cache / "features" / name, (when, when))


def _clips(run: Run) -> int:
    """How many clips a run says that it has done."""
    found = re.search(r": (\d+) clips, \d+ views in ", run.said())
    return int(found[1]) if found else 0


# (fault, how often in `make test`, where others of its kind are, how often in `make test-slow`)
FAULTS: dict[str, tuple[Fault, int, int]] = {
    "the main process is killed (SIGKILL)": (main_process_killed, 1, 50),
    "a run that lets a cache grow is killed (SIGKILL)": (killed_while_growing, 1, 25),
    "a decode worker is killed (SIGKILL)": (decode_worker_killed, 1, 50),
    "Ctrl-C": (ctrl_c, 1, 25),
    "SIGTERM": (sigterm, 0, 25),
    "the disk is full": (disk_full, 1, 25),
    "something else fills the disk": (disk_filled_by_another, 1, 25),
    "the cache is read-only": (cache_read_only, 1, 10),
    "a decoder hangs": (decoder_hangs, 1, 10),
    "a worker runs out of memory": (worker_out_of_memory, 1, 10),
    "the kernel kills a worker that needs memory": (worker_killed_by_the_kernel, 0, 10),
    "a process of --gpus is killed (SIGKILL)": (gpu_worker_killed, 1, 10),
    "the main process of --gpus is killed (SIGKILL)": (gpu_client_killed, 0, 10),
    "the time of --stop-after is up, and some runs are killed": (time_is_up, 1, 10),
    "job after job ends in the middle of a shard": (killed_again_and_again, 1, 10),
    "extract --add is killed (SIGKILL)": (killed_while_adding, 1, 10),
    "graphs --tracks is killed (SIGKILL)": (killed_while_linking, 1, 10),
    "the Dask scheduler is lost": (dask_scheduler_lost, 1, 10),
    "a video changes between runs": (video_changed, 1, 10),
    "the manifest or the boxes change between runs": (input_changed, 0, 10),
    "a shard changes after it was finished": (shard_changed, 1, 25),
    "clocks jump": (clocks_jump, 1, 10),
    "clocks jump after a kill": (clocks_jump_after_a_kill, 0, 10),
}


def inject(lab: Lab, fault: Fault, count: int, seed: int = 0) -> Counter:
    """Inject a fault `count` times, each at a moment of its own: what happened -> how often."""
    found: Counter = Counter()
    for number in itertools.count():
        outcome = fault(lab, random.Random(f"{fault.__name__} {seed} {number}"))
        if outcome is not None:
            found[outcome] += 1
        assert number < 20 + 5 * count, "the fault rarely met a run"
        if found.total() == count:
            return found


def main() -> None:
    """Print a table: the fault, how often, what happened, how long it took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--count", type=int, help="times that each fault is injected, instead of its own number"
    )
    parser.add_argument(
        "--only",
        default="",
        help="faults whose functions have one of these in their names, comma-separated",
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        print("| fault | injected | what happened | seconds |\n|---|---|---|---|", flush=True)
        for name, (fault, _, count) in FAULTS.items():
            if not any(part in fault.__name__ for part in given.only.split(",")):
                continue
            _ = lab.calm  # made before the clock starts
            started, found = time.monotonic(), Counter()
            try:
                found = inject(lab, fault, given.count or count, given.seed)
                cases = [f"{count} × {outcome}" for outcome, count in found.most_common()]
                outcome = "; ".join(cases)
            except CannotBeMade as error:
                outcome = f"skipped: {error}"
            except AssertionError as error:
                traceback.print_exc()
                outcome = f"A PROMISE WAS BROKEN: {' '.join(str(error).split())}"
            seconds = f"{time.monotonic() - started:.0f}"
            print(f"| {name} | {found.total()} | {outcome} | {seconds} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
