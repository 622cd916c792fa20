"""Runs whose cache grew since, and caches that have one fingerprint and other clips."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from heads.config.recipe import recipe_with
from heads.evaluation.evaluate import evaluate
from heads.evaluation.saved_heads import feature_differences
from heads.reporting.cache_facts import known_caches
from heads.reporting.run_folders import FoundRun
from heads.runs.grown_cache import as_if_added_before
from heads.runs.manifest_record import manifest_record, refuse_other_labels
from heads.training.train import train
from pipeline.cache.joined import open_caches
from pipeline.cache.reader import Cache
from pipeline.export.export import export
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.extract import extract
from pipeline.stages.jobs import RunOptions
from tests.support.tiny_videos import SAMPLING, config_of, make_videos

SPLITS = ("train", "train", "val", "val", "test", "test", "train", "test")
INLINE = RunOptions(workers=0, batch=2)
KEEP = ("pooled", "boxes")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), len(SPLITS))


def rows(folder: Path, clips, name: str, **more: str):
    """A manifest of some of the clips."""
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "path", "split", "label", *more))
        for k in clips:
            writer.writerow((f"clip{k}", f"clip{k}.mp4", SPLITS[k], "ab"[k % 2], *more.values()))
    return read_manifest(path)


def grow(videos: Path, cache: Path, clips=range(6), keep=KEEP, **sampling) -> Cache:
    config = config_of(videos, keep=keep, sampling=replace(SAMPLING, **sampling))
    extract(config, rows(videos, clips, "manifest.csv"), cache, INLINE)
    return Cache(cache)


@pytest.fixture(scope="module")
def small_made(videos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("small") / "cache"
    grow(videos, path)
    return path


@pytest.fixture
def small(small_made, tmp_path) -> Path:
    """A cache of the first six clips."""
    return shutil.copytree(small_made, tmp_path / "cache")


def recipe(head: str = "pool", **options):
    table = {"source": "a test", "head": {"name": head, **options}, "train": {"epochs": 1}}
    return recipe_with(table, {}, Path(f"{head}.toml"))


def trained(cache, folder: Path, said: list | None = None):
    return train(recipe(), cache, folder, seed=0, say=(said or []).append)


def test_a_finished_run_is_read_back_after_a_field_was_added(videos, small, tmp_path):
    first = trained(Cache(small), tmp_path / "run")
    said = ["before"]
    again = trained(grow(videos, small, keep=(*KEEP, "conv2")), tmp_path / "run", said)
    assert again.metrics == first.metrics
    assert "finished before" in said[1]


@pytest.mark.parametrize(
    ("head", "options", "same"),
    [("pool", {}, True), ("rstg", {"cut": "last"}, False), ("rstg", {"cut": "res4"}, True)],
)
def test_a_deeper_map_makes_another_run_of_a_head_that_reads_the_deepest(head, options, same):
    maps = {"res4": [8, 4, 4]}
    dims = {"T": 2, "N": 2, "C": 4, "maps": maps}
    stored = {"dims": dims, "config": {"keep": ["res4"]}}
    asked = {
        "dims": {**dims, "maps": {**maps, "res5": [16, 2, 2]}},
        "config": {"keep": ["res4", "res5"]},
    }
    found = as_if_added_before(stored, asked, recipe(head, **options))
    assert (found == asked) is same
    # A map that is gone, or has another size, is never the run's own cache.
    fewer = {"dims": {**dims, "maps": {}}, "config": {"keep": []}}
    assert as_if_added_before(stored, fewer, recipe(head, **options)) == stored


def test_a_run_is_evaluated_with_its_own_splits_after_clips_were_added(videos, small, tmp_path):
    first = trained(Cache(small), tmp_path / "run")
    cache = grow(videos, small, clips=range(8))
    kept = list(small.glob("manifest.????????.csv"))
    assert len(kept) == 1
    result = evaluate(tmp_path / "run", cache, split="test", say=lambda _: None)
    # The test split of that time has two clips, that of now three.
    assert result == first.metrics["test"]
    with pytest.raises(ValueError, match=f"has changed since .*--manifest {kept[0]}"):
        trained(cache, tmp_path / "run")


def test_other_test_views_of_a_cache_that_grew_leave_the_runs_figures(videos, small, tmp_path):
    trained(Cache(small), tmp_path / "run")
    own = (tmp_path / "run" / "predictions_test.npz").read_bytes()
    said = []
    cache = grow(videos, small, test_clips=3)
    evaluate(tmp_path / "run", cache, split="test", say=said.append)
    assert (tmp_path / "run" / "predictions_test.npz").read_bytes() == own
    assert (tmp_path / "run" / "predictions_test_3x1-views.npz").exists()
    assert "is not the cache of this run" in said[0]
    # More training views leave the test views as they are.
    before = len(list((tmp_path / "run").glob("predictions_*")))
    trained(cache, tmp_path / "second")
    evaluate(tmp_path / "second", grow(videos, small, test_clips=3, train_views=3), split="test")
    assert len(list((tmp_path / "second").glob("predictions_test*"))) == 1
    assert len(list((tmp_path / "run").glob("predictions_*"))) == before


def test_two_caches_of_one_fingerprint_are_trained_reported_and_told_apart(
    videos, small, tmp_path, monkeypatch
):
    """One has no clip of the split val; both have the fingerprint of the two together."""
    other = grow(videos, tmp_path / "other", clips=(6, 7))
    joined = open_caches([small, other.path])
    assert joined.fingerprint == other.fingerprint == Cache(small).fingerprint
    assert joined.box_classes == ()
    assert joined.config["sampling"]["test_clips"] == 1

    runs = []
    for name, cache in (("both", joined), ("one", Cache(small))):
        trained(cache, tmp_path / "runs" / name)
        about = {"fingerprint": cache.fingerprint, "manifest": manifest_record(cache.manifest)}
        parts = getattr(cache, "parts", (cache,))
        about["caches"] = [str(part.path.resolve()) for part in parts]
        runs.append(FoundRun(tmp_path / name, {**about, "cache": about["caches"][0]}))
    known = known_caches(runs, [])
    assert [len(one.paths) for one in known] == [2, 1]
    assert not any(one.problem for one in known)

    from heads.reporting.report import report

    report([tmp_path / "runs"], tmp_path / "out", macs=False, say=lambda _: None)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "not there" not in page

    # Both are moved: the labels say which is which.
    moved = [small.rename(tmp_path / "x"), other.path.rename(tmp_path / "y")]
    known = known_caches(runs, moved)
    assert [one.paths for one in known] == [tuple(moved), (moved[0],)]
    with pytest.raises(ValueError, match="none of the runs was trained on this cache"):
        known_caches(runs[1:], moved)


def test_a_joined_cache_that_lacks_views_is_refused_with_the_command_for_its_part(
    videos, small, tmp_path
):
    other = grow(videos, tmp_path / "other", clips=(6, 7))
    manifest = rows(videos, range(8), "turned.csv")
    turned = [
        replace(clip, split="train" if clip.clip == "clip7" else clip.split)
        for clip in manifest.clips
    ]
    manifest = replace(manifest, clips=tuple(turned), sha256="another")
    with pytest.raises(ValueError, match=rf"{other.path}: 1 clip of split 'train' .*clip7"):
        train(
            recipe(), open_caches([small, other.path]), tmp_path / "run", manifest=manifest, seed=0
        )


def test_classes_and_tracks_of_boxes_count_only_where_both_caches_have_them():
    boxes = {"proposals": "annotations", "proposal_options": {}}
    named = {**boxes, "box_classes": ["cup"], "box_tracks": True}
    assert feature_differences(named, boxes) == feature_differences(boxes, named) == []
    (other,) = feature_differences(named, {**named, "box_classes": ["hand"]})
    assert "cup" in other


def test_windows_of_other_times_make_another_run(tmp_path):
    records = []
    for end in ("0.5", "0.75"):
        manifest = rows(tmp_path, range(6), f"{end}.csv", start="0", end=end)
        records.append(manifest_record(manifest))
    refuse_other_labels("run", records[0], records[0])
    with pytest.raises(ValueError, match="start and end differ"):
        refuse_other_labels("run", *records)
    # Runs of earlier versions recorded no times.
    old = {key: value for key, value in records[0].items() if key != "times"}
    refuse_other_labels("run", old, records[1])


def test_an_export_says_which_clips_lack_its_views_and_what_adds_them(small, tmp_path):
    said = []
    export(Cache(small), "npy", tmp_path / "out", views="test", say=said.append)
    (line,) = [line for line in said if line.startswith("split train")]
    assert "2 clips left out (no test views)" in line
    assert f"vidgraph extract --cache {small} --add views --views-for-all" in line
