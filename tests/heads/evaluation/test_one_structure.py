"""One structure of GOS for all videos, and videos with one another's structures."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.__main__ import main
from heads.config.recipe import recipe_from
from heads.drawing.draw import draw_view
from heads.evaluation.evaluate import evaluate, exchange_structures
from heads.evaluation.one_structure import (
    clip_structure,
    read_structure,
    structure_named,
    structure_rows,
)
from heads.evaluation.saved_heads import load_trained
from heads.runs.run_files import load_checkpoint, save_checkpoint
from heads.training.train import train
from pipeline.cache.reader import Cache
from tests.support.tiny_cache import Tiny


def silent(line: str) -> None:
    pass


def scatter_structures(folder: Path) -> None:
    """Give the trained head weights with which views choose different structures."""
    for name in ("best", "last"):
        saved = load_checkpoint(folder / f"{name}.pt")
        g = torch.Generator().manual_seed(0)
        for tensor in saved["state"].values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=g))
        saved["state"]["structure.alpha.weight"] *= 20
        save_checkpoint(folder / f"{name}.pt", saved)


def run_of(tmp_path: Path, cache: Cache, name: str = "gos", **head) -> Path:
    options = {"name": "gos", "width": 4, "supernodes": 2, "top": 3, "mode": "discrete", **head}
    table = {
        "name": name,
        "source": "a test",
        "head": options,
        "train": {"epochs": 1, "batch": 6, "lr": 0.01},
    }
    folder = tmp_path / name
    train(recipe_from(table), cache, folder, device="cpu", tensorboard=False, say=silent)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache, and a run whose views choose different structures."""
    tmp_path = tmp_path_factory.mktemp("one_structure")
    cache = Tiny(fields=("boxes", "valid", "res5"), test_views=2).write(tmp_path / "tiny")
    folder = run_of(tmp_path, cache)
    scatter_structures(folder)
    return cache, folder


def structures(folder: Path, tag: str) -> np.ndarray:
    with np.load(folder / f"predictions_{tag}.npz", allow_pickle=False) as file:
        return file["structure"]


def test_common_is_the_structure_that_most_training_views_chose(tmp_path):
    cache = Tiny(fields=("boxes", "valid", "res5")).write(tmp_path / "tiny")
    folder = run_of(tmp_path, cache)
    common = load_checkpoint(folder / "last.pt")["state"]["structure.common"]
    # At the start all views have one structure, which is then the common one.
    assert (structures(folder, "test") == common.numpy()).all()
    assert common.shape == (1, 3)
    assert (common >= 0).all()


def test_evaluating_with_one_structure_gives_it_to_all_views_and_writes_it(made):
    cache, folder = made
    evaluate(folder, cache, "test", device="cpu", say=silent)
    own = structures(folder, "test")
    assert len(np.unique(own.reshape(len(own), -1), axis=0)) > 1

    evaluate(folder, cache, "test", structure="clip:clip-18", device="cpu", say=silent)
    head = load_trained(folder, cache).head
    wanted = clip_structure(head, cache, "clip-18").numpy()
    tag = "test_structure-clip-18"
    assert (structures(folder, tag) == wanted).all()
    # The run's own predictions stay.
    assert (structures(folder, "test") == own).all()
    # The file that was written names the same structure.
    written = folder / f"structure_{tag}.csv"
    assert read_structure(written, head).numpy().tolist() == wanted.tolist()
    again = evaluate(folder, cache, "test", structure=str(written), device="cpu", say=silent)
    metrics = (folder / f"metrics_{tag}.json").read_text()
    assert f'"top1": {again["top1"]}' in metrics


def test_another_runs_common_structure_is_taken(made, tmp_path):
    cache, folder = made
    other = run_of(tmp_path, cache, "other")
    head = load_trained(folder, cache).head
    common = load_checkpoint(other / "last.pt")["state"]["structure.common"]
    assert structure_named(str(other), head, cache)[0].equal(common)
    assert structure_named(str(other / "last.pt"), head, cache)[0].equal(common)


def test_exchanged_structures_are_a_table_of_every_video_with_every_structure(made):
    cache, folder = made
    names = ["clip-18", "clip-19", "clip-20"]
    found = exchange_structures(folder, cache, "test", names, say=silent)
    assert [(row.clip, row.structure_of) for row in found] == [(a, b) for a in names for b in names]

    with (folder / "exchange_test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    # Each row is what evaluating all videos with that structure says of the video.
    evaluate(folder, cache, "test", structure="clip:clip-19", device="cpu", say=silent)
    with np.load(folder / "predictions_test_structure-clip-19.npz", allow_pickle=False) as file:
        logits = torch.from_numpy(file["logits"])
        video = list(file["clips"]).index("clip-20")
        scores = logits[file["video"] == video].softmax(-1).mean(0)
    row = found[7]
    assert row.score == pytest.approx(scores.max().item(), abs=1e-5)
    assert row.score_of_label == pytest.approx(scores[int(row.label[-1])].item(), abs=1e-5)
    assert rows[7]["predicted"] == row.predicted


def test_the_picture_has_the_given_structure_and_both_predictions(made):
    cache, folder = made
    head = load_trained(folder, cache).head
    asked = clip_structure(head, cache, "clip-19")
    drawing = draw_view(cache, "clip-18", run=folder, structure="clip:clip-19")
    assert drawing.result.maps["structure"].astype(int).tolist() == asked.tolist()
    plain = draw_view(cache, "clip-18", run=folder)
    assert np.allclose(drawing.result.own_scores, plain.result.scores)
    assert not np.allclose(drawing.result.scores, plain.result.scores)
    assert len(drawing.panels) == len(plain.panels) + 1
    with pytest.raises(ValueError, match="pass --run too"):
        draw_view(cache, "clip-18", structure="common")


def test_what_is_no_structure_is_refused(made, tmp_path):
    cache, folder = made
    head = load_trained(folder, cache).head
    good = structure_rows(torch.zeros(1, 3, dtype=torch.long), head)

    def written(rows) -> str:
        path = tmp_path / "given.csv"
        path.write_text("\n".join(",".join(row) for row in rows) + "\n")
        return str(path)

    assert structure_named(written(good), head, cache)[0].tolist() == [[0, 0, 0]]
    for rows, message in (
        (good[:-1], "a row for each of 3 edges, got 2"),
        ([*good[:-1], ("1", "2", "1", "skip")], "line 4: the head has no edge from 2 to 1"),
        ([*good[:-1], ("1", "1", "2", "comb9")], "no operation 'comb9': did you mean comb"),
        ([("edge", "operation")], "expected the columns cell, from, to, operation"),
    ):
        with pytest.raises(ValueError, match=message):
            structure_named(written(rows), head, cache)
    with pytest.raises(ValueError, match="no such file or folder"):
        structure_named(str(tmp_path / "nothing"), head, cache)
    with pytest.raises(ValueError, match="no test view of clip 'clip-99'"):
        structure_named("clip:clip-99", head, cache)
    with pytest.raises(ValueError, match="at least two different videos"):
        exchange_structures(folder, cache, "test", ["clip-18"], say=silent)
    with pytest.raises(ValueError, match="split test has no clip 'clip-1'"):
        exchange_structures(folder, cache, "test", ["clip-18", "clip-1"], say=silent)

    head.structure.common.fill_(-1)
    with pytest.raises(ValueError, match="this run counted no structures"):
        structure_named("common", head, cache)
    with pytest.raises(ValueError, match="chooses no structures"):
        structure_named("common", torch.nn.Linear(1, 1), cache)


@pytest.mark.parametrize(
    "unheard",
    [
        ("--submission", "file.csv"),
        ("--submission-format", "v2"),
        ("--annotations", "missing.json"),
        ("--set", "proposal_options.key=stem"),
        ("--device", "cpu"),
        ("--precision", "fp32"),
        ("--structure", "common"),
        ("--aggregate", "max"),
        ("--scores", "logits"),
    ],
)
def test_exchange_refuses_every_option_that_it_would_not_hear(unheard, made, capsys):
    folder = made[1]
    words = ["evaluate", folder, "--exchange", "clip-18", "--exchange", "clip-19", *unheard]
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 2
    assert f"{unheard[0]} does not apply to --exchange" in " ".join(capsys.readouterr().err.split())


def test_a_video_that_is_named_twice_is_exchanged_once(made, capsys):
    folder = made[1]
    words = ["evaluate", str(folder)]
    for name in ("clip-18", "clip-19", "clip-18"):
        words += ["--exchange", name]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    with (folder / "exchange_test.csv").open(encoding="utf-8") as file:
        pairs = [(row["clip"], row["structure_of"]) for row in csv.DictReader(file)]
    both = ("clip-18", "clip-19")
    assert pairs == [(clip, other) for clip in both for other in both]
