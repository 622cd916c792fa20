"""Files for a test server: their exact content, without labels, and what is refused."""

import csv

import numpy as np
import pytest

import heads.evaluation.evaluate
from cli.__main__ import main
from heads.config.recipe import recipe_from
from heads.evaluation.submission import Submission
from heads.training.train import train
from pipeline.manifests.manifest import read_manifest
from tests.support.tiny_cache import Tiny

RECIPE = {
    "name": "r",
    "source": "a test",
    "head": {"name": "pool"},
    "data": {"num_classes": 6},
    "train": {"epochs": 1, "lr": 0.01, "batch": 5},
}
# Templates with commas and quotes, as the data set has them.
NAMES = ('Putting something, "so it stays"', "Holding something", "Pushing something")


def vidgraph(capsys, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs of one cache, and a manifest whose test clips have no label."""
    folder = tmp_path_factory.mktemp("submission")
    labels = [NAMES[k % 3] for k in range(len(Tiny().splits))]
    cache = Tiny(labels=labels).write(folder / "cache")
    for seed in (0, 1):
        train(recipe_from(RECIPE), cache, folder / f"run{seed}", seed=seed, device="cpu", say=len)
    withheld(cache.manifest.path, folder / "withheld.csv")
    return folder


def withheld(path, out):
    """Copy a manifest without the labels of split test."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["split"] == "test":
            row["label"] = ""
    with open(out, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def mean_scores(path):
    """Softmax, then the mean over views, by hand."""
    arrays = np.load(path)
    views = np.exp(arrays["logits"].astype(float))
    views /= views.sum(1, keepdims=True)
    videos = [views[arrays["video"] == k].mean(0) for k in range(len(arrays["clips"]))]
    return arrays["clips"].tolist(), arrays["classes"].tolist(), np.stack(videos)


def test_the_likeliest_class_by_name_without_a_header(place, capsys, tmp_path):
    file = tmp_path / "v1.csv"
    code, out, _ = vidgraph(
        capsys, "evaluate", place / "run0", "--submission", file, "--device", "cpu"
    )
    assert code == 0
    assert "6 videos of split test" in " ".join(out.split())
    clips, classes, scores = mean_scores(place / "run0" / "predictions_test.npz")
    expected = ""
    for clip, row in zip(clips, scores, strict=True):
        expected += f"{clip};{classes[row.argmax()]}\n"
    assert file.read_bytes() == expected.encode()


def test_a_split_without_labels_and_the_five_likeliest_by_number(place, capsys, tmp_path):
    file = tmp_path / "v2.csv"
    manifest = place / "withheld.csv"
    assert all(not clip.labels for clip in read_manifest(manifest).clips if clip.split == "test")
    code, out, _ = vidgraph(
        *(capsys, "evaluate", place / "run1", "--manifest", manifest, "--device", "cpu"),
        *("--submission", file, "--submission-format", "v2"),
    )
    assert code == 0
    assert "no labels" in out

    clips, _, scores = mean_scores(next((place / "run1").glob("predictions_test_*.npz")))
    lines = file.read_text().splitlines()
    assert len(lines) == len(clips) == 6
    for line, clip, row in zip(lines, clips, scores, strict=True):
        name, *numbers = line.split(";")
        best = sorted(range(6), key=lambda k: (-row[k], k))[:5]
        assert (name, [int(number) for number in numbers]) == (clip, best)


def test_an_ensemble_submits_the_sum_of_its_scores(place, capsys, tmp_path):
    file = tmp_path / "sum.csv"
    for run in ("run0", "run1"):
        assert vidgraph(capsys, "evaluate", place / run, "--device", "cpu")[0] == 0
    runs = (place / "run0", place / "run1")
    assert vidgraph(capsys, "evaluate", *runs, "--ensemble", "--submission", file)[0] == 0
    clips, classes, first = mean_scores(place / "run0" / "predictions_test.npz")
    total = first + mean_scores(place / "run1" / "predictions_test.npz")[2]
    names = [classes[k] for k in total.argmax(1)]
    expected = [f"{clip};{name}" for clip, name in zip(clips, names, strict=True)]
    assert file.read_text().splitlines() == expected


@pytest.mark.parametrize(
    ("form", "classes", "target", "message"),
    [
        ("v1", ("a", "b;c"), "single", "class 'b;c' cannot stand in a line"),
        ("v1", ("a", "b\nc"), "single", "cannot stand in a line"),
        ("v2", ("a", "b", "c", "d"), "single", "the 5 likeliest classes, and this run knows 4"),
        ("v1", ("a", "b"), "multi", "one class per video"),
    ],
)
def test_what_the_server_would_refuse_is_refused_here(form, classes, target, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Submission(tmp_path / "file.csv", form).check(classes, target)


def test_an_id_with_a_semicolon_is_found_before_anything_is_predicted(
    capsys, monkeypatch, tmp_path
):
    cache = Tiny(prefix="clip;").write(tmp_path / "cache")
    train(recipe_from(RECIPE), cache, tmp_path / "run", device="cpu", say=len)
    predicted = []
    monkeypatch.setattr(heads.evaluation.evaluate, "predict", lambda *all: predicted.append(all))
    code, _, err = vidgraph(
        capsys, "evaluate", tmp_path / "run", "--submission", tmp_path / "file.csv"
    )
    assert code == 2
    assert "expected an id without a semicolon" in " ".join(err.split())
    assert not predicted
    assert not (tmp_path / "file.csv").exists()


def test_wrong_options_are_one_line_and_exit_code_2(place, capsys, tmp_path):
    runs = (place / "run0", place / "run1")
    code, _, err = vidgraph(capsys, "evaluate", *runs, "--submission", tmp_path / "f.csv")
    assert code == 2
    assert "expected one RUN" in " ".join(err.split())
    code, _, err = vidgraph(capsys, "evaluate", runs[0], "--submission-format", "v2")
    assert code == 2
    assert "--submission FILE" in " ".join(err.split())
    missing = tmp_path / "none" / "f.csv"
    code, _, err = vidgraph(capsys, "evaluate", runs[0], "--submission", missing)
    assert code == 2
    assert "no such folder" in " ".join(err.split())
