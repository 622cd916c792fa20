"""Classes, tracks and slots of boxes, from a file to the cache and to what a head reads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli._shared.extraction import _box_labels_for
from cli.extract import _report_boxes
from heads.data.splits import cache_dims
from heads.interface.clips import clips_of
from pipeline.cache import fields
from pipeline.cache.good_rows import wrong_values
from pipeline.cache.reader import Cache, CacheError
from pipeline.proposals import LABELS
from pipeline.regions import boxes as geometry
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.repair import as_extracted
from pipeline.stages.verify import verify
from tests.pipeline.stages.test_extract import CLIPS, LENGTH, SAMPLING, config_of, place, run
from tests.support.tiny_videos import write_csv

LEFT, RIGHT = ("cup", 3), ("hand", 8)

OF_FORMAT_1 = Path(__file__).parents[2] / "data" / "made_before_rooms" / "cache"


@pytest.fixture(scope="module")
def labelled(world, tmp_path_factory):
    """The videos of `world`, with two boxes in every frame that differ in class and track.

    In odd frames the file lists them the other way round.
    """
    folder = tmp_path_factory.mktemp("labelled") / "world"
    shutil.copytree(world, folder)
    rows = []
    for clip in range(CLIPS):
        for k in range(LENGTH):
            x, y, w, h = place(clip, k)
            both = [(x, y, x + w, y + h, 0.5, *LEFT), (88, 88, 95, 95, 0.9, *RIGHT)]
            if k % 2:
                both.reverse()
            rows += [(f"clip{clip}", k, *row) for row in both]
    head = ("clip", "frame", "x1", "y1", "x2", "y2", "score", "class", "track")
    write_csv(folder / "boxes.csv", head, rows)
    return folder


@pytest.fixture(scope="module")
def cache(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    flipping = replace(SAMPLING, flip=1.0)
    run(labelled, folder, config_of(labelled, sampling=flipping))
    return Cache(folder)


def test_labels_stay_with_their_boxes_through_crop_flip_and_packing(cache):
    assert cache.box_classes == ("cup", "hand")
    assert cache.config["box_tracks"] is True
    seen = set()
    for group in ("train", "test"):
        rows = cache[group]
        for row in np.flatnonzero(rows.ok):
            view = rows.view(row)
            *crop, width, height = view["crop"].tolist()
            number = int(rows.clips[row].removeprefix("clip"))
            count = len(view["frames"])
            for t, valid in enumerate(view["valid"]):
                frame = int(view["frames"][t * count // len(view["valid"])])
                x, y, w, h = place(number, frame)
                for i in np.flatnonzero(valid):
                    label = view["box_class"][t, i], view["track"][t, i]
                    whole = {(0, 3): (x, y, x + w, y + h), (1, 8): (88, 88, 95, 95)}[label]
                    part = np.divide(whole, (width, height, width, height))
                    flip = bool(view["flip"])
                    meant, _ = geometry.to_view(part, tuple(crop), (width, height), flip)
                    np.testing.assert_allclose(view["boxes"][t, i], meant, atol=1e-5)
                    seen.add((label, i))
                for name in LABELS:
                    assert (view[name][t, ~valid] == -1).all()
            assert not list(wrong_values(view))
    # A box that the crop leaves out moves the other one up: its label moves, too.
    assert {((1, 8), 0), ((0, 3), 0), ((0, 3), 1)} <= seen


def test_a_head_reads_labels_as_indices_and_knows_how_many_classes(cache):
    clips = clips_of(cache["train"].batch([0], ("boxes", "box_class", "track")))
    for name in LABELS:
        assert str(clips.get(name).dtype) == "torch.int64"
    dims = cache_dims(cache)
    assert (dims.N, dims.box_classes) == (2, 2)
    dims.require("it", "box_class", "track")


def test_sources_without_labels_store_none(undisturbed):
    cache = Cache(undisturbed)
    assert cache.box_classes == ()
    assert not set(LABELS) & set(cache["train"].fields)
    assert "box_classes" not in cache.config


def test_a_cache_from_before_labels_goes_on_and_is_repaired_without_them(labelled, tmp_path):
    before = config_of(labelled, box_labels=False)
    run(labelled, tmp_path / "cache", before, shards=[0])
    cache = Cache(tmp_path / "cache")
    assert not set(LABELS) & set(cache["train"].fields)
    # An earlier version had no such option.
    assert before.computed("", "x") == replace(before, box_labels=True).computed("", "x")
    with pytest.raises(CacheError, match=r"without classes of boxes.*: classes of boxes cup,hand"):
        run(labelled, tmp_path / "cache", config_of(labelled))
    assert _box_labels_for({"cache": str(OF_FORMAT_1)}) is False
    # Also where its boxes have no labels: a rerun records what the first run did.
    assert _box_labels_for({"cache": str(tmp_path / "cache")}) is True
    assert _box_labels_for({"cache": str(tmp_path / "none")}) is True
    run(labelled, tmp_path / "cache", before)
    assert Cache(tmp_path / "cache").missing == []
    assert ExtractConfig.from_dict({}).box_labels is False


def test_a_repaired_cache_keeps_its_labels(cache, tmp_path):
    copy = tmp_path / "cache"
    shutil.copytree(cache.path, copy)
    (copy / "features" / "00001.json").unlink()
    config, manifest, options = as_extracted(copy, RunOptions(workers=0))
    assert config.box_labels
    extract(config, manifest, copy, options, [1])
    for group in ("train", "test"):
        rows = np.flatnonzero(cache[group].ok)
        again = Cache(copy)[group].batch(rows, ("boxes", *LABELS))
        for name, array in cache[group].batch(rows, ("boxes", *LABELS)).items():
            assert np.array_equal(array, again[name]), name


def test_an_absent_object_leaves_its_slot_empty_in_the_cache(labelled, tmp_path):
    """Something-Else: the object is away in every frame from 4 on, the hand never is."""
    corners = ("x1", "y1", "x2", "y2")
    listed = {}
    for clip in range(CLIPS):
        entries = []
        for k in range(LENGTH):
            found = [("hand", (50, 50, 80, 80))] + [("0000", (20, 20, 60, 60))] * (k < 4)
            labels = [
                {"box2d": dict(zip(corners, box, strict=True)), "standard_category": name}
                for name, box in found
            ]
            entries.append({"labels": labels})
        listed[f"clip{clip}"] = entries
    (tmp_path / "boxes.json").write_text(json.dumps(listed))
    options = {"file": str(tmp_path / "boxes.json"), "num_boxes": 3}
    whole = replace(SAMPLING, sampling="linspace", train_views=0)
    run(
        labelled,
        tmp_path / "cache",
        config_of(labelled, proposal_options=options, sampling=whole),
    )
    group = Cache(tmp_path / "cache")["test"]
    for row in np.flatnonzero(group.ok):
        view = group.view(row)
        away = view["frames"][:: len(view["frames"]) // len(view["valid"])] >= 4
        assert away.any()
        assert view["valid"].tolist() == [[not gone, True, False] for gone in away]
        assert (view["track"][:, 1] == 1).all()
        assert not list(wrong_values(view))


def test_steps_and_views_without_a_box_are_counted(labelled, tmp_path, capsys):
    """Boxes in clip 0 alone, in frame 0 alone; one clip cannot be decoded."""
    rows = [("clip0", 0, 0, 0, 96, 96)] + [(f"clip{k}", 11, 0, 0, 9, 9) for k in range(1, CLIPS)]
    write_csv(tmp_path / "boxes.csv", ("clip", "frame", "x1", "y1", "x2", "y2"), rows)
    options = {"file": str(tmp_path / "boxes.csv"), "num_boxes": 1}
    sampling = replace(SAMPLING, sampling="linspace", train_views=0)
    config = config_of(labelled, proposal_options=options, sampling=sampling)
    for _ in range(2):
        summary = run(labelled, tmp_path / "cache", config)
        group = Cache(tmp_path / "cache")["test"]
        valid = group.batch(np.flatnonzero(group.ok), ("valid",))["valid"].any(-1)
        assert 0 < valid.sum() < valid.size
        assert summary.boxes == {
            "views": CLIPS - 1,
            "steps": valid.size,
            "empty_views": int((~valid.any(1)).sum()),
            "empty_steps": int((~valid).sum()),
        }
    _report_boxes(summary.boxes)
    assert f"{(~valid).sum()} of {valid.size} steps" in capsys.readouterr().out


def test_every_table_names_the_same_labels():
    assert fields.LABELS == LABELS
    assert set(LABELS) <= set(fields.FIELDS)


def test_packing_labels_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    boxes, scores = rng.random((20, 6, 4)), rng.random((20, 6)).astype(np.float32)
    keep, classes = rng.random((20, 6)) < 0.6, rng.integers(-1, 5, (20, 6))
    for slots in (False, True):
        for count in (4, 8):
            found = geometry.pack_labelled(boxes, scores, {"c": classes}, keep, count, slots)
            for k in range(20):
                rows = list(range(6))
                if not slots:
                    rows = sorted(np.flatnonzero(keep[k]).tolist(), key=lambda i: -scores[k, i])
                rows = rows[:count]
                meant = [int(classes[k, i]) if keep[k, i] else -1 for i in rows]
                assert found["c"][k].tolist() == meant + [-1] * (count - len(meant))
                for place_, i in enumerate(rows):
                    if keep[k, i]:
                        np.testing.assert_allclose(found["boxes"][k, place_], boxes[k, i], 1e-6)


def test_a_map_is_added_to_a_cache_whose_boxes_have_names(labelled, tmp_path):
    few = config_of(labelled, keep=("pooled", "boxes"))
    run(labelled, tmp_path / "cache", few)
    before = Cache(tmp_path / "cache")["train"].view(0)
    run(labelled, tmp_path / "cache", replace(few, keep=("conv2",)))
    grown = Cache(tmp_path / "cache")
    assert grown.box_classes == ("cup", "hand")
    after = grown["train"].view(0)
    assert set(after) - set(before) == {"conv2", "grid.conv2"}
    for name in ("box_class", "track"):
        np.testing.assert_array_equal(after[name], before[name])


def test_boxes_with_names_are_added_to_a_cache_without_boxes(labelled, tmp_path):
    run(labelled, tmp_path / "cache", config_of(labelled, keep=("pooled",)))
    run(labelled, tmp_path / "cache", config_of(labelled, keep=("pooled", "boxes")))
    cache = Cache(tmp_path / "cache")
    assert cache.box_classes == ("cup", "hand")
    run(labelled, tmp_path / "whole", config_of(labelled, keep=("pooled", "boxes")))
    added, whole = cache["train"].view(0), Cache(tmp_path / "whole")["train"].view(0)
    assert added.keys() == whole.keys()
    for name in ("boxes", "valid", "box_class", "track"):
        np.testing.assert_array_equal(added[name], whole[name])
    # One of the videos is broken.
    assert len(verify(tmp_path / "cache")) == len(verify(tmp_path / "whole")) == 1
