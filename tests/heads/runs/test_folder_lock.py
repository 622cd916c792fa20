"""The lock on a run folder: a second process is refused, a dead owner's lock is taken over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from heads.config.member import Member
from heads.evaluation import evaluate as evaluation
from heads.reproduction import reproduce
from heads.reproduction.tables import TABLES
from heads.runs import folder_lock as held
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, FolderLock, hold_folder, lock_folders
from heads.runs.run_writer import RunWriter
from heads.training.learner import Learner
from heads.training.study import Failure, Result
from heads.training.train import run_members, train
from pipeline.files.owners import new_claim_name, part_path
from pipeline.workers import claims
from tests.heads.finetuning.test_finetune import recipe as frames_recipe
from tests.heads.finetuning.test_finetune import run as run_frames
from tests.heads.training.test_train import recipe
from tests.heads.training.test_train_cli import RECIPE, vidgraph
from tests.support.tiny_cache import Tiny

ROOT = Path(__file__).parents[3]
OWNER = """
import sys, time
from pathlib import Path
from heads.runs.folder_lock import lock_folders
lock_folders([Path(sys.argv[1])], print)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Tiny().write(tmp_path_factory.mktemp("held"))


@pytest.fixture
def owner(tmp_path):
    """Another process that works in the folder run."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path / "run"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def quiet(line):
    pass


def elsewhere(folder: Path, count: int = 0) -> None:
    """A claim by a process of another machine, or its sign of life number `count`."""
    folder.mkdir(exist_ok=True)
    who = {"claim": "other-1-1-00000000", "machine": "another", "pid": 1, "start": "1"}
    (folder / "run.claim").write_bytes(
        json.dumps(who).encode() + b"\n" + str(count).zfill(claims.COUNTER_DIGITS).encode()
    )


def test_the_folder_of_a_living_process_is_busy_and_that_of_a_dead_one_free(owner, tmp_path):
    free, busy = lock_folders([tmp_path / "free", tmp_path / "run"], quiet)
    assert isinstance(free, FolderLock)
    assert isinstance(busy, FolderBusy)
    assert f"process {owner.pid} on this machine is at work here" in str(busy)
    owner.kill()
    owner.wait()
    (taken,) = lock_folders([tmp_path / "run"], quiet)
    assert isinstance(taken, FolderLock)
    for one in (free, taken):
        one.leave()
    assert not (tmp_path / "free").exists()
    assert not (tmp_path / "run" / "run.claim").exists()


def test_only_folders_that_were_made_for_it_and_are_empty_go(tmp_path):
    (tmp_path / "there").mkdir()
    outcomes = lock_folders(
        [tmp_path / "there" / "deep" / "run", tmp_path / "there" / "kept"], quiet
    )
    (tmp_path / "there" / "kept" / "file").touch()
    for one in outcomes:
        one.leave()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["there", "kept", "file"]


def test_another_machines_claim_is_watched_until_it_moves_or_is_silent(tmp_path, monkeypatch):
    waits, lines = [], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        elsewhere(tmp_path / "alive", len(waits))

    monkeypatch.setattr(held, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(
        claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: sum(waits))
    )
    for name in ("alive", "silent"):
        elsewhere(tmp_path / name)
    alive, silent = lock_folders(
        [tmp_path / "alive", tmp_path / "silent"], lines.append, silence=60
    )
    assert isinstance(alive, FolderBusy)
    assert "a process of another machine is at work here" in str(alive)
    assert isinstance(silent, FolderLock)
    silent.leave()
    assert len(lines) == 1
    assert 60 < sum(waits) < 63


def test_the_second_command_ends_with_one_line_and_leaves_the_folder_as_it_is(
    owner, cache, tmp_path, capsys
):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    before = sorted((tmp_path / "run").iterdir())
    run = (
        "train",
        tmp_path / "tiny.toml",
        "--cache",
        cache.path,
        "--runs",
        tmp_path,
        "--name",
        "run",
        "--device",
        "cpu",
    )
    for more in ((), ("--no-resume",)):
        code, _, err = vidgraph(capsys, *run, *more)
        assert (code, err.count("\n")) == (1, 1)
        assert "is at work here: wait until it has ended, or choose another folder" in err
    assert sorted((tmp_path / "run").iterdir()) == before
    owner.kill()
    owner.wait()
    assert vidgraph(capsys, *run)[0] == 0
    assert not (tmp_path / "run" / "run.claim").exists()


def take_over(folder: Path) -> dict[str, bytes]:
    """Another machine, which took the owner for dead, now trains in the folder; what it has
    there.
    """
    elsewhere(folder)
    for name in ("last.pt", "log.jsonl", "predictions_test.npz"):
        (folder / name).write_bytes(b"the new owner's")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


WRITES = {
    "a checkpoint": lambda folder: runs.save_checkpoint(folder / "last.pt", {"epoch": 3}),
    "figures": lambda folder: runs.write_json(folder / "metrics.json", {"top1": 0.5}),
    "a line of the log": lambda folder: runs.append_log(folder / "log.jsonl", {"epoch": 3}),
    "predictions": lambda folder: runs.save_predictions(
        folder / "predictions_test.npz", {"logits": np.zeros(3)}
    ),
    "a removal": lambda folder: RunWriter(folder, recipe()).remove("last"),
    "a beginning": lambda folder: RunWriter(folder, recipe()).begin({}, 0, 0, tensorboard=False),
}


@pytest.mark.parametrize("what", WRITES)
def test_an_owner_that_was_taken_for_dead_writes_nothing_more(tmp_path, what):
    (mine,) = lock_folders([tmp_path / "run"], quiet)
    runs.write_text(tmp_path / "run" / "recipe.toml", "mine")
    there = take_over(tmp_path / "run")
    with pytest.raises(FolderBusy, match="another process has taken over"):
        WRITES[what](tmp_path / "run")
    mine.leave()
    assert contents(tmp_path / "run") == there


def test_a_training_run_that_was_taken_for_dead_ends_with_one_line(
    cache, tmp_path, capsys, monkeypatch
):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    step, there = Learner.step, []

    def wake_up(*args):
        if not there:
            there.append(take_over(tmp_path / "run"))
        return step(*args)

    monkeypatch.setattr(Learner, "step", wake_up)
    code, _, err = vidgraph(
        capsys,
        "train",
        tmp_path / "tiny.toml",
        "--cache",
        cache.path,
        "--runs",
        tmp_path,
        "--name",
        "run",
        "--device",
        "cpu",
    )
    assert (code, err.count("\n")) == (1, 1)
    assert "another process has taken over" in err
    assert contents(tmp_path / "run") == there[0]


def test_evaluation_beside_a_training_run_is_refused(owner, cache, tmp_path, capsys):
    train(recipe(epochs=1), cache, tmp_path / "mine", device="cpu", say=quiet, tensorboard=False)
    for path in (tmp_path / "mine").iterdir():
        path.rename(tmp_path / "run" / path.name)
    there = sorted((tmp_path / "run").iterdir())
    code, _, err = vidgraph(
        capsys, "evaluate", tmp_path / "run", "--split", "val", "--device", "cpu"
    )
    assert (code, err.count("\n")) == (1, 1)
    assert f"process {owner.pid} on this machine is at work here: wait until it has ended" in err
    assert sorted((tmp_path / "run").iterdir()) == there
    owner.kill()
    owner.wait()
    assert (
        vidgraph(capsys, "evaluate", tmp_path / "run", "--split", "val", "--device", "cpu")[0] == 0
    )


def test_evaluation_of_weights_that_are_trained_again_meanwhile_leaves_what_is_there(
    cache, tmp_path, monkeypatch
):
    predict, there = evaluation.predict, []

    def trained(resume: bool) -> None:
        train(
            recipe(epochs=1),
            cache,
            tmp_path / "run",
            device="cpu",
            say=quiet,
            tensorboard=False,
            resume=resume,
        )

    def predict_while_another_trains(*args):
        trained(resume=False)
        there.append(contents(tmp_path / "run"))
        return predict(*args)

    trained(resume=True)
    monkeypatch.setattr(evaluation, "predict", predict_while_another_trains)
    with pytest.raises(FolderBusy, match="trained further while it was evaluated"):
        evaluation.evaluate(tmp_path / "run", cache, "test", device="cpu", say=quiet)
    assert contents(tmp_path / "run") == there[0]


def test_evaluation_watches_another_machines_claim_until_it_moves_or_is_silent(
    tmp_path, monkeypatch
):
    waits, lines = [], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            elsewhere(tmp_path / "alive", 1)

    monkeypatch.setattr(held, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(
        claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: sum(waits))
    )
    for name in ("alive", "silent"):
        elsewhere(tmp_path / name)
    with pytest.raises(FolderBusy, match="a process of another machine is at work here"):
        held.refuse_if_busy(tmp_path / "alive", lines.append, claims.ClaimWatch(60))
    assert len(waits) == 5
    watch = held.refuse_if_busy(tmp_path / "silent", lines.append, claims.ClaimWatch(60))
    assert 65 < sum(waits) < 68
    # at the end of an evaluation: it is not waited for again
    held.refuse_if_busy(tmp_path / "silent", lines.append, watch)
    assert 65 < sum(waits) < 68
    assert len(lines) == 2


def test_a_claim_that_another_machine_left_behind_is_waited_for_once_in_an_evaluation(
    cache, tmp_path, monkeypatch
):
    train(recipe(epochs=1), cache, tmp_path / "run", device="cpu", say=quiet, tensorboard=False)
    elsewhere(tmp_path / "run")
    waits, lines = [], []
    monkeypatch.setattr(held, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(
        claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: sum(waits))
    )
    evaluation.evaluate(tmp_path / "run", cache, "test", device="cpu", say=lines.append)
    assert claims.SILENCE < sum(waits) < claims.SILENCE + 3
    assert len([line for line in lines if "was at work here" in line]) == 1


def test_what_a_killed_run_was_writing_goes_and_what_a_living_one_writes_stays(cache, tmp_path):
    dead = part_path(
        tmp_path / "mine" / "last.pt", new_claim_name().replace(f"-{os.getpid()}-", "-0-")
    )
    alive = part_path(tmp_path / "mine" / "metrics_test.json", new_claim_name())
    (tmp_path / "mine").mkdir()
    for part in (dead, alive):
        part.touch()
    train(recipe(epochs=1), cache, tmp_path / "mine", device="cpu", say=quiet, tensorboard=False)
    assert list((tmp_path / "mine").glob("*.part")) == [alive]


def test_a_busy_member_leaves_the_others_going(owner, cache, tmp_path):
    members = [Member(recipe(epochs=1), tmp_path / name, 0) for name in ("run", "mine")]
    busy, mine = run_members(members, cache, order_seed=0, device="cpu", say=quiet)
    assert isinstance(busy, Failure)
    assert isinstance(busy.error, FolderBusy)
    assert isinstance(mine, Result)


def test_a_member_that_another_command_finished_in_the_meantime_counts(owner, cache, tmp_path):
    """Two studies in one folder: the one that ends last has all results."""
    there, mine = run_while_another_finishes(recipe(epochs=1), cache, tmp_path)
    assert there.metrics == mine.metrics


def test_a_member_whose_folder_another_run_finished_in_leaves_the_others_going(
    owner, cache, tmp_path
):
    there, mine = run_while_another_finishes(recipe(epochs=1, lr=0.2), cache, tmp_path)
    assert isinstance(there, Failure)
    assert "holds another run" in str(there.error)
    assert isinstance(mine, Result)


def run_while_another_finishes(theirs, cache, place):
    """Two members, while the owner of the first one's folder finishes `theirs` there."""
    train(theirs, cache, place / "other", order_seed=0, device="cpu", say=quiet, tensorboard=False)

    def finish(line):
        if "epoch 1/1" in line:
            for path in (place / "other").iterdir():
                path.rename(place / "run" / path.name)

    members = [Member(recipe(epochs=1), place / name, 0) for name in ("run", "mine")]
    return run_members(members, cache, order_seed=0, device="cpu", say=finish)


def test_training_from_frames_holds_its_folder_too(owner, tmp_path):
    with pytest.raises(FolderBusy, match="is at work here"):
        run_frames(frames_recipe(), tmp_path / "run")
    run_frames(frames_recipe(), tmp_path / "mine")
    assert not (tmp_path / "mine" / "run.claim").exists()


def test_a_reproduction_leaves_a_row_that_another_command_trains_to_it(tmp_path, monkeypatch):
    def train_row(*given):
        row = next(one for one in given if one in rows)
        if row is rows[0]:
            raise FolderBusy("the first is taken")
        return row.name

    table, lines = TABLES["dyreg"], []
    rows = list(table.rows[:2])
    for loop in ("_train_from_frames", "_train_from_maps"):
        monkeypatch.setattr(reproduce, loop, train_row)
    monkeypatch.setattr(reproduce, "_measure_distance", lambda *given: None)
    monkeypatch.setattr(reproduce.Reproduction, "cache", lambda work, task: None)
    work = reproduce.Reproduction(table, table.sizes[0], tmp_path, say=lines.append)
    assert reproduce.train_rows(work, table.tasks[0], rows, [0]) == [rows[1].name]
    assert "the first is taken" in lines


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_a_run_that_is_stopped_gives_its_folder_up(raised, cache, tmp_path, monkeypatch):
    def stop(*args):
        assert (tmp_path / "run" / "run.claim").exists()
        raise raised

    monkeypatch.setattr("heads.training.learner.Learner.step", stop)
    with pytest.raises(raised):
        train(recipe(), cache, tmp_path / "run", device="cpu", say=quiet)
    assert not (tmp_path / "run" / "run.claim").exists()


def test_work_that_must_be_done_once_is_waited_for(tmp_path, monkeypatch):
    order, lines, inside = [], [], threading.Event()

    def second():
        with hold_folder(tmp_path / "work", lines.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with hold_folder(tmp_path / "work", lines.append):
        monkeypatch.setattr(
            held, "time", SimpleNamespace(sleep=lambda seconds: inside.set() or time.sleep(0.01))
        )
        thread.start()
        assert inside.wait(300)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert len(lines) == 1
    assert not (tmp_path / "work").exists()
