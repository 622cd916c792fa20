"""The cached views of a split as a torch Dataset."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from heads.data.view_dataset import ViewDataset, dataset
from pipeline.cache.reader import CacheError
from tests.support.tiny_cache import Tiny


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Tiny(failed=(1, 13)).write(tmp_path_factory.mktemp("tiny"))


def test_a_dataset_has_the_views_that_the_cache_has(cache):
    data = ViewDataset(cache, "train", ["nodes", "valid"])
    group = cache["train"]
    assert len(data) == 2 * 11  # two views of each clip but the failed one
    assert data.failed == ("clip-1",)
    assert data.classes == ("class 0", "class 1", "class 2")

    seen = []
    for index in range(len(data)):
        item, row = data[index], int(data.rows[index])
        assert set(item) == {"nodes", "valid", "target"}
        assert item["nodes"].dtype == torch.float32
        assert item["valid"].dtype == torch.bool
        np.testing.assert_array_equal(item["nodes"], group.batch([row], ["nodes"])["nodes"][0])
        number = int(group.clips[row].removeprefix("clip-"))
        assert item["target"] == number % 3
        seen.append((number, int(group.views[row])))
    assert seen == [(clip, view) for clip in range(12) if clip != 1 for view in range(2)]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_dataloader_gets_the_same_views_in_any_process(cache, workers, start):
    data = dataset(cache.path, split="val", fields=["pooled"])
    order = list(reversed(range(len(data))))
    loader = DataLoader(
        data, batch_size=5, sampler=order, num_workers=workers, multiprocessing_context=start
    )
    batches = list(loader)
    pooled = torch.cat([batch["pooled"] for batch in batches])
    targets = torch.cat([batch["target"] for batch in batches])
    for place, index in enumerate(order):
        assert torch.equal(pooled[place], data[index]["pooled"])
        assert targets[place] == data[index]["target"]


def test_a_dataset_pickles(cache):
    data = pickle.loads(pickle.dumps(ViewDataset(cache.path, "test", ["pooled"])))
    assert torch.isfinite(data[0]["pooled"]).all()


def test_an_index_says_which_clip_and_view_it_is(cache):
    data = dataset(cache, split="train", fields=["valid"])
    for index in range(len(data)):
        clip, view = data.where(index)
        row = cache["train"].rows_of(clip)[view]
        np.testing.assert_array_equal(data[index]["valid"], cache["train"].view(row)["valid"])


def test_a_manifest_may_be_named_by_its_path(cache, tmp_path):
    text = (cache.path / "manifest.csv").read_text().replace("class 0", "other")
    (tmp_path / "relabelled.csv").write_text(text)
    data = dataset(cache, "train", ["valid"], manifest=tmp_path / "relabelled.csv")
    assert data.classes == ("class 1", "class 2", "other")


def test_without_fields_a_dataset_reads_all_of_them(cache):
    item = ViewDataset(cache, "test")[0]
    assert set(item) == {*cache["test"].fields, "target"}


def test_test_views_of_the_train_split_are_asked_for_by_name(cache):
    data = ViewDataset(cache, "train", ["pooled"], views="train")
    assert data.group.name == "train"


def test_what_a_dataset_refuses(cache):
    with pytest.raises(CacheError, match="no res5"):
        ViewDataset(cache, "train", ["res5"])
    with pytest.raises(ValueError, match="no clip in split 'fold-1'; its splits: test, train, val"):
        ViewDataset(cache, "fold-1")
    with pytest.raises(IndexError, match="expected 0 to"):
        ViewDataset(cache, "val", ["pooled"])[1000]
