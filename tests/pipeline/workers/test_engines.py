"""Engines: the same cache whoever computes it, runs that share the work, lost workers."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
from click.testing import CliRunner

import pipeline.stages.extract_shards
from cli.__main__ import vidgraph
from cli._shared.cluster import without
from pipeline.cache.reader import Cache
from pipeline.stages.graphs import build_graphs
from pipeline.stages.repair import as_extracted
from pipeline.workers import claims, cores, slurm
from pipeline.workers.claims import claim_file, take_claim
from pipeline.workers.dask_jobs import DaskJobs, _neighbours
from pipeline.workers.dask_scratch import private_scratch
from pipeline.workers.dask_tls import files_of_this_run
from pipeline.workers.engines import (
    DaskEngine,
    LocalEngine,
    TlsFiles,
    WorkersLost,
    run_jobs,
    share_jobs,
)
from tests.pipeline.stages.test_extract import INLINE, everything, run
from tests.pipeline.workers.test_claims import elsewhere, until
from tests.support.small_cache import make_cache

ROOT = Path(__file__).parents[3]
LOCAL = {"dashboard": "127.0.0.1:0"}
# Seconds: no working machine takes so long, so a thread that does not end is a failure.
NET = 300.0


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.suffix in (".part", ".claim")]


# Runs that share the work.


def test_a_shard_that_another_run_works_on_is_left_to_it_and_taken_when_it_gives_up(
    world, undisturbed, tmp_path
):
    cache, features = tmp_path / "cache", tmp_path / "cache/features"
    features.mkdir(parents=True)
    claim = take_claim(features / "00001.h5")
    ours = threading.Thread(target=run, args=(world, cache))
    ours.start()
    until(lambda: {p.name for p in features.glob("*.json")} == {"00000.json", "00002.json"})
    time.sleep(0.1)
    assert not (features / "00001.json").exists()
    claim.release()
    ours.join(NET)
    assert everything(cache) == everything(undisturbed)
    assert not leftovers(cache)


def test_two_runs_at_once_do_every_shard_once(world, undisturbed, tmp_path):
    cache, summaries = tmp_path / "cache", []
    threads = [
        threading.Thread(target=lambda: summaries.append(run(world, cache))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    assert sum(summary.shards for summary in summaries) == 3
    assert [summary.shards + summary.already for summary in summaries] == [3, 3]
    assert [len(summary.failures) for summary in summaries] == [1, 1]
    assert everything(cache) == everything(undisturbed)
    assert not leftovers(cache)


def test_a_silent_owner_is_replaced_and_its_part_removed(world, undisturbed, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    elsewhere(cache / "features" / "00001.h5")
    (cache / "features" / "00001.h5.other-1-1-00000000.part").write_text("half")
    monkeypatch.setattr("pipeline.workers.engines.POLL", 0.01)
    monkeypatch.setattr(
        "pipeline.workers.claims.ClaimWatch.__init__",
        lambda watch, silence=0.1: _init(watch, silence),
    )
    assert run(world, cache).shards == 3
    assert everything(cache) == everything(undisturbed)
    assert not leftovers(cache)


_init = claims.ClaimWatch.__init__


@pytest.mark.parametrize("redo", [False, True])
def test_a_stalled_owner_that_wakes_up_does_no_harm(
    world, undisturbed, tmp_path, monkeypatch, redo
):
    """It stalls when its file is ready for its name; another run then takes it for dead."""
    cache, finish, stalled = tmp_path / "cache", pipeline.stages.extract_shards._finish, []
    if redo:
        shutil.copytree(undisturbed, cache)

    def stall(complete, claim):
        if not stalled:
            stalled.append(claim)
            claim_file(claim.path).unlink()
            run(world, cache, redo=redo, shards=[int(claim.path.stem)])
        return finish(complete, claim)

    monkeypatch.setattr(pipeline.stages.extract_shards, "_finish", stall)
    summary = run(world, cache, redo=redo)
    assert summary.shards + summary.already == 3
    assert summary.already > 0
    assert len(summary.failures) == 1
    assert everything(cache) == everything(undisturbed)
    assert not leftovers(cache)


def test_graphs_are_shared_too(tmp_path):
    path = make_cache(tmp_path)
    with take_claim(path / "graphs" / "00001.h5"):
        both = [threading.Thread(target=build_graphs, args=(path,)) for _ in range(2)]
        for thread in both:
            thread.start()
        until(lambda: len(list((path / "graphs").glob("*.json"))) == 2)
    for thread in both:
        thread.join(NET)
    assert len(Cache(path).records["graphs"]) == 3
    assert not leftovers(path)


def test_a_file_whose_statistics_were_never_written_is_done_again(world, undisturbed, tmp_path):
    """A writer was killed between the two."""
    cache = tmp_path / "cache"
    shutil.copytree(undisturbed, cache)
    (cache / "features" / "00001.json").unlink()
    assert run(world, cache).shards == 1
    assert everything(cache) == everything(undisturbed)


# Engines.


class Numbered(NamedTuple):
    """A job of these tests."""

    number: int
    path: Path


@contextmanager
def scripted(answers):
    def run_them(function, jobs):
        for job in jobs:
            yield job, answers[job.number].pop(0)

    yield run_them


class Scripted:
    """An engine that answers as it is told."""

    def __init__(self, answers):
        self.answers = answers

    def open(self):
        return scripted(self.answers)


def jobs_in(folder: Path, count: int) -> list[Numbered]:
    return [Numbered(k, folder / f"{k:05d}.h5") for k in range(count)]


def test_jobs_of_other_runs_are_asked_for_again_until_they_are_finished(tmp_path):
    answers = {0: ["a"], 1: [None, None, "b"], 2: [None]}
    jobs = jobs_in(tmp_path, 3)
    found = dict(share_jobs(None, jobs, Scripted(answers), finished=lambda job: job.number == 2))
    assert {job.number: result for job, result in found.items()} == {0: "a", 1: "b", 2: None}


def test_a_job_that_ends_its_workers_is_told_when_the_others_are_done(tmp_path):
    answers, seen = {0: [WorkersLost("three of them")], 1: ["b"]}, []
    results = share_jobs(None, jobs_in(tmp_path, 2), Scripted(answers), finished=lambda job: False)
    with pytest.raises(WorkersLost, match="three of them"):
        seen.extend(results)
    assert [(job.number, result) for job, result in seen] == [(1, "b")]


def test_any_other_error_ends_the_run(tmp_path):
    answers = {0: [OSError("disk full")], 1: ["b"]}
    with pytest.raises(OSError, match="disk full"):
        list(share_jobs(None, jobs_in(tmp_path, 2), Scripted(answers), finished=lambda job: False))


def double(number: int) -> int:
    return 2 * number


def halve(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def where_am_i(_job) -> tuple[int, str, str]:
    time.sleep(0.05)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]


def what_it_has(_job) -> tuple[int, int, str]:
    """Of a worker: its process, how many share its cores, and OMP_NUM_THREADS as Dask sets it."""
    time.sleep(0.05)
    return os.getpid(), cores._sharing, os.environ["OMP_NUM_THREADS"]


def is_profiled(_job) -> bool:
    import dask

    return dask.config.get("distributed.worker.profile.enabled")


@pytest.mark.parametrize("workers", [0, 2])
def test_jobs_run_here_with_any_number_of_processes(workers):
    assert list(run_jobs(double, range(5), LocalEngine(workers))) == [(k, 2 * k) for k in range(5)]


def test_on_dask_the_cache_is_the_same_and_every_process_has_a_gpu_of_its_own(
    world, undisturbed, tmp_path, monkeypatch
):
    # Names only: nobody uses the GPUs themselves.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("pipeline.workers.dask_nodes.cores_here", lambda: 6)
    lines = []
    with DaskEngine(workers=2, say=lines.append).open() as run_on:
        places = set()

        def both_have_answered() -> bool:
            places.update(result for _, result in run_on(where_am_i, range(8)))
            return len(places) == 2

        until(both_have_answered)  # the second worker starts in its own time
        assert len({pid for pid, _, _ in places}) == 2
        assert {gpu for _, gpu, _ in places} == {"3", "5"}
        assert {threads for _, _, threads in places} == {"3"}
        assert {sharing for _, (_, sharing, _) in run_on(what_it_has, range(4))} == {2}
        # The profiler would cost each worker 6 % of a core.
        assert dict(run_on(is_profiled, [0])) == {0: False}
        # Several jobs end at once: each result, or error, is its own job's.
        halves = {k: str(half) for k, half in run_on(halve, range(30))}
        assert halves == {k: f"{k} is odd" if k % 2 else str(k // 2) for k in range(30)}

        class Open:
            """The cluster that is there: starting another takes seconds."""

            @contextmanager
            def open(self):
                yield run_on

        # With a decode process, which is a child of Dask's worker.
        options = replace(INLINE, workers=1, device="cpu")
        summary = run(world, tmp_path / "cache", options=options, engine=Open())
    assert (summary.shards, summary.clips) == (3, 7)
    assert everything(tmp_path / "cache") == everything(undisturbed)
    assert not leftovers(tmp_path / "cache")
    assert "dashboard" not in lines[0]


def cores_and_gpu(_job) -> tuple[int, tuple[int, ...], str, int]:
    time.sleep(0.05)
    own = tuple(sorted(os.sched_getaffinity(0)))
    return os.getpid(), own, os.environ["CUDA_VISIBLE_DEVICES"], cores.cores_here()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_with_gpus_each_process_has_one_and_the_cores_near_it_and_works_ahead(
    world, undisturbed, tmp_path, monkeypatch
):
    near = sorted(os.sched_getaffinity(0))[:2]
    if len(near) < 2:
        pytest.skip("one core: nothing to share out")
    monkeypatch.setattr(
        "pipeline.workers.dask_nodes.near_cores", lambda *given: [[k] for k in near]
    )
    lines: list[str] = []
    engine = DaskEngine(workers=2, threads=3, gpus=("GPU-a", "GPU-b"), say=lines.append)
    with engine.open() as run_on:
        places = set()

        def both_have_answered() -> bool:
            places.update(result for _, result in run_on(cores_and_gpu, range(12)))
            return len(places) == 2

        until(both_have_answered)
        # Each counts the core that it has, and does not divide it by the other process.
        found = {(own, gpu, counted) for _, own, gpu, counted in places}
        assert found == {((near[0],), "GPU-a", 1), ((near[1],), "GPU-b", 1)}

        class Open:
            @contextmanager
            def open(self):
                yield run_on

        options = replace(INLINE, workers=1, device="cpu", batch=None)
        summary = run(world, tmp_path / "cache", options=options, engine=Open())
    assert (summary.shards, summary.clips) == (3, 7)
    assert everything(tmp_path / "cache") == everything(undisturbed)
    assert not leftovers(tmp_path / "cache")
    # What a worker chose for the cache is said here.
    assert any("4 views in each forward pass" in line for line in lines)


def answer_of(port: int) -> bytes:
    """What a stranger hears who greets as Dask does, and as a browser does."""
    with socket.create_connection(("127.0.0.1", port), timeout=NET) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            return stranger.recv(1000)
        except ConnectionResetError:
            return b""


def scratch_folder(_) -> str:
    from distributed import get_worker

    return get_worker().local_directory


def test_every_port_on_this_machine_asks_for_a_key_and_scratch_folders_are_private(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    lines, alert = [], 0x15  # how a TLS server refuses (RFC 8446, 5.1)
    with DaskEngine(workers=1, say=lines.append).open() as run_on:
        ((_, scratch),) = run_on(scratch_folder, [0])
        ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
        ports = set()
        for process in ours:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add(connection.laddr.port)
        assert len(ports) >= 3  # scheduler, nanny, worker
        for port in ports:
            said = answer_of(port)
            assert not said or said[0] == alert, (port, said)
        assert int(re.search(r"tls://127\.0\.0\.1:(\d+)", lines[0])[1]) in ports
        here = next(place for place in sys.path if "dask-scratch-space" in place)
        for place in (scratch, here):
            parents = Path(place).parents
            private = next(folder for folder in parents if folder.name.startswith("vidgraph-"))
            assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_scratch_folder_that_others_made_is_not_taken(tmp_path, monkeypatch):
    """They could put modules there; Dask has its folder on the module path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = Path(private_scratch())
    assert (mine, private_scratch()) == (tmp_path / f"vidgraph-{os.getuid()}", str(mine))
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    mine.chmod(0o777)  # as one who made it would leave it, to write there
    assert private_scratch() != str(mine)
    mine.rmdir()
    (tmp_path / "theirs").mkdir(0o700)
    mine.symlink_to(tmp_path / "theirs")
    assert private_scratch() != str(mine)


def test_a_scheduler_of_others_without_tls_is_said_to_be_open(monkeypatch):
    said = []
    stack = ExitStack()
    assert DaskEngine(scheduler="tcp://127.0.0.1:1", say=said.append)._security(stack) is None
    assert DaskEngine(scheduler="tls://127.0.0.1:1", say=said.append)._security(stack) is None
    (line,) = said
    assert "tcp://127.0.0.1:1: without TLS" in line
    assert "--tls-ca" in line


def test_the_key_of_a_run_is_in_files_of_this_user_and_goes_with_the_run(tmp_path):
    umask = os.umask(0)
    try:
        with files_of_this_run(str(tmp_path)) as tls:
            files = (tls.key, tls.cert, tls.key.parent)
            modes = [stat.S_IMODE(path.stat().st_mode) for path in files]
            assert modes == [0o600, 0o600, 0o700]
            assert tls.security().require_encryption
            assert ssl.create_default_context().load_cert_chain(tls.cert, tls.key) is None
    finally:
        os.umask(umask)
    assert list(tmp_path.iterdir()) == []


def fragile(job: Numbered) -> int:
    """Ends its process at the first attempt of an odd job, and at every one of job 7."""
    job.path.parent.mkdir(exist_ok=True)
    attempts = len(list(job.path.parent.glob(f"{job.number}.*")))
    (job.path.parent / f"{job.number}.{attempts}").touch()
    if job.number == 7 or (job.number % 2 and not attempts):
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


@pytest.mark.slow
def test_dask_workers_that_are_lost_are_replaced_and_their_jobs_done_by_others(tmp_path):
    jobs = jobs_in(tmp_path / "jobs", 8)
    results = run_jobs(fragile, jobs, DaskEngine(workers=2, **LOCAL))
    found = {job.number: result for job, result in results}
    assert [found[k] for k in range(7)] == list(range(7))
    assert isinstance(found[7], WorkersLost)


@pytest.mark.slow
def test_a_worker_that_is_not_back_in_time_is_replaced_all_the_same(tmp_path, monkeypatch):
    """Dask then gives up on it; without any worker the run would wait for ever."""
    monkeypatch.setattr("pipeline.workers.engines.COMING_BACK", 0.1)
    monkeypatch.setattr("pipeline.workers.dask_nodes.KEEPING", 0.5)
    found, jobs = [], [Numbered(k, tmp_path / "jobs" / f"{k}.h5") for k in (1, 2)]
    run = threading.Thread(
        target=lambda: found.extend(run_jobs(fragile, jobs, DaskEngine(workers=1, **LOCAL))),
        daemon=True,
    )
    run.start()
    run.join(300)
    assert {job.number: result for job, result in found} == {1: 1, 2: 2}


@pytest.fixture
def start_dask(tmp_path):
    """start_dask(*arguments): a process of the command `dask`, ended after the test."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
        with open(tmp_path / f"{arguments[0]}{len(processes)}.log", "w") as log:
            command = [sys.executable, "-m", "dask", *arguments]
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
        processes.append(process)
        return process

    yield start
    for process in reversed(processes):
        process.terminate()
        process.wait()


@pytest.fixture
def scheduler(tmp_path, start_dask):
    """Address and process of another person's Dask scheduler, whose workers are daemonic."""
    file = tmp_path / "scheduler.json"
    options = "--host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0 --scheduler-file"
    first = start_dask("scheduler", *options.split(), str(file))
    until(file.exists)
    start_dask("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard")
    until(file.read_text)
    return json.loads(file.read_text())["address"], first


@pytest.mark.slow
def test_threads_that_were_asked_for_are_what_each_process_has(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("pipeline.workers.dask_nodes.visible_gpus", lambda: ["3"])
    results = run_jobs(where_am_i, range(2), DaskEngine(workers=1, **LOCAL))
    assert {threads for _, (_, _, threads) in results} == {"7"}


@pytest.mark.slow
def test_an_existing_cluster_works_too_and_graphs_as_features(
    world, undisturbed, tmp_path, scheduler
):
    address, _ = scheduler
    cache = tmp_path / "cache"
    options = replace(INLINE, workers=1, device="auto")
    run(world, cache, options=options, engine=DaskEngine(scheduler=address))
    assert everything(cache) == everything(undisturbed)
    graphs = build_graphs(cache, ("iou",), engine=DaskEngine(scheduler=address))
    assert [record["shard"] for record in graphs] == [0, 1, 2]


@pytest.mark.slow
def test_workers_started_by_others_find_out_who_shares_their_cores(
    scheduler, start_dask, monkeypatch
):
    from distributed import Client

    address, _ = scheduler
    start_dask("worker", address, "--nworkers", "2", "--nthreads", "1", "--no-dashboard")
    with Client(address) as client:
        client.wait_for_workers(3, timeout=NET)
    found = set()
    with DaskEngine(scheduler=address).open() as run_on:

        def all_have_answered() -> bool:
            found.update(result for _, result in run_on(what_it_has, range(12)))
            return len(found) == 3

        until(all_have_answered)
    assert {sharing for _, sharing, _ in found} == {3}
    assert {threads for _, _, threads in found} == {"1"}  # of which no number of cores follows


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # The third one is of another job, on the same node.
        ({"tcp://n1:1": "a", "tcp://n1:2": "a", "tcp://n1:3": "b"}, 2),
        ({"tcp://n1:1": "a"}, 1),
        ({}, 3),  # they do not say
        (OSError("gone"), 3),
    ],
)
def test_a_worker_shares_with_those_of_its_node_that_use_the_same_cores(
    monkeypatch, answers, expected
):
    def run(function, workers, on_error):
        assert sorted(workers) == ["tcp://n1:1", "tcp://n1:2", "tcp://n1:3"]
        assert function is cores.place
        if isinstance(answers, Exception):
            raise answers
        return answers

    everywhere = {f"tcp://n{node}:{port}": 1 for node in (1, 2) for port in (1, 2, 3)}
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://n1:1"))
    monkeypatch.setattr(
        "distributed.get_client", lambda: SimpleNamespace(nthreads=lambda: everywhere, run=run)
    )
    monkeypatch.setattr(cores, "place", lambda: "a")
    assert _neighbours() == expected


def slow_double(number: int) -> int:
    time.sleep(0.5)
    return 2 * number


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_loss_of_the_scheduler_ends_the_run_with_a_word(scheduler, monkeypatch, sent):
    address, process = scheduler
    # The client does not try to connect again for as long as at the start.
    monkeypatch.setattr("pipeline.workers.engines.CONNECTING", 3600.0)
    results = run_jobs(slow_double, range(100), DaskEngine(scheduler=address))
    next(results)
    begun = time.monotonic()
    process.send_signal(sent)
    with pytest.raises(WorkersLost, match=r"scheduler is gone.*the same command resumes"):
        list(results)
    assert time.monotonic() - begun < 300


@pytest.mark.slow
def test_a_scheduler_that_is_only_slow_is_waited_for(scheduler, monkeypatch):
    """It stands still for longer than a request waits for a connection."""
    address, process = scheduler
    monkeypatch.setattr("pipeline.workers.dask_jobs.CONNECTING", 0.2)
    results = run_jobs(slow_double, range(6), DaskEngine(scheduler=address))
    first = next(results)
    process.send_signal(signal.SIGSTOP)
    threading.Timer(3.0, process.send_signal, (signal.SIGCONT,)).start()
    assert dict([first, *results]) == {k: 2 * k for k in range(6)}


class Answers:
    """Dask's future of a job that is done: what each request for its result brings."""

    def __init__(self, *answers, status: str = "finished", key: str = "job"):
        self.answers, self.status, self.key = list(answers), status, key

    def cancelled(self) -> bool:
        return self.status == "cancelled"

    def result(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def outcomes(connection: Answers, *futures: Answers) -> list:
    """The outcomes of jobs where every request for several results at once fails."""

    def gather(some):
        raise OSError("nobody takes the connection")

    jobs = object.__new__(DaskJobs)
    jobs.client = SimpleNamespace(gather=gather)
    jobs.connection = connection
    return list(jobs._outcomes(list(futures)))


def test_a_failed_request_is_repeated_while_the_connection_stands(monkeypatch):
    monkeypatch.setattr("pipeline.workers.dask_jobs.RETRY", 0.0)
    slow, full = Answers(OSError("timed out"), OSError("closed"), 8), OSError("disk full")
    assert outcomes(Answers(), slow, Answers(full, status="error")) == [8, full]


def test_a_scheduler_whose_connection_is_closed_gets_no_request():
    with pytest.raises(WorkersLost, match=r"scheduler is gone.*the same command resumes"):
        outcomes(Answers(status="cancelled"), Answers())
    with pytest.raises(WorkersLost, match="scheduler is gone"):  # where it closes in this instant
        outcomes(Answers(), Answers(CancelledError()))


@pytest.mark.slow
def test_tls_keeps_out_who_has_no_certificate(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 "
        "-subj /CN=localhost"
    )
    subprocess.run(shlex.split(request), cwd=tmp_path, check=True, capture_output=True)
    tls = TlsFiles(tmp_path / "cert.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
    lines = []
    with DaskEngine(workers=1, tls=tls, say=lines.append, **LOCAL).open() as run_on:
        assert "tls://127.0.0.1" in lines[0]
        assert dict(run_on(double, [4])) == {4: 8}
        address = re.search(r"tls://\S+?(?=;)", lines[0])[0].replace("tls://", "tcp://")
        with pytest.raises(OSError, match=r"(?i)connect|closed"):
            dict(run_jobs(double, [4], DaskEngine(scheduler=address)))


def test_a_scheduler_that_is_not_there_is_named_with_what_to_look_at(monkeypatch):
    monkeypatch.setattr("pipeline.workers.engines.CONNECTING", 0.1)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there
        where = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        expected = rf"expected a running Dask scheduler at {where}, cannot connect"
        with pytest.raises(OSError, match=rf"{expected}.*look whether it runs"):
            dict(run_jobs(double, [4], DaskEngine(scheduler=where)))


TWICE = """
import dask
from pipeline.workers import engines
engines.CONNECTING = 0.1
for _ in range(2):
    try:
        list(engines.run_jobs(abs, [1], engines.DaskEngine(scheduler="tcp://127.0.0.1:1")))
    except OSError as error:
        print(dask.config.get("distributed.worker.daemon"))
"""


def test_an_engine_leaves_dasks_settings_as_they_were_and_can_be_opened_again():
    """In a process of its own, since others here have imported Dask.

    A study opens an engine again for members whose process was lost.
    """
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr


def test_a_missing_certificate_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--tls-ca: expected a PEM file.*nothing\.pem"):
        TlsFiles(*[tmp_path / "nothing.pem"] * 3).security()


def test_files_that_are_no_certificate_or_another_key_are_refused_before_anything_starts(tmp_path):
    (tmp_path / "words.pem").write_text("words\n")
    with pytest.raises(ValueError, match=r"--tls-ca: .*words\.pem: expected a certificate"):
        TlsFiles(*[tmp_path / "words.pem"] * 3).security()
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    for name, password in (("a", "-nodes"), ("b", "-nodes"), ("locked", "-passout pass:secret")):
        files = f"-keyout {name}.key -out {name}.crt"
        request = (
            f"openssl req -x509 -newkey rsa:2048 {files} {password} -days 2 -subj /CN=localhost"
        )
        subprocess.run(shlex.split(request), cwd=tmp_path, check=True, capture_output=True)
    for pair in (("a", "b"), ("locked", "locked")):
        cert, key = tmp_path / f"{pair[0]}.crt", tmp_path / f"{pair[1]}.key"
        expected = r"--tls-cert, --tls-key: expected .*without a password"
        with pytest.raises(ValueError, match=expected):
            TlsFiles(tmp_path / "a.crt", cert, key).security()
    right = TlsFiles(tmp_path / "a.crt", tmp_path / "a.crt", tmp_path / "a.key")
    assert right.security().require_encryption


def test_a_worker_whose_weights_are_others_is_refused(world, undisturbed):
    config, manifest, options = as_extracted(undisturbed, INLINE)
    extractor = pipeline.stages.extract_shards.ExtractShards(
        config, manifest.root, options, redo=False
    )
    extractor.record = {"weights": "another checksum"}
    with pytest.raises(ValueError, match="not those that the run started with"):
        _ = extractor.models


# Slurm.


def test_slurms_options_are_those_of_sbatch():
    assert slurm.parse_options("partition=gpu,gpu2,gres=gpu:a100:1, time=04:00:00") == {
        "partition": "gpu,gpu2",
        "gres": "gpu:a100:1",
        "time": "04:00:00",
    }
    assert slurm.parse_options("") == {}
    for wrong in ("gpu", "Partition=gpu", "time=4h", "partition="):
        with pytest.raises(ValueError, match="--slurm"):
            slurm.parse_options(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:05", 1805),
        ("04:00:00", 14400),
        ("2-3", 183600),
        ("1-00:30", 88200),
        ("1-00:00:09", 86409),
    ],
)
def test_slurms_times_are_read_as_slurm_reads_them(text, seconds):
    assert slurm.seconds(text) == seconds


@pytest.mark.parametrize("walltime", [60, 600, 4 * 3600, 7 * 86400])
def test_workers_end_before_their_job_does(walltime):
    life, varies = slurm.lifetime(walltime)
    assert life > varies
    assert life + varies < walltime


@pytest.mark.parametrize(
    ("shards", "jobs", "tasks"),
    # Without --jobs, a task for every eight shards; with it, as many as may run at a time.
    [(1, 0, 1), (24, 0, 3), (24, 16, 16), (5, 16, 5), (100_000, 16, 1000), (100_000, 0, 1000)],
)
def test_a_job_array_has_tasks_that_do_many_shards_each(shards, jobs, tasks, tmp_path):
    script = slurm.array_script(["x"], shards, {}, jobs, str(tmp_path), "c/logs")
    at_a_time = f"%{jobs}" if jobs else ""
    assert f"#SBATCH --array=0-{tasks - 1}{at_a_time}\n" in script


def test_a_scheduler_that_ends_just_after_it_was_connected_is_named():
    """Its first requests fail, with words about sockets that nobody asked for."""
    from distributed.comm import CommClosedError

    class Client:
        @staticmethod
        def nthreads():
            raise CommClosedError("in <TCP (closed)>: ConnectionResetError: [Errno 104]")

    engine = DaskEngine(scheduler="tcp://10.0.0.1:8786")
    with pytest.raises(WorkersLost, match="the Dask scheduler is gone; finished shards are kept"):
        engine._described(Client)


def test_tasks_without_a_time_limit_leave_the_shards_of_others_alone_too(tmp_path):
    """Without the option, each of a thousand tasks would read what all others have written."""
    script = slurm.array_script(["x"], 24, {"partition": "gpu"}, 0, str(tmp_path), "c/logs")
    assert script.endswith("exec x --stop-after inf\n")


def test_tasks_stop_before_their_time_is_up_and_end_at_once_when_all_is_done(tmp_path):
    """The script is run with a program that notes what it is asked for."""
    program = tmp_path / "note"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    script = slurm.array_script(
        [str(program), "a b"], 2, {"time": "10"}, 2, str(tmp_path), "my cache/logs"
    )
    assert "#SBATCH --time=10\n" in script
    features = tmp_path / "my cache" / "features"
    features.mkdir(parents=True)
    for name in ("00000.json", "00000.h5", "00001.json.host-1-2-00000000.part"):
        (features / name).touch()
    subprocess.run(["bash", "-c", script], check=True)
    # A tenth of the ten minutes is left for what has been begun.
    assert (tmp_path / "asked").read_text() == "a b --stop-after 540\n"
    (features / "00001.json").touch()
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True)
    assert "complete already" in done.stdout
    assert (tmp_path / "asked").read_text().count("\n") == 1


def test_blanks_and_signs_in_paths_and_options_reach_slurm_as_they_are():
    """sbatch takes quotes around a value, and %% for %.

    What ends a line or a quote is refused before.
    """
    script = slurm.array_script(
        ["x"], 1, slurm.parse_options("comment=a # b,time=10"), 1, "/my data", "c%1/logs"
    )
    assert '#SBATCH --output="/my data/c%%1/logs/%A_%a.out"\n' in script
    assert '#SBATCH --comment="a # b"\n' in script
    assert "#SBATCH --time=10\n" in script
    assert slurm.parse_options('constraint="a&b",comment="two words, or more",time="10"') == {
        "constraint": "a&b",
        "comment": "two words,or more",
        "time": "10",
    }
    wrong_quotes = ('comment=a"', 'comment="a"b"', 'comment="', 'comment=""', 'a=b,c"')
    for wrong in (*wrong_quotes, "a=b,c\nd", "comment=a\nb", "comment=a\\"):
        with pytest.raises(ValueError, match="--slurm"):
            slurm.parse_options(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "a\ntouch owned\n",
        "a\n#SBATCH --partition=evil\n",
        "a\rb",
        "a\x1b[2J",
        "a\u2028b",
        "a\udcff",
    ],
)
@pytest.mark.parametrize("place", ["folder", "logs", "command", "options"])
def test_a_name_with_a_line_end_never_reaches_a_script(name, place):
    command, options, folder, logs = ["x"], "time=10", "/data", "logs"
    if place == "command":
        command = ["x", "--set", f"key={name}"]
    elif place == "options":
        options = f"comment={name}"
    elif place == "folder":
        folder = name
    else:
        logs = name
    with pytest.raises(ValueError, match="without line ends"):
        slurm.array_script(command, 1, slurm.parse_options(options), 1, folder, logs)


@pytest.mark.parametrize("sign", ['"', "\\"])
def test_a_folder_of_logs_that_a_directive_cannot_name_is_refused(sign, tmp_path, sbatch):
    expected = "folder of logs without line ends, backslashes and quotes"
    with pytest.raises(ValueError, match=expected):
        slurm.array_script(["x"], 1, {}, 1, "/data", f"a{sign}b")
    with pytest.raises(ValueError, match=expected):
        slurm_workers(tmp_path, [], logs=str(tmp_path / f"a{sign}b"))


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """A folder in PATH with an sbatch that takes jobs until there is a file `full` beside it.

    None of its jobs ever runs.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    refuse = 'echo "sbatch: error: invalid partition specified: nope" >&2; exit 1'
    (folder / "sbatch").write_text(
        f"#!/bin/sh\nif [ -e {folder}/full ]; then echo >> {folder}/refused; {refuse}; fi\n"
        f'cp "$1" {folder}/script; echo >> {folder}/taken; echo "Submitted batch job 7"\n'
    )
    (folder / "scancel").write_text("#!/bin/sh\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def slurm_workers(tmp_path: Path, said: list[str], **changes):
    options = {"security": None, "interface": "lo", "dashboard": "", "logs": str(tmp_path / "logs")}
    options.update(changes)
    return slurm.start_workers({"partition": "nope"}, 2, say=said.append, **options)


def test_a_job_that_sbatch_refuses_ends_the_run_with_its_words(sbatch, tmp_path):
    (sbatch / "full").touch()
    said = []
    expected = r"--slurm: .* it says: sbatch: error: invalid partition specified: nope; correct"
    with pytest.raises(ValueError, match=expected):
        slurm_workers(tmp_path, said)
    assert not said


def test_a_jobs_script_names_the_key_and_has_none_and_starts_a_worker_of_ours(sbatch, tmp_path):
    """Its words are what a shell makes of it.

    The folder's name has a blank, a quote and a dollar sign.
    """
    logs = tmp_path / "it's $HOME"
    logs.mkdir()
    with files_of_this_run(str(logs)) as tls:
        security = tls.security()
        slurm_workers(tmp_path, [], security=security).close()
        key = tls.key.read_text()
    script = (sbatch / "script").read_text()
    assert key.splitlines()[1] not in script
    words = shlex.split(next(line for line in script.splitlines() if "--tls-key" in line))
    assert words[:3] == [sys.executable, str(ROOT / "pipeline/workers/dask_worker.py"), "-m"]
    files = {"--tls-key": tls.key, "--tls-cert": tls.cert, "--tls-ca-file": tls.ca}
    for option, value in files.items():
        assert words[words.index(option) + 1] == str(value)
    assert words[words.index("--worker-class") + 1] == "pipeline.workers.dask_nodes.QuietWorker"
    assert any(word.startswith("tls://") for word in words)


def test_a_further_job_that_sbatch_refuses_is_said_once_and_submitted_again(
    sbatch, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(slurm, "RETRY", 0.05)
    said = []
    cluster = slurm_workers(tmp_path, said)
    try:
        (sbatch / "full").touch()
        cluster.adapt(minimum=2, maximum=2, interval="20ms")
        until(lambda: (sbatch / "refused").exists() and len((sbatch / "refused").read_text()) > 2)
        (sbatch / "full").unlink()
        until(lambda: len((sbatch / "taken").read_text()) == 2)
    finally:
        cluster.close()
    assert len(said) == 1
    assert "invalid partition specified: nope" in said[0]
    assert "Traceback" not in caplog.text


def test_a_cluster_that_does_not_end_in_time_is_not_waited_for_again_at_exit(monkeypatch):
    class Slow:
        shutdown_on_close = True

        def close(self, timeout: float) -> None:
            raise TimeoutError

    monkeypatch.setattr("pipeline.workers.dask_nodes.pinned_cluster", lambda *given: Slow())
    with DaskEngine()._cluster(None) as cluster:
        pass
    assert not cluster.shutdown_on_close


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("--scheduler", ""), "--scheduler: expected an address"),
        (("--dask", "1", "--dashboard", "abc"), "--dashboard: expected HOST:PORT"),
        (("--dask", "1", "--dashboard", ":99999"), "--dashboard: expected HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_starts(asked, reason):
    command = ["extract", "--manifest", "m.csv", "--cache", "c", *asked]
    result = CliRunner().invoke(vidgraph, command)
    assert result.exit_code == 2
    assert reason in result.output


def test_the_dashboard_is_shown_where_it_listens():
    link = "http://192.0.2.2:8787/status"
    on_loopback = DaskEngine(slurm={}, dashboard="127.0.0.1:8787")
    assert "http://127.0.0.1:8787/status (no password" in on_loopback._shown_at(link)
    assert f"{link} (no password" in DaskEngine(slurm={}, dashboard=":8787")._shown_at(link)
    assert DaskEngine(scheduler="tcp://192.0.2.2:8786")._shown_at(link).endswith(link)
    # Without the option there is no dashboard.
    assert DaskEngine(slurm={})._shown_at(link) == DaskEngine()._shown_at("") == ""


def test_what_only_concerns_slurm_is_left_out_of_the_jobs_own_command():
    line = "extract --manifest m.csv --slurm time=10 --jobs=4 --print-sbatch --cache c"
    left = without(line.split(), ("--slurm", "--jobs", "--print-sbatch"))
    assert left == ["extract", "--manifest", "m.csv", "--cache", "c"]
