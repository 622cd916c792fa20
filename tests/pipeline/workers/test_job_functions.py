"""What a Dask worker keeps of a run: its job function, until another one comes."""

import pickle
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest

from pipeline.workers import dask_jobs
from pipeline.workers.dask_jobs import _run_job

NET = 300.0  # seconds: no working machine takes so long


class Held:
    """A job function that holds something; `closed` has the names of those that let go of it."""

    threads = 2
    closed: ClassVar[list[str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def __init__(self, name: str):
        self.name = name

    def __call__(self, job: str) -> str:
        if job == "wait":
            self.begun.set()
            assert self.go_on.wait(NET)
        return f"{self.name} {job}"

    def close(self) -> None:
        self.closed.append(self.name)


@pytest.fixture
def work(monkeypatch):
    """Have a pretended worker do a job of a run: work(run, job)."""
    monkeypatch.setattr("distributed.get_worker", SimpleNamespace)
    monkeypatch.setattr(dask_jobs, "_FUNCTIONS", {})
    monkeypatch.setattr(dask_jobs, "_WORKER", [])
    for event in (Held.begun, Held.go_on):
        event.clear()
    Held.closed.clear()

    def run(name: str, job: str) -> str:
        return _run_job(name, pickle.dumps(Held(name)), 1, False, pickle.dumps(job))

    return run


def test_a_worker_lets_go_of_what_a_run_held_when_the_next_one_comes(work):
    assert [work("first", "a"), work("first", "b")] == ["first a", "first b"]
    assert Held.closed == []
    assert work("second", "c") == "second c"
    assert Held.closed == ["first"]


def test_not_before_the_last_job_of_the_run_is_done(work):
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(work("first", "wait")))
    waiting.start()
    assert Held.begun.wait(NET)
    assert work("second", "c") == "second c"
    assert Held.closed == []
    Held.go_on.set()
    waiting.join()
    assert (answers, Held.closed) == (["first wait"], ["first"])
    assert work("second", "d") == "second d"
    assert Held.closed == ["first"]
