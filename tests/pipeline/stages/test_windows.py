"""Windows of long videos: where they lie, and which frames the times of their manifest mean."""

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli.__main__ import vidgraph
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.windows import WindowGrid
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import ClipOpener
from pipeline.views.sampling import Sampling

FPS, FRAMES = 10, 47


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folders a and b with a video each, and one that is none."""
    place = tmp_path_factory.mktemp("windows")
    for k, name in enumerate(("a/one.mp4", "b/two.mp4")):
        path = place / "videos" / name
        path.parent.mkdir(parents=True)
        rng = np.random.default_rng(k)
        write_video(path, rng.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8), FPS)
    return place


def run(*args: object):
    return CliRunner().invoke(vidgraph, ["manifest", "windows", *(str(arg) for arg in args)])


@pytest.mark.parametrize(
    ("length", "stride", "total", "expected"),
    [
        (2, 1, 5, [(0, 2), (1, 3), (2, 4), (3, 5)]),
        (2, 2, 5, [(0, 2), (2, 4), (4, 5)]),  # half a window is kept
        (2, 2, 4.9, [(0, 2), (2, 4)]),  # less is not
        (2, 1, 1.5, [(0, 1.5)]),
        (2, 1, 0.2, [(0, 0.2)]),  # a short video is one window
        (1, 3, 5, [(0, 1), (3, 4)]),  # gaps
        (0.2, 0.1, 0.5, [(0, 0.2), (0.1, 0.3), (0.2, 0.4), (0.3, 0.5)]),
    ],
)
def test_windows_begin_at_multiples_of_the_stride(length, stride, total, expected):
    found = list(WindowGrid(length, stride).spans(total))
    assert np.allclose(found, expected)


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0), (float("inf"), 1), (-1, 1)])
def test_a_grid_without_a_length_or_a_stride_is_refused(wrong):
    with pytest.raises(ValueError, match="expected seconds above 0"):
        WindowGrid(*wrong)
    with pytest.raises(ValueError, match="whole number of frames"):
        WindowGrid(2.5, 1, "frames")


def test_windows_in_frames_have_exactly_these_frames(place):
    out = place / "frames.csv"
    done = run(place / "videos", "--length", 16, "--stride", 8, "--unit", "frames", "--out", out)
    assert done.exit_code == 0, done.output
    manifest = read_manifest(out)
    opener = ClipOpener(manifest.root)
    found = []
    for clip in manifest.clips:
        if clip.labels == ("a",):
            with opener.open(clip) as reader:
                found.append((reader.info.first, reader.info.frames))
    assert found == [(0, 16), (8, 16), (16, 16), (24, 16), (32, 15)]


def test_windows_in_seconds_have_the_frames_that_are_shown_then(place):
    out = place / "lists" / "seconds.csv"
    assert run(place / "videos", "--length", 2, "--stride", 1, "--out", out).exit_code == 0
    manifest = read_manifest(out)
    # One video of 4.7 s: windows from 0 to 3, the last of 1.7 s.
    clips = [clip for clip in manifest.clips if clip.labels == ("a",)]
    assert [clip.clip for clip in clips] == [f"a/one.mp4@0000{k}.000" for k in range(4)]
    assert [(clip.start, clip.end) for clip in clips] == [(0, 2), (1, 3), (2, 4), (3, None)]
    opener = ClipOpener(manifest.root)
    for clip, (first, frames) in zip(clips, [(0, 20), (10, 20), (20, 20), (30, 17)], strict=True):
        with opener.open(clip) as reader:
            assert (reader.info.first, reader.info.frames) == (first, frames)
    # All windows of a video are in one split.
    by_video = {}
    for clip in manifest.clips:
        by_video.setdefault(clip.place, set()).add(clip.split)
    assert all(len(splits) == 1 for splits in by_video.values())


def test_windows_of_a_manifest_keep_its_labels_splits_and_times(place):
    rows = [
        "clip,path,split,label,start,end,person",
        "x,videos/a/one.mp4,val,c;d,1,3.5,ann",
        "y,videos/b/two.mp4,test,,,,bob",
    ]
    (place / "own.csv").write_text("\n".join(rows) + "\n")
    out = place / "of_manifest.csv"
    done = run(place / "own.csv", "--length", 2, "--stride", 2, "--out", out)
    assert done.exit_code == 0, done.output
    found = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["clip"], row["start"], row["end"]) for row in found] == [
        ("x@00001.000", "1", "3"),
        ("y@00000.000", "0", "2"),
        ("y@00002.000", "2", "4"),
    ]
    assert [(row["split"], row["label"], row["person"]) for row in found[:2]] == [
        ("val", "c;d", "ann"),
        ("test", "", "bob"),
    ]


def test_one_video_is_enough_and_a_bad_one_is_named(place, tmp_path):
    out = tmp_path / "one.csv"
    assert run(place / "videos" / "a" / "one.mp4", "--out", out).exit_code == 0
    assert read_manifest(out).clips[0].path == (place / "videos" / "a" / "one.mp4").resolve()

    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "bad.mp4").write_text("not a video")
    (videos / "good.mp4").write_bytes((place / "videos" / "a" / "one.mp4").read_bytes())
    command = ["manifest", "windows", str(videos), "--out", str(tmp_path / "both.csv")]
    done = CliRunner().invoke(vidgraph, [*command, "--workers", "0"], standalone_mode=False)
    assert done.return_value == 3
    assert "bad.mp4: FFmpeg cannot open it" in done.output
    assert "1 of 2 videos cannot be opened" in done.output
    assert {clip.path.name for clip in read_manifest(tmp_path / "both.csv").clips} == {"good.mp4"}


def test_a_cache_of_windows_has_the_seconds_of_every_step(place, tmp_path):
    out = place / "for_cache.csv"
    assert run(place / "videos", "--length", 2, "--stride", 1, "--out", out).exit_code == 0
    sampling = Sampling(
        frames=8, size=32, sampling="linspace", train_views=1, train_crop="centre", flip=0.0
    )
    config = ExtractConfig(
        backbone="digit_cnn", backbone_options={"width": 8}, keep=("pooled",), sampling=sampling
    )
    extract(config, read_manifest(out), tmp_path / "cache", RunOptions(workers=0, batch=4))
    cache = Cache(tmp_path / "cache")
    for name in cache.groups:
        group = cache[name]
        found = group.batch(range(len(group)), fields=("time", "frames"))
        assert found["time"].dtype == np.float32
        steps, frames = found["time"].shape[1], found["frames"].shape[1]
        shown = found["frames"][:, [t * frames // steps for t in range(steps)]]
        # The file's frame k is shown at k / FPS seconds.
        np.testing.assert_allclose(found["time"], shown / FPS, atol=1e-4)
