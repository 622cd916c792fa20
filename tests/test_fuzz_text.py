"""Damaged manifests, recipes, boxes, checkpoints and run folders: valid, or one line and code 2.

Every case goes through the command line, in this process. Any other exception is a failure.
"""

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli.__main__ import main
from heads.config.recipe import read_recipe
from pipeline.backbones import build_backbone
from tests.support.damage import Case, damaged_text, damaged_weights
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import make_videos, write_csv

EXTRACT = (
    "--backbone digit_cnn --set backbone_options.width=8 --frames 2 --size 32 --train-views 0 "
    "--device cpu --workers 0 --batch 4 --shard-size 8"
)
RECIPE = """\
name = "fuzz"
source = "a test"

[head]
name = "pool"

[data]
target = "single"
num_classes = 5
swap_on_flip = [["class 0", "class 1"]]

[train]
epochs = 1
batch = 16
optimiser = "sgd"
lr = 0.1
schedule = "steps"
drop_at = [1]

[evaluate]
aggregate = "mean"
checkpoint = "last"
"""


def outcome(*args: object) -> tuple[int, str]:
    """Return the exit code of a command and its last line on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        main([str(arg) for arg in args])
    said = err.getvalue()
    assert "Traceback" not in said
    if left.value.code == 2:
        assert said.strip()
        assert len([line for line in said.splitlines() if line.startswith("vidgraph: ")]) <= 1
        # The line may quote what a person wrote.
        assert len(said.splitlines()[-1]) < 20_000
    return left.value.code, said.strip().splitlines()[-1] if said.strip() else ""


def every(
    cases: Iterator[Case], use: Callable[[Case], tuple[int, str]], allowed: set[int]
) -> Counter:
    """Run all cases, and count their exit codes."""
    codes: Counter = Counter()
    for case in cases:
        try:
            code, said = use(case)
        except BaseException as error:
            raise AssertionError(
                f"{case.name}: {type(error).__name__}: {str(error)[:500]}\n{case.data[:600]!r}"
            ) from error
        assert code in allowed, f"{case.name}: code {code}: {said}\n{case.data[:600]!r}"
        codes[code] += 1
    return codes


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Make two whole videos, a manifest with every column, and their boxes as JSON."""
    folder = make_videos(tmp_path_factory.mktemp("fuzz") / "videos", clips=2)
    rows = [
        ("clip0", "clip0.mp4", "train", "a;b", "0", "", "25"),
        ("clip1", "clip1.mp4", "test", "ä", "0.1", "0.9", ""),
    ]
    header = ("clip", "path", "split", "label", "start", "end", "fps")
    write_csv(folder / "manifest.csv", header, rows)
    box = {"x1": 1, "y1": 2.5, "x2": 30, "y2": 40}
    frame = {"labels": [{"box2d": box, "standard_category": "0001"}]}
    boxes = {"clip0": [frame] * 3, "clip1": [{"labels": []}, frame]}
    (folder / "boxes.json").write_text(json.dumps(boxes, indent=1))
    return folder


def extraction(videos: Path, folder: Path, *options: object) -> tuple[int, str]:
    """Return the outcome of a fresh extraction; `verify` must agree where there is a cache."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    where = ("--root", videos, "--cache", folder / "cache")
    code, said = outcome("extract", *where, *EXTRACT.split(), *options)
    if code in (0, 3):
        assert outcome("verify", "--cache", folder / "cache", "--workers", "0")[0] == code
    return code, said


def manifests(videos: Path, folder: Path, count: int) -> Counter:
    def use(case: Case) -> tuple[int, str]:
        (folder / "m.csv").write_bytes(case.data)
        given = ("--manifest", folder / "m.csv", "--keep", "pooled", "--weights", "none")
        return extraction(videos, folder, *given)

    return every(damaged_text((videos / "manifest.csv").read_text(), count), use, {0, 2, 3})


def boxes(videos: Path, folder: Path, count: int) -> Counter:
    def use(case: Case) -> tuple[int, str]:
        (folder / "b.json").write_bytes(case.data)
        given = ("--manifest", videos / "manifest.csv", "--annotations", folder / "b.json")
        more = "--keep boxes --proposals annotations --boxes 2 --weights none"
        return extraction(videos, folder, *given, *more.split())

    return every(damaged_text((videos / "boxes.json").read_text(), count), use, {0, 2, 3})


def recipes(folder: Path, count: int) -> Counter:
    """Read recipes, and give them to a command that finds no cache.

    A recipe that is still valid may ask for a million epochs, so none is trained.
    """

    def use(case: Case) -> tuple[int, str]:
        path = folder / "r.toml"
        path.write_bytes(case.data)
        where = ("--cache", folder / "none", "--runs", folder / "runs")
        code, said = outcome("train", path, *where, "--device", "cpu")
        try:
            read_recipe(path)
            return (0 if code == 2 else code), said
        except ValueError:
            return code, said

    return every(damaged_text(RECIPE, count), use, {0, 2})


def weights(videos: Path, folder: Path, count: int) -> Counter:
    """Extract with damaged checkpoints of a backbone."""
    torch.save(build_backbone("digit_cnn", width=8).state_dict(), folder / "good.pth")

    def use(case: Case) -> tuple[int, str]:
        (folder / "w.pth").write_bytes(case.data)
        given = ("--weights", folder / "w.pth", "--keep", "pooled")
        code, said = extraction(videos, folder, "--manifest", videos / "manifest.csv", *given)
        assert code == 2 or not case.hopeless
        return code, said

    return every(damaged_weights((folder / "good.pth").read_bytes(), count), use, {0, 2, 3})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Make a cache and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    Tiny(splits=("train",) * 4 + ("val", "test")).write(folder)
    (folder / "fuzz.toml").write_text(RECIPE)
    where = ("--cache", folder / "cache", "--runs", folder)
    code, said = outcome("train", folder / "fuzz.toml", *where, "--device", "cpu")
    assert code == 0, said
    return folder


def run_folders(trained: Path, folder: Path, count: int) -> Counter:
    """Evaluate and continue a run from damaged checkpoints, then damage the run's record."""
    run, codes = folder / "run", Counter()
    shutil.copytree(trained / "fuzz-seed0", run)

    def use(case: Case) -> tuple[int, str]:
        (run / "last.pt").write_bytes(case.data)
        (run / "metrics.json").unlink(missing_ok=True)
        given = ("--cache", trained / "cache", "--device", "cpu")
        evaluated = outcome("evaluate", run, *given, "--checkpoint", "last")
        again = ("--runs", folder, "--name", "run")
        continued = outcome("train", trained / "fuzz.toml", *given, *again)
        assert continued[0] in (0, 2), continued
        assert evaluated[0] == 2 or not case.hopeless
        return evaluated

    def describe(case: Case) -> tuple[int, str]:
        (run / "run.json").write_bytes(case.data)
        return outcome("evaluate", run, "--device", "cpu")

    codes += every(damaged_weights((run / "last.pt").read_bytes(), count), use, {0, 2})
    shutil.copy(trained / "fuzz-seed0" / "last.pt", run)
    record = (trained / "fuzz-seed0" / "run.json").read_text()
    return codes + every(damaged_text(record, count), describe, {0, 2})


def test_the_undamaged_files_go_through(videos, tmp_path):
    given = ("--manifest", videos / "manifest.csv", "--annotations", videos / "boxes.json")
    more = "--weights none --proposals annotations --boxes 2 --keep pooled,boxes"
    assert extraction(videos, tmp_path, *given, *more.split())[0] == 0


def test_damaged_manifests(videos, tmp_path):
    assert manifests(videos, tmp_path, 25).total() == 25


def test_damaged_files_of_boxes(videos, tmp_path):
    assert boxes(videos, tmp_path, 20).total() == 20


def test_damaged_recipes(tmp_path):
    assert recipes(tmp_path, 40).total() == 40


def test_damaged_weights(videos, tmp_path):
    assert weights(videos, tmp_path, 14).total() == 14


def test_damaged_run_folders(trained, tmp_path):
    assert run_folders(trained, tmp_path, 8).total() == 16


@pytest.mark.slow
def test_hundreds_of_damaged_texts_and_checkpoints(videos, trained, tmp_path, capsys):
    found = {
        "manifests": manifests(videos, tmp_path, 200),
        "files of boxes": boxes(videos, tmp_path, 150),
        "recipes": recipes(tmp_path, 200),
        "weights": weights(videos, tmp_path, 100),
        "checkpoints and descriptions of runs": run_folders(trained, tmp_path, 60),
    }
    with capsys.disabled():
        print("", *(f"{what}: {dict(codes)}" for what, codes in found.items()), sep="\n")
    sys.stdout.flush()
