"""Decoding: the frame that was asked for, upright, or a reason why not. Numbered videos say which
frame they gave.
"""

import importlib
import io
import pickle
import random
import socket
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.video import decode, decord_reader
from pipeline.video.decode import open_clip, write_video
from pipeline.video.decord_reader import DecordReader
from pipeline.video.frame_reader import DecodeError, DecoderDied, DecodeTimeout, TruncatedVideo
from pipeline.video.pyav_reader import PyavReader
from pipeline.views.video_info import VideoInfo
from tests.support.fake_cuda import fake_cuda

DECODERS = ("decord", "pyav")
X264 = "scenecut=0:b-adapt=0:bframes=3:keyint=12"

# Every way of storing frames in which a decoder can lose count: B-frames, groups of pictures that
# refer to their neighbours, recovery points, time stamps that are missing (AVI), rounded (Matroska)
# or uneven.
FILES = {
    "b_frames.mp4": ("libx264", {"x264-params": X264}),
    "b_frames.mkv": ("libx264", {"x264-params": X264}),
    "b_frames.avi": ("libx264", {"x264-params": X264}),
    "open.mp4": ("libx264", {"x264-params": X264 + ":open-gop=1"}),
    "open.mkv": ("libx264", {"x264-params": X264 + ":open-gop=1"}),
    "refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    "fragments.mp4": ("libx264", {"g": "12"}, {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": (
        "libx265",
        {
            "preset": "ultrafast",
            "x265-params": "log-level=none:bframes=3:keyint=12:open-gop=1:pools=1",
        },
    ),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "qmin": "1", "qmax": "1"}),
    "b_frames_mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2", "qmin": "1", "qmax": "1"}),
    "b_frames_mpeg4.mp4": ("mpeg4", {"g": "12", "bf": "2", "qmin": "1", "qmax": "1"}),
    "pictures.avi": ("mjpeg", {}),
    "windows.wmv": ("wmv2", {"g": "12", "qmin": "1", "qmax": "1"}),
    "broadcast.ts": ("libx264", {"x264-params": X264}),
}


def uneven(k: int) -> int:
    """The time stamp of frame k, milliseconds, of a phone that drops a frame now and then."""
    return 40 * k + 7 * (k % 5) + 400 * (k > 30)


@pytest.fixture(scope="module")
def file(encode):
    """file(name): one of FILES, or MP4 with its index in front, or with uneven time stamps."""

    def make(name: str):
        if name.startswith("uneven"):
            return encode(name, "libx264", options={"bf": "2"}, stamps=uneven)
        if name.startswith("late"):
            return encode(name, "libx264", stamps=lambda k: 2000 + 40 * k)
        if name.startswith("index_first"):
            b_frames = "2" if "b_frames" in name else "0"
            return encode(
                name,
                "libx264",
                options={"g": "12", "bf": b_frames},
                muxing={"movflags": "faststart"},
            )
        codec, options, *muxing = FILES[name]
        return encode(name, codec, options=options, muxing=muxing[0] if muxing else None)

    return make


@pytest.fixture(scope="module")
def recut(tmp_path_factory):
    """recut(path, group, earlier): the packets from that group of pictures on, `earlier` frames
    earlier, not encoded anew.
    """
    import av

    def make(source, group: int, earlier: int):
        path = tmp_path_factory.mktemp("recut") / source.name
        with av.open(str(source)) as whole, av.open(str(path), "w") as part:
            video = whole.streams.video[0]
            stream = part.add_stream_from_template(video)
            tick = round(1 / video.average_rate / video.time_base)
            packets = [packet for packet in whole.demux(video) if packet.size]
            keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
            for packet in packets[keys[group] :]:
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - earlier * tick,
                    packet.dts - earlier * tick,
                    stream,
                )
                part.mux(packet)
        return path

    return make


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", [*FILES, "uneven.mp4", "uneven.mkv", "late.mkv", "index_first.mp4"]
)
def test_read_gives_exactly_the_frames_asked_for(file, clip_of, numbers_in, name, decoder):
    with open_clip(clip_of(file(name)), decoder) as reader:
        assert reader.info.frames == 60
        assert (reader.info.height, reader.info.width, reader.info.first) == (48, 64, 0)
        assert numbers_in(reader.read(range(60))) == list(range(60))
        draw = random.Random(name)
        for count in (1, 1, 1, 4, 9):
            asked = [draw.randrange(60) for _ in range(count)]
            assert numbers_in(reader.read(asked)) == asked


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_that_an_edit_list_hides_do_not_count(file, recut, clip_of, numbers_in, decoder):
    with open_clip(clip_of(recut(file("b_frames.mp4"), group=0, earlier=7)), decoder) as reader:
        assert reader.info.frames == 53
        assert numbers_in(reader.read([0, 52, 20])) == [7, 59, 27]


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_that_refer_to_a_part_cut_away_do_not_count(
    file, recut, clip_of, numbers_in, decoder
):
    """The file begins with a key frame and pictures shown before it, which need the group that is
    gone.
    """
    with open_clip(clip_of(recut(file("open.mkv"), group=1, earlier=0)), decoder) as reader:
        numbers = numbers_in(reader.read(range(reader.info.frames)))
    assert numbers == list(range(60 - reader.info.frames, 60))
    assert reader.info.frames >= 45


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_come_in_the_order_asked_and_repeats_are_equal(
    numbered_video, clip_of, numbers_in, decoder
):
    with open_clip(clip_of(numbered_video), decoder) as reader:
        assert reader.info == VideoInfo(frames=40, fps=25.0, width=64, height=48)
        frames = reader.read([9, 3, 3, 39, 9])
        assert frames.shape == (5, 48, 64, 3)
        assert frames.dtype == np.uint8
        assert numbers_in(frames) == [9, 3, 3, 39, 9]
        assert reader.read([]).shape == (0, 48, 64, 3)


def test_each_distinct_frame_is_decoded_once(numbered_video, clip_of, monkeypatch):
    decord = pytest.importorskip("decord", reason="decord is not installed")

    asked, turned = [], []
    batch, upright = decord.VideoReader.get_batch, PyavReader._upright
    monkeypatch.setattr(
        decord.VideoReader, "get_batch", lambda self, ids: asked.extend(ids) or batch(self, ids)
    )
    monkeypatch.setattr(
        PyavReader,
        "_upright",
        lambda self, frame, aspect: turned.append(frame.pts) or upright(self, frame, aspect),
    )
    views = [5, 6, 7, 6, 7, 8, 7, 8, 9]
    for decoder in DECODERS:
        with open_clip(clip_of(numbered_video), decoder) as reader:
            reader.read(views)
    assert asked == [5, 6, 7, 8, 9]
    assert len(turned) == len(set(turned)) == 5


@pytest.mark.parametrize("number", [-1, 40, 10**9])
def test_numbers_outside_the_clip_are_refused(numbered_video, clip_of, number):
    with (
        open_clip(clip_of(numbered_video)) as reader,
        pytest.raises(ValueError, match=r"expected frame numbers 0 to 39"),
    ):
        reader.read([0, number])


def test_a_number_between_frames_is_refused(numbered_video, clip_of):
    with open_clip(clip_of(numbered_video)) as reader, pytest.raises(TypeError):
        reader.read([1.5])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("turn", "matrix"),
    [(0, None), (90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))],
)
def test_frames_are_upright(clip_of, tmp_path, decoder, turn, matrix):
    """The first frame's top left corner is white; a display matrix that turns it clockwise moves
    the corner.
    """
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    frames[:, :16, :16] = 255
    path = tmp_path / "turned.mp4"
    write_video(path, frames, 10)
    if matrix:
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 44
        a, b, c, d = (value * 65536 for value in matrix)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    with open_clip(clip_of(path), decoder) as reader:
        assert (reader.info.height, reader.info.width) == (
            (48, 64) if turn % 180 == 0 else (64, 48)
        )
        expected = np.rot90(frames, -turn // 90, axes=(1, 2)).astype(int)
        assert np.abs(reader.read([0, 3]) - expected[[0, 3]]).mean() < 4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_real_rotated_videos_are_upright(videos_dir, clip_of, decoder, turn):
    with open_clip(clip_of(videos_dir / f"video_{turn}.mov"), decoder) as reader:
        frames = reader.read(range(reader.info.frames))
    assert frames.shape == ((3, 320, 568, 3) if turn % 180 == 0 else (3, 568, 320, 3))


REAL = {
    # 340 stored pixels, 64:51 as wide as high by ffprobe.
    "arm_wrestling.mp4": VideoInfo(280, 28.0, 427, 256),
    "people_indoors.mp4": VideoInfo(57, 6.0, 340, 256),
    "flipping_a_pancake.mkv": VideoInfo(310, 30.0, 426, 240),
    "unordered.mov": VideoInfo(4, 32.0, 50, 50),
}


@pytest.mark.parametrize("name", REAL)
def test_decoders_agree_on_real_videos(videos_dir, clip_of, name):
    asked = [0, 3, REAL[name].frames - 1, REAL[name].frames // 2]
    read = []
    for decoder in DECODERS:
        with open_clip(clip_of(videos_dir / name), decoder) as reader:
            assert reader.info == REAL[name]
            read.append(reader.read(asked).astype(int))
    assert np.abs(read[0] - read[1]).max() <= 2  # FFmpeg versions round colours differently


def test_a_single_frame_is_a_video(encode, clip_of, numbers_in):
    for name, codec in (("one.mp4", "libx264"), ("one.webm", "libvpx"), ("one.avi", "mpeg4")):
        with open_clip(clip_of(encode(name, codec, count=1))) as reader:
            assert reader.info.frames == 1
            assert numbers_in(reader.read([0, 0])) == [0, 0]


# start and end


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", ["b_frames.mp4", "b_frames.mkv", "late.mkv", "vp8.webm", "pictures.avi"]
)
@pytest.mark.parametrize(
    ("start", "end", "first", "frames"),
    [
        (None, None, 0, 60),
        (1.0, 1.4, 25, 10),
        (None, 0.4, 0, 10),
        (2.0, None, 50, 10),
        (2.0, 99.0, 50, 10),
        (1.01, 1.02, 25, 1),
    ],
)
def test_start_and_end_cut_the_clip(
    file, clip_of, numbers_in, name, decoder, start, end, first, frames
):
    with open_clip(clip_of(file(name), start, end), decoder) as reader:
        assert (reader.info.first, reader.info.frames) == (first, frames)
        assert numbers_in(reader.read([0, frames - 1])) == [first, first + frames - 1]
        with pytest.raises(ValueError, match="expected frame numbers"):
            reader.read([frames])


@pytest.mark.parametrize(("start", "end"), [(2.4, None), (50.0, 60.0), (1.0, 1.0), (1.5, 0.5)])
def test_a_part_without_a_frame_is_an_error(file, clip_of, start, end):
    with pytest.raises(DecodeError, match="no frame between"):
        open_clip(clip_of(file("b_frames.mp4"), start, end))


def test_uneven_frames_are_cut_by_their_own_times(file, clip_of):
    with open_clip(clip_of(file("uneven.mkv"), uneven(20) / 1000, uneven(40) / 1000)) as reader:
        assert (reader.info.first, reader.info.frames) == (20, 20)


# what is missing, damaged, or no video


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("share", [0.5, 0.65, 0.8])
@pytest.mark.parametrize(
    "name",
    [
        "b_frames.mkv",
        "vp8.webm",
        "vp9.webm",
        "mpeg4.avi",
        "pictures.avi",
        "index_first.mp4",
        "index_first_b_frames.mp4",
    ],
)
def test_a_file_cut_short_is_truncated_and_its_rest_can_be_allowed(
    file, clip_of, numbers_in, tmp_path, name, share, decoder
):
    data = file(name).read_bytes()
    # Where the frames begin: most of a small file is its header.
    begin = max(data.find(b"mdat"), data.find(b"movi"), 0)
    path = tmp_path / name
    path.write_bytes(data[: begin + int(share * (len(data) - begin))])
    with pytest.raises(TruncatedVideo, match=r"promises|cut off"):
        open_clip(clip_of(path), decoder)
    with open_clip(clip_of(path), decoder, allow_truncated=True) as reader:
        left = reader.info.frames
        assert 1 <= left < 60
        assert numbers_in(reader.read([0, left // 2])) == [0, left // 2]
        numbers = numbers_in(reader.read(range(left)))
        assert numbers == sorted(set(numbers))
        # Of frames stored out of order, some before the last one are missing.
        if "b_frames" not in name:
            assert numbers == list(range(left))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "vp8.webm", "mpeg4.avi"])
def test_no_cut_passes_for_a_whole_video(file, clip_of, tmp_path, name, share):
    data = file(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DecodeError):
        open_clip(clip_of(path))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("s.mp4", "libx264"), ("s.mkv", "libx264"), ("s.avi", "mpeg4"), ("s.flv", "flv")],
)
@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_sound_of_another_length_is_no_truncation(encode, clip_of, name, codec, seconds):
    path = encode(name, codec, sound=seconds)
    with open_clip(clip_of(path)) as reader:
        assert reader.info.frames == 60


def test_a_real_video_cut_in_half_is_truncated(videos_dir, clip_of, tmp_path):
    data = (videos_dir / "flipping_a_pancake.mkv").read_bytes()
    path = tmp_path / "half.mkv"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedVideo, match=r"the container promises 10\.33 s"):
        open_clip(clip_of(path))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_real_corrupt_video_fails_with_a_reason(videos_dir, clip_of, decoder):
    with open_clip(clip_of(videos_dir / "corrupted.mp4"), decoder) as reader:
        assert reader.info.frames == 50
        with pytest.raises(DecodeError, match="frame 28"):
            reader.read(range(50))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["noise.mp4", "noise.mkv"])
def test_damage_that_the_codec_conceals_is_an_error(encode, clip_of, tmp_path, name, decoder):
    """decord gives such frames as if nothing had happened."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 96, 128, 3), np.uint8)
    whole = encode(
        name,
        "libx264",
        options={"x264-params": "keyint=100:scenecut=0:cabac=0:bframes=0"},
        frames=noise,
    )
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    path = tmp_path / name
    path.write_bytes(data)
    with open_clip(clip_of(whole), decoder) as reader:
        reader.read(range(20))
    with (
        open_clip(clip_of(path), decoder) as reader,
        pytest.raises(DecodeError, match=r"damaged|stopped|cannot be decoded"),
    ):
        reader.read(range(20))


def test_a_complaint_about_a_good_frame_costs_only_a_second_look(
    numbered_video, clip_of, numbers_in, monkeypatch
):
    decord = pytest.importorskip("decord", reason="decord is not installed")
    batch = decord.VideoReader.get_batch

    def complain(self, numbers):
        decord_reader.ffmpeg_log().messages.append(b"co located POCs unavailable")
        return batch(self, numbers)

    monkeypatch.setattr(decord.VideoReader, "get_batch", complain)
    with open_clip(clip_of(numbered_video)) as reader:
        assert isinstance(reader, DecordReader)
        assert numbers_in(reader.read([30, 2])) == [30, 2]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a video"),
        (b"This is not a video.\n" * 50, "not a video"),
        (bytes(5000), "not a video"),
    ],
)
def test_what_is_no_video_is_an_error(clip_of, tmp_path, content, reason, decoder):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        open_clip(clip_of(path), decoder)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_playlist_reaches_no_network(clip_of, tmp_path, decoder):
    path = tmp_path / "clip.m3u8"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/part.ts"
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n"
        )
        with pytest.raises(DecodeError):
            open_clip(clip_of(path), decoder)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_missing_file_and_one_without_pictures_are_errors(clip_of, sound_file, tmp_path):
    with pytest.raises(DecodeError, match="there is no such file"):
        open_clip(clip_of(tmp_path / "absent.mp4"))
    with pytest.raises(DecodeError, match="no video stream"):
        open_clip(clip_of(sound_file))


@pytest.mark.parametrize(
    ("side", "reason"),
    [(12_000, "claims frames of 12000x12000 pixels"), (100_000, "no valid frame size")],
)
def test_a_claim_of_enormous_frames_is_refused_before_decoding(
    encode, clip_of, tmp_path, side, reason
):
    data = bytearray(encode("raw.avi", "rawvideo", count=2).read_bytes())
    at = data.index(b"strf") + 12  # BITMAPINFOHEADER: its size, then width and height
    data[at : at + 8] = struct.pack("<ii", side, side)
    path = tmp_path / "huge.avi"
    path.write_bytes(data)
    for decoder in DECODERS:
        with pytest.raises(DecodeError, match=reason):
            open_clip(clip_of(path), decoder)


def test_errors_survive_pickling(tmp_path):
    for kind in (DecodeError, TruncatedVideo, DecodeTimeout, DecoderDied):
        error = pickle.loads(pickle.dumps(kind("clip 7", tmp_path / "7.mp4", "no frame in it")))
        assert type(error) is kind
        assert (error.clip, error.path, error.reason) == (
            "clip 7",
            str(tmp_path / "7.mp4"),
            "no frame in it",
        )
        assert str(error) == f"clip 7: {tmp_path / '7.mp4'}: no frame in it"


# folders of frames


@pytest.fixture
def folder(tmp_path, numbered_frames):
    """folder(pattern, count=12): numbered frames as images named pattern % (k + 1)."""

    def make(pattern: str, count: int = 12):
        for k, pixels in enumerate(numbered_frames(count)):
            Image.fromarray(pixels).save(tmp_path / (pattern % (k + 1)))
        return tmp_path

    return make


@pytest.mark.parametrize(
    "pattern", ["%05d.jpg", "%d.jpg", "frame_%d.PNG", "img%03d.webp", "cam2_%d_left.bmp"]
)
def test_a_folder_gives_its_frames_in_natural_order(folder, clip_of, numbers_in, pattern):
    path = folder(pattern)
    (path / "notes.txt").write_text("not a frame")
    (path / ".hidden.jpg").write_text("not a frame")
    with open_clip(clip_of(path)) as reader:
        assert reader.info == VideoInfo(frames=12, fps=0.0, width=64, height=48)
        assert numbers_in(reader.read([11, 0, 1, 1, 9])) == [11, 0, 1, 1, 9]


def test_a_folder_is_cut_by_the_frame_rate_of_its_manifest(folder, clip_of, numbers_in):
    path = folder("%05d.png")
    with open_clip(clip_of(path, 0.5, 1.0, fps="12")) as reader:
        assert reader.info == VideoInfo(frames=6, fps=12.0, width=64, height=48, first=6)
        assert numbers_in(reader.read([0, 5])) == [6, 11]
    with pytest.raises(DecodeError, match="column fps"):
        open_clip(clip_of(path, 0.5, 1.0))


def test_images_of_any_mode_become_rgb_and_upright(clip_of, tmp_path):
    grey = Image.new("L", (64, 48), 100)
    grey.save(tmp_path / "1.png")
    Image.new("RGBA", (64, 48), (100, 100, 100, 0)).save(tmp_path / "2.png")
    grey.convert("P").save(tmp_path / "3.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    Image.new("RGB", (48, 64), (100, 100, 100)).save(tmp_path / "4.jpg", exif=exif)
    with open_clip(clip_of(tmp_path)) as reader:
        assert np.abs(reader.read(range(4)).astype(int) - 100).max() <= 1


def enormous_png() -> bytes:
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    chunks = b""
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
    ):
        chunks += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    return b"\x89PNG\r\n\x1a\n" + chunks


def cut_jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(file, "jpeg")
    return file.getvalue()[: len(file.getvalue()) // 2]


def other_size() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (66, 48)).save(file, "jpeg")
    return file.getvalue()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (enormous_png, "00003.jpg: .*100000|00003.jpg: .*10000000000"),
        (cut_jpeg, "00003.jpg: .*truncated"),
        (other_size, "00003.jpg: expected 64x48 pixels, got 66x48"),
        (lambda: b"no image", "00003.jpg: cannot identify"),
        (lambda: b"", "00003.jpg: cannot identify"),
    ],
)
def test_a_bad_image_is_an_error_that_names_it(folder, clip_of, make, reason):
    path = folder("%05d.jpg", count=5)
    (path / "00003.jpg").write_bytes(make())
    with open_clip(clip_of(path)) as reader:
        assert len(reader.read([0, 1, 3])) == 3
        with pytest.raises(DecodeError, match=reason):
            reader.read([1, 2])


def test_a_folder_without_images_is_an_error(clip_of, tmp_path):
    with pytest.raises(DecodeError, match="no image in the folder"):
        open_clip(clip_of(tmp_path))


# choosing a decoder

# Codec, how it stores colours, height, width, whether decord reads it, colour space. All of
# FFmpeg's ways to come to RGB: a conversion made for the format, one that interpolates chroma, deep
# colours, and television's colour spaces.
COLOURS = {
    "the usual": ("ffv1", "yuv420p", 48, 64, True),
    "an odd width": ("ffv1", "yuv420p", 48, 63, True),
    "an odd height": ("ffv1", "yuv420p", 47, 64, False),
    "4:2:2": ("ffv1", "yuv422p", 48, 64, True),
    "4:4:4, odd": ("ffv1", "yuv444p", 47, 63, True),
    "4:4:0": ("ffv1", "yuv440p", 48, 64, False),
    "4:1:0": ("ffv1", "yuv410p", 48, 64, False),
    "ten bits": ("libx264", "yuv420p10le", 48, 64, False),
    "deep RGB": ("ffv1", "gbrp16le", 48, 64, False),
    "grey": ("libx264", "gray", 48, 64, True),
    "BT.709": ("libx264", "yuv420p", 48, 64, True, 1),
    "BT.2020": ("libx264", "yuv420p", 48, 64, True, 9),
    "full range": ("libx264", "yuvj420p", 48, 64, True),
}


@pytest.mark.parametrize("stored", COLOURS)
def test_decord_is_taken_only_where_its_pixels_are_those_of_pyav(clip_of, tmp_path, stored):
    import av

    pytest.importorskip("decord", reason="decord is not installed")
    codec, pixels, height, width, by_decord, *space = COLOURS[stored]
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    blocks = np.random.default_rng(0).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8
    )
    image = np.ascontiguousarray(blocks.repeat(4, 0).repeat(4, 1)[:height, :width])
    path = tmp_path / "colours.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.codec_context.colorspace = space[0] if space else 2
        for k in range(3):
            container.mux(
                video.encode(av.VideoFrame.from_ndarray(np.roll(image, k, 1), format="rgb24"))
            )
        container.mux(video.encode())
    with open_clip(clip_of(path), "decord") as first, open_clip(clip_of(path), "pyav") as second:
        assert isinstance(first, DecordReader) == by_decord
        np.testing.assert_array_equal(first.read(range(3)), second.read(range(3)))


def test_without_decord_the_default_reads_the_same_frames_by_pyav(
    numbered_video, clip_of, without_decord
):
    assert decode.why_no_decord() == "not installed"
    with (
        open_clip(clip_of(numbered_video)) as reader,
        open_clip(clip_of(numbered_video), "pyav") as pyav,
    ):
        assert type(reader) is PyavReader
        np.testing.assert_array_equal(reader.read([0, 7, 39]), pyav.read([0, 7, 39]))


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (
            OSError("libdecord.so: cannot open shared object file\nmore"),
            "does not load: libdecord.so: cannot open shared",
        ),
        (AttributeError("module 'numpy' has no attribute 'long'"), "does not load: module 'numpy'"),
        (
            ModuleNotFoundError("No module named 'tvm'", name="tvm"),
            "does not load: No module named 'tvm'",
        ),
    ],
)
def test_a_decord_that_is_broken_stops_nothing_and_is_named(
    numbered_video, clip_of, without_decord, monkeypatch, raised, reason
):
    real = importlib.import_module

    def fails(name):
        if name == "decord":
            raise raised
        return real(name)

    monkeypatch.setattr(importlib, "import_module", fails)
    assert decode.why_no_decord().startswith(f"installed, but {reason}")
    assert "\n" not in decode.why_no_decord()
    with open_clip(clip_of(numbered_video)) as reader:
        assert reader.read([3]).shape == (1, 48, 64, 3)


def test_a_decord_whose_errors_would_not_be_heard_is_not_taken(
    numbered_video, clip_of, without_decord, monkeypatch
):
    monkeypatch.delitem(sys.modules, "decord")
    pytest.importorskip("decord", reason="decord is not installed")
    monkeypatch.setattr(decord_reader, "ffmpeg_log", lambda: None)
    assert "would not be heard" in decode.why_no_decord()
    with open_clip(clip_of(numbered_video)) as reader:
        assert type(reader) is PyavReader


def test_an_unknown_decoder_is_refused(numbered_video, clip_of):
    with pytest.raises(ValueError, match=r"expected one of decord, pyav, .* got 'opencv'"):
        open_clip(clip_of(numbered_video), "opencv")


def test_a_decoder_that_is_not_installed_says_how_to_install_it(
    numbered_video, clip_of, monkeypatch
):
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", None)
    with pytest.raises(
        ValueError, match=r"pip install torchcodec .* or choose another \(decord, pyav\)"
    ):
        open_clip(clip_of(numbered_video), "torchcodec")


def test_torchcodec_gives_the_same_frames(file, clip_of, numbers_in):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load here ({str(error).splitlines()[0]})")
    for name in ("b_frames.mp4", "open.mkv", "vp9.webm"):
        with open_clip(clip_of(file(name), 1.0, None), "torchcodec") as reader:
            assert (reader.info.first, reader.info.frames) == (25, 35)
            assert numbers_in(reader.read([20, 3, 3])) == [45, 28, 28]


# decoding on a GPU


class PretendedDecoder:
    """What torchcodec's VideoDecoder promises, on PyAV's frames and a pretended GPU."""

    asked: dict

    def __init__(self, path, **asked):
        type(self).asked = asked
        self.metadata = SimpleNamespace(rotation=None)
        self.device = asked["device"]
        import av

        with av.open(path) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        self.frames = torch.from_numpy(np.stack(frames))

    def __len__(self):
        return len(self.frames)

    def get_frames_at(self, numbers):
        return SimpleNamespace(data=self.frames[list(numbers)].to(self.device))


@pytest.fixture
def torchcodec(monkeypatch):
    decoders = SimpleNamespace(VideoDecoder=PretendedDecoder)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return decoders


def test_frames_that_a_gpu_decodes_come_to_the_host(
    numbered_video, clip_of, numbers_in, torchcodec
):
    with fake_cuda(), open_clip(clip_of(numbered_video), "torchcodec-cuda") as reader:
        assert numbers_in(reader.read([3, 0, 3])) == [3, 0, 3]
        assert PretendedDecoder.asked["device"] == "cuda"
    with open_clip(clip_of(numbered_video), "torchcodec") as reader:
        assert numbers_in(reader.read([2])) == [2]
        assert PretendedDecoder.asked["device"] == "cpu"


def test_a_machine_without_a_gpu_refuses_to_decode_on_it(numbered_video, clip_of, torchcodec):
    for refused in (
        lambda: open_clip(clip_of(numbered_video), "torchcodec-cuda"),
        lambda: decode.require_decoder("torchcodec-cuda"),
    ):
        with pytest.raises(ValueError, match=r"torchcodec-cuda: expected a GPU .* found none"):
            refused()
    decode.require_decoder("torchcodec")


def test_a_torchcodec_without_cuda_is_no_fault_of_the_video(
    numbered_video, clip_of, torchcodec, monkeypatch
):
    def refuse(path, **asked):
        raise RuntimeError("Unsupported device: cuda (device type: cuda, variant: ffmpeg)")

    monkeypatch.setattr(torchcodec, "VideoDecoder", refuse)
    with fake_cuda(), pytest.raises(ValueError, match="built without CUDA"):
        open_clip(clip_of(numbered_video), "torchcodec-cuda")


def test_the_decoder_of_a_gpu_is_a_part_of_the_fingerprint():
    from pipeline.stages.config import ExtractConfig

    assert ExtractConfig(decoder="torchcodec-cuda").computed("", "")["decoder"] == "torchcodec-cuda"


# writing


def test_written_frames_come_back_within_two_grey_levels(clip_of, tmp_path):
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 48, 3))
    write_video(tmp_path / "grey.mp4", frames, 29.97)
    with open_clip(clip_of(tmp_path / "grey.mp4")) as reader:
        assert reader.info.fps == pytest.approx(29.97, abs=0.01)
        assert np.abs(reader.read(range(len(levels))).astype(int) - frames).max() <= 2


def test_writing_without_h264_uses_mpeg4(
    clip_of, numbered_frames, numbers_in, monkeypatch, tmp_path
):
    import av

    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    write_video(tmp_path / "numbered.mp4", numbered_frames(30), 10)
    with open_clip(clip_of(tmp_path / "numbered.mp4")) as reader:
        assert numbers_in(reader.read(range(30))) == list(range(30))


@pytest.mark.parametrize(
    ("shape", "dtype", "fps", "words"),
    [
        ((4, 47, 64, 3), np.uint8, 10, "even height and width, got 47x64"),
        ((4, 48, 63, 3), np.uint8, 10, "even height and width, got 48x63"),
        ((4, 48, 64, 3), np.float32, 10, "uint8"),
        ((4, 48, 64), np.uint8, 10, "frames"),
        ((0, 48, 64, 3), np.uint8, 10, "frames"),
        ((4, 48, 64, 3), np.uint8, 0, "fps above 0"),
        ((4, 48, 64, 3), np.uint8, float("nan"), "fps above 0"),
    ],
)
def test_frames_that_cannot_be_written_are_refused(tmp_path, shape, dtype, fps, words):
    with pytest.raises(ValueError, match=words):
        write_video(tmp_path / "bad.mp4", np.zeros(shape, dtype), fps)
    assert not (tmp_path / "bad.mp4").exists()
