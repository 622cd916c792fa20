"""The worker pool: order, bounds, time limits, and every way in which a worker can end."""

import ctypes
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing import current_process
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.workers.decode_pool import MOST_STARTS, WorkerDied, WorkerPool
from pipeline.workers.pool_process import PoolProcess, Ticket
from pipeline.workers.pool_worker import RemoteTraceback

ROOT = Path(__file__).parents[3]
# Seconds: no working machine takes so long, so a test that would wait for ever fails.
NET = 300.0


def double_after(task: tuple[int, float]) -> int:
    number, seconds = task
    time.sleep(seconds)
    return 2 * number


def misbehave(task: str | int):
    """Does what the task says; a number comes back doubled."""
    if task == "hang":
        time.sleep(600)
    if task == "hang, holding the interpreter":
        ctypes.PyDLL(None).sleep(600)
    if task == "exit":
        os._exit(7)
    if task == "segfault":
        ctypes.string_at(0)
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "raise":
        raise KeyError("this clip")
    if task == "raise what cannot be sent":
        raise Unsendable("a", "b")
    if task == "return what cannot be sent":
        return lambda: None
    if task in ("half an answer", "half an answer, then nothing"):
        after = (lambda: os._exit(9)) if task == "half an answer" else (lambda: time.sleep(600))
        write = os.write
        os.write = lambda file, data: (write(file, data[:1000]), after())
        return np.zeros(1 << 20, np.uint8)
    if task == "no memory for an answer":
        return NoMemory()
    if task == "no memory in the middle of an answer":
        write = os.write
        os.write = lambda file, data: (write(file, data[:1000]), no_memory())
        return np.zeros(1 << 20, np.uint8)
    return 2 * task


def no_memory(*_asked):
    raise MemoryError("Unable to allocate")


class NoMemory:
    """An answer that there is no memory to send."""

    __reduce_ex__ = no_memory


class Unsendable(Exception):
    """Pickles, but does not unpickle: it keeps one of its two arguments."""

    def __init__(self, first: str, second: str):
        super().__init__(first)


def process_id(_task) -> int:
    return os.getpid()


def array_of(count: int) -> dict[str, np.ndarray]:
    return {
        "bytes": np.arange(count, dtype=np.uint8),
        "transposed": np.arange(12.0).reshape(3, 4).T,
        "none": np.zeros((0, 3)),
    }


def modules_with(names: tuple[str, ...]) -> set[str]:
    for name in names:
        __import__(name)
    return {name.split(".")[0] for name in sys.modules}


class LoadsBadly:
    """A function that does something else when a worker loads it."""

    def __init__(self, instead, *arguments):
        self.instead = instead, arguments

    def __reduce__(self):
        return self.instead

    def __call__(self, task):
        return task


def starts_after(folder: Path, deaths: int, goes_on) -> object:
    """Loading it kills the process, `deaths` times in all; then it is `goes_on`. Every start leaves
    a file in `folder`.
    """
    (folder / str(os.getpid())).touch()
    if len(os.listdir(folder)) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return goes_on


def gone(pid: int) -> bool:
    """Waits for the process to end (a zombie has ended); False if it does not."""
    end = time.monotonic() + NET
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def pool():
    """One worker that misbehaves on demand, shared because starting a process costs half a
    second.
    """
    with WorkerPool(misbehave, workers=1, timeout=NET) as pool:
        yield pool


def test_results_come_in_submission_order_whatever_the_order_of_completion():
    tasks = [(0, 0.4), (1, 0.0), (2, 0.0), (3, 0.2), (4, 0.0)]
    with WorkerPool(double_after, workers=2, timeout=NET) as pool:
        assert list(pool.imap(tasks, ahead=4)) == [(task, 2 * task[0]) for task in tasks]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_do_not_depend_on_the_number_of_workers(workers):
    with WorkerPool(misbehave, workers=workers, timeout=NET) as pool:
        answers = dict(pool.imap([3, "raise", 4], ahead=2))
    assert answers[3] == 6
    assert answers[4] == 8
    assert isinstance(answers["raise"], KeyError)
    assert answers["raise"].args == ("this clip",)


def test_tasks_are_taken_lazily_and_at_most_ahead_of_what_was_yielded():
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield (number, 0.0)
            number += 1

    with WorkerPool(double_after, workers=2, timeout=NET) as pool:
        for yielded, (task, _result) in enumerate(pool.imap(endless(), ahead=3)):
            assert task[0] == yielded
            assert len(taken) <= yielded + 3
            if yielded == 20:
                break


def test_a_task_over_its_time_limit_fails_alone(monkeypatch):
    """The others have all the time that they need: the test is not about how long they take."""
    tasks = [1, "hang", 2, "hang, holding the interpreter", 3, "half an answer, then nothing"]
    give = PoolProcess.give

    def give_time(worker, ticket, limit, *more):
        give(worker, ticket, NET if ticket.task in (1, 2, 3) else limit, *more)

    monkeypatch.setattr(PoolProcess, "give", give_time)
    with WorkerPool(misbehave, workers=2, timeout=1.0) as pool:
        answers = [answer for _task, answer in pool.imap(tasks, ahead=6)]
    assert answers[::2] == [2, 4, 6]
    for answer in answers[1::2]:
        assert isinstance(answer, TimeoutError)
        assert "1 s" in str(answer)


def test_the_clock_of_a_task_starts_when_its_worker_does(monkeypatch):
    """Five tasks are submitted at once, and by the clock of this test each takes 60 s.

    The last one waits 240 s before it starts, which is over the limit.
    """
    now, finish = [0.0], Ticket.finish

    def finish_later(ticket, result):
        now[0] += 60
        finish(ticket, result)

    monkeypatch.setattr(Ticket, "finish", finish_later)
    monkeypatch.setattr(
        "pipeline.workers.decode_pool.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    tasks = [(k, 0.0) for k in range(5)]
    with WorkerPool(double_after, workers=1, timeout=100.0) as pool:
        assert [answer for _task, answer in pool.imap(tasks, ahead=5)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("exit", "exit status 7"),
        ("segfault", "SIGSEGV"),
        ("killed", "SIGKILL"),
        ("half an answer", "exit status 9"),
    ],
)
def test_a_worker_that_dies_fails_only_its_task_and_is_replaced(pool, task, words):
    answers = [answer for _task, answer in pool.imap([1, task, 2], ahead=3)]
    assert [answers[0], answers[2]] == [2, 4]
    assert isinstance(answers[1], WorkerDied)
    assert words in str(answers[1])


def test_memory_that_runs_out_while_a_worker_answers_costs_its_task_alone(pool, capfd):
    tasks = [1, "no memory for an answer", 2, "no memory in the middle of an answer", 3]
    answers = [answer for _task, answer in pool.imap(tasks, ahead=5)]
    assert answers[::2] == [2, 4, 6]
    assert isinstance(answers[1], MemoryError)
    assert isinstance(answers[3], WorkerDied)
    assert "the machine may be out of memory" in str(answers[3])
    assert capfd.readouterr().err == ""


def test_a_worker_that_dies_between_tasks_costs_no_task():
    with WorkerPool(process_id, workers=1, timeout=NET) as pool:
        ((_task, pid),) = pool.imap([0], ahead=1)
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + NET
        # A zombie's other threads may hold its pipe open: wait until the pool has reaped it.
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        ((_task, other),) = pool.imap([0], ahead=1)
    assert isinstance(other, int)
    assert other != pid


class DiesOnce:
    """Kills its worker at its first call, and works from then on."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __call__(self, task):
        if not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task


def test_a_task_whose_worker_died_by_chance_is_given_to_another_one(tmp_path):
    with WorkerPool(DiesOnce(tmp_path / "died"), workers=1, timeout=NET, again=1) as pool:
        assert list(pool.imap([5], ahead=1)) == [(5, 5)]


def test_a_task_that_kills_every_worker_fails_in_the_end():
    with WorkerPool(misbehave, workers=1, timeout=NET, again=1) as pool:
        answers = [answer for _task, answer in pool.imap(["killed", 2], ahead=2)]
    assert isinstance(answers[0], WorkerDied)
    assert answers[1] == 4


def test_a_task_that_no_worker_had_begun_is_not_lost(monkeypatch):
    """The worker dies in the instant in which it is handed the task."""
    give, killed = PoolProcess.give, []

    def give_to_the_dying(worker, *what):
        if not killed:
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGSTOP)
            give(worker, *what)
            os.kill(worker.process.pid, signal.SIGKILL)
        else:
            give(worker, *what)

    monkeypatch.setattr(PoolProcess, "give", give_to_the_dying)
    with WorkerPool(process_id, workers=1, timeout=NET) as pool:
        ((_task, answer),) = pool.imap([0], ahead=1)
    assert isinstance(answer, int)
    assert answer not in killed


def test_a_worker_that_is_killed_while_it_starts_is_started_again(tmp_path):
    """Both workers are; the last one as often as may be."""
    unlucky = LoadsBadly(starts_after, tmp_path, 2 * MOST_STARTS, misbehave)
    with WorkerPool(unlucky, workers=2, timeout=NET) as pool:
        assert list(pool.imap([1, 2, 3], ahead=3)) == [(1, 2), (2, 4), (3, 6)]


def test_workers_that_are_always_killed_while_they_start_end_the_run_after_so_many(tmp_path):
    never = LoadsBadly(starts_after, tmp_path, 1000, misbehave)
    words = f"{MOST_STARTS + 1} workers in a row .*SIGKILL"
    with (
        WorkerPool(never, workers=1, timeout=NET) as pool,
        pytest.raises(RuntimeError, match=words),
    ):
        list(pool.imap([1], ahead=1))
    assert len(os.listdir(tmp_path)) == MOST_STARTS + 1


def test_a_worker_that_comes_up_makes_up_for_those_that_were_killed_before(tmp_path):
    """Kills at the start do not add up over the days that a run takes."""
    unlucky = LoadsBadly(starts_after, tmp_path, MOST_STARTS, misbehave)
    with WorkerPool(unlucky, workers=1, timeout=NET, again=1) as pool:
        assert list(pool.imap([1], ahead=1)) == [(1, 2)]
        for start in tmp_path.iterdir():
            start.unlink()
        assert isinstance(next(pool.imap(["killed"], ahead=1))[1], WorkerDied)


def test_workers_that_hang_while_they_start_end_the_run_after_so_many():
    never = LoadsBadly(time.sleep, 600)
    words = rf"{MOST_STARTS + 1} workers in a row .*took longer than 0\.2 s"
    with (
        WorkerPool(never, workers=1, start_limit=0.2) as pool,
        pytest.raises(RuntimeError, match=words),
    ):
        list(pool.imap([1], ahead=1))


def loads_where(there: Path, goes_on) -> object:
    """Loading it hangs unless the file is there; then it is `goes_on`."""
    if not there.exists():
        time.sleep(600)
    return goes_on


def test_a_worker_that_hangs_while_it_starts_is_replaced(tmp_path, monkeypatch):
    """The first one has a short limit and nothing to load; the second one has all the time."""
    begin, limits = PoolProcess.__init__, [0.2, 600.0]

    def begin_worker(worker, function, limit, *more):
        assert limit == 7.0
        if len(limits) == 1:
            (tmp_path / "there").touch()
        begin(worker, function, limits.pop(0), *more)

    monkeypatch.setattr(PoolProcess, "__init__", begin_worker)
    slow = LoadsBadly(loads_where, tmp_path / "there", misbehave)
    with WorkerPool(slow, workers=1, start_limit=7.0) as pool:
        assert list(pool.imap([1, 2], ahead=2)) == [(1, 2), (2, 4)]


def test_a_worker_that_has_started_may_wait_for_ever():
    with WorkerPool(double_after, workers=1) as pool:
        end = time.monotonic() + NET
        while not any(worker.ready for worker in pool._feeder._workers):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert pool._feeder._workers[0].deadline == float("inf")


def pool_of_a_daemon(_task) -> list:
    with WorkerPool(double_after, workers=1, timeout=NET) as pool:
        answers = [answer for _task, answer in pool.imap([(3, 0.0)], ahead=1)]
    return [*answers, current_process().daemon]


def test_a_worker_that_may_have_no_children_has_a_pool_all_the_same():
    """As within a Dask worker, which multiprocessing takes for a daemon."""
    with WorkerPool(pool_of_a_daemon, workers=1, timeout=NET) as pool:
        ((_task, answer),) = pool.imap([0], ahead=1)
    assert answer == [6, True]


def test_workers_leave_sigterm_to_their_parent():
    with WorkerPool(process_id, workers=1, timeout=NET) as pool:
        ((_task, pid),) = pool.imap([0], ahead=1)
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)
        assert list(pool.imap([0], ahead=1)) == [(0, pid)]


def test_exceptions_come_back_with_the_place_in_the_worker(pool):
    ((_task, error),) = pool.imap(["raise"], ahead=1)
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in misbehave" in str(error.__cause__)


def test_what_cannot_be_pickled_comes_back_as_an_exception_with_its_words(pool):
    tasks = ["raise what cannot be sent", "return what cannot be sent", 5]
    raised, returned, fine = (answer for _task, answer in pool.imap(tasks, ahead=1))
    assert str(raised) == "Unsendable: a"
    assert isinstance(returned, Exception)
    assert "lambda" in str(returned)
    assert fine == 10


def test_a_task_that_cannot_be_sent_is_the_callers_error(pool):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        list(pool.imap([lambda: None], ahead=1))


def test_arrays_come_back_whole_and_writable():
    with WorkerPool(array_of, workers=1, timeout=NET) as pool:
        ((_task, answer),) = pool.imap([3_000_001], ahead=1)
    expected = array_of(3_000_001)
    for name, array in expected.items():
        np.testing.assert_array_equal(answer[name], array)
    answer["bytes"][0] = 1


def test_a_caller_that_stops_early_can_go_on_with_other_tasks():
    with WorkerPool(double_after, workers=2, timeout=NET) as pool:
        for _task, _answer in pool.imap([(k, 0.05) for k in range(8)], ahead=8):
            break
        assert [answer for _task, answer in pool.imap([(20, 0.0), (21, 0.0)], ahead=2)] == [40, 42]


def test_closing_ends_busy_workers_at_once():
    pool = WorkerPool(misbehave, workers=2, timeout=None)
    answers = pool.imap([1, 2, "hang", "hang"], ahead=4)
    next(answers)
    pids = [worker.process.pid for worker in pool._feeder._workers]
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        list(answers)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (LoadsBadly(__import__, "no_such_module"), "no_such_module"),
        (LoadsBadly(os._exit, 3), "while it started.*exit status 3"),
    ],
)
def test_a_function_that_does_not_load_is_an_error_and_not_an_endless_restart(function, words):
    with (
        WorkerPool(function, workers=2, timeout=NET) as pool,
        pytest.raises(RuntimeError, match=words),
    ):
        list(pool.imap([1, 2, 3], ahead=3))


def test_decode_workers_import_neither_torch_nor_another_heavy_library():
    decoders = ("av", "decord") if importlib.util.find_spec("decord") else ("av",)
    ours = ("pipeline.workers.decode_pool", "pipeline.video.decode", "pipeline.views.sampling")
    with WorkerPool(modules_with, workers=1, timeout=NET) as pool:
        ((_task, modules),) = pool.imap([(*ours, *decoders)], ahead=1)
    assert isinstance(modules, set), modules
    assert not modules & {"torch", "torchvision", "h5py", "sklearn", "scipy", "pydantic", "rich"}


PARENT = """
import signal, time
from pipeline.workers.decode_pool import WorkerPool
from tests.pipeline.workers.test_decode_pool import misbehave
if __name__ == "__main__":
    # A shell lets what it starts in the background ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with WorkerPool(misbehave, workers=3, timeout=None) as pool:
        answers = pool.imap([1, "hang", "hang, holding the interpreter"], ahead=3)
        next(answers)
        while sum(w.ready for w in pool._feeder._workers) < 3:
            time.sleep(0.01)
        try:
            print(*[w.process.pid for w in pool._feeder._workers], flush=True)
            next(answers)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def start_a_program(task: tuple[Path, str]) -> None:
    """Start a program that would outlive this process, then do what the task says."""
    path, then = task
    path.write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    if then != "return":
        misbehave(then)


@pytest.mark.parametrize(
    "then", ["return", "hang", "hang, holding the interpreter", "exit", "killed"]
)
def test_a_worker_ends_with_the_programs_that_it_started(tmp_path, then):
    """Where the pool is closed, a task takes too long, and the worker dies by itself."""
    path = tmp_path / "pid"
    with WorkerPool(start_a_program, workers=1, timeout=None if then == "return" else 2.0) as pool:
        list(pool.imap([(path, then)], ahead=1))
        if then == "return":
            os.kill(int(path.read_text()), 0)  # it may live as long as the worker does
    assert gone(int(path.read_text()))


PARENT_OF_A_PARENT = """
import sys, time
from pathlib import Path
from pipeline.workers.decode_pool import WorkerPool
from tests.pipeline.workers.test_decode_pool import start_a_program
if __name__ == "__main__":
    path = Path(sys.argv[1])
    with WorkerPool(start_a_program, workers=1) as pool:
        answers = pool.imap([(path, "hang, holding the interpreter")], ahead=1)
        next(answers)
"""


def test_what_a_worker_started_ends_when_the_parent_is_killed_and_lets_go_of_its_output(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT_OF_A_PARENT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    path = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", path], env=env, stdout=subprocess.PIPE
    )
    end = time.monotonic() + NET
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    parent.kill()
    parent.communicate(timeout=NET)  # until nobody has the pipe any more
    assert gone(int(path.read_text()))


FORGETFUL = """
from pipeline.workers.decode_pool import WorkerPool
from tests.pipeline.workers.test_decode_pool import process_id
if __name__ == "__main__":
    pool = WorkerPool(process_id, workers=1)
    for _task, pid in pool.imap([1], ahead=1):
        print(pid)
"""


def test_a_program_that_forgets_to_close_its_pool_ends_all_the_same(tmp_path):
    """Python waits for its children at the end, and these ignore SIGTERM.

    A Dask worker ends like that.
    """
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = subprocess.run(
        [sys.executable, tmp_path / "forgetful.py"],
        env=env,
        capture_output=True,
        text=True,
        timeout=NET,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path, sent):
    """The workers are idle, asleep, and blocked in native code that holds the interpreter.

    Ctrl-C reaches the whole group, as in a terminal.
    """
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3, parent.stderr.read()
    if sent == signal.SIGINT:
        os.killpg(parent.pid, sent)
    else:
        parent.send_signal(sent)
    assert all(gone(pid) for pid in pids)
    out, err = parent.communicate(timeout=NET)
    if sent == signal.SIGINT:
        assert "interrupted" in out
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("workers", "timeout", "start"), [(-1, 1.0, 1.0), (1, 0.0, 1.0), (1, -2.0, 1.0), (1, 1.0, 0.0)]
)
def test_bad_numbers_are_refused(workers, timeout, start):
    with pytest.raises(ValueError, match="expected"):
        WorkerPool(misbehave, workers=workers, timeout=timeout, start_limit=start)
