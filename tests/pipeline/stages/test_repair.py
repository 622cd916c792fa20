"""Repair keeps good views bit by bit, and computes the rest as an undisturbed run would."""

import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import pipeline.stages.extract_shards
from cli.__main__ import main
from pipeline.backbones import build_backbone
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import read_json, sha256_of
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.frozen_networks import FrozenNetworks
from pipeline.stages.graphs import build_graphs
from pipeline.stages.repair import MovedFiles, as_extracted, redo_graphs
from pipeline.stages.verify import bad_shards, shards_to_repair, verify
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import DecodeViews
from tests.pipeline.stages.test_verify import reseal
from tests.support.tiny_videos import (
    INLINE,
    SAMPLING,
    config_of,
    everything,
    make_videos,
    picture,
    run,
)

# In the middle of shard 1, which holds clips 3 to 5.
BROKEN = 4


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Videos, and a cache of them that nothing disturbed."""
    folder = make_videos(tmp_path_factory.mktemp("healthy") / "videos")
    run(folder, folder.parent / "cache")
    return folder, folder.parent / "cache"


@pytest.fixture(scope="module")
def failed(healthy, tmp_path_factory):
    """The same videos and a cache from the time when one of them could not be read."""
    folder = shutil.copytree(healthy[0], tmp_path_factory.mktemp("failed") / "videos")
    (folder / f"clip{BROKEN}.mp4").write_text("not a video")
    run(folder, folder.parent / "cache")
    shutil.copy(healthy[0] / f"clip{BROKEN}.mp4", folder)
    return folder.parent


@pytest.fixture
def place(failed, tmp_path):
    """A copy of `failed`, whose videos are all whole by now."""
    shutil.copytree(failed / "cache", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def whole(healthy, tmp_path):
    """A copy of the undisturbed cache, to be hurt."""
    return shutil.copytree(healthy[1], tmp_path / "cache")


class RecordedWork:
    """Records what the workers and the networks were asked.

    Attributes:
        decoded: the clips that were decoded.
        views: for each forward pass, the views that were not black.
    """

    def __init__(self, monkeypatch):
        self.decoded: list[str] = []
        self.views: list[int] = []
        work, launch = pipeline.stages.extract_shards.run_task, FrozenNetworks.launch

        def watched_work(task):
            if isinstance(task, DecodeViews):
                self.decoded.append(task.clip.clip)
            return work(task)

        def watched_launch(models, rows, size):
            self.views.append(sum(row.pixels is not None for row in rows))
            return launch(models, rows, size)

        monkeypatch.setattr(pipeline.stages.extract_shards, "run_task", watched_work)
        monkeypatch.setattr(FrozenNetworks, "launch", watched_launch)


@pytest.fixture
def work(monkeypatch):
    return RecordedWork(monkeypatch)


def repair(cache, moved=None):
    config, manifest, options = as_extracted(cache, RunOptions(workers=0), moved)
    return extract(config, manifest, cache, options, shards_to_repair(cache), redo=True)


def flip_in(path, group: str, field: str, row: int) -> None:
    """Flip one bit of a stored view."""
    file = ShardFile(path, read_json(path.with_suffix(".json")))
    offset = int(file.layout(group, field).offsets[row])
    data = bytearray(path.read_bytes())
    data[offset + 3] ^= 16
    path.write_bytes(data)


def test_a_repaired_clip_gives_the_undisturbed_cache_and_nothing_else_is_decoded(
    place, healthy, work
):
    before = {path.name: path.read_bytes() for path in (place / "features").iterdir()}
    good = everything(place)
    summary = repair(place)
    assert not summary.failures
    assert work.decoded == [f"clip{BROKEN}"]
    assert sum(work.views) == 3  # two to train, one to test
    changed = set()
    for name, data in before.items():
        if (place / "features" / name).read_bytes() != data:
            changed.add(name)
    assert changed == {"00001.h5", "00001.json"}
    now = everything(place)
    assert now == everything(healthy[1])
    for field, views in good.items():
        for view, data in views.items():
            assert now[field][view] == data
    assert verify(place) == []
    assert read_json(place / "features/00001.json")["taken_over"] == 6


def test_the_networks_see_the_same_batches_as_in_an_undisturbed_run(place, monkeypatch):
    """Copied views are black in their batch, and a batch of them alone is not computed."""
    sizes, launch = [], FrozenNetworks.launch

    def watched(models, rows, size):
        sizes.append(len(rows))
        return launch(models, rows, size)

    monkeypatch.setattr(FrozenNetworks, "launch", watched)
    repair(place)
    # Shard 1's training rows are 3.0 3.1 4.0 4.1 | 5.0 5.1, its test rows 3 4 5.
    assert sizes == [4, 3]


def hurt_views(shard) -> None:
    flip_in(shard, "train", "nodes", 3)
    flip_in(shard, "test", "conv2", 2)


def hurt_value(shard) -> None:
    with h5py.File(shard, "r+") as file:
        file["train/pooled"][3] = np.nan
        file["test/boxes"][2] = 2.0
    reseal(shard)


def hurt_json(shard) -> None:
    text = shard.with_suffix(".json").read_text()
    shard.with_suffix(".json").write_text(text.replace('"clips": 3', '"clips": 2'))


def hurt_list(shard) -> None:
    """A row is listed as never extracted, although it is there."""
    reseal(shard, lambda record: record["groups"]["train"]["absent"].append(3))


def hurt_table(shard) -> None:
    """The row keys of one group."""
    data = shard.read_bytes()
    at = data.index(b"clip3\0clip3\0") if b"clip3\0clip3\0" in data else data.index(b"clip3clip3")
    shard.write_bytes(data[:at] + b"klip" + data[at + 4 :])


def cut(shard) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def other_shard(shard) -> None:
    for suffix in (".h5", ".json"):
        shutil.copy(shard.with_name("00000.h5").with_suffix(suffix), shard.with_suffix(suffix))


DAMAGES = {
    hurt_views: (["clip4", "clip5"], 2),
    hurt_value: (["clip4", "clip5"], 2),
    hurt_json: ([], 0),
    hurt_list: (["clip4"], 1),
    hurt_table: (["clip3", "clip4", "clip5"], None),
    cut: (["clip3", "clip4", "clip5"], 9),
    other_shard: (["clip3", "clip4", "clip5"], 9),
    lambda shard: shard.unlink(): (["clip3", "clip4", "clip5"], 9),
    lambda shard: shard.with_suffix(".json").unlink(): ([], 0),
}


@pytest.mark.parametrize(
    ("hurt", "clips", "views"), [(hurt, *done) for hurt, done in DAMAGES.items()]
)
def test_only_views_that_are_not_whole_are_computed_again(whole, healthy, work, hurt, clips, views):
    hurt(whole / "features/00001.h5")
    assert shards_to_repair(whole) == [1]
    repair(whole)
    assert work.decoded == clips
    assert views is None or sum(work.views) == views
    assert everything(whole) == everything(healthy[1])
    assert verify(whole) == []


def test_a_file_of_another_configuration_gives_nothing(whole, healthy, tmp_path, work):
    """It has the same rows and shapes, and no damage."""
    run(healthy[0], tmp_path / "other", replace(config_of(healthy[0]), roi_pool="mean"))
    shutil.copy(tmp_path / "other/features/00001.h5", whole / "features/00001.h5")
    work.decoded.clear()
    repair(whole)
    assert work.decoded == ["clip3", "clip4", "clip5"]
    assert everything(whole) == everything(healthy[1])


def test_whole_frames_of_many_sizes_are_taken_over_with_other_padding(tmp_path, work):
    """The repaired clip is the widest of its shard: the maps of the others get more padding."""
    sizes = {0: (64, 96), 1: (64, 160), 2: (96, 64)}
    folder = make_videos(tmp_path / "videos", 3, sizes=sizes)
    sampling = replace(SAMPLING, train_views=0, test_crops="full", test_short_side=64)
    config = config_of(folder, sampling=sampling, keep=("conv3", "pooled"))
    run(folder, tmp_path / "healthy", config)
    (folder / "clip1.mp4").write_text("not a video")
    run(folder, tmp_path / "cache", config)
    write_video(folder / "clip1.mp4", picture(1, *sizes[1]), fps=8)
    work.decoded.clear()
    repair(tmp_path / "cache")
    assert work.decoded == ["clip1"]
    assert everything(tmp_path / "cache") == everything(tmp_path / "healthy")


def test_views_of_a_compressed_shard_are_taken_over(healthy, tmp_path, work, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    run(healthy[0], tmp_path / "cache", options=replace(INLINE, compression="zstd"))
    work.decoded.clear()
    flip_in(tmp_path / "cache/features/00001.h5", "train", "conv2", 0)
    repair(tmp_path / "cache")
    assert work.decoded == ["clip3"]
    assert everything(tmp_path / "cache") == everything(healthy[1])


def test_a_clip_that_fails_again_costs_the_others_nothing(place, failed, tmp_path, work):
    empty = tmp_path / "empty"
    empty.mkdir()
    good = everything(place)
    summary = repair(place, MovedFiles(root=empty, annotations=failed / "videos/boxes.csv"))
    assert [failure["clip"] for failure in summary.failures] == [f"clip{BROKEN}"]
    assert everything(place) == good


def test_a_repair_that_would_lose_good_clips_leaves_the_shard_as_it_was(whole, healthy, tmp_path):
    """A view of clip 4 is damaged, and its video is not there any more."""
    flip_in(whole / "features/00001.h5", "train", "nodes", 3)
    before = sha256_of(whole / "features/00001.h5")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"left as it was, because 1 of .*fails now \(clip4"):
        repair(whole, MovedFiles(root=empty))
    assert sha256_of(whole / "features/00001.h5") == before
    assert not list(whole.rglob("*.part"))


def test_files_that_moved_are_named_by_options(whole, healthy, tmp_path, capsys):
    """Videos, boxes and weights of the network; without the option, the error names it."""
    folder = shutil.copytree(healthy[0], tmp_path / "before")
    torch.save(build_backbone("digit_cnn", width=8).state_dict(), folder / "weights.pth")
    run(folder, tmp_path / "moved", replace(config_of(folder), weights=str(folder / "weights.pth")))
    flip_in(tmp_path / "moved/features/00001.h5", "train", "nodes", 3)
    now, options = (tmp_path / "now").resolve(), []
    folder.rename(now)
    moved = {"--weights": "weights.pth", "--annotations": "boxes.csv", "--root": ""}
    for flag, file in moved.items():
        code, said = repaired(capsys, tmp_path / "moved", *options)
        assert code == 2
        assert f"pass {flag} with where" in said
        options += [flag, str(now / file)]
    assert repaired(capsys, tmp_path / "moved", *options)[0] == 0
    assert verify(tmp_path / "moved") == []


def repaired(capsys, cache, *options) -> tuple[int, str]:
    """The exit code of the command, and what it said."""
    with pytest.raises(SystemExit) as left:
        main(["repair", "--cache", str(cache), "--workers", "0", "--device", "cpu", *options])
    return left.value.code, capsys.readouterr().err


def test_a_moved_file_that_the_cache_does_not_know_is_refused(whole):
    with pytest.raises(
        ValueError,
        match=r"--proposal-weights: the boxes of this cache \(annotations\) came from no such file",
    ):
        as_extracted(whole, RunOptions(), MovedFiles(proposal_weights="rpn.pth"))


def test_another_file_of_boxes_under_the_same_option_is_refused(whole, healthy, tmp_path):
    flip_in(whole / "features/00001.h5", "train", "nodes", 3)
    text = (healthy[0] / "boxes.csv").read_text()
    (tmp_path / "boxes.csv").write_text(text + "clip0,7,0,0,1,1\n")
    # Both files are named by the first digits of their checksums.
    old, new = (sha256_of(place / "boxes.csv")[:12] for place in (healthy[0], tmp_path))
    said = rf"--annotations {old} \(SHA-256\).*--annotations {new} \(SHA-256\)"
    with pytest.raises(ValueError, match=said):
        repair(whole, MovedFiles(annotations=tmp_path / "boxes.csv"))


def test_graphs_that_are_damaged_missing_or_stale_are_computed_again_as_they_were(
    place, healthy, tmp_path, capsys
):
    shutil.copytree(healthy[1], tmp_path / "calm")
    for cache in (place, tmp_path / "calm"):
        build_graphs(cache, which=("iou", "similar"), neighbours=3)
    text = (place / "graphs/00000.json").read_text()
    (place / "graphs/00000.json").write_text(text.replace('"views"', '"wievs"'))
    flip_in(place / "graphs/00002.h5", "train", "similarity", 1)
    assert bad_shards(place) == {"features": [1], "graphs": [0, 2]}
    assert repaired(capsys, place)[0] == 0
    assert verify(place) == []
    assert everything(place) == everything(tmp_path / "calm")


def test_whole_graphs_are_left_alone(whole):
    build_graphs(whole, which=("iou",))
    (whole / "graphs/00001.json").unlink()
    for path in (whole / "graphs").glob("*.h5"):
        os.utime(path, (1, 1))  # whatever is written from now on is younger
    assert len(redo_graphs(whole, [1])) == 1
    written = [path.name for path in (whole / "graphs").glob("*.h5") if path.stat().st_mtime > 1]
    assert written == ["00001.h5"]


def test_a_whole_cache_needs_no_repair(whole, capsys):
    assert repaired(capsys, whole)[0] == 0
