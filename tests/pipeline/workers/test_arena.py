"""Shared memory for the answers of workers: nothing is overwritten, lost, leaked or waited for in
vain.
"""

import os
import pickle
import random
import signal
import time
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from pipeline.workers.arena import PAGE, Arena, Bell, Block, StartMarks, spread
from pipeline.workers.decode_pool import WorkerDied, WorkerPool, _Feeder
from pipeline.workers.pool_worker import GRANT, NO_BLOCK, receive, serve

# Seconds: no working machine takes so long, so a test that would wait for ever fails.
NET = 300.0
MIB = 1 << 20


def noise(task: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays of so many bytes that depend on the number alone."""
    number, size = task
    rng = np.random.default_rng(number)
    return {
        "pixels": rng.integers(0, 255, size, np.uint8),
        "odd": rng.integers(0, 255, (3, 5), np.uint8),
        "empty": np.zeros((0, 4), np.float32),
        "number": number,
    }


def noise_or_death(task: tuple[str, int]) -> np.ndarray:
    """Bytes, unless the task says that the worker dies when it has got its block."""
    how, size = task
    if how == "dies":
        from multiprocessing.connection import Connection

        receive = Connection.recv_bytes

        def receive_and_die(pipe, *more):
            receive(pipe, *more)
            os.kill(os.getpid(), signal.SIGKILL)

        Connection.recv_bytes = receive_and_die
    return np.full(size, 7, np.uint8)


class RefusesHere:
    """An array that only the process that made it can read."""

    def __init__(self, size: int):
        self.array, self.home = np.zeros(size, np.uint8), os.getpid()

    def __setstate__(self, state: dict) -> None:
        if state["home"] != os.getpid():
            raise OSError("not at home")
        vars(self).update(state)


def same(answer: dict, task: tuple[int, int]) -> bool:
    expected = noise(task)
    return all(np.array_equal(answer[key], value) for key, value in expected.items())


def in_arena(pool: WorkerPool, array: np.ndarray) -> bool:
    start = array.ctypes.data - pool.arena.address
    return 0 <= start < pool.arena.size


def test_arrays_are_aligned_and_do_not_overlap():
    starts, total = spread([1, 64, 65, 0, 10])
    assert starts == [0, 64, 128, 256, 256]
    assert total == 320


def test_blocks_do_not_overlap_and_come_back():
    arena, rng, taken = Arena(64 * PAGE), random.Random(0), []
    for _ in range(2000):
        if taken and rng.random() < 0.5:
            arena.give_back(taken.pop(rng.randrange(len(taken))))
            continue
        block = arena.take(rng.randrange(1, 9 * PAGE))
        if block is not None:
            taken.append(block)
        spans = sorted(taken)
        for one, other in pairwise(spans):
            assert one.start + one.size <= other.start
        assert arena.free_bytes == arena.size - sum(block.size for block in taken)
    for block in taken:
        arena.give_back(block)
    assert arena.take(arena.size) == Block(0, arena.size)


def test_a_block_is_free_when_the_last_array_in_it_is_gone():
    freed = []
    arena = Arena(4 * PAGE, freed=lambda: freed.append(True))
    first, second = arena.arrays(arena.take(4 * PAGE), [3 * PAGE, 20])
    view = np.frombuffer(second, np.uint8)[5:]
    del first, second
    assert not freed
    assert arena.take(1) is None
    del view
    assert freed
    assert arena.take(1) is not None


def test_what_an_answer_leaves_of_its_block_is_free_at_once():
    arena = Arena(4 * PAGE)
    arrays = arena.arrays(arena.take(4 * PAGE), [10, PAGE])
    assert arena.free_bytes == 2 * PAGE
    del arrays
    assert arena.take(4 * PAGE) == Block(0, 4 * PAGE)


def test_pages_that_nobody_wrote_take_no_memory():
    arena = Arena(1 << 40)
    blocks = os.fstat(arena.file.number).st_blocks
    assert (arena.file.size, blocks) == (1 << 40, 0)


def test_a_bell_may_be_rung_any_number_of_times():
    bell = Bell()
    for _ in range(100_000):
        bell.ring()
    bell.heard()
    bell.heard()


def test_answers_that_are_alike_take_one_message_each(monkeypatch):
    """The pool's thread shares Python's lock with the caller, so it must not wake for nothing."""
    received, receive = [], _Feeder._receive

    def count(feeder, worker):
        if worker.ready:
            received.append(worker)
        receive(feeder, worker)

    monkeypatch.setattr(_Feeder, "_receive", count)
    tasks = [(k, MIB) for k in range(12)]
    with WorkerPool(noise, 1, timeout=NET, shared_bytes=64 * MIB) as pool:
        for task, answer in pool.imap(tasks, ahead=4):
            assert same(answer, task)
    # The first one asks for memory, since nobody knows how large it is.
    assert len(received) == len(tasks) + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_of_any_size_after_any_other_are_whole_and_leave_no_memory_taken(workers):
    rng = random.Random(5)
    sizes = [rng.choice([0, 100, 70_000, MIB, 3 * MIB]) for _ in range(40)]
    tasks = list(enumerate(sizes))
    tasks[7:7] = [(7, -1)]  # fails, where memory was given for its answer
    with WorkerPool(noise, workers, timeout=NET, shared_bytes=16 * MIB) as pool:
        for task, answer in pool.imap(tasks, ahead=8):
            if task[1] < 0:
                assert isinstance(answer, ValueError)
            else:
                assert same(answer, task)
        del answer
        assert pool.arena.free_bytes == pool.arena.size


@pytest.mark.parametrize("workers", [1, 3])
def test_large_answers_come_through_shared_memory_and_small_ones_through_the_pipe(workers):
    tasks = [(k, size) for k, size in enumerate([100, MIB, 70_000, 3 * MIB, 10, 2 * MIB])]
    with WorkerPool(noise, workers, timeout=NET, shared_bytes=32 * MIB) as pool:
        answers = [answer for _, answer in pool.imap(tasks, ahead=6)]
        for task, answer in zip(tasks, answers, strict=True):
            assert same(answer, task)
            assert in_arena(pool, answer["pixels"]) == (task[1] > 65_536)
            answer["pixels"][:1] = 0  # writable
    # The memory outlives the pool as long as its arrays do.
    assert same(answers[3], tasks[3]) or answers[3]["pixels"][0] == 0


def test_many_answers_through_a_small_memory_are_whole():
    tasks = [(k, random.Random(k).randrange(65_536, MIB)) for k in range(60)]
    with WorkerPool(noise, 3, timeout=NET, shared_bytes=2 * MIB) as pool:
        kept = []
        for task, answer in pool.imap(tasks, ahead=12):
            kept = [*kept[-2:], (task, answer)]
            assert all(same(earlier, of) for of, earlier in kept)


def test_an_answer_that_is_larger_than_the_memory_comes_through_the_pipe():
    tasks = [(0, 4 * MIB), (1, MIB // 2), (2, 4 * MIB)]
    with WorkerPool(noise, 2, timeout=NET, shared_bytes=MIB) as pool:
        answers = [answer for _, answer in pool.imap(tasks, ahead=3)]
        assert [in_arena(pool, answer["pixels"]) for answer in answers] == [False, True, False]
        assert all(map(same, answers, tasks))


def test_a_caller_that_keeps_every_answer_gets_all_of_them():
    """The memory fills, and the worker with the oldest task never waits for it."""
    tasks = [(k, MIB) for k in range(12)]
    with WorkerPool(noise, 3, timeout=NET, shared_bytes=3 * MIB) as pool:
        answers = [answer for _, answer in pool.imap(tasks, ahead=12)]
        assert all(map(same, answers, tasks))


def test_the_memory_bounds_what_is_computed_ahead():
    tasks = [(k, MIB) for k in range(8)]
    with WorkerPool(noise, 2, timeout=NET, shared_bytes=3 * (MIB + PAGE)) as pool:
        results = pool.imap(tasks, ahead=8)
        first = next(results)
        deadline = time.monotonic() + NET
        while pool.arena.free_bytes > PAGE * 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        # Three answers fill it; the caller holds one of them.
        assert pool.arena.free_bytes < MIB
        assert same(first[1], tasks[0])
        del first
        assert all(same(answer, task) for task, answer in results)


def test_a_worker_that_waits_for_memory_has_not_run_out_of_time():
    tasks = [(k, MIB) for k in range(4)]
    with WorkerPool(noise, 2, timeout=1.0, shared_bytes=2 * (MIB + PAGE)) as pool:
        results = pool.imap(tasks, ahead=4)
        held = [next(results), next(results)]
        time.sleep(2.0)
        held += results
        assert all(same(answer, task) for task, answer in held)


def test_a_worker_that_dies_with_a_block_gives_it_back():
    with WorkerPool(noise_or_death, 1, timeout=NET, shared_bytes=2 * MIB) as pool:
        (_, died), (_, whole) = pool.imap([("dies", MIB), ("lives", MIB)], ahead=2)
        assert isinstance(died, WorkerDied)
        assert whole.tolist() == [7] * MIB
        del whole
        assert pool.arena.free_bytes == pool.arena.size


def test_an_answer_that_cannot_be_unpickled_ends_the_pool_and_is_no_dead_worker():
    """Its memory is given back once: twice would give one block to two workers."""
    with WorkerPool(RefusesHere, 1, timeout=NET, again=5, shared_bytes=2 * MIB) as pool:
        with pytest.raises(RuntimeError, match=r"cannot be unpickled \(OSError\('not at home'\)\)"):
            next(pool.imap([MIB], ahead=1))
        assert pool.arena.free_bytes == pool.arena.size


def test_a_worker_that_waits_for_memory_of_a_parent_that_is_gone_ends_without_a_word(capfd):
    context, marks, memory = get_context("spawn"), StartMarks(1), Arena(PAGE)
    ours, its = context.Pipe()
    worker = context.Process(
        target=serve,
        args=(its, pickle.dumps(noise), os.getpid(), (marks.file, 0), memory.file),
    )
    worker.start()
    its.close()
    assert receive(ours, lambda: None)[0] is None
    ours.send_bytes(GRANT.pack(NO_BLOCK, 0) + pickle.dumps((0, MIB)))
    assert receive(ours, lambda: None)[0].bytes > MIB
    ours.close()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert capfd.readouterr().err == ""


def test_a_disk_that_is_full_at_the_last_byte_is_an_error_here_and_not_a_signal_later(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, at: write(number, data[:-1], at))
    with pytest.raises(OSError, match="No space left"):
        Arena(MIB)


def test_nothing_of_it_has_a_name():
    before = set(os.listdir("/dev/shm"))
    with WorkerPool(noise, 1, timeout=NET, shared_bytes=2 * MIB) as pool:
        list(pool.imap([(0, MIB)], ahead=1))
        assert set(os.listdir("/dev/shm")) <= before
        if hasattr(os, "memfd_create"):
            assert (
                Path(f"/proc/self/fd/{pool.arena.file.number}")
                .readlink()
                .name.startswith("memfd:vidgraph")
            )


def forbidden(*_asked):
    raise PermissionError("not here")


@pytest.mark.parametrize("system", ["macOS", "a container that forbids it"])
def test_without_anonymous_memory_a_file_without_a_name_does(monkeypatch, tmp_path, system):
    if system == "macOS":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    else:
        monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with WorkerPool(noise, 1, timeout=NET, shared_bytes=2 * MIB) as pool:
        ((task, answer),) = pool.imap([(0, MIB)], ahead=1)
        assert same(answer, task)
        assert in_arena(pool, answer["pixels"])
        assert list(tmp_path.iterdir()) == []
