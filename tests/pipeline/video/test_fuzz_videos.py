"""Damaged videos and pictures: each is a recorded failure or a clip like any other, and the clips
beside it do not notice.
"""

import io
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.verify import verify
from pipeline.video.decode import open_clip
from pipeline.video.frame_reader import DecodeError
from pipeline.video.view_pixels import ClipOpener
from tests.support.damage import (
    SIDE,
    Case,
    damaged_pictures,
    damaged_videos,
    picture_that_claims,
    whole_videos,
)
from tests.support.tiny_videos import SAMPLING, everything, write_csv

EVERY = 10  # a whole video after as many damaged ones
OPTIONS = RunOptions(views_for_all=True, workers=2, batch=8, shard_size=100, time_limit=300)
CONFIG = ExtractConfig(
    backbone="digit_cnn",
    backbone_options={"width": 8},
    keep=("pooled",),
    sampling=replace(SAMPLING, frames=4, train_views=1),
)
# Neither DecodeTimeout (it hung) nor DecoderDied (it crashed).
ERRORS = {"DecodeError", "TruncatedVideo"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    return whole_videos(tmp_path_factory.mktemp("whole"))


def picture(suffix: str) -> bytes:
    data = io.BytesIO()
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (SIDE // 8, SIDE // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(data, {".png": "PNG", ".jpg": "JPEG"}[suffix])
    return data.getvalue()


def folder_of(cases: list[Case], whole: dict[str, bytes], folder: Path) -> Path:
    """Write the cases, with whole videos between them, and a manifest.

    A case that is a picture is one frame of a folder.
    """
    folder.mkdir()
    rows = []
    for k, case in enumerate(cases):
        if case.name.endswith((".png", ".jpg")):
            suffix = case.name[-4:]
            (folder / case.name).mkdir()
            # The sampling reads all of these frames.
            for n in range(CONFIG.sampling.frames):
                data = case.data if n == 2 else picture(suffix)
                (folder / case.name / f"{n}{suffix}").write_bytes(data)
        else:
            (folder / case.name).write_bytes(case.data)
        rows.append((case.name, case.name, "train", "a"))
        if k % EVERY == 0:
            name = f"whole{k}"
            (folder / f"{name}.mp4").write_bytes(whole["h264"])
            rows.append((name, f"{name}.mp4", "train", "a"))
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    return folder


def check(cases: list[Case], whole: dict[str, bytes], folder: Path) -> Counter:
    """Extract the cases, and count how they end.

    Fails where a case is missing, or changes its neighbours.
    """
    folder_of(cases, whole, folder / "videos")
    manifest = read_manifest(folder / "videos" / "manifest.csv")
    summary = extract(CONFIG, manifest, folder / "cache", OPTIONS)
    failed = {failure["clip"]: failure for failure in summary.failures}
    assert len(failed) == len(summary.failures)
    outcomes: Counter = Counter()
    for case in cases:
        error = failed[case.name]["error"] if case.name in failed else "read"
        outcomes[error] += 1
        assert error in ERRORS or (error == "read" and not case.hopeless), (
            f"{case.name}: {error} {failed.get(case.name)}"
        )
        if error != "read":
            said = failed[case.name]["message"]
            assert said
            assert len(said.splitlines()) == 1
            assert len(said) < 500
            assert "Traceback" not in said
    stored, opened = everything(folder / "cache"), Cache(folder / "cache")
    clips = {clip.clip for clip in manifest.clips}
    for table in stored.values():
        assert {clip for clip, _ in table} == clips - failed.keys()  # no silent gap
        neighbours = [
            data for (clip, view), data in table.items() if clip.startswith("whole") and view == 0
        ]
        assert len(neighbours) == len(range(0, len(cases), EVERY))
    # The whole videos are one video, whatever stood before them.
    pooled = stored["test/pooled"]
    assert len({pooled[clip, 0] for clip in clips if clip.startswith("whole")}) == 1
    assert {finding.what.split(":")[0] for finding in verify(opened.path)} <= {"failed"}
    return outcomes


def test_damaged_videos_end_as_recorded_failures(whole, tmp_path):
    outcomes = check(list(damaged_videos(whole, 40)), whole, tmp_path)
    assert outcomes.total() == 40
    assert outcomes["read"] < 30


@pytest.mark.slow
def test_a_thousand_damaged_videos_end_as_recorded_failures(whole, tmp_path, capsys):
    outcomes = check(list(damaged_videos(whole, 1100, seed=1)), whole, tmp_path)
    with capsys.disabled():
        print(f"\n1,100 damaged videos: {dict(outcomes)}")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_pictures_in_a_folder_of_frames_end_as_recorded_failures(whole, tmp_path, suffix):
    cases = [
        case._replace(name=f"{k}-{case.name}")
        for k, case in enumerate(damaged_pictures(picture(suffix), suffix))
    ]
    check([case for case in cases if case.hopeless or hash_of(case.name) % 4 == 0], whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_many_damaged_pictures_end_as_recorded_failures(whole, tmp_path, suffix):
    cases = (case for seed in range(3) for case in damaged_pictures(picture(suffix), suffix, seed))
    check([case._replace(name=f"{k}-{case.name}") for k, case in enumerate(cases)], whole, tmp_path)


def hash_of(name: str) -> int:
    return sum(name.encode())


def reason(clip) -> str:
    with pytest.raises(DecodeError) as caught, open_clip(clip) as reader:
        reader.read(range(reader.info.frames))
    return caught.value.reason


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("side", [9_000, 65_535, 100_000])
def test_a_picture_that_claims_to_be_enormous_is_refused_before_it_is_decoded(
    tmp_path, clip_of, suffix, side
):
    if suffix == ".jpg" and side > 65_535:
        pytest.skip("a JPEG cannot say so")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / f"1{suffix}").write_bytes(
        picture_that_claims(picture(suffix), suffix, side)
    )
    assert re.search(
        f"claims {side}x{side} pixels|exceeds limit", reason(clip_of(tmp_path / "clip"))
    )


def test_a_frame_that_is_larger_than_its_container_says_is_refused(tmp_path, clip_of):
    """The first pictures of the stream are 64 x 64 pixels, and so says the container; then comes a
    large one, whole.
    """
    bomb = io.BytesIO()
    Image.new("RGB", (9_000, 9_000)).save(bomb, "JPEG", quality=1)
    path = tmp_path / "clip.mjpeg"
    path.write_bytes(picture(".jpg") * 3 + bomb.getvalue())
    with open_clip(clip_of(path)) as reader:
        assert (reader.info.frames, reader.info.width) == (4, SIDE)
        assert reader.read([0, 2]).shape == (2, SIDE, SIDE, 3)
        with pytest.raises(DecodeError, match="frame 3"):
            reader.read([3])


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret}\n",
        "ffconcat version 1.0\nfile '{name}'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S">'
        '<Period><AdaptationSet mimeType="video/mp2t"><Representation id="1" '
        'bandwidth="1"><BaseURL>{secret}</BaseURL>'
        "<SegmentBase/></Representation></AdaptationSet></Period></MPD>",
    ],
    ids=["hls", "concat", "concat by name", "dash"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".mpd", ".ffconcat"])
def test_a_list_of_other_files_under_a_videos_name_is_not_followed(
    whole, tmp_path, clip_of, content, suffix
):
    """FFmpeg plays such lists; what they name may lie outside the root."""
    secret = tmp_path / "secret.ts"
    secret.write_bytes(whole["stream"])
    path = tmp_path / f"clip{suffix}"
    path.write_text(content.format(secret=secret, name=secret.name))
    assert "cannot open it" in reason(clip_of(path))


@pytest.mark.parametrize("what", ["file", "folder above", "folder of frames", "picture"])
def test_links_out_of_the_root_are_not_followed(whole, tmp_path, clip_of, what):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    (outside / "frames").mkdir(parents=True)
    (outside / "video.mp4").write_bytes(whole["h264"])
    (outside / "frames" / "1.png").write_bytes(picture(".png"))
    links = {
        "file": "clip.mp4",
        "folder above": "above",
        "folder of frames": "frames",
        "picture": "frames/2.png",
    }
    targets = {
        "file": "video.mp4",
        "folder above": ".",
        "folder of frames": "frames",
        "picture": "frames/1.png",
    }
    if what == "picture":
        (root / "frames").mkdir()
        (root / "frames" / "1.png").write_bytes(picture(".png"))
    (root / links[what]).symlink_to(outside / targets[what])
    clip = {"file": "clip.mp4", "folder above": "above/video.mp4"}.get(what, "frames")
    with pytest.raises(DecodeError, match="outside"):
        ClipOpener(root).open(clip_of(root / clip))
    inner = root / "inner"
    inner.mkdir()
    (inner / "1.png").write_bytes(picture(".png"))
    (inner / "2.png").symlink_to("1.png")
    assert ClipOpener(root).open(clip_of(inner)).info.frames == 2


@pytest.mark.parametrize(
    "path",
    ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4", "{root}/../secret.mp4", "a\0b", "\n"],
)
def test_paths_that_leave_the_root_are_refused_when_the_manifest_is_read(tmp_path, path):
    (tmp_path / "root").mkdir()
    write_csv(
        tmp_path / "root/m.csv",
        ("clip", "path", "split", "label"),
        [("a", path.format(root=tmp_path / "root"), "train", "")],
    )
    with pytest.raises(ValueError, match=r"line 2"):
        read_manifest(tmp_path / "root" / "m.csv")


def test_a_pipe_or_device_in_the_place_of_a_video_fails_at_once(tmp_path, clip_of):
    os.mkfifo(tmp_path / "clip.mp4")
    assert "no such file" in reason(clip_of(tmp_path / "clip.mp4"))
    (tmp_path / "clip").mkdir()
    os.mkfifo(tmp_path / "clip" / "1.png")
    assert "not a file" in reason(clip_of(tmp_path / "clip"))
