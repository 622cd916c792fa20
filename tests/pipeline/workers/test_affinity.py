"""Which task an idle worker takes."""

from dataclasses import dataclass

import pytest

from pipeline.workers.affinity import choose_task
from pipeline.workers.decode_pool import WorkerPool


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
