"""Curves for TensorBoard: it reads what was logged, and a full disk ends no training."""

import errno
from pathlib import Path

import pytest

from heads.runs import tensorboard as curves
from heads.runs.tensorboard import Curves
from heads.training.train import train
from tests.heads.training.test_train import recipe
from tests.support.tiny_cache import Tiny


def lines(count: int) -> list[dict]:
    return [
        {"step": 10 * k, "loss": 1.0 / k, "lr": 0.1, "val": {"top1": 0.25 * k}}
        for k in range(1, count + 1)
    ]


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(e.step, pytest.approx(e.value)) for e in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def write(folder: Path, some: list[dict], step: int = 0) -> list[str]:
    said = []
    one = Curves(folder, step, said.append)
    for line in some:
        one.write(line)
    one.close()
    return said


def test_tensorboard_reads_what_was_logged_and_a_resumed_run_replaces_what_it_repeats(tmp_path):
    assert write(tmp_path, lines(3)) == []
    assert write(tmp_path, lines(4)[2:], step=20) == []
    expected = {"train/loss": "loss", "train/lr": "lr"}
    found = read(tmp_path)
    for tag, key in expected.items():
        assert found[tag] == [(line["step"], line[key]) for line in lines(4)]
    assert found["val/top1"] == [(line["step"], line["val"]["top1"]) for line in lines(4)]


class Full:
    """A file on a disk that takes `room` bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(memoryview(data)[: self.room])
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 10, 100, 200, 333])
def test_wherever_the_disk_fills_up_whole_events_stay_and_it_is_said_once(
    tmp_path, monkeypatch, room
):
    monkeypatch.setattr(
        curves,
        "open",
        lambda *args, **how: Full(open(*args, **how), room),  # noqa: SIM115
        raising=False,
    )
    (said,) = write(tmp_path, lines(5))
    assert "no more curves for TensorBoard (No space left on device)" in said
    found = read(tmp_path).get("train/loss", []) if room > 100 else []
    assert found == [(line["step"], line["loss"]) for line in lines(len(found))]


@pytest.mark.parametrize("fails", ["made", "open", "write", "close"])
def test_a_training_goes_on_to_its_figures_without_curves(tmp_path, monkeypatch, fails):
    cache, said = Tiny().write(tmp_path / "cache"), []

    def broken(*args, **how):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    if fails == "made":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "tensorboard").write_text("a file of this name")
    elif fails == "open":
        monkeypatch.setattr(curves, "open", broken, raising=False)
    elif fails == "write":
        monkeypatch.setattr(Curves, "_put", broken)
    else:
        monkeypatch.setattr(Curves, "_end", broken)
    result = train(recipe(epochs=2), cache, tmp_path / "run", device="cpu", say=said.append)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert result.epochs == 2
    assert sum("no more curves for TensorBoard" in line for line in said) == 1
