"""A cache that grows by clips, views and fields equals one that was extracted at once."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import pipeline.cache.growth
import pipeline.stages.frozen_networks
from cli._shared.growth import added_to
from cli.extract import command as extract_command
from heads.config.recipe_tables import DataOptions
from heads.data.splits import require_split_views
from pipeline.cache.folder import CacheError
from pipeline.cache.reader import Cache
from pipeline.files.atomic_files import read_json, write_json
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.extract import extract
from pipeline.stages.graphs import build_graphs
from pipeline.stages.growth import require_comparable
from pipeline.stages.jobs import RunOptions
from pipeline.stages.verify import bad_shards, verify
from pipeline.views.sampling import Sampling
from tests.support.tiny_videos import config_of, make_videos

SPLITS = ("train", "val", "train", "test", "train", "val")
# A batch holds one view: what is in it decides no bit.
INLINE = RunOptions(workers=0, batch=1, shard_size=2)
SAMPLING = Sampling(
    frames=4, size=32, train_views=2, test_clips=1, sampling="linspace", train_crop="multiscale"
)
FEW = ("pooled", "boxes")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = make_videos(tmp_path_factory.mktemp("grow"), len(SPLITS))
    write_rows(folder / "manifest.csv", range(len(SPLITS)))
    return folder


def write_rows(path: Path, clips, splits=SPLITS, **more) -> Path:
    """A manifest of some of the clips, in this order; `more` are columns: clip -> cell."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "path", "split", "label", *more))
        for k in clips:
            cells = [column.get(k, "") for column in more.values()]
            writer.writerow((f"clip{k}", f"clip{k}.mp4", splits[k], "ab"[k % 2], *cells))
    return path


def options_of(world: Path, keep=FEW, **sampling):
    return config_of(world, keep=keep, sampling=replace(SAMPLING, **sampling))


def run(world: Path, cache: Path, manifest="manifest.csv", config=None, options=INLINE, **more):
    manifest = read_manifest(world / manifest)
    return extract(config or options_of(world), manifest, cache, options, **more)


def values(path: Path, fields=None) -> dict[tuple, bytes]:
    """(group, clip, view, field) -> bytes, of every row that was extracted."""
    cache, found = Cache(path), {}
    for name in cache.groups:
        group = cache[name]
        rows = np.flatnonzero(group.ok)
        batch = group.batch(rows, fields)
        for k, row in enumerate(rows):
            for field, array in batch.items():
                key = name, group.clips[row], int(group.views[row]), field
                found[key] = array[k].tobytes()
    return found


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*.h5")}


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """All clips with all views and fields, at once."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    config = options_of(world, keep=("pooled", "nodes", "conv2"), test_clips=2)
    run(world, path, config=config, options=replace(INLINE, views_for_all=True))
    return path


@pytest.fixture(scope="module")
def plain_made(world, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "cache"
    run(world, path)
    return path


@pytest.fixture
def plain(plain_made, tmp_path) -> Path:
    """All clips, one test clip, few fields, views by split."""
    shutil.copytree(plain_made, tmp_path / "plain")
    return tmp_path / "plain"


def assert_part_of(found: dict, whole: dict) -> None:
    assert found
    for key, value in found.items():
        assert value == whole[key], key


def test_a_clip_has_the_views_that_its_split_needs_and_they_are_those_of_before(plain, whole):
    cache = Cache(plain)
    train = [f"clip{k}" for k, split in enumerate(SPLITS) if split == "train"]
    others = [f"clip{k}" for k, split in enumerate(SPLITS) if split != "train"]
    assert cache["train"].clips == np.repeat(train, 2).tolist()
    assert cache["test"].clips == others
    assert len(cache["train"].rows_of(others[0])) == 0
    assert_part_of(values(plain), values(whole))
    assert verify(plain) == []


def test_every_clip_has_both_where_the_manifest_has_folds_or_one_group_is_asked_for(
    world, tmp_path
):
    folds = write_rows(world / "folds.csv", (0, 1), fold={0: "1", 1: "2"})
    run(world, tmp_path / "folds", folds.name)
    assert [len(Cache(tmp_path / "folds")[name]) for name in ("train", "test")] == [4, 2]
    few = write_rows(world / "two.csv", (0, 1))
    run(world, tmp_path / "test", few.name, options_of(world, train_views=0))
    assert Cache(tmp_path / "test")["test"].clips == ["clip0", "clip1"]


def test_new_clips_are_appended_and_removed_ones_are_marked(world, tmp_path, whole):
    old = write_rows(world / "old.csv", (0, 1, 2))
    run(world, tmp_path / "cache", old.name)
    before = files(tmp_path / "cache")
    # In another order, without clip 1.
    new = write_rows(world / "new.csv", (5, 2, 4, 0, 3))
    summary = run(world, tmp_path / "cache", new.name)
    assert (summary.shards, summary.already, summary.removed) == (2, 2, ["clip1"])

    after = files(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    cache = Cache(tmp_path / "cache")
    assert [clip.clip for clip in cache.manifest.clips] == [f"clip{k}" for k in (0, 2, 5, 4, 3)]
    assert [clip.clip for clip in cache.stored.clips][1] == "clip1"
    assert_part_of(values(tmp_path / "cache"), values(whole))
    assert verify(tmp_path / "cache") == []
    assert not (tmp_path / "cache/manifest.next.csv").exists()

    data = DataOptions()
    part = require_split_views(cache, "test", "val", cache.manifest, ["a", "b"], data)
    assert part.clips == ("clip5",)
    assert run(world, tmp_path / "cache", new.name).shards == 0
    # Back again: nothing is computed.
    back = write_rows(world / "back.csv", range(6))
    summary = run(world, tmp_path / "cache", back.name)
    assert (summary.shards, summary.removed) == (0, [])


def test_clips_that_come_after_a_field_was_added_hold_it_in_their_own_file(world, tmp_path, whole):
    few = write_rows(world / "three.csv", (0, 1, 2))
    run(world, tmp_path / "cache", few.name)
    run(world, tmp_path / "cache", few.name, options_of(world, keep=("conv2",)))
    run(world, tmp_path / "cache")
    found = sorted(p.name for p in (tmp_path / "cache/features/conv2").glob("*.h5"))
    assert found == ["00000.h5", "00001.h5"]
    assert len(list((tmp_path / "cache/features").glob("*.h5"))) == 4
    assert "conv2" in Cache(tmp_path / "cache")["test"].fields
    assert_part_of(values(tmp_path / "cache"), values(whole))
    assert verify(tmp_path / "cache") == []


def test_a_clip_with_another_start_and_a_manifest_of_other_clips_are_refused(world, plain):
    moved = write_rows(world / "moved.csv", range(6), start={2: "0.25"})
    with pytest.raises(CacheError, match=r"clip2 goes from 0 s .*from 0\.25 s.*another folder"):
        run(world, plain, moved.name)
    rows = (world / "manifest.csv").read_text().replace("clip", "film", 1).splitlines()
    other = ["clip" + rows[0][4:], *(row.replace("clip", "film", 1) for row in rows[1:])]
    (world / "other.csv").write_text("\n".join(other))
    with pytest.raises(CacheError, match="holds none of the 6 clips"):
        run(world, plain, "other.csv")


def test_another_value_is_refused_and_other_contents_are_not(world, plain):
    with pytest.raises(CacheError, match="options: --seed 0; this command asks for: --seed 1"):
        run(world, plain, config=replace(options_of(world), seed=1))
    assert run(world, plain, config=options_of(world, keep=("pooled",), train_views=1)).shards == 0


def test_other_options_are_refused_before_weights_are_loaded(world, plain, monkeypatch):
    """Weights may have to be downloaded for a command that is refused anyway."""

    def load(config):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(pipeline.stages.frozen_networks, "backbone_of", load)
    monkeypatch.setattr(pipeline.stages.frozen_networks, "build_proposals", load)
    config = options_of(world)
    others = {
        "--size 32; this command asks for: --size 48": options_of(world, size=48),
        "--weights none; .* asks for: --weights imagenet": replace(config, weights="imagenet"),
        "--set backbone_options.width=8; .* for: --set backbone_options.width=3": replace(
            config, backbone_options={"width": 3}
        ),
        "--backbone .*, .*; .* asks for: --backbone resnet18, ": replace(
            config, backbone="resnet18", proposals="torchvision"
        ),
    }
    for message, other in others.items():
        with pytest.raises(CacheError, match=message):
            run(world, plain, config=other)
    # What cannot be told without them is left to them.
    with pytest.raises(AssertionError, match="weights were loaded"):
        run(world, plain, config=config)


def test_a_cache_of_weights_from_a_file_is_compared_by_what_else_differs(world, plain, monkeypatch):
    record = read_json(plain / "cache.json")
    record["config"]["weights"] = "5c" * 32
    del record["seal"]
    write_json(plain / "cache.json", record, "me")
    config = replace(options_of(world), weights="weights.pt")
    require_comparable(config, plain)
    with pytest.raises(CacheError, match=r"options: --seed 0; this command asks for: --seed 1"):
        require_comparable(replace(config, seed=1), plain)
    with pytest.raises(
        CacheError, match=r"options: --weights 5c5c5c5c5c5c \(SHA-256\); .*none\. Point"
    ):
        require_comparable(replace(config, weights="none"), plain)


def test_added_fields_lie_beside_the_old_ones_and_join_on_reading(world, plain, whole):
    before, rows = files(plain), values(plain)
    config = options_of(world, keep=("nodes", "conv2"))
    summary = run(world, plain, config=config)
    assert summary.shards == 3
    after = files(plain)
    assert {name: after[name] for name in before} == before
    assert "features/nodes+conv2/00000.h5" in after
    cache = Cache(plain)
    assert set(cache["train"].fields) >= {"pooled", "boxes", "nodes", "conv2"}
    joined = values(plain)
    assert {key: joined[key] for key in rows} == rows
    assert_part_of(joined, values(whole))
    assert verify(plain) == []
    assert run(world, plain, config=config).shards == 0

    build_graphs(plain, neighbours=2)
    assert verify(plain) == []
    assert "nearest" in Cache(plain)["train"].fields

    damaged = plain / "features/nodes+conv2/00001.h5"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    bad = bad_shards(plain)
    assert bad["features/nodes+conv2"] == [1]
    manifest = read_manifest(world / "manifest.csv")
    extract(config, manifest, plain, INLINE, [1], redo=True, stage="features/nodes+conv2")
    assert files(plain)[str(damaged.relative_to(plain))] == after["features/nodes+conv2/00001.h5"]
    assert verify(plain) == []


def test_added_fields_are_left_out_while_their_features_are_newer(world, plain):
    world = Path(shutil.copytree(world, plain.parent / "world"))
    config = options_of(world, keep=("conv2",))
    run(world, plain, config=config)
    shutil.copy(world / "clip5.mp4", world / "clip0.mp4")
    # As `vidgraph repair --changed` does.
    run(world, plain, shards=[0], redo=True, stage="features")
    assert "conv2" not in Cache(plain)["train"].fields
    assert any("stale" in finding.what for finding in verify(plain))
    assert bad_shards(plain)["features/conv2"]
    assert run(world, plain, config=config).shards == 1
    assert "conv2" in Cache(plain)["train"].fields
    assert verify(plain) == []


def test_more_views_are_added_and_equal_ones_are_not_computed_again(world, plain, whole):
    before = files(plain)
    summary = run(world, plain, config=options_of(world, test_clips=2, train_views=2))
    # Three clips have test views; linspace keeps the first of two where the only one was.
    assert (summary.clips, summary.views) == (3, 3)
    after = files(plain)
    assert {name: after[name] for name in before} == before
    test = Cache(plain)["test"]
    assert test.views.tolist() == [0, 1] * 3
    assert test.per_clip == 2
    assert_part_of(values(plain), values(whole))
    assert verify(plain) == []
    build_graphs(plain, which=("iou",))
    assert verify(plain) == []


def test_views_that_move_are_computed_again_and_that_is_said(world, tmp_path):
    lines: list[str] = []
    few = write_rows(world / "moving.csv", (1, 3))
    config = options_of(world, sampling="stride", fps=8.0, train_views=0)
    run(world, tmp_path / "cache", few.name, config)
    more = options_of(world, sampling="stride", fps=8.0, train_views=0, test_clips=2)
    summary = run(world, tmp_path / "cache", few.name, more, say=lines.append)
    assert summary.views == 4
    assert any("0 of its 1 test clip are among the 2" in line for line in lines)
    run(world, tmp_path / "new", few.name, more)
    assert values(tmp_path / "cache") == values(tmp_path / "new")
    assert verify(tmp_path / "cache") == []


def test_a_clip_whose_split_has_changed_is_refused_with_the_command_that_helps(world, plain, whole):
    splits = ("val", *SPLITS[1:])
    manifest = read_manifest(write_rows(world / "moved_split.csv", range(6), splits))
    with pytest.raises(
        ValueError, match=r"'val' \(clip0\) has no test views; run .*--add views --man"
    ):
        require_split_views(Cache(plain), "test", "val", manifest, ["a", "b"], DataOptions())
    with pytest.raises(ValueError, match=r"--add views --views-for-all"):
        require_split_views(Cache(plain), "test", "train", manifest, ["a", "b"], DataOptions())
    summary = run(world, plain, "moved_split.csv")
    assert (summary.clips, summary.views) == (1, 1)
    cache = Cache(plain)
    part = require_split_views(cache, "test", "val", cache.manifest, ["a", "b"], DataOptions())
    assert "clip0" in part.clips
    # Its training views stay.
    assert len(cache["train"].rows_of("clip0")) == 2
    assert_part_of(values(plain), values(whole))
    assert verify(plain) == []


STEPS = ("write_clips", "move_into_place", "write_json")


# The newer manifest, the copy of the earlier one, cache.json, and the manifest's name.
CALLS = [*STEPS[:2], *STEPS[:2], "write_json", "move_into_place"]


@pytest.mark.parametrize("step", range(len(CALLS)))
def test_a_run_that_dies_while_the_cache_grows_leaves_a_whole_cache(
    world, tmp_path, monkeypatch, step
):
    old = write_rows(world / "before.csv", (0, 1))
    run(world, tmp_path / "cache", old.name)
    rows = values(tmp_path / "cache")
    new = write_rows(world / "after.csv", (0, 1, 2))

    calls = []

    def dying(name):
        real = getattr(pipeline.cache.growth, name)

        def call(*args):
            calls.append(name)
            if len(calls) > step:
                raise KeyboardInterrupt
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(pipeline.cache.growth, name, dying(name))
        with pytest.raises(KeyboardInterrupt):
            run(world, tmp_path / "cache", new.name)
    assert calls == CALLS[: step + 1]
    cache = Cache(tmp_path / "cache")
    assert len(cache.manifest.clips) == (3 if step == len(CALLS) - 1 else 2)
    assert_part_of(rows, values(tmp_path / "cache"))
    run(world, tmp_path / "cache", new.name)
    assert len(Cache(tmp_path / "cache")["train"]) == 4
    # The next growth finds a step that was not finished.
    run(world, tmp_path / "cache", write_rows(world / "later.csv", (0, 1, 2, 4)).name)
    assert len(Cache(tmp_path / "cache")["train"]) == 6
    assert not (tmp_path / "cache/manifest.next.csv").exists()
    assert verify(tmp_path / "cache") == []


def test_a_shard_of_other_clips_is_refused(world, plain):
    for ending in ("h5", "json"):
        shutil.copy(plain / f"features/00000.{ending}", plain / f"features/00001.{ending}")
    found = verify(plain)
    assert any("clips_sha256 is" in finding.what for finding in found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nearest-boxes", "0.5"], {"nearest": 0.5}),
        (["--boxes", "3"], {"num_boxes": 3}),
    ],
)
def test_add_takes_every_option_of_the_source_of_boxes(plain, words, expected):
    """An option that was not passed on would be lost without a word."""
    seen = {}

    def command(**given):
        config, _, _ = added_to(given, RunOptions(workers=0))
        seen.update(config.proposal_options)

    probe = click.Command("extract", params=extract_command.params, callback=command)
    CliRunner().invoke(
        probe, ["--cache", str(plain), "--add", "conv2", *words], catch_exceptions=False
    )
    assert expected.items() <= seen.items()
