"""Classes and identities of digits: in boxes.csv, and in caches of generated digits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.backbones import build_backbone, freeze
from pipeline.cache.good_rows import wrong_values
from pipeline.cache.reader import Cache
from pipeline.digits import (
    DigitVideos,
    Meet,
    Sync3,
    cache_digits,
    digit_cache,
    load_images,
    write_dataset,
)
from pipeline.proposals import build_proposals

TASKS = {"sync": Sync3(frames=4), "meet": Meet(frames=6, together=3, canvas=48, digits=3)}


@pytest.fixture(scope="module")
def images():
    return load_images()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A frozen backbone and the file of its weights."""
    torch.manual_seed(0)
    backbone = build_backbone("digit_cnn", width=8, pixels="unit")
    weights = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(backbone.state_dict(), weights)
    return freeze(backbone), weights


@pytest.mark.parametrize("name", TASKS)
def test_a_digit_cache_has_the_digits_boxes_classes_and_identities(name, images, network, tmp_path):
    task = TASKS[name]
    cache = cache_digits(tmp_path / "cache", task, images, {"train": 3, "test": 2}, *network)
    assert cache.box_classes == tuple("0123456789")
    for row, (split, number) in enumerate([("train", k) for k in range(3)] + [("test", 0)]):
        made = DigitVideos(task, images[split], 0, split)[[number]]
        view = cache[split].view(row)
        assert not list(wrong_values(view))
        np.testing.assert_allclose(view["boxes"] * task.size, made.boxes[0].numpy(), atol=1e-4)
        frames = len(made.boxes[0])
        assert view["box_class"].tolist() == [made.classes[0].tolist()] * frames
        assert view["track"].tolist() == [list(range(task.digits))] * frames
        assert view["valid"].all()


def test_a_digit_cache_that_was_begun_without_boxes_goes_on_without(
    images, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(digit_cache, "PER_SHARD", 2)
    counts = {"train": 3, "test": 1}
    with monkeypatch.context() as before:
        before.setattr(digit_cache, "_has_boxes", lambda path: False)
        made = cache_digits(tmp_path / "cache", TASKS["sync"], images, counts, *network)
    made.shards.path(1).with_suffix(".json").unlink()
    again = cache_digits(tmp_path / "cache", TASKS["sync"], images, counts, *network)
    assert again.missing == []
    assert "boxes" not in Cache(again.path)["train"].fields


def test_the_boxes_file_of_digit_videos_names_classes_and_identities(images, tmp_path):
    task = Sync3(frames=3)
    write_dataset(tmp_path, task, {"test": 2}, workers=0, images=images)
    source = build_proposals("annotations", file=str(tmp_path / "boxes.csv"), num_boxes=3)
    assert source.labels == ("box_class", "track")
    made = DigitVideos(task, images["test"], 0, "test")[[1]]
    clip = SimpleNamespace(clip="test-00001", path="x.mp4")
    info = SimpleNamespace(frames=3, fps=8.0, width=task.size, height=task.size, first=0)
    boxes, _, labels = source.propose_labelled(None, clip, info, (0, 1, 2))
    np.testing.assert_allclose(boxes * task.size, made.boxes[0].numpy(), atol=1e-3)
    names = [[source.class_names[k] for k in row] for row in labels["box_class"]]
    assert names == [list(map(str, made.classes[0].tolist()))] * 3
    assert labels["track"].tolist() == [[0, 1, 2]] * 3
