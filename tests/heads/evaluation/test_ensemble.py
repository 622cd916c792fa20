"""Ensembles: the sum of the scores of runs that predicted the same videos, and what is refused."""

import numpy as np
import pytest

from cli.__main__ import main
from heads.config.recipe import recipe_from
from heads.evaluation.ensemble import ensemble, scores_of_run
from heads.evaluation.metrics import summarise
from heads.runs.run_files import read_json
from heads.training.train import train
from pipeline.cache.reader import Cache
from tests.support.tiny_cache import Tiny

RECIPE = {
    "name": "r",
    "source": "a test",
    "head": {"name": "pool"},
    "train": {"epochs": 1, "lr": 0.01, "batch": 5},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, one of them on a cache of other features and fewer test views."""
    folder = tmp_path_factory.mktemp("ensemble")
    for name, tiny in (("8", Tiny()), ("16", Tiny(T=6, test_views=1))):
        cache = tiny.write(folder / f"of-{name}")
        train(
            recipe_from(RECIPE),
            cache,
            folder / name,
            seed=int(name),
            device="cpu",
            say=lambda line: None,
        )
    return folder


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_the_sum_of_the_scores_is_that_of_each_runs_mean_over_views(place):
    total = ensemble([place / "8", place / "16"], "test")
    eight, sixteen = (np.load(place / name / "predictions_test.npz") for name in ("8", "16"))
    views = softmax(eight["logits"].astype(float))
    by_hand = np.stack([views[eight["video"] == k].mean(0) for k in range(6)]) + softmax(
        sixteen["logits"].astype(float)
    )
    assert np.allclose(total.scores, by_hand)
    assert total.figures == summarise(by_hand, eight["targets"])
    logits = ensemble([place / "8", place / "16"], "test", {"scores": "logits", "aggregate": "max"})
    assert not np.allclose(logits.scores, total.scores)


def test_videos_are_matched_by_name_whatever_their_order(place, tmp_path):
    for name in ("run.json", "predictions_test.npz"):
        (tmp_path / name).write_bytes((place / "16" / name).read_bytes())
    arrays = dict(np.load(tmp_path / "predictions_test.npz"))
    order = np.array([3, 1, 5, 0, 4, 2])
    video = np.argsort(order)[arrays["video"]]
    arrays |= {"clips": arrays["clips"][order], "targets": arrays["targets"][order], "video": video}
    np.savez(tmp_path / "predictions_test.npz", **arrays)
    expected = ensemble([place / "8", place / "16"], "test")
    assert np.allclose(ensemble([place / "8", tmp_path], "test").scores, expected.scores)
    assert not np.allclose(
        scores_of_run(tmp_path, "test").scores, scores_of_run(place / "16", "test").scores
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clips": np.array([f"other-{k}" for k in range(6)])},
            "12 are in only one of them, such as clip-18",
        ),
        ({"classes": np.array(["a", "b", "c"])}, "other classes or labels"),
        ({"targets": np.zeros(6, int)}, "other classes or labels"),
    ],
)
def test_runs_of_other_videos_classes_or_labels_are_refused(change, message, place, tmp_path):
    (tmp_path / "run.json").write_bytes((place / "16" / "run.json").read_bytes())
    np.savez(
        tmp_path / "predictions_test.npz",
        **{**np.load(place / "16" / "predictions_test.npz"), **change},
    )
    with pytest.raises(ValueError, match=message):
        ensemble([place / "8", tmp_path], "test")


def vidgraph(capsys, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_evaluate_shows_every_run_and_their_sum_and_writes_it(place, capsys, tmp_path):
    code, out, _ = vidgraph(
        capsys, "evaluate", place / "8", place / "16", "--ensemble", "--into", tmp_path / "sum"
    )
    assert code == 0
    assert "ensemble" in out
    total = ensemble([place / "8", place / "16"], "test")
    assert read_json(tmp_path / "sum" / "metrics_test.json") == total.figures
    assert np.array_equal(np.load(tmp_path / "sum" / "scores_test.npz")["scores"], total.scores)


def test_several_runs_are_evaluated_in_turn(place, capsys):
    code, out, _ = vidgraph(
        capsys,
        "evaluate",
        place / "8",
        place / "16",
        "--device",
        "cpu",
        "--split",
        "val",
        "--no-per-class",
    )
    assert code == 0
    assert out.count("top-1 %") == 2
    assert (place / "16" / "metrics_val.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["8", "--ensemble"], "at least 2 runs, got 1"),
        (
            ["8", "16", "--ensemble", "--checkpoint", "last"],
            "--checkpoint does not apply to --ensemble",
        ),
        (
            ["8", "16", "--ensemble", "--device", "cpu"],
            "--device does not apply to --ensemble",
        ),
        (
            ["8", "16", "--ensemble", "--precision", "fp32"],
            "--precision does not apply to --ensemble",
        ),
        (
            ["8", "16", "--ensemble", "--set", "proposal_options.key=stem"],
            "--set does not apply to --ensemble",
        ),
        (["8", "16", "--ensemble", "--into", "8"], "8: holds a run; expected a folder of its own"),
        (["8", "--into", "somewhere"], "--into goes with --ensemble"),
        (["8", "of-8", "--ensemble"], "run.json: no such file"),
        (
            ["8", "16", "--ensemble", "--split", "train"],
            r"predictions_train.npz: no such file; run `vidgraph evaluate",
        ),
    ],
)
def test_what_is_no_ensemble_is_refused_in_a_line(args, message, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    code, _, err = vidgraph(capsys, "evaluate", *args)
    assert code == 2
    assert message in err


def test_the_run_of_a_cache_is_where_its_predictions_come_from(place):
    assert scores_of_run(place / "8", "test").clips == tuple(
        clip.clip for clip in Cache(place / "of-8" / "cache").manifest.clips if clip.split == "test"
    )
