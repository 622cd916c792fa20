"""The make targets run the stages, one after the other, on a handful of generated videos."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.manifests.manifest import read_manifest

ROOT = Path(__file__).parents[1]
VENV = Path(sys.prefix)

pytestmark = pytest.mark.skipif(
    not (VENV / "bin" / "vidgraph").exists(), reason="vidgraph is not installed in this environment"
)


def make(target: str, **variables: object) -> subprocess.CompletedProcess:
    """`make target NAME=value …` in this environment; the set-up is taken as done (`-o`), since the
    tests are running in it.
    """
    given = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "-o", f"{VENV}/.ready", target, f"VENV={VENV}", *given]
    # `make test ARGS=…` hands its own variables down to every make below it.
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
    }
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_help_lists_every_target():
    listed = make("help").stdout
    targets = [
        line.split(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if ": " in line and "##" in line
    ]
    assert "demo" in targets
    for target in targets:
        assert f"make {target} " in listed


@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("extract", "MANIFEST"),
        ("check", "MANIFEST"),
        ("train", "RECIPE"),
        ("ablate", "STUDY"),
        ("evaluate", "RUN"),
        ("predict", "RUN"),
        ("show", "CLIP"),
    ],
)
def test_a_variable_that_is_not_given_is_named(target, variable):
    done = make(target)
    assert done.returncode == 2
    assert f"expected {variable}, for example: make {target} {variable}=..." in done.stderr


def test_a_name_is_a_name_whatever_is_in_it(tmp_path):
    """Data sets that others made name folders as they like: neither make nor its shell runs what
    stands there.
    """
    name = (
        f"it's $(shell touch {tmp_path}/a) $$(touch {tmp_path}/b) `touch {tmp_path}/c` "
        f'"; touch {tmp_path}/d; "'
    )
    done = make("check", MANIFEST=name)
    assert done.returncode == 2
    assert f"vidgraph: {name}: " in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_stages_run_one_after_the_other(tmp_path):
    videos, cache, runs = tmp_path / "videos", tmp_path / "my cache", tmp_path / "my runs"
    manifest = videos / "manifest.csv"
    boxes = "--proposals annotations --annotations " + str(videos / "boxes.csv")
    network = (
        "--backbone digit_cnn --weights none --set backbone_options.width=8 --frames 4 --size 64 "
        "--sampling linspace --flip 0"
    )
    steps = [
        (
            "manifest",
            {
                "KIND": "digits",
                "MANIFEST": videos,
                "ARGS": "--task meet --train 16 --val 4 --test 4",
            },
        ),
        ("extract", {"MANIFEST": manifest, "CACHE": cache, "ARGS": f"{network} {boxes}"}),
        ("graphs", {"CACHE": cache, "ARGS": "--neighbours 3"}),
        ("verify", {"CACHE": cache}),
        (
            "train",
            {"RECIPE": "demo_pool", "CACHE": cache, "RUNS": runs, "ARGS": "--set train.epochs=1"},
        ),
        ("evaluate", {"RUN": runs / "demo_pool-seed0", "CACHE": cache, "ARGS": "--split test"}),
    ]
    for target, variables in steps:
        done = make(target, **variables)
        assert done.returncode == 0, f"{target}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    run = runs / "demo_pool-seed0"
    assert (run / "metrics.json").exists()

    # What is asked of a trained head. Without CACHE the run's own is read.
    video = sorted(videos.rglob("*.mp4"))[0]
    listed = read_manifest(manifest)
    clip = listed.clips[0].clip
    answers, picture = tmp_path / "answers.csv", tmp_path / "clip.png"
    asked = [
        ("evaluate", {"RUN": run}, "test"),
        ("predict", {"RUN": run, "VIDEOS": video, "ARGS": f"--out {answers}"}, "1 of 1 video"),
        ("show", {"CLIP": clip, "CACHE": cache, "ARGS": f"--out {picture}"}, str(picture)),
        ("ls", {"IN": tmp_path}, "my cache"),
    ]
    for target, variables, expected in asked:
        done = make(target, **variables)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{target}: {said[-2000:]}"
        assert expected in said
    with answers.open() as file:
        (row,) = csv.DictReader(file)
    assert row["video"] == str(video)
    assert picture.exists()


def test_evaluate_takes_the_cache_of_the_run_unless_one_is_given():
    """A run records its cache; the default of CACHE is another one."""
    # With --help, the verb prints its help whatever else is there.
    assert "--cache" not in make("evaluate", RUN="runs/x", ARGS="--help").stderr
    echoed = make("evaluate", RUN="runs/x", ARGS="--help").stdout.splitlines()[0]
    assert echoed.split() == [f"{VENV}/bin/vidgraph", "evaluate", "'runs/x'", "--help"]
    echoed = make("evaluate", RUN="runs/x", CACHE="mine", ARGS="--help").stdout.splitlines()[0]
    assert "--cache 'mine'" in echoed


def test_help_prints_the_defaults_of_the_variables():
    said = make("help").stdout
    for default in ("CACHE=caches/default", "RUNS=runs", "BUDGET=120"):
        assert default in said
