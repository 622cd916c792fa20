"""A video that stays open gives the pixels that a reader of the clip alone gives; opened once."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.manifests.manifest import Clip, read_manifest, write_clips
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import extract
from pipeline.stages.jobs import RunOptions
from pipeline.stages.shard_rows import RUN, _runs
from pipeline.video import kept_video
from pipeline.video.decode import open_clip, write_video
from pipeline.video.frame_reader import DecodeError
from pipeline.video.kept_video import close_kept
from pipeline.video.view_pixels import ClipOpener, DecodeViews
from pipeline.views.sampling import Sampling
from tests.support.tiny_videos import everything

FPS, FRAMES = 10, 60


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8), FPS)
    return path


@pytest.fixture(autouse=True)
def nothing_kept():
    close_kept()
    yield
    close_kept()


def windows(video: Path, length: float = 2.0, stride: float = 1.0) -> list[Clip]:
    starts = np.arange(0, FRAMES / FPS - length + 1e-6, stride).tolist()
    return [
        Clip(f"w{k}", str(video), "test", (), start, start + length, position=k)
        for k, start in enumerate(starts)
    ]


def opened(monkeypatch) -> list[Clip]:
    """The clips whose files are opened from now on."""
    seen = []

    def spy(clip, *options):
        seen.append(clip)
        return open_clip(clip, *options)

    monkeypatch.setattr("pipeline.video.view_pixels.open_clip", spy)
    return seen


def pixels_of(clips: list[Clip], root: Path, decoder: str, keep: bool) -> list:
    sampling = Sampling(frames=8, size=24, train_views=2, test_clips=1)
    opener, found = ClipOpener(root, decoder), []
    for number, again, _ in _runs(clips, range(len(clips))):
        clip = clips[number]
        task = DecodeViews(clip, opener, sampling, 0, 4, 24, again=keep and again)
        found.append(task.run())
    return found


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_windows_of_one_video_have_the_pixels_that_they_have_alone(video, decoder, monkeypatch):
    clips = windows(video)
    alone = pixels_of(clips, video.parent, decoder, keep=False)
    close_kept()
    seen = opened(monkeypatch)
    together = pixels_of(clips, video.parent, decoder, keep=True)
    assert len(seen) == 1
    for one, other in zip(alone, together, strict=True):
        assert (one.info, one.views, one.numbers) == (other.info, other.views, other.numbers)
        np.testing.assert_array_equal(one.frames, other.frames)
        for mine, yours in zip(one.pixels, other.pixels, strict=True):
            np.testing.assert_array_equal(mine, yours)
    # It stays open for the windows of the next shard; another video's clip closes it.
    assert kept_video._kept


def test_a_frame_of_two_windows_is_decoded_once(video):
    opener, decoded = ClipOpener(video.parent), []
    clips = windows(video)
    for number, again, _ in _runs(clips, range(len(clips))):
        clip = clips[number]
        with opener.open(clip, again) as reader:
            if clip is clips[0]:
                whole = kept_video._kept[0].reader
                real = whole._decode

                def spy(numbers, real=real):
                    decoded.append(numbers)
                    return real(numbers)

                whole._decode = spy
            frames = reader.read(range(reader.info.frames))
            assert len(frames) == 20
    numbers = [number for some in decoded for number in some]
    assert sorted(numbers) == list(range(FRAMES))


def test_the_frames_that_are_kept_have_a_bound(video, monkeypatch):
    one = 64 * 64 * 3
    monkeypatch.setattr(kept_video, "KEPT_BYTES", 5 * one)
    with ClipOpener(video.parent).open(windows(video)[0], True) as reader:
        first = reader.read(range(12))
        kept = kept_video._kept[0]
        assert list(kept.frames) == [7, 8, 9, 10, 11]
        assert kept.bytes == 5 * one
        np.testing.assert_array_equal(reader.read(range(12)), first)
        assert kept.bytes == 5 * one


def test_another_video_or_a_changed_one_is_opened_anew(video, tmp_path, monkeypatch):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    seen = opened(monkeypatch)
    opener = ClipOpener(Path("/"))
    (first, second, *_), other = windows(video), windows(copy)[0]
    for clip in (first, second, other, first):
        opener.open(clip, True).close()
    assert [clip.place for clip in seen] == [str(video), str(copy), str(video)]
    opener.open(other, True).close()
    rng = np.random.default_rng(1)
    write_video(copy, rng.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8), FPS)
    with opener.open(other, True) as reader:
        changed = reader.read([0])
    with opener.open(other) as reader:
        np.testing.assert_array_equal(reader.read([0]), changed)


def test_a_window_outside_the_video_fails_alone_and_under_its_own_name(video):
    opener = ClipOpener(video.parent)
    inside = windows(video)[0]
    outside = Clip("beyond", str(video), "test", (), 99.0, 100.0)
    opener.open(inside, True).close()
    with pytest.raises(DecodeError) as error:
        opener.open(outside, True)
    assert error.value.clip == "beyond"
    assert opener.open(inside, False).read([0]).shape == (1, 64, 64, 3)


def test_a_damaged_video_says_of_each_window_what_it_says_alone(video, tmp_path):
    path, data = tmp_path / "damaged.mp4", bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)

    def outcomes(keep: bool) -> list:
        found, opener = [], ClipOpener(tmp_path)
        found = windows(path)
        for number, again, _ in _runs(found, range(len(found))):
            clip = found[number]
            try:
                with opener.open(clip, keep and again) as reader:
                    found.append(reader.read(range(reader.info.frames)).tobytes())
            except DecodeError as error:
                found.append(str(error))
        return found

    alone = outcomes(keep=False)
    assert any(isinstance(one, str) for one in alone)
    assert outcomes(keep=True) == alone


def test_frames_are_timed_by_the_file(video):
    with ClipOpener(video.parent).open(Clip("c", str(video), "test", (), 2.0, 4.0)) as reader:
        np.testing.assert_allclose(reader.seconds([0, 5, 19]), [2.0, 2.5, 3.9], atol=1e-3)
    folder = video.parent / "frames"
    folder.mkdir(exist_ok=True)
    from PIL import Image

    for k in range(4):
        Image.new("RGB", (8, 8)).save(folder / f"{k}.png")
    with ClipOpener(video.parent).open(Clip("f", str(folder), "test", ())) as reader:
        assert reader.seconds([0, 3]).tolist() == [-1, -1]
    with ClipOpener(video.parent, source_fps=2).open(Clip("f", str(folder), "test", ())) as reader:
        assert reader.seconds([0, 3]).tolist() == [0, 1.5]


def test_windows_of_a_video_are_in_runs_for_one_worker_each():
    clips = [Clip(f"a{k}", "/a", "test", ()) for k in range(RUN + 2)]
    clips += [
        Clip("b", "/b", "test", ()),
        Clip("c0", "/c", "test", ()),
        Clip("c1", "/c", "test", ()),
    ]
    found = list(_runs(clips, range(len(clips))))
    assert [again for _, again, _ in found] == [True] * (RUN + 1) + [False, False, True, False]
    kin = [name for _, _, name in found]
    assert kin[:RUN] == ["/a 0"] * RUN
    assert kin[RUN:] == ["/a 1", "/a 1", "", "/c 0", "/c 0"]


def test_the_windows_of_the_next_shard_go_on_with_the_open_video(video, tmp_path, monkeypatch):
    """However few windows a shard has, the file is opened and its packets are read once."""
    clips = windows(video)
    write_clips(tmp_path / "windows.csv", clips, video.parent)
    manifest = read_manifest(tmp_path / "windows.csv", video.parent)
    config = ExtractConfig(
        backbone="digit_cnn",
        backbone_options={"width": 8},
        keep=("pooled",),
        sampling=Sampling(frames=4, size=32),
    )
    seen = opened(monkeypatch)
    for shard_size in (1, 2, len(clips)):
        seen.clear()
        options = RunOptions(workers=0, shard_size=shard_size)
        summary = extract(config, manifest, tmp_path / f"cache{shard_size}", options)
        assert (summary.clips, len(seen)) == (len(clips), 1)
        # Nothing of it stays behind.
        assert not kept_video._kept
    one, whole = everything(tmp_path / "cache1"), everything(tmp_path / f"cache{len(clips)}")
    assert one == whole


def test_windows_of_several_shards_are_in_the_runs_of_the_whole_video():
    clips = [Clip(f"w{k}", "/a", "test", (), float(k), position=k) for k in range(2 * RUN)]
    kin = []
    for first in range(0, len(clips), 3):
        shard = clips[first : first + 3]
        kin += [name for _, _, name in _runs(shard, range(len(shard)))]
    assert kin == ["/a 0"] * RUN + ["/a 1"] * RUN
