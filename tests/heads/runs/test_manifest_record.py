"""Runs of other labels or splits are told apart, such as the folds of a dataset."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heads.evaluation.evaluate import evaluate
from heads.reporting.report import report
from heads.runs import run_files as runs
from heads.runs.manifest_record import differences, manifest_record
from heads.training.train import train
from pipeline.cache.creation import create_cache
from pipeline.cache.folder import relabelled_clips
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest, write_manifest
from tests.heads.training.test_ablate import CPU, plan_of
from tests.heads.training.test_ablate import study as ablate_study
from tests.heads.training.test_members import phase
from tests.heads.training.test_members import recipe as two_phases
from tests.heads.training.test_train import recipe, run
from tests.support import report_runs
from tests.support.small_cache import manifest_of
from tests.support.tiny_cache import Tiny

EPOCHS = {"epochs": 1}


def fold(cache: Cache, path: Path, shift: int, relabel: dict[str, str] | None = None):
    """The cache's clips with their splits moved on by `shift` clips, and some with another
    label.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = cache.manifest.clips
    splits = [clip.split for clip in clips]
    rows = [
        {
            "clip": clip.clip,
            "path": f"{clip.clip}.mp4",
            "split": splits[(k + shift) % len(splits)],
            "label": (relabel or {}).get(clip.clip, clip.labels[0]),
        }
        for k, clip in enumerate(clips)
    ]
    return write_manifest(path, rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Tiny().write(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def folds(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifests")
    return [fold(cache, folder / f"fold{k}.csv", 6 * k) for k in range(3)]


@pytest.fixture(scope="module")
def trained(cache, folds, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(recipe("pool", **EPOCHS), cache, folder, manifest=folds[1])
    return folder


def test_a_run_records_whose_labels_and_splits_it_has(trained, folds):
    record = runs.read_json(trained / "run.json")["manifest"]
    assert record["path"] == str(folds[1].path)
    counts = {
        split: sum(clip.split == split for clip in folds[1].clips)
        for split in ("train", "val", "test")
    }
    assert {split: found["clips"] for split, found in record["splits"].items()} == counts
    of_test = [clip.labels[0] for clip in folds[1].clips if clip.split == "test"]
    assert record["splits"]["test"]["classes"] == {
        name: of_test.count(name) for name in set(of_test)
    }


def test_a_finished_run_of_one_fold_is_not_read_back_for_another(trained, cache, folds):
    before = (trained / "metrics.json").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"labels and splits of .*fold1\.csv, this command gives those of "
        r".*fold2\.csv .*test: 6 c",
    ):
        run(recipe("pool", **EPOCHS), cache, trained, manifest=folds[2])
    # the cache's copy is fold 0
    with pytest.raises(ValueError, match=r"pass --manifest .*fold1\.csv"):
        run(recipe("pool", **EPOCHS), cache, trained)
    assert run(recipe("pool", **EPOCHS), cache, trained, manifest=folds[1]).epochs == 1
    assert (trained / "metrics.json").read_bytes() == before


def test_a_stopped_run_of_one_fold_is_not_continued_with_another(
    cache, folds, tmp_path, monkeypatch
):
    class Stop(Exception):
        pass

    def stop(line):
        if "epoch 1/2" in line:
            raise Stop

    with pytest.raises(Stop):
        run(recipe("pool", epochs=2), cache, tmp_path / "run", manifest=folds[0], say=stop)
    with pytest.raises(ValueError, match=r"fold0\.csv, this command gives those of .*fold1\.csv"):
        run(recipe("pool", epochs=2), cache, tmp_path / "run", manifest=folds[1])
    assert run(recipe("pool", epochs=2), cache, tmp_path / "run", manifest=folds[0]).epochs == 2


def test_the_same_labels_under_another_name_or_with_further_columns_are_the_same_run(
    trained, cache, folds, tmp_path
):
    rows = list(csv.DictReader(folds[1].path.read_text().splitlines()))
    again = write_manifest(tmp_path / "renamed.csv", [{**row, "note": "x"} for row in rows])
    assert run(recipe("pool", **EPOCHS), cache, trained, manifest=again).epochs == 1
    assert differences(manifest_record(folds[1]), manifest_record(again)) == ""


def test_rows_in_another_order_are_another_run_as_they_are_drawn_in_another(
    trained, cache, folds, tmp_path
):
    rows = list(csv.DictReader(folds[1].path.read_text().splitlines()))
    with pytest.raises(ValueError, match="the same clips in another order"):
        run(
            recipe("pool", **EPOCHS),
            cache,
            trained,
            manifest=write_manifest(tmp_path / "turned.csv", rows[::-1]),
        )


def test_one_label_that_was_mended_makes_another_run(trained, cache, tmp_path):
    other = fold(cache, tmp_path / "fold1.csv", 6, {"clip-0": "class 2"})
    with pytest.raises(ValueError, match=r"train: 12 clips each, but other clips or other labels"):
        run(recipe("pool", **EPOCHS), cache, trained, manifest=other)


def test_a_manifest_that_changed_under_its_name_is_told_from_another_file(cache, tmp_path):
    mine = fold(cache, tmp_path / "mine.csv", 0)
    run(recipe("pool", **EPOCHS), cache, tmp_path / "run", manifest=mine)
    with pytest.raises(
        ValueError,
        match=r"of .*mine\.csv, which has changed since "
        r"\(test: ",
    ) as refused:
        run(
            recipe("pool", **EPOCHS),
            cache,
            tmp_path / "run",
            manifest=fold(cache, tmp_path / "mine.csv", 6),
        )
    assert "--manifest " + str(tmp_path) not in str(refused.value)


def test_a_run_of_an_earlier_version_goes_on_and_says_that_nobody_knows(cache, folds, tmp_path):
    said = []
    run(recipe("pool", **EPOCHS), cache, tmp_path / "run")
    record = runs.read_json(tmp_path / "run" / "run.json")
    del record["manifest"]
    runs.write_json(tmp_path / "run" / "run.json", record)
    assert run(recipe("pool", **EPOCHS), cache, tmp_path / "run", say=said.append).epochs == 1
    assert any("recorded no manifest" in line for line in said)


def test_a_study_of_one_fold_is_refused_for_another(cache, folds, tmp_path):
    text = 'source = "a test"\nrecipes = ["r.toml"]\nseeds = [0]\n'
    (tmp_path / "r.toml").write_text(
        'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 5\nlr = 0.1\n'
    )
    plan = plan_of(tmp_path, text)
    first = ablate_study(plan, cache, tmp_path / "out", replace(CPU, manifest=folds[0]))
    assert not first.failed
    with pytest.raises(ValueError, match=r"fold0\.csv, this command gives those of .*fold1\.csv"):
        ablate_study(plan, cache, tmp_path / "out", replace(CPU, manifest=folds[1]))
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert about["manifest"]["path"] == str(folds[0].path)


def clips_of(folder: Path, tag: str = "test") -> set[str]:
    with np.load(folder / f"predictions_{tag}.npz") as file:
        return set(file["clips"].tolist())


def of_split(manifest, split: str) -> set[str]:
    return {clip.clip for clip in manifest.clips if clip.split == split}


def test_evaluation_takes_the_runs_own_labels_and_splits(trained, cache, folds):
    own = runs.read_json(trained / "metrics.json")["metrics"]["test"]["top1"]
    # the cache's copy has other splits
    found = evaluate(trained, cache, "test", device="cpu", say=lambda line: None)
    assert found["top1"] == own
    assert clips_of(trained) == of_split(folds[1], "test") != of_split(cache.manifest, "test")


def test_evaluation_with_other_splits_says_so_and_overwrites_nothing(trained, cache, folds):
    before = (trained / "predictions_test.npz").read_bytes()
    said = []
    evaluate(trained, cache, "test", device="cpu", manifest=folds[2], say=said.append)
    assert (trained / "predictions_test.npz").read_bytes() == before
    tag = f"test_{manifest_record(folds[2])['splits']['test']['sha256'][:8]}"
    assert clips_of(trained, tag) == of_split(folds[2], "test")
    assert any(
        "fold2.csv has other labels or splits than" in line and "fold1.csv" in line for line in said
    )
    both = len(of_split(folds[2], "test") & of_split(folds[1], "train"))
    assert any(
        f"{both} clips of split test are among those that the run was trained on" in line
        for line in said
    ) == bool(both)


def test_weights_of_another_fold_that_know_the_clips_of_this_one_s_test_are_told(
    cache, folds, tmp_path
):
    whole = two_phases("pool", phases=[phase("one", 1), phase("two", 1, start="previous")])
    run(whole, cache, tmp_path / "first", phase="one", manifest=folds[1])
    start, said = {"phase": "two", "start": tmp_path / "first" / "one.pt"}, {}
    for k in (1, 2):
        said[k] = []
        run(whole, cache, tmp_path / f"of fold {k}", manifest=folds[k], say=said[k].append, **start)
    assert not [line for line in said[1] if "clips of split" in line]
    for split in ("val", "test"):
        both = len(of_split(folds[2], split) & of_split(folds[1], "train"))
        told = [
            line
            for line in said[2]
            if line.startswith(f"{both} clips of split {split} are among those that ")
        ]
        assert len(told) == bool(both)
        assert all("first/one.pt was trained on" in line for line in told)
    assert any("clips of split" in line for line in said[2])


def test_evaluation_whose_own_manifest_is_gone_asks_for_one(cache, tmp_path):
    moved = fold(cache, tmp_path / "gone.csv", 6)
    run(recipe("pool", **EPOCHS), cache, tmp_path / "run", manifest=moved)
    moved.path.unlink()
    with pytest.raises(
        ValueError,
        match=r"gone\.csv, which is gone or has changed; .*pass "
        r"--manifest",
    ):
        evaluate(tmp_path / "run", cache, "test", device="cpu", say=lambda line: None)


def test_a_manifest_that_changed_under_its_name_is_not_taken_for_the_runs_own(cache, tmp_path):
    run(
        recipe("pool", **EPOCHS),
        cache,
        tmp_path / "run",
        manifest=fold(cache, tmp_path / "f.csv", 6),
    )
    fold(cache, tmp_path / "f.csv", 12)
    with pytest.raises(ValueError, match="gone or has changed"):
        evaluate(tmp_path / "run", cache, "test", device="cpu", say=lambda line: None)


def tables(out: Path) -> dict[str, list[dict[str, str]]]:
    return {
        path.stem: list(csv.DictReader(path.open(encoding="utf-8")))
        for path in (out / "tables").glob("study*.csv")
    }


def test_rows_of_other_test_clips_are_not_ranked_together(cache, folds, tmp_path):
    for k, name in enumerate(("pool", "roi_pool")):
        for one in folds[:2] if k == 0 else folds[:1]:
            folder = tmp_path / "runs" / f"{name}-{one.path.stem}"
            train(
                recipe(name, **EPOCHS),
                cache,
                folder,
                manifest=one,
                device="cpu",
                say=lambda line: None,
                tensorboard=False,
            )
    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda line: None)
    names = sorted(
        sorted(row["name"] for row in rows) for rows in tables(tmp_path / "out").values()
    )
    assert names == [["pool-fold0", "roi_pool-fold0"], ["pool-fold1"]]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "of 2 different sets of clips" in " ".join(page.split())
    commands = re.sub(r" \\\n +", " ", page)
    assert re.search(
        rf"vidgraph train \S+pool-fold1/recipe.toml --cache \S+ --manifest "
        rf"{folds[1].path} ",
        commands,
    )
    # the cache's copy says the same
    assert not re.search(rf"--manifest {folds[0].path} ", commands)
    with pytest.raises(ValueError, match="on other clips, labels"):
        report(
            [tmp_path / "runs"],
            tmp_path / "out",
            macs=False,
            compare=("pool-fold0", "pool-fold1"),
            say=lambda line: None,
        )


def test_runs_of_two_folds_are_no_seeds_of_one_row(folds, tmp_path):
    for seed, one in enumerate(folds[:2]):
        report_runs.Made(seed=seed, about={"manifest": manifest_record(one)}).write(
            tmp_path / "runs"
        )
    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda line: None)
    rows = [row for found in tables(tmp_path / "out").values() for row in found]
    assert sorted(row["seeds"] for row in rows) == ["1", "1"]


def test_runs_that_left_clips_out_or_record_no_manifest_are_ranked_by_what_they_predicted(
    folds, tmp_path
):
    """The same head three times: of all clips, of all but one, and of an earlier version on other
    clips.
    """
    clips = tuple(f"clip{k}" for k in range(30))
    report_runs.Made("whole", clips=clips).write(tmp_path / "runs")
    report_runs.Made("better", head="roi_pool", skill=0.9, clips=clips).write(tmp_path / "runs")
    report_runs.Made("whole", seed=1, clips=clips[1:]).write(tmp_path / "runs")
    report_runs.Made("other", clips=tuple(f"other{k}" for k in range(30))).write(tmp_path / "runs")
    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda line: None)
    rows = [
        [(row["name"].split(" ")[0], row["seeds"]) for row in found]
        for found in tables(tmp_path / "out").values()
    ]
    assert sorted(map(sorted, rows)) == [
        [("better", "1"), ("whole", "1")],
        [("other", "1")],
        [("whole", "1")],
    ]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "29 videos of test" in page


def test_labels_that_differ_from_the_caches_copy_are_told(tmp_path):
    manifest = manifest_of(tmp_path, 4)
    create_cache(tmp_path / "cache", {"backbone": "x"}, manifest, 2)
    rows = list(csv.DictReader(manifest.path.read_text().splitlines()))
    assert relabelled_clips(tmp_path / "cache", manifest) == []
    rows[1]["label"], rows[2]["split"] = "another", "val" if rows[2]["split"] != "val" else "test"
    other = write_manifest(tmp_path / "mended.csv", rows)
    assert relabelled_clips(tmp_path / "cache", read_manifest(other.path)) == [
        rows[1]["clip"],
        rows[2]["clip"],
    ]
