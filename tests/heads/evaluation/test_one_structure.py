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
    tag = f"test_structure-{structure_named('clip:clip-18', head, cache)[1]}"
    assert (structures(folder, tag) == wanted).all()
    # The run's own predictions stay.
    assert (structures(folder, "test") == own).all()
    # The file that was written names the same structure.
    written = folder / f"structure_{tag}.csv"
    assert read_structure(written, head).numpy().tolist() == wanted.tolist()
    again = evaluate(folder, cache, "test", structure=str(written), device="cpu", say=silent)
    metrics = (folder / f"metrics_{tag}.json").read_text()
    assert f'"top1": {again["top1"]}' in metrics


def test_files_of_different_structures_never_have_one_name(made, tmp_path):
    cache, folder = made
    head = load_trained(folder, cache).head
    # Each of these would be "run", "a" or "common" without the rest of its name.
    given = {}
    for number, name in enumerate(("a/run.x.csv", "a/run.y.csv", "b/run.x.csv", "b_run.x.csv")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        rows = structure_rows(torch.full((1, 3), number), head)
        path.write_text("\n".join(",".join(row) for row in rows) + "\n")
        given[str(path)] = number
    tags = {structure_named(name, head, cache)[1] for name in given}
    assert len(tags) == 4

    head.structure.common.fill_(0)
    _, common = structure_named("common", head, cache)
    head.structure.common.fill_(1)
    _, other = structure_named("common", head, cache)
    assert common != other
    clips = [structure_named(f"clip:{clip}", head, cache)[1] for clip in ("clip-18", "clip-19")]
    assert len({common, other, *clips}) == 4
    # A name of any length, with any character, is a part of a file's name.
    long = tmp_path / ("x" * 200 + ": é?.csv")
    rows = structure_rows(torch.zeros(1, 3, dtype=torch.long), head)
    long.write_text("\n".join(",".join(row) for row in rows) + "\n")
    _, tag = structure_named(str(long), head, cache)
    assert len(tag) < 80
    assert not set(tag) & set(":?/ ")


def test_a_clips_structure_is_its_own_where_the_run_evaluates_with_the_common_one(made, tmp_path):
    cache, _ = made
    folder = run_of(tmp_path, cache, structures="shared_test")
    scatter_structures(folder)
    head = load_trained(folder, cache).head
    # The same weights, adaptive: what each clip chooses.
    adaptive = load_trained(folder, cache).head
    adaptive.structure.form = "adaptive"
    names = [f"clip-{number}" for number in range(18, 24)]
    own = [clip_structure(adaptive, cache, name).tolist() for name in names]
    assert any(structure != own[0] for structure in own)
    assert [clip_structure(head, cache, name).tolist() for name in names] == own
    # A forced structure is not the clip's own either, and stays.
    head.force(torch.zeros(1, 3, dtype=torch.long))
    assert [clip_structure(head, cache, name).tolist() for name in names] == own
    assert head.forced.tolist() == [[0, 0, 0]]


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
    # A video that is named twice is one video.
    found = exchange_structures(folder, cache, "test", [*names, "clip-18"], say=silent)
    assert [(row.clip, row.structure_of) for row in found] == [(a, b) for a in names for b in names]

    with (folder / "exchange_test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    # Each row is what evaluating all videos with that structure says of the video.
    evaluate(folder, cache, "test", structure="clip:clip-19", device="cpu", say=silent)
    head = load_trained(folder, cache).head
    tag = f"test_structure-{structure_named('clip:clip-19', head, cache)[1]}"
    with np.load(folder / f"predictions_{tag}.npz", allow_pickle=False) as file:
        logits = torch.from_numpy(file["logits"])
        video = list(file["clips"]).index("clip-20")
        scores = logits[file["video"] == video].softmax(-1).mean(0)
    row = found[7]
    assert row.score == pytest.approx(scores.max().item(), abs=1e-5)
    assert row.score_of_label == pytest.approx(scores[int(row.label[-1])].item(), abs=1e-5)
    assert rows[7]["predicted"] == row.predicted


def test_an_exchange_on_another_cache_or_manifest_has_its_own_file(made, tmp_path):
    cache, folder = made
    names = ["clip-18", "clip-19"]
    exchange_structures(folder, cache, "test", names, say=silent)
    before = (folder / "exchange_test.csv").read_bytes()

    fields = ("boxes", "valid", "res5")
    config = {"backbone": "digit_cnn", "sampling": {"test_clips": 3}}
    more = Tiny(fields=fields, test_views=3, config=config).write(tmp_path / "more_views")
    exchange_structures(folder, more, "test", names, say=silent)
    found = list(folder.glob(f"exchange_test_{more.fingerprint[:8]}*.csv"))
    assert len(found) == 1
    assert (folder / "exchange_test.csv").read_bytes() == before
    # As the files of an evaluation on that cache.
    evaluate(folder, more, "test", device="cpu", say=silent)
    tag = found[0].stem.removeprefix("exchange_")
    assert (folder / f"metrics_{tag}.json").exists()


def test_a_run_of_another_head_has_no_structures(tmp_path):
    table = {
        "name": "pool",
        "source": "a test",
        "head": {"name": "pool"},
        "train": {"epochs": 1, "batch": 6, "lr": 0.01},
    }
    other = Tiny(fields=("boxes", "valid", "nodes", "pooled")).write(tmp_path / "tiny")
    folder = tmp_path / "pool"
    train(recipe_from(table), other, folder, device="cpu", tensorboard=False, say=silent)
    message = "chooses no structures: expected a run of head gos"
    with pytest.raises(ValueError, match=message):
        draw_view(other, "clip-18", run=folder, structure="common")
    with pytest.raises(ValueError, match=message):
        exchange_structures(folder, other, "test", ["clip-18", "clip-19"], say=silent)
    with pytest.raises(ValueError, match=message):
        evaluate(folder, other, "test", structure="common", device="cpu", say=silent)


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
        ([*good, good[1]], "line 5: the edge from 0 to 1 in cell 1 has a row already"),
    ):
        with pytest.raises(ValueError, match=message):
            structure_named(written(rows), head, cache)
    marked = tmp_path / "marked.csv"
    marked.write_text(Path(written(good)).read_text(), encoding="utf-8-sig")
    assert structure_named(str(marked), head, cache)[0].tolist() == [[0, 0, 0]]
    with pytest.raises(ValueError, match=r"nothing\.csv: .* expected a CSV table with the columns"):
        structure_named(str(tmp_path / "nothing.csv"), head, cache)
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
