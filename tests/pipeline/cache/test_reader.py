"""What was written comes back: in any order, from any process, and never from a wrong file."""

import hashlib
import json
import multiprocessing
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

import pipeline.cache.open_files
import pipeline.cache.shard_reader
from pipeline.cache.fields import FORMAT
from pipeline.cache.identity import fingerprint_of, fingerprint_of_format_1
from pipeline.cache.reader import Cache, CacheError, Damaged, create_cache
from pipeline.files.atomic_files import read_json, write_json
from pipeline.stages.graphs import build_graphs
from tests.support.small_cache import FIELDS, C, T, make_cache, manifest_of, tensors_of, write_shard

CONFIG = {"backbone": {"name": "tiny", "depth": 3}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cache with graphs that no test changes.

    It has 7 clips in 3 shards, with maps that are 3, 4 and 2 wide. clip2 failed.
    """
    path = make_cache(tmp_path_factory.mktemp("shared"), failed=("clip2",), widths=(3, 4, 2))
    build_graphs(path, neighbours=3)
    return path


def assert_row(group, row: int, values: dict[str, np.ndarray]) -> None:
    """Assert that `values` are what was written for a row of a cache like `shared`."""
    width = (3, 4, 2)[int(group.clips[row][4:]) // 3]
    expected = tensors_of(group.name, group.clips[row], int(group.views[row]), width)
    for name in FIELDS:
        found = values[name][..., :width] if name == "res5" else values[name]
        np.testing.assert_array_equal(found, expected[name])
        assert found.dtype == expected[name].dtype


def test_rows_come_in_the_order_asked(shared):
    group = Cache(shared)["train"]
    rows = np.random.default_rng(0).permutation(np.flatnonzero(group.ok)).tolist()
    rows += [13, 0, 0, 13, rows[0]]
    batch = group.batch(rows)
    assert {"iou", "nearest", "similar", "similarity", *FIELDS} == set(batch) == set(group.fields)
    for place, row in enumerate(rows):
        assert_row(group, row, {name: values[place] for name, values in batch.items()})


def test_a_view_is_a_batch_of_one(shared):
    group = Cache(shared)["test"]
    assert_row(group, 4, group.view(4))
    batch = group.batch([4], fields=("nodes", "iou"))
    assert {name: values.shape for name, values in batch.items()} == {
        "nodes": (1, T, 5, C),
        "iou": (1, T - 1, 5, 5),
    }
    assert group.batch([], ("nodes",))["nodes"].shape == (0, T, 5, C)


@pytest.mark.parametrize("compression", ["lzf", "zstd"])
def test_compressed_views_read_the_same(tmp_path, shared, compression, monkeypatch):
    # So that even these small views are compressed.
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    path = make_cache(tmp_path, failed=("clip2",), compression=compression, widths=(3, 4, 2))
    group, plain = Cache(path)["train"], Cache(shared)["train"]
    rows = [9, 1, 12, 1]
    for name, values in group.batch(rows).items():
        np.testing.assert_array_equal(values, plain.batch(rows, (name,))[name])
    cache = Cache(path)
    file = pipeline.cache.shard_reader.ShardFile(cache.shards.path(0), cache.records["features"][0])
    assert file.layout("train", "res5").packed


def test_maps_are_padded_with_zeros_to_the_widest_shard(shared):
    group = Cache(shared)["train"]
    assert group.shape("res5") == (T, C, 3, 4)
    narrow, wide = group.view(0), group.view(7)
    assert not narrow["res5"][..., 3:].any()
    assert narrow["res5"][..., :3].all()
    assert wide["res5"].all()
    assert (narrow["grid"][1], wide["grid"][1]) == (3, 4)


def test_what_the_disk_has_to_be_waited_for_reads_the_same(shared, monkeypatch):
    group = Cache(shared)["train"]
    warm = group.batch([8, 3, 8])
    monkeypatch.setattr(pipeline.cache.shard_reader, "_in_memory", lambda *_: False)
    for name, values in group.batch([8, 3, 8]).items():
        np.testing.assert_array_equal(values, warm[name])


class Rows(Dataset):
    """The nodes of every extracted view, as a dataset for a DataLoader."""

    def __init__(self, path: Path, opened: bool):
        self.cache = Cache(path)
        self.rows = np.flatnonzero(self.cache["train"].ok)
        # A forked worker inherits these handles and must not use them.
        if opened:
            self.cache["train"].batch(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[int, np.ndarray]:
        return int(self.rows[k]), self.cache["train"].view(int(self.rows[k]))["nodes"]


@pytest.mark.parametrize(
    ("method", "compression"), [("fork", "none"), ("fork", "zstd"), ("spawn", "none")]
)
def test_data_loader_workers_read_what_was_written(tmp_path, method, compression, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    path = make_cache(tmp_path, failed=("clip2",), compression=compression)
    dataset = Rows(path, opened=True)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=method)
    seen = 0
    group = dataset.cache["train"]
    for rows, nodes in loader:
        for row, values in zip(rows.tolist(), nodes.numpy(), strict=True):
            expected = tensors_of("train", group.clips[row], int(group.views[row]))
            np.testing.assert_array_equal(values, expected["nodes"])
            seen += 1
    assert seen == len(dataset) == 12


def test_a_forked_process_opens_its_own_files(shared):
    cache = Cache(shared)
    cache["train"].view(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_fork, args=(cache, queue, set(cache.files)))
    child.start()
    opened, inherited = queue.get(timeout=60)
    child.join()
    assert opened == 2  # features and graphs of one shard
    assert inherited == 0


def _in_a_fork(cache: Cache, queue, parents: set) -> None:
    cache["train"].view(0)
    queue.put((len(list(cache.files)), len(parents & set(cache.files))))


def test_a_pickled_cache_reads_the_same(shared):
    cache = Cache(shared)
    cache["train"].view(0)
    copy = pickle.loads(pickle.dumps(cache))
    assert not list(copy.files)
    assert_row(copy["train"], 9, copy["train"].view(9))


def test_threads_may_share_a_cache_with_few_open_files(shared, monkeypatch):
    monkeypatch.setattr(pipeline.cache.open_files, "MOST_OPEN", 1)
    group, wrong = Cache(shared)["train"], []

    def read() -> None:
        for row in (0, 7, 13, 1, 8, 12) * 5:
            try:
                assert_row(group, row, group.view(row))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(group.cache.files)) == 1


def test_open_files_are_closed_in_time(shared, monkeypatch):
    monkeypatch.setattr(pipeline.cache.open_files, "MOST_OPEN", 1)
    group = Cache(shared)["train"]
    group.view(0)
    before = len(os.listdir("/proc/self/fd"))
    for row in (7, 13, 0, 7, 13):
        group.view(row)
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_a_cache_opens_no_shard(shared, monkeypatch):
    monkeypatch.setattr(h5py, "File", None)
    cache = Cache(shared)
    group = cache["train"]
    assert group.shape("nodes") == (T, 5, C)
    assert group.ok.sum() == 12


def test_what_is_there_is_known(shared):
    cache = Cache(shared)
    group = cache["train"]
    assert (len(group), group.per_clip, len(cache["test"])) == (14, 2, 7)
    assert group.clips[4:8] == ["clip2", "clip2", "clip3", "clip3"]
    assert group.views[4:8].tolist() == [0, 1, 0, 1]
    assert group.rows_of("clip3") == range(6, 8)
    assert group.rows_in(1) == range(6, 12)
    assert group.ok.tolist() == [True] * 4 + [False] * 2 + [True] * 8
    assert group.present.all()
    assert cache.groups == ("train", "test")
    assert set(cache.stages["graphs"]) == {"iou", "nearest", "similar", "similarity"}
    assert set(cache.stages["features"]) == set(FIELDS)
    assert [failure["clip"] for failure in cache.failures] == ["clip2"]
    assert cache.missing == []
    assert cache.config == CONFIG
    with pytest.raises(CacheError, match="no clip 'clip9'"):
        group.rows_of("clip9")


def test_missing_shards_are_missing_rows(tmp_path):
    path = make_cache(tmp_path)
    (path / "features/00001.json").unlink()
    cache = Cache(path)
    group = cache["train"]
    assert cache.missing == [1]
    assert group.present.tolist() == [True] * 6 + [False] * 6 + [True] * 2
    np.testing.assert_array_equal(
        group.view(13)["pooled"], tensors_of("train", "clip6", 1)["pooled"]
    )
    with pytest.raises(
        CacheError,
        match=r"row 7 \(clip clip3, view 1\) lies in a shard that is not there.*vidgraph extract",
    ):
        group.batch([0, 7])


def test_failed_rows_are_refused_rather_than_read_as_nan(shared):
    with pytest.raises(
        CacheError, match=r"row 5 \(clip clip2, view 1\) failed in extraction.*vidgraph repair"
    ):
        Cache(shared)["train"].batch([0, 5])


@pytest.mark.parametrize("row", [-1, 14])
def test_rows_out_of_range_are_refused(shared, row):
    with pytest.raises(IndexError, match="expected 0 to 13"):
        Cache(shared)["train"].batch([row])


def test_fields_that_are_not_there_say_what_would_add_them(tmp_path):
    group = Cache(make_cache(tmp_path))["train"]
    with pytest.raises(CacheError, match=r"no res4 .*--keep res4"):
        group.batch([0], ("res4",))
    with pytest.raises(CacheError, match=r"no iou .*vidgraph graphs"):
        group.shape("iou")


def test_graphs_of_features_that_were_written_again_are_not_served(tmp_path):
    path = make_cache(tmp_path)
    build_graphs(path, which=("iou",))
    cache = Cache(path)
    assert "iou" in cache["train"].fields
    write_shard(cache.shards, 1, salt="again")
    with pytest.raises(CacheError, match=r"no iou .*vidgraph graphs"):
        Cache(path)["train"].shape("iou")
    build_graphs(path, which=("iou",))
    assert "iou" in Cache(path)["train"].fields


def test_a_group_that_is_not_there_is_refused(tmp_path):
    path = make_cache(tmp_path)
    with pytest.raises(CacheError, match=r"no group 'val' \(it holds train, test\)"):
        Cache(path)["val"]
    for shard in range(3):
        (path / f"features/{shard:05d}.json").unlink()
    with pytest.raises(CacheError, match="it holds nothing yet"):
        Cache(path)["train"]


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    path = make_cache(tmp_path)
    manifest = manifest_of(tmp_path)
    with pytest.raises(CacheError) as caught:
        create_cache(path, {"backbone": {"name": "tiny", "depth": 5}, "seed": 1}, manifest, 3)
    said = str(caught.value)
    assert "the cache was made with other options: backbone.depth=3, without --seed;" in said
    assert "this command asks for: backbone.depth=5, --seed 1. " in said
    assert said.endswith(f"pass the same options (--like {path} takes them from it)")
    assert "backbone.name" not in said


def test_the_same_config_and_clips_continue_a_cache(tmp_path):
    """The order of keys, tuples for lists, labels and clips per shard may differ."""
    config = {"size": (224, 224), "a": {"b": 1, "c": 2}}
    first = create_cache(tmp_path / "cache", config, manifest_of(tmp_path), 3)
    again = create_cache(
        tmp_path / "cache",
        {"a": {"c": 2, "b": 1}, "size": [224, 224]},
        manifest_of(tmp_path, label="b"),
        5,
    )
    assert (again.fingerprint, len(again)) == (first.fingerprint, 3)
    assert Cache(tmp_path / "cache").manifest.clips[0].labels == ("a",)


@pytest.mark.parametrize("change", [{"clips": 6}, {"clips": 8}])
def test_other_clips_are_refused_with_the_row(tmp_path, change):
    path = make_cache(tmp_path)
    with pytest.raises(
        CacheError,
        match=rf"row {min(change['clips'], 7) + 1} of its manifest is .*pass the same manifest",
    ):
        create_cache(path, CONFIG, manifest_of(tmp_path, **change), 3)


def test_clips_cut_at_other_times_are_other_clips(tmp_path):
    path = make_cache(tmp_path)
    with pytest.raises(
        CacheError, match=r"row 1 .* clip clip0; of .* clip clip0, from 1\.5 s to the end"
    ):
        create_cache(path, CONFIG, manifest_of(tmp_path, start="1.5"), 3)


def test_another_format_is_refused(tmp_path):
    path = make_cache(tmp_path)
    record = read_json(path / "cache.json")
    del record["seal"]
    write_json(path / "cache.json", {**record, "format": 99}, "me")
    with pytest.raises(CacheError, match="format 99, this version reads 1"):
        Cache(path)


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match="no cache here"):
        Cache(tmp_path)


@pytest.mark.parametrize("name", ["manifest.csv", "cache.json", "features/00001.json"])
def test_changed_files_of_a_cache_are_noticed(tmp_path, name):
    path = make_cache(tmp_path)
    text = (path / name).read_bytes()
    for old, new in (
        (b"clip4", b"clip5"),
        (b'"shard": 1', b'"shard": 2'),
        (b"tiny", b"Tiny"),
    ):
        text = text.replace(old, new)
    (path / name).write_bytes(text)
    with pytest.raises(Damaged, match="changed since"):
        Cache(path)["train"].ok  # noqa: B018


def test_a_file_cut_short_is_noticed_when_read(tmp_path):
    path = make_cache(tmp_path)
    cache = Cache(path)
    cache["train"].view(0)
    size = (path / "features/00000.h5").stat().st_size
    os.truncate(path / "features/00000.h5", size // 3)
    with pytest.raises(Damaged, match="ends within"):
        cache["train"].batch([0, 1, 2])


def test_a_file_that_was_exchanged_is_not_read_with_the_old_places(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.cache.open_files, "MOST_OPEN", 1)
    group = Cache(make_cache(tmp_path))["train"]
    group.view(0)
    group.view(7)  # closes the first
    write_shard(group.cache.shards, 0, width=4)
    with pytest.raises(Damaged, match="open the cache anew"):
        group.view(0)


def test_cache_json_says_what_it_is_in_plain_json(tmp_path):
    path = make_cache(tmp_path)
    record = json.loads((path / "cache.json").read_text())
    assert record["config"] == CONFIG
    (part,) = record["parts"]
    assert (part["clips"], part["lengths"]) == ([[0, 7]], [[3, 2], [1, 1]])
    assert (path / "manifest.csv").read_bytes() == (tmp_path / "clips.csv").read_bytes()


def canonical(value) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def test_the_hash_of_a_shards_clips_is_that_of_canonical_json(tmp_path, monkeypatch):
    manifest = manifest_of(tmp_path, 7)
    odd = ({"clip": 'é"\\ 日\u200d'}, {"start": 1 / 3}, {"end": 1e-7}, {"start": 0.0, "end": 1e22})
    changed = tuple(replace(clip, **odd[k % 4]) for k, clip in enumerate(manifest.clips))
    manifest = replace(manifest, clips=changed)
    clips = [[clip.clip, clip.start, clip.end] for clip in manifest.clips]
    old = {"format": 1, "config": {"a": [1, "é"]}, "clips": clips}
    for piece in (1, 3, 7, 100):
        monkeypatch.setattr("pipeline.cache.identity.PIECE", piece)
        plan = create_cache(tmp_path / str(piece), old["config"], manifest, 3)
        for shard, first in enumerate((0, 3, 6)):
            expected = hashlib.sha256(canonical(clips[first : first + 3])).hexdigest()
            assert plan.attrs(shard)["clips_sha256"] == expected
        # What caches of format 1 have as their fingerprint.
        found = fingerprint_of_format_1(old["config"], manifest)
        assert found == hashlib.sha256(canonical(old)).hexdigest()


def test_a_fingerprint_covers_what_decides_values_and_not_what_is_there(tmp_path):
    config = {
        "keep": ["pooled"],
        "seed": 1,
        "sampling": {"train_views": 1, "test_clips": 1, "f": 8},
    }
    deciding = {"seed": 1, "sampling": {"f": 8}}
    text = canonical({"config": deciding, "format": FORMAT})
    assert fingerprint_of(config) == hashlib.sha256(text).hexdigest()
    more = {**config, "keep": ["res4"], "sampling": {"train_views": 5, "test_clips": 3, "f": 8}}
    assert fingerprint_of(more) == fingerprint_of(config)
    assert fingerprint_of({**config, "seed": 2}) != fingerprint_of(config)
    fewer = create_cache(tmp_path / "few", config, manifest_of(tmp_path, 2), 3)
    assert fewer.fingerprint == fingerprint_of(config)
