"""The dry run predicts the real one: bytes are compared, times are computed with made-up clocks."""

import csv
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Manifest, read_manifest, write_clips
from pipeline.stages import plan as planning
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.plan import ExtractionPlan, make_plan
from pipeline.video.decode import write_video
from pipeline.views.sampling import Sampling

COUNT = 30
CONFIG = ExtractConfig(
    backbone="digit_cnn",
    backbone_options={"width": 8},
    keep=("pooled", "nodes", "conv2"),
    sampling=Sampling(frames=4, size=64, train_views=2, test_clips=1),
    proposals="grid",
    weights="none",
)
INLINE = RunOptions(workers=0, batch=2, shard_size=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Thirty rows of three videos, with parts, several labels, blanks and a column of their own."""
    folder = tmp_path_factory.mktemp("a world")
    rng = np.random.default_rng(0)
    for k in range(3):
        write_video(folder / f"a clip {k}.mp4", rng.integers(0, 256, (8, 64, 80, 3), np.uint8), 8)
    with open(folder / "m.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("note", "clip", "path", "split", "label", "start", "end"))
        for k in range(COUNT):
            start = "" if k % 2 else "0.25"
            clip = (f"n, {k}", f"c {k}", f"a clip {k % 3}.mp4")
            writer.writerow((*clip, "train", "x;y", start, ""))
    return folder


@pytest.fixture(scope="module")
def manifest(world) -> Manifest:
    return read_manifest(world / "m.csv")


def made(**changes) -> ExtractionPlan:
    """A plan of 1,000 clips at 2 s, 10 shards, 6 s to start."""
    base = ExtractionPlan(
        clips=1000,
        measured=10,
        failed=(),
        clip_seconds=2.0,
        start_seconds=6.0,
        parts={},
        fields=(),
        bytes=100,
        there=0,
        free=100,
        shards=10,
        per_shard=100,
        device="cpu",
    )
    return replace(base, **changes)


def test_bytes_are_those_of_the_real_run(manifest, tmp_path):
    for k, compression in enumerate(("none", "lzf")):
        options = replace(INLINE, compression=compression)
        plan = make_plan(CONFIG, manifest, tmp_path / f"{k}", options, clips=4)
        extract(CONFIG, manifest, tmp_path / f"{k}", options)
        real = sum(path.stat().st_size for path in (tmp_path / f"{k}").glob("features/*.h5"))
        assert plan.bytes == pytest.approx(real, rel=0.02)
        assert (plan.shards, plan.per_shard) == (3, 10)
        cache = Cache(tmp_path / f"{k}")
        sizes = {(field.group, field.name): field for field in plan.fields}
        for group in cache.groups:
            for name in cache[group].fields:
                field, rows = sizes.pop((group, name)), range(len(cache[group]))
                assert field.shape == cache[group].shape(name)
                assert field.bytes == cache[group].batch(rows, [name])[name].nbytes
        assert not sizes


def test_what_is_there_already_needs_no_room(manifest, tmp_path, monkeypatch):
    # Two of three shards, with ten clips each.
    extract(CONFIG, manifest, tmp_path / "cache", INLINE, shards=[0, 1])
    free = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    free.append(0)
    plan = make_plan(CONFIG, manifest, tmp_path / "cache", replace(INLINE, shard_size=7), clips=2)
    # The existing cache keeps its own clips per shard.
    assert (plan.shards, plan.per_shard) == (3, 10)
    assert plan.bytes * 0.6 < plan.there < plan.bytes * 0.75
    assert not plan.fits
    assert replace(plan, free=plan.bytes - plan.there).fits


def test_nothing_stays_on_the_disk(manifest, world, tmp_path):
    before = sorted(world.rglob("*"))
    make_plan(CONFIG, manifest, tmp_path / "not/there/yet", INLINE, clips=2)
    wrong = replace(CONFIG, backbone_options={"width": "x"})
    with pytest.raises(ValueError, match="backbone_options"):
        make_plan(wrong, manifest, tmp_path, INLINE, clips=2)
    assert not list(tmp_path.iterdir())
    assert sorted(world.rglob("*")) == before


def test_the_sample_is_spread_over_the_manifest_and_always_the_same(manifest):
    clips = planning._sample(manifest.clips, 10)
    assert clips == planning._sample(manifest.clips, 10)
    assert [clip.position // 3 for clip in clips] == list(range(10))
    # Not every third clip: a manifest may have a rhythm.
    assert len({clip.position % 3 for clip in clips}) > 1
    assert planning._sample(manifest.clips, 99) == list(manifest.clips)


def test_the_sample_holds_the_clips_as_the_manifest_has_them(manifest, tmp_path):
    chosen = planning._sample(manifest.clips, 7)
    write_clips(tmp_path / "m.csv", chosen)
    again = read_manifest(tmp_path / "m.csv", manifest.root).clips
    expected = [replace(clip, position=0) for clip in chosen]
    assert [replace(clip, position=0) for clip in again] == expected


def invented(monkeypatch, steps: dict[int, float], total: float, decode: float = 2.0) -> None:
    """Replace the clock: clip k (from 1) takes steps[k] seconds, or 2.

    The run takes `total` seconds, and the decoding of a shard `decode` seconds.
    """
    moments, now = [0.0], 0.0
    for k in range(1, COUNT + 1):
        now += steps.get(k, 2.0)
        moments.append(now)
    clock = iter(moments)

    class TimedCache(Cache):
        @cached_property
        def records(self):
            records = super().records
            for record in records["features"].values():
                record["seconds"] = {"decode": decode, "backbone": 6.0, "wall": 99.0}
            return records

    monkeypatch.setattr(planning, "monotonic", lambda: next(clock))

    def timed_extract(*args, **more):
        return replace(extract(*args, **more), seconds=total)

    monkeypatch.setattr(planning, "Cache", TimedCache)
    monkeypatch.setattr(planning, "extract", timed_extract)


def test_the_first_clips_and_the_last_shard_are_not_timed_and_the_rest_is_the_start(
    manifest, tmp_path, monkeypatch
):
    invented(monkeypatch, {1: 90.0, 2: 7.0, 9: 50.0}, total=175.0)
    # Rounded up to whole batches: shards of 4, 4 and 1 clips.
    plan = make_plan(CONFIG, manifest, tmp_path / "cache", INLINE, clips=3)
    assert plan.measured == 9
    assert plan.clip_seconds == 2.0
    assert plan.start_seconds == 175.0 - 9 * 2.0
    assert plan.parts == {"decode": 0.5, "backbone": 1.5}


def test_every_clip_between_is_timed(manifest, tmp_path, monkeypatch):
    invented(monkeypatch, {3: 8.0, 8: 14.0}, total=0.0)
    plan = make_plan(CONFIG, manifest, tmp_path / "cache", INLINE, clips=4)
    assert plan.clip_seconds == (8 + 2 * 4 + 14) / 6
    assert plan.start_seconds == 0


def test_decoders_that_ran_ahead_count_where_they_are_the_slowest(manifest, tmp_path, monkeypatch):
    invented(monkeypatch, {}, total=100.0, decode=40.0)
    plan = make_plan(CONFIG, manifest, tmp_path / "cache", replace(INLINE, workers=2), clips=4)
    assert plan.clip_seconds == 40.0 / 4 / 2


def test_decoders_are_as_many_as_the_run_starts_on_the_cores_that_it_may_use(monkeypatch):
    monkeypatch.setattr(planning, "pick_device", lambda name: "cuda")
    monkeypatch.setattr(planning, "cores_here", lambda: 3)
    assert planning._decoders(replace(INLINE, workers=None)) == 2
    assert planning._decoders(replace(INLINE, workers=5)) == 5


def test_more_workers_share_shards_and_each_pays_for_its_start():
    plan = made()
    one, eight, many = (plan.with_workers(workers) for workers in (1, 8, 64))
    assert (one.busy, one.seconds, one.device_hours) == (1, 6 + 2000, 2006 / 3600)
    # Two rounds of shards.
    assert (eight.busy, eight.seconds, eight.device_hours) == (8, 6 + 2 * 200, 2048 / 3600)
    assert (many.busy, many.seconds, many.device_hours) == (10, 6 + 200, 2060 / 3600)
    assert made(shards=1, per_shard=5000).with_workers(64).seconds == 2006


def test_a_manifest_shorter_than_the_sample_is_planned(manifest, world, tmp_path):
    lines = (world / "m.csv").read_text().splitlines()
    (world / "short.csv").write_text("\n".join(lines[:3]) + "\n")
    short = read_manifest(world / "short.csv")
    plan = make_plan(CONFIG, short, tmp_path / "cache", INLINE, clips=8)
    assert (plan.clips, plan.measured, plan.shards) == (2, 2, 1)
    assert plan.clip_seconds > 0


def broken(world: Path, every: int) -> Manifest:
    (world / "text.mp4").write_text("no video")
    rows = [f"c{k},{'text.mp4' if k % every == 0 else 'a clip 0.mp4'},train,x" for k in range(20)]
    (world / "broken.csv").write_text("\n".join(["clip,path,split,label", *rows]) + "\n")
    return read_manifest(world / "broken.csv")


def test_clips_that_fail_are_told_and_if_all_do_there_is_no_plan(world, tmp_path):
    plan = make_plan(CONFIG, broken(world, 2), tmp_path / "cache", INLINE, clips=4)
    assert 0 < len(plan.failed) < plan.measured
    with pytest.raises(
        ValueError, match=r"every clip that was tried failed, 9 in all .*vidgraph check"
    ):
        make_plan(CONFIG, broken(world, 1), tmp_path / "cache", INLINE, clips=4)
    assert not list(tmp_path.iterdir())


def run(world: Path, *more: object):
    from cli.plan import command

    given = [
        *("--manifest", world / "m.csv", "--cache", world / "cache"),
        *("--backbone", "digit_cnn", "--weights", "none", "--set", "backbone_options.width=8"),
        *("--proposals", "grid", "--frames", 4, "--size", 64, "--workers", 0, "--clips", 2),
    ]
    return CliRunner().invoke(command, list(map(str, (*given, *more))), standalone_mode=False)


def test_the_verb_says_bytes_time_and_room(world, monkeypatch):
    done = run(world)
    assert done.return_value == 0, done.exception
    for words in ("pooled", "device hours", "measured ", "s a clip", "it fits", "64"):
        assert words in done.output
    usage = shutil.disk_usage(world)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage._replace(free=0))
    short = run(world)
    assert short.return_value == 3
    assert "are missing" in short.output


def test_the_options_and_their_defaults_are_those_of_extract():
    from cli.extract import command as extracting
    from cli.plan import command

    theirs = {parameter.name: parameter for parameter in extracting.params}
    ours = {parameter.name: parameter for parameter in command.params}
    for name in set(ours) - {"clips"}:
        assert ours[name].opts == theirs[name].opts
        assert ours[name].default == theirs[name].default
    expected = "frames keep backbone batch workers compression shard_bytes device settings"
    assert set(expected.split()) <= set(ours)
    assert "shards" not in ours
