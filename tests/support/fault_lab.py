"""A laboratory for faults: runs of the command that can be hit at any moment, and their caches.

A server process loads the networks' libraries once and forks for every run. The run is then a
process of its own, in a session of its own, and does what `python -m cli` does. It takes a second,
not ten, and nearly all of it is worth hitting. Needs Linux (/proc, fork).
"""

import atexit
import gc
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from tests.support.tiny_videos import make_videos

ROOT = Path(__file__).parents[2]
CLIPS = 12  # one shard each
BROKEN = 5  # the clip that is no video: every cache has a failure in its statistics
OPTIONS = (
    "--backbone digit_cnn --weights none --set backbone_options.width=8 --keep pooled,nodes "
    "--proposals annotations --boxes 2 --frames 4 --size 32 --train-views 1 --dtype float32 "
    "--shard-size 1 --views-for-all --device cpu"
)
# Keys of a shard's statistics: times, of the videos too, and how it came to be.
NEVER_THE_SAME = ("seconds", "seal", "device", "workers", "taken_over", "videos")
COARSE = ("--shard-size", CLIPS // 2)
# What lets a cache grow by a field; a longer manifest lets it grow by clips.
MORE = ("--keep", "pooled,nodes,conv2")
# What `extract --add` and `graphs` are asked for.
ADD = ("--add", "conv2")
LINK = ("--which", "iou,nearest", "--tracks")
HOPELESS = 600.0  # seconds after which a run counts as hanging, on however busy a machine
SOON = 10.0  # seconds that an interrupted run has to end
FAT, FAT_SIDE = 2, 2048  # of `memory_world`: the clip of large frames, pixels

# The server, and what it forks.

# In the environment of what a run starts: decode workers have sessions of their own.
MARK = "VIDGRAPH_FAULT_LAB"
JUMPS = (0.0, 3e4, -3e4, 4e8, -4e8)  # seconds by which a clock that jumps is wrong


def serve() -> None:
    """Fork a run for every line (JSON) of the standard input.

    It returns in each run when the run has ended.
    """
    # Loaded here so that no run has to.
    import av  # noqa: F401
    import decord  # noqa: F401

    import cli.__main__
    import cli.extract
    import cli.graphs
    import cli.repair  # noqa: F401
    import pipeline.backbones.digit_cnn
    import pipeline.proposals.annotations
    import pipeline.stages.extract
    import pipeline.stages.frozen_networks
    import pipeline.stages.graphs
    import pipeline.stages.repair
    import pipeline.stages.shard_composer
    import pipeline.stages.verify  # noqa: F401

    gc.freeze()  # else each run would copy all of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no run becomes a zombie
    for line in sys.stdin:
        order = json.loads(line)
        if order["program"] != "vidgraph" or order["gpus"]:
            import distributed  # noqa: F401
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(order)
            return


def _attend(order: dict) -> None:
    """Fork the run itself, write its process number and, in the end, its exit code."""
    folder = Path(order["folder"])
    pid = os.fork()
    if pid:
        _whole(folder / "pid", pid)
        _whole(folder / "code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.setsid()
    os.environ[MARK] = str(os.getpid())
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    if order["gpus"]:
        os.environ["PATH"] = os.pathsep.join((order["gpus"], os.environ["PATH"]))
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    for name, value in order["settings"].items():
        module, _, setting = name.rpartition(".")
        setattr(import_module(module), setting, value)
    if order["clock"]:
        now, drawn = time.time, random.Random(os.getpid())
        time.time = lambda: now() + drawn.choice(JUMPS)
        time.time_ns = lambda: int(time.time() * 1e9)
    if order["program"] == "vidgraph":
        from cli.__main__ import main
    elif order["program"] == "scheduler":
        from distributed.cli.dask_scheduler import main
    else:
        from distributed.cli.dask_worker import main
    code = 0
    try:
        main(order["args"])
    except SystemExit as error:
        code = error.code
    _leave(code)


def _leave(code: int | None) -> NoReturn:
    """End as an interpreter does, but without taking every module apart.

    That would take longer than a small extraction.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _whole(path: Path, number: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(str(number))
    part.rename(path)


# What a test sees of it.


class Run:
    """One process that the server forked; `pid`, and what it leaves in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        until((folder / "pid").exists, "the run begins")
        self.pid = int((folder / "pid").read_text())

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        path = self.folder / "code"
        return int(path.read_text()) if path.exists() else None

    def wait(self, seconds: float = HOPELESS) -> int:
        until(lambda: self.code() is not None, "the run ends", seconds)
        return self.code()

    def said(self) -> str:
        """What it printed; AssertionError if a traceback is in it."""
        text = (self.folder / "out").read_text(errors="replace")
        assert "Traceback" not in text, text
        return text

    def kill(self, number: int, all_of_it: bool = False) -> None:
        """Send a signal to it, or to its decode workers too, as a terminal does."""
        with suppress(ProcessLookupError):
            (os.killpg if all_of_it else os.kill)(self.pid, number)

    def members(self) -> list[int]:
        """The living processes of its session, and of those of its workers."""
        mark = f"{MARK}={self.pid}\0".encode()
        members = []
        for pid, session, _ in _processes():
            if session == self.pid or mark in _read(pid, "environ"):
                members.append(pid)
        return members

    def decoders(self) -> list[int]:
        """Its decode workers."""
        children = [pid for pid, _, parent in _processes() if parent == self.pid]
        return [pid for pid in children if b"spawn_main" in _read(pid, "cmdline")]


def signalled(pid: int, number: int) -> bool:
    """Send a signal to a process of a run; False if it has just ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def _processes():
    """(process, session, parent) of all that live."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        state, *fields = _read(int(pid), "stat").rpartition(b")")[2].split() or [b"X"]
        if state not in b"ZX":
            yield int(pid), int(fields[2]), int(fields[0])


def until(true: Callable[[], object], what: str, seconds: float = HOPELESS) -> None:
    """Wait; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s until {what}"
        time.sleep(0.002)


class Lab:
    """Small videos, what an undisturbed run makes of them, and the server. Close it at the end.

    Args:
        folder: a folder of its own.

    Attributes:
        soon: seconds that an interrupted run has to end; raise it where the machine may be busy.
    """

    def __init__(self, folder: Path):
        self.soon = SOON
        self.folder, self.world = folder, make_videos(folder / "world", CLIPS, broken=(BROKEN,))
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        }
        # Without a file: decode workers would load it.
        code = "from tests.support import fault_lab; fault_lab.serve()"
        self._server = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.runs: list[Run] = []

    def close(self) -> None:
        """End the server and every run."""
        for run in self.runs:
            if run.code() is None:
                run.kill(signal.SIGCONT, True)
                run.kill(signal.SIGKILL, True)
        self._server.stdin.close()
        self._server.kill()
        self._server.wait()

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def fresh(self) -> Path:
        """Return a path for a cache that does not exist yet."""
        return self.folder / f"cache-{uuid.uuid4().hex[:8]}"

    def start(
        self,
        args: Sequence[object],
        program: str = "vidgraph",
        clock: bool = False,
        gpus: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> Run:
        """Start the command.

        Args:
            args: its arguments.
            program: "vidgraph", or Dask's "scheduler" or "worker".
            clock: whether its wall clock jumps by years.
            gpus: whether the machine has two GPUs, for whoever asks nvidia-smi.
            settings: MODULE.NAME -> value of what is set in its main process.
        """
        folder = self.folder / f"run-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        order = {
            "program": program,
            "folder": str(folder),
            "args": list(map(str, args)),
            "clock": clock,
            "gpus": str(self._pretended_gpus) if gpus else "",
            "settings": dict(settings or {}),
        }
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        self.runs.append(Run(folder))
        return self.runs[-1]

    def extract(
        self,
        cache: Path,
        *more: object,
        world: Path | None = None,
        workers: int = 1,
        **how: object,
    ) -> Run:
        """`vidgraph extract`, under way; `how` as for `start`."""
        world = world or self.world
        inputs = ("--manifest", world / "manifest.csv", "--annotations", world / "boxes.csv")
        options = ("--cache", cache, *OPTIONS.split(), "--workers", workers)
        return self.start(("extract", *inputs, *options, *more), **how)

    def add(self, cache: Path, workers: int = 0) -> Run:
        """`vidgraph extract --add` with the whole manifest, under way."""
        inputs = ("--manifest", self.world / "manifest.csv", "--cache", cache)
        return self.start(
            ("extract", *inputs, *ADD, "--views-for-all", "--device", "cpu", "--workers", workers)
        )

    def link(self, cache: Path, workers: int = 0) -> Run:
        """`vidgraph graphs --tracks`, under way."""
        return self.start(
            ("graphs", "--cache", cache, *LINK, "--device", "cpu", "--workers", workers)
        )

    @cached_property
    def _pretended_gpus(self) -> Path:
        """A folder with an nvidia-smi that tells of two GPUs."""
        folder = self.folder / "gpus"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(
            "#!/bin/sh\necho 'GPU-0, 00000000:01:00.0'\necho 'GPU-1, 00000000:02:00.0'\n"
        )
        program.chmod(0o755)
        return folder

    def asked(self, *args: object) -> tuple[int, str]:
        """(exit code, what it said) of another verb."""
        run = self.start(args)
        return run.wait(), run.said()

    @cached_property
    def calm(self) -> Path:
        """The undisturbed cache."""
        return self._undisturbed("calm", self.world, 3)

    def _undisturbed(self, name: str, world: Path, code: int) -> Path:
        run = self.extract(self.folder / name, world=world)
        assert run.wait() == code, run.said()
        return self.folder / name

    @cached_property
    def coarse_calm(self) -> Path:
        """The undisturbed cache where half of the clips make a shard."""
        run = self.extract(self.folder / "coarse", *COARSE)
        assert run.wait() == 3, run.said()
        return self.folder / "coarse"

    @cached_property
    def small(self) -> Path:
        """A cache of the first half of the clips."""
        lines = (self.world / "manifest.csv").read_text().splitlines(keepends=True)
        (self.world / "few.csv").write_text("".join(lines[: 1 + CLIPS // 2]))
        run = self.extract(self.folder / "small", "--manifest", self.world / "few.csv")
        assert run.wait() == 3, run.said()
        return self.folder / "small"

    @cached_property
    def grown(self) -> Path:
        """That cache with all clips and another field, undisturbed."""
        shutil.copytree(self.small, self.folder / "grown")
        run = self.extract(self.folder / "grown", *MORE)
        assert run.wait() == 3, run.said()
        return self.folder / "grown"

    @cached_property
    def added(self) -> Path:
        """The small cache with all clips and another field, by `--add`, undisturbed."""
        shutil.copytree(self.small, self.folder / "added")
        run = self.add(self.folder / "added")
        assert run.wait() == 3, run.said()
        return self.folder / "added"

    @cached_property
    def linked(self) -> Path:
        """The undisturbed cache with graphs and tracks."""
        shutil.copytree(self.calm, self.folder / "linked")
        run = self.link(self.folder / "linked")
        assert run.wait() == 0, run.said()
        return self.folder / "linked"

    @cached_property
    def memory_world(self) -> Path:
        """Four clips, of which FAT has frames that need hundreds of megabytes."""
        return make_videos(self.folder / "memory", 4, sizes={FAT: (FAT_SIDE, FAT_SIDE)})

    @cached_property
    def memory_calm(self) -> Path:
        """The undisturbed cache of it."""
        return self._undisturbed("memory-calm", self.memory_world, 0)

    @cached_property
    def changed_world(self) -> Path:
        """The same clips, where the last one, and its boxes, are others."""
        world = make_videos(self.folder / "changed", CLIPS + 1, broken=(BROKEN,))
        (world / f"clip{CLIPS}.mp4").rename(world / f"clip{CLIPS - 1}.mp4")
        for name in ("manifest.csv", "boxes.csv"):
            (world / name).write_bytes((self.world / name).read_bytes())
        return world

    @cached_property
    def pace(self) -> float:
        """Seconds from one finished shard to the next, undisturbed."""
        times = sorted(path.stat().st_mtime for path in (self.calm / "features").glob("*.json"))
        # The median, whatever else the machine does.
        return statistics.median(after - before for before, after in pairwise(times))

    def moment(
        self, run: Run, cache: Path, drawn: random.Random, first: int = 0, last: int = CLIPS - 1
    ) -> bool:
        """Wait until `first` to `last` shards, and a part of the next, are done.

        Returns False if the run was over before.
        """
        pace, count = self.pace, drawn.randint(first, last)

        def there() -> bool:
            if run.code() is not None:
                return True
            return (cache / "features").exists() and len(done(cache)) >= count

        until(there, "shards appear")
        time.sleep(drawn.uniform(0, pace))
        return run.code() is None

    def complete(
        self,
        cache: Path,
        before: dict[str, tuple],
        calm: Path | None = None,
        world: Path | None = None,
    ) -> str:
        """Run the same command again, and check that the cache is the undisturbed one.

        The shards of `before` must have been left alone.
        """
        run = self.extract(cache, world=world, workers=0)
        assert run.wait() == (0 if world else 3), run.said()
        assert before.items() <= done(cache).items(), "a finished shard was done again"
        assert not (wrong := differences(cache, calm or self.calm)), wrong
        return run.said()


def done(cache: Path) -> dict[str, tuple]:
    """Complete shard -> what tells its two files from others of the same content."""
    found = {}
    for marker in (cache / "features").glob("*.json"):
        both = [os.stat(path) for path in (marker, marker.with_suffix(".h5")) if path.exists()]
        found[marker.stem] = tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in both)
    return found


def half_written(cache: Path) -> list[str]:
    """Claims and part files."""
    return sorted(path.name for path in cache.rglob("*") if path.suffix in (".part", ".claim"))


def differences(cache: Path, calm: Path, but: Sequence[str] = ()) -> list[str]:
    """Files that are in only one of two caches, or that differ.

    Statistics differ if more than times do, other files by any byte. `but`: shards left out.
    """
    names, calm_names = _files_in(cache), _files_in(calm)
    found = sorted(names ^ calm_names)
    for name in sorted(names & calm_names):
        if Path(name).stem in but:
            continue
        if re.fullmatch(r"(features|graphs)/.*\d{5}\.json", name):
            same = _statistics(cache / name) == _statistics(calm / name)
        else:
            same = (cache / name).read_bytes() == (calm / name).read_bytes()
        if not same:
            found.append(name)
    return found


def _files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _statistics(path: Path) -> dict:
    """A shard's statistics without times."""
    record = json.loads(path.read_text())
    failures = record.get("failures", ())  # graphs have none
    record["failures"] = [{**failure, "seconds": 0} for failure in failures]
    return {key: value for key, value in record.items() if key not in NEVER_THE_SAME}


def failures(cache: Path) -> dict[str, str]:
    """Failed clip -> kind of error, as the finished shards say."""
    errors = {}
    for path in sorted((cache / "features").glob("*.json")):
        for failure in json.loads(path.read_text())["failures"]:
            errors[failure["clip"]] = failure["error"]
    return errors
