"""Damaged manifests, recipes, files of boxes, checkpoints, run folders: taken as what they then
say, or one line and code 2.

Every case goes through the command line, in this process: whatever else than an exit code comes out
is a failure.
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
    "--backbone",
    "digit_cnn",
    "--set",
    "backbone_options.width=8",
    "--frames",
    "2",
    "--size",
    "32",
    "--train-views",
    "0",
)
EXTRACT = (*EXTRACT, "--device", "cpu", "--workers", "0", "--batch", "4", "--shard-size", "8")
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
    """The exit code of a command and its last line on standard error, which is all that it says
    where it fails.
    """
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
        assert len(said.splitlines()[-1]) < 20_000  # what a person wrote may be quoted
    return left.value.code, said.strip().splitlines()[-1] if said.strip() else ""


def every(
    cases: Iterator[Case], use: Callable[[Case], tuple[int, str]], allowed: set[int]
) -> Counter:
    """Runs all cases; how many ended with which code."""
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
    """Two whole videos, a manifest with every column, and their boxes as JSON."""
    folder = make_videos(tmp_path_factory.mktemp("fuzz") / "videos", clips=2)
    rows = [
        ("clip0", "clip0.mp4", "train", "a;b", "0", "", "25"),
        ("clip1", "clip1.mp4", "test", "ä", "0.1", "0.9", ""),
    ]
    write_csv(
        folder / "manifest.csv", ("clip", "path", "split", "label", "start", "end", "fps"), rows
    )
    frame = {
        "labels": [{"box2d": {"x1": 1, "y1": 2.5, "x2": 30, "y2": 40}, "standard_category": "0001"}]
    }
    (folder / "boxes.json").write_text(
        json.dumps({"clip0": [frame] * 3, "clip1": [{"labels": []}, frame]}, indent=1)
    )
    return folder


def extraction(videos: Path, folder: Path, *options: object) -> tuple[int, str]:
    """The outcome of a fresh extraction; its cache is looked at as a whole where there is one."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    code, said = outcome(
        "extract", "--root", videos, "--cache", folder / "cache", *EXTRACT, *options
    )
    if code in (0, 3):
        assert outcome("verify", "--cache", folder / "cache", "--workers", "0")[0] == code
    return code, said


def manifests(videos: Path, folder: Path, count: int) -> Counter:
    def use(case: Case) -> tuple[int, str]:
        (folder / "m.csv").write_bytes(case.data)
        return extraction(
            videos, folder, "--manifest", folder / "m.csv", "--keep", "pooled", "--weights", "none"
        )

    return every(damaged_text((videos / "manifest.csv").read_text(), count), use, {0, 2, 3})


def boxes(videos: Path, folder: Path, count: int) -> Counter:
    def use(case: Case) -> tuple[int, str]:
        (folder / "b.json").write_bytes(case.data)
        given = (
            "--proposals",
            "annotations",
            "--annotations",
            folder / "b.json",
            "--boxes",
            2,
            "--weights",
            "none",
        )
        return extraction(
            videos, folder, "--manifest", videos / "manifest.csv", "--keep", "boxes", *given
        )

    return every(damaged_text((videos / "boxes.json").read_text(), count), use, {0, 2, 3})


def recipes(folder: Path, count: int) -> Counter:
    """Read alone (a recipe that is still valid may ask for a million epochs), and by the command,
    which finds no cache.
    """

    def use(case: Case) -> tuple[int, str]:
        path = folder / "r.toml"
        path.write_bytes(case.data)
        code, said = outcome(
            "train", path, "--cache", folder / "none", "--runs", folder / "runs", "--device", "cpu"
        )
        try:
            read_recipe(path)
            return (0 if code == 2 else code), said
        except ValueError:
            return code, said

    return every(damaged_text(RECIPE, count), use, {0, 2})


def weights(videos: Path, folder: Path, count: int) -> Counter:
    """Checkpoints of a backbone."""
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
    """A cache and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    Tiny(splits=("train",) * 4 + ("val", "test")).write(folder)
    (folder / "fuzz.toml").write_text(RECIPE)
    code, said = outcome(
        "train",
        folder / "fuzz.toml",
        "--cache",
        folder / "cache",
        "--runs",
        folder,
        "--device",
        "cpu",
    )
    assert code == 0, said
    return folder


def run_folders(trained: Path, folder: Path, count: int) -> Counter:
    """The checkpoint of a run, evaluated, and a run that is continued from it; then the run's own
    description.
    """
    run, codes = folder / "run", Counter()
    shutil.copytree(trained / "fuzz-seed0", run)

    def use(case: Case) -> tuple[int, str]:
        (run / "last.pt").write_bytes(case.data)
        (run / "metrics.json").unlink(missing_ok=True)
        again = (
            "train",
            trained / "fuzz.toml",
            "--cache",
            trained / "cache",
            "--runs",
            folder,
            "--name",
            "run",
            "--device",
            "cpu",
        )
        evaluated = outcome(
            "evaluate", run, "--cache", trained / "cache", "--checkpoint", "last", "--device", "cpu"
        )
        continued = outcome(*again)
        assert continued[0] in (0, 2), continued
        assert evaluated[0] == 2 or not case.hopeless
        return evaluated

    def describe(case: Case) -> tuple[int, str]:
        (run / "run.json").write_bytes(case.data)
        return outcome("evaluate", run, "--device", "cpu")

    codes += every(damaged_weights((run / "last.pt").read_bytes(), count), use, {0, 2})
    shutil.copy(trained / "fuzz-seed0" / "last.pt", run)
    return codes + every(
        damaged_text((trained / "fuzz-seed0" / "run.json").read_text(), count), describe, {0, 2}
    )


def test_the_undamaged_files_go_through(videos, tmp_path):
    given = (
        "--manifest",
        videos / "manifest.csv",
        "--weights",
        "none",
        "--proposals",
        "annotations",
        "--boxes",
        2,
    )
    assert (
        extraction(
            videos,
            tmp_path,
            *given,
            "--keep",
            "pooled,boxes",
            "--annotations",
            videos / "boxes.json",
        )[0]
        == 0
    )


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
