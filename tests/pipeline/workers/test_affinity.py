"""Which task an idle worker takes."""

import time
from dataclasses import dataclass

import pytest

from pipeline.workers import decode_pool
from pipeline.workers.affinity import choose_task
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.pool_process import Ticket


@pytest.mark.parametrize(
    ("queue", "own", "others", "expected"),
    [
        (["", "", ""], "", {""}, 0),  # no kin: in their order
        (["a", "b"], "b", set(), 0),  # the first one comes first
        (["a", "a", "b"], "b", {"a"}, 2),  # another worker goes on with a
        (["a", "a", "b", "c"], "", {"a", "b"}, 3),
        (["a", "a", ""], "", {"a"}, 2),
        (["a", "a", "a"], "", {"a"}, 2),  # nothing else is left: from its end
        (["a", "b", "a"], "b", {"a", "b"}, 1),
    ],
)
def test_an_idle_worker_takes(queue, own, others, expected):
    assert choose_task(queue, own, others) == expected


@dataclass(frozen=True)
class Task:
    number: int
    kin: str


def answer_of_a_mebibyte(task: Task):
    import numpy

    return numpy.zeros(1 << 20, numpy.uint8)


def test_answers_that_do_not_fit_the_memory_never_block_tasks_of_several_kinds():
    # Every answer is kept, so that the shared memory is full after one of them.
    tasks = [Task(k, "ab"[k % 2]) for k in range(12)]
    with WorkerPool(answer_of_a_mebibyte, workers=2, shared_bytes=1 << 20) as pool:
        answers = list(pool.imap(tasks, ahead=8))
    assert [task for task, _ in answers] == tasks
    assert all(answer.nbytes == 1 << 20 for _, answer in answers)


def number_of(task: Task) -> int:
    return task.number


def test_tasks_may_come_while_a_worker_chooses_one(monkeypatch):
    class SlowTicket(Ticket):
        """Whoever looks at its kin lets other threads run."""

        @property
        def kin(self):
            time.sleep(1e-3)
            return self._kin

        @kin.setter
        def kin(self, kin):
            self._kin = kin

    monkeypatch.setattr(decode_pool, "Ticket", SlowTicket)

    def tasks():
        for k in range(60):
            time.sleep(3e-3)
            yield Task(k, "abc"[k % 3])

    with WorkerPool(number_of, workers=2) as pool:
        list(pool.imap([Task(0, ""), Task(1, "")], ahead=2))  # the workers have started
        answers = [answer for _, answer in pool.imap(tasks(), ahead=30)]
    assert answers == list(range(60))
