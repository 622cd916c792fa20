"""Files as players show them: the rate of their stamps, the shown track, mirrored, joined,
captured, with square pixels.

The pictures say which frame they are, or have a shape; containers and display matrices are written
here by their definition.
"""

import io
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.stages.config import ExtractConfig, clip_opener
from pipeline.video import decode
from pipeline.video.decode import open_clip
from pipeline.video.frame_reader import DecodeError, TruncatedVideo, import_decoder
from pipeline.video.view_pixels import ClipOpener
from pipeline.views.sampling import Sampling, views_of

DECODERS = ("decord", "pyav", "torchcodec")
X264 = {"crf": "3", "preset": "ultrafast", "bf": "0", "g": "10"}


@pytest.fixture(params=DECODERS)
def decoder(request) -> str:
    """Each decoder; one that does not load here is skipped."""
    try:
        import_decoder(
            {"torchcodec": "torchcodec.decoders", "pyav": "av"}.get(request.param, request.param)
        )
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


def write(
    path: Path,
    *tracks: np.ndarray,
    codec="libx264",
    options=X264,
    aspect=None,
    default=None,
    start=0,
) -> Path:
    """A video at 25 fps of each track's frames [F,H,W,3]. `default`: the track that is marked so;
    `start`: its first stamp.
    """
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    muxing = {"default_mode": "passthrough"} if path.suffix == ".mkv" else {}
    with av.open(str(path), "w", options=muxing) as container:
        streams = []
        for k, frames in enumerate(tracks):
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.options = "yuv420p", options
            stream.codec_context.thread_count = 1
            if aspect:
                stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
            if default is not None:
                marks = av.stream.Disposition
                stream.disposition = marks.default if k == default else marks(0)
            streams.append(stream)
        for k in range(len(tracks[0])):
            for stream, frames in zip(streams, tracks, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[k]), format="rgb24")
                frame.pts, frame.time_base = start + k, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


def append(target: Path, *sources: Path) -> Path:
    """The packets of files behind one another in one stream, not encoded anew."""
    import av

    with av.open(str(target), "w") as out:
        stream, begin = None, 0
        for source in sources:
            with av.open(str(source)) as part:
                video = part.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                for packet in part.demux(video):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + begin, packet.dts + begin
                        packet.stream = stream
                        out.mux(packet)
                        last = packet.pts
                begin = last + round(Fraction(1, 25) / video.time_base)
    return target


def square(height: int, width: int, count: int = 10, side: int = 32) -> np.ndarray:
    """A white square in the middle of each frame."""
    frames = np.full((count, height, width, 3), 20, np.uint8)
    rows = slice((height - side) // 2, (height + side) // 2)
    columns = slice((width - side) // 2, (width + side) // 2)
    frames[:, rows, columns] = 235
    return frames


def measured(frame: np.ndarray) -> tuple[int, int]:
    """Width and height of the white thing."""
    white = frame.mean(-1) > 128
    return int(white.any(0).sum()), int(white.any(1).sum())


# frame rates


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.flv", "flv"), ("a.mp4", "libx264")],
)
def test_the_rate_is_frames_by_the_seconds_shown(encode, clip_of, name, codec):
    """The header says 25; 60 frames are shown in jittered steps of 20 and 30 ms."""
    path = encode(name, codec, stamps=jittered)
    with open_clip(clip_of(path)) as reader:
        # Within half a frame.
        expected = 60 / (jittered(59) / 1000 + 0.025)
        assert reader.info.fps == pytest.approx(expected, rel=0.012)


def jittered(k: int) -> int:
    return 25 * k + 5 * (k % 2)


@pytest.mark.parametrize(
    ("text", "rate"), [("12", 12.0), ("30000/1001", 30_000 / 1001), (" 7.5 ", 7.5)]
)
def test_the_manifest_s_rate_wins_over_the_file_s(numbered_video, clip_of, text, rate):
    with open_clip(clip_of(numbered_video, fps=text)) as reader:
        assert reader.info.fps == pytest.approx(rate)
    with ClipOpener(numbered_video.parent, source_fps=50.0).open(
        clip_of(numbered_video, fps=text)
    ) as reader:
        assert reader.info.fps == pytest.approx(rate)


def test_a_rate_for_all_clips_wins_over_their_files(numbered_video, clip_of):
    config = ExtractConfig(
        sampling=Sampling(sampling="stride", fps=5, frames=4, source_fps=10, test_clips=1)
    )
    with clip_opener(numbered_video.parent, config).open(clip_of(numbered_video, fps="")) as reader:
        info = reader.info
    (view,) = [view for view in views_of(config.sampling, info, "c", (), 0) if view.group == "test"]
    assert set(np.diff(view.frames)) == {2}
    with ClipOpener(numbered_video.parent).open(clip_of(numbered_video)) as reader:
        assert reader.info.fps == 25.0


@pytest.mark.parametrize("text", ["x", "0", "-3", "1/0", "nan", "inf", "1_0"])
def test_a_rate_that_is_none_fails_the_clip_and_names_the_column(numbered_video, clip_of, text):
    with pytest.raises(DecodeError, match="column fps: expected frames a second"):
        open_clip(clip_of(numbered_video, fps=text))


# which track


@pytest.mark.parametrize("name", ["two.mkv", "two.mp4"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_track_that_is_marked_is_decoded(
    tmp_path, numbered_frames, numbers_in, clip_of, decoder, name, default
):
    up = numbered_frames(40)
    path = write(tmp_path / name, up, up[::-1], default=default)
    with open_clip(clip_of(path), decoder) as reader:
        numbers = numbers_in(reader.read(range(40)))
    assert numbers == (list(range(40)) if default == 0 else list(range(39, -1, -1)))


def test_a_cover_picture_is_no_video(tmp_path, clip_of, numbered_frames, numbers_in):
    import av

    whole = write(tmp_path / "film.mp4", numbered_frames(10))
    for name, films in (("covered.mp4", 1), ("song.m4a", 0)):
        with (
            av.open(str(whole)) as source,
            av.open(str(tmp_path / name), "w", format="mp4") as target,
        ):
            stream = (
                target.add_stream_from_template(source.streams.video[0])
                if films
                else target.add_stream("aac", rate=16_000)
            )
            cover = target.add_stream("png", rate=25)
            cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
            cover.disposition = av.stream.Disposition.attached_pic
            target.mux(
                cover.encode(av.VideoFrame.from_ndarray(numbered_frames(60)[59], format="rgb24"))
            )
            target.mux(cover.encode())
            if films:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        target.mux(packet)
            else:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 16_000
                target.mux(stream.encode(silence))
                target.mux(stream.encode())
    with open_clip(clip_of(tmp_path / "covered.mp4")) as reader:
        assert numbers_in(reader.read(range(reader.info.frames))) == list(range(10))
    with pytest.raises(DecodeError, match="only a cover picture"):
        open_clip(clip_of(tmp_path / "song.m4a"))


# turned and mirrored

EIGHT = {
    "straight": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "a quarter right": (0, 1, -1, 0),
    "a quarter left": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "the other diagonal": (0, -1, -1, 0),
}


def with_matrix(source: Path, target: Path, a: int, b: int, c: int, d: int) -> Path:
    """A copy of an MP4 whose track header has this display matrix (ISO 14496-12, 8.3.2)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("turn", EIGHT)
@pytest.mark.parametrize("aspect", [None, (4, 3)])
def test_all_eight_display_matrices_are_applied(tmp_path, clip_of, decoder, turn, aspect):
    """Of a picture with a red corner top left and a green one top right, each is where the matrix
    sends it.
    """
    frames = np.zeros((3, 48, 96, 3), np.uint8)
    frames[:, :16, :32], frames[:, :16, -32:] = (255, 0, 0), (0, 255, 0)
    a, b, c, d = EIGHT[turn]
    path = with_matrix(
        write(tmp_path / "plain.mp4", frames, aspect=aspect), tmp_path / "turned.mp4", a, b, c, d
    )
    with open_clip(clip_of(path), decoder) as reader:
        picture, info = reader.read([2])[0].astype(int), reader.info
    wide = 128 if aspect else 96
    assert picture.shape[:2] == (info.height, info.width) == ((48, wide) if a else (wide, 48))
    for colour, x in ((0, -1), (1, 1)):
        right, down = a * x + c * -1, b * x + d * -1  # the corner (x, -1), seen from the middle
        corner = picture[
            (slice(0, 8) if down < 0 else slice(-8, None)),
            (slice(0, 8) if right < 0 else slice(-8, None)),
        ]
        assert corner[..., colour].mean() > 150, turn
        assert corner[..., 1 - colour].mean() < 80, turn


@pytest.mark.parametrize("name", ["a.mov", "a.avi"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_motion_jpeg_is_applied_as_pillow_does(
    tmp_path, clip_of, decoder, name, orientation
):
    import av

    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:16, :32], pixels[:16, -32:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(pixels).save(data, "JPEG", quality=95, subsampling=0, exif=exif)
    (tmp_path / "a.mjpeg").write_bytes(data.getvalue() * 3)
    with (
        av.open(str(tmp_path / "a.mjpeg"), format="mjpeg") as source,
        av.open(str(tmp_path / name), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(data))).astype(int)
    with open_clip(clip_of(tmp_path / name), decoder) as reader:
        assert np.abs(reader.read([1])[0] - shown).mean() < 3


def test_a_picture_turned_askew_is_refused(tmp_path, clip_of, decoder):
    path = write(tmp_path / "plain.mp4", square(48, 64, 3))
    data = bytearray(path.read_bytes())
    at, sine = data.index(b"tkhd") + 44, 46_341
    data[at : at + 36] = struct.pack(">9i", sine, sine, 0, -sine, sine, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="no multiple of 90 degrees"):
        open_clip(clip_of(path), decoder)


# the shape of pixels and of pictures


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
@pytest.mark.parametrize(
    ("aspect", "width"), [((4, 3), 171), ((8, 9), 114), ((1, 1), 128), ((512, 513), 128)]
)
def test_pixels_are_as_wide_as_on_the_screen_unless_the_stored_ones_are_asked_for(
    tmp_path, clip_of, decoder, name, aspect, width
):
    path = write(tmp_path / name, square(96, 128), aspect=aspect)
    with (
        open_clip(clip_of(path), decoder) as reader,
        open_clip(clip_of(path), decoder, pixel_aspect="stored") as stored,
    ):
        assert (reader.info.width, reader.info.height) == (width, 96)
        assert (stored.info.width, stored.info.height) == (128, 96)
        wide, high = measured(reader.read([1])[0])
        assert (abs(wide - 32 * aspect[0] / aspect[1]) <= 1.5, high) == (True, 32)
        assert measured(stored.read([1])[0]) == (32, 32)


def test_frames_of_an_older_cache_are_found_by_the_size_that_they_had(tmp_path, clip_of):
    clip, opening = (
        clip_of(write(tmp_path / "a.mp4", square(96, 128, 3), aspect=(4, 3))),
        ClipOpener(tmp_path),
    )
    for size, came in (((171, 96), 171), ((128, 96), 128), ((50, 50), 171)):
        with opening.open_as(clip, size) as reader:
            assert reader.info.width == came


def test_decoders_agree_on_pixels_that_are_not_square(tmp_path, clip_of):
    path = write(
        tmp_path / "a.mp4",
        np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8),
        aspect=(4, 3),
    )
    read = []
    for name in ("decord", "pyav"):
        with open_clip(clip_of(path), name) as reader:
            read.append(reader.read([0, 3]).astype(int))
    assert np.abs(read[0] - read[1]).max() <= 2


def test_the_shape_of_pixels_is_in_the_fingerprint_only_where_it_differs_from_before():
    config = ExtractConfig()
    assert "pixel_aspect" not in config.computed("", "")
    assert replace(config, pixel_aspect="stored").computed("", "")["pixel_aspect"] == "stored"
    assert ExtractConfig.from_dict({"pixel_aspect": "stored"}).pixel_aspect == "stored"
    with pytest.raises(ValueError, match="pixel_aspect: expected one of displayed, stored"):
        ExtractConfig(pixel_aspect="square")


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {**X264, "x264-params": "repeat-headers=1"}),
        ("libvpx", {"deadline": "realtime", "cpu-used": "8", "b": "1M"}),
        ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "1M"}),
    ],
)
def test_pictures_that_change_their_size_keep_their_shape(
    tmp_path, clip_of, decoder, codec, options
):
    """A phone that is turned (128x96, then 96x128), and a call that gets smaller."""
    parts = [
        write(tmp_path / f"{k}.mkv", frames, codec=codec, options=options)
        for k, frames in enumerate((square(96, 128), square(128, 96), square(48, 64, side=16)))
    ]
    with open_clip(clip_of(append(tmp_path / "turned.mkv", *parts)), decoder) as reader:
        assert (reader.info.frames, reader.info.width, reader.info.height) == (30, 128, 96)
        # One by one: decord decodes ahead.
        sizes = [measured(reader.read([k])[0]) for k in (0, 9, 10, 19, 20, 29, 5)]
    for (wide, high), side in zip(sizes, (32, 32, 24, 24, 32, 32, 32), strict=True):
        assert abs(wide - side) <= 2, sizes
        assert abs(high - side) <= 2, sizes


@pytest.mark.parametrize(("codec", "kind"), [("mpeg1video", "mpg"), ("mpeg2video", "ts")])
def test_mpeg_loses_no_picture_where_the_size_changes(tmp_path, clip_of, codec, kind):
    """Its decoder holds a frame back, which must be shown before the next size begins; 32 pixels in
    128x96 and 96x128.
    """
    parts = [
        write(
            tmp_path / f"{k}.mpg",
            frames,
            codec=codec,
            options={"qmin": "1", "qmax": "1", "bf": "2", "g": "5"},
        )
        for k, frames in enumerate((square(96, 128), square(128, 96)))
    ]
    with open_clip(clip_of(append(tmp_path / f"turned.{kind}", *parts))) as reader:
        assert (reader.info.frames, reader.info.width, reader.info.height) == (20, 128, 96)
        sizes = [measured(frame) for frame in reader.read(range(20))]
    assert all(
        abs(side - (32 if k < 10 else 24)) <= 2 for k, size in enumerate(sizes) for side in size
    ), sizes


def test_a_stream_without_a_container_begins_with_its_first_frame(
    tmp_path, numbered_frames, numbers_in, clip_of
):
    """FFmpeg counts its time stamps, from the delay of its decoder on."""
    path = write(
        tmp_path / "a.m2v",
        numbered_frames(30),
        codec="mpeg2video",
        options={"qmin": "1", "qmax": "1", "bf": "2"},
    )
    for cut, want in (
        ((None, None), range(30)),
        ((0.4, 0.8), range(10, 20)),
        ((0, 0.04), range(1)),
    ):
        with open_clip(clip_of(path, *cut)) as reader:
            assert numbers_in(reader.read(range(reader.info.frames))) == list(want)
            assert reader.info.until == pytest.approx(1.2)


def test_a_broadcast_that_changes_the_shape_of_its_pixels_keeps_that_of_things(tmp_path, clip_of):
    """From 4:3 to 16:9 with the same stored pixels, as television does between programmes."""
    options = {**X264, "bf": "2"}
    parts = [
        write(tmp_path / f"{k}.ts", square(96, 128), options=options, aspect=aspect).read_bytes()
        for k, aspect in enumerate(((4, 3), (16, 9)))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    with open_clip(clip_of(tmp_path / "both.ts"), "pyav") as reader:
        frames = reader.read(range(20))
    assert reader.info.width == 171
    for k, frame in enumerate(frames):
        wide, high = measured(frame)
        assert wide / high == pytest.approx(4 / 3 if k < 10 else 16 / 9, abs=0.1), k


# joined and captured


PARTS = {
    "ts": ("libx264", X264),
    "b.ts": ("libx264", {**X264, "bf": "2"}),
    "mpeg2.ts": ("mpeg2video", {"qmin": "1", "qmax": "1", "bf": "2", "g": "10"}),
    "vob": ("mpeg2video", {"qmin": "1", "qmax": "1", "bf": "2", "g": "10"}),
}


@pytest.mark.parametrize("kind", PARTS)
# Where the second recording starts, in frames: back, 20 s ahead, an hour ahead.
@pytest.mark.parametrize("start", [0, 500, 90_000])
def test_joined_recordings_are_played_one_after_the_other(
    tmp_path, numbered_frames, numbers_in, clip_of, decoder, kind, start
):
    codec, options = PARTS[kind]
    frames = numbered_frames(60)
    parts = [
        write(
            tmp_path / f"{k}.{kind}",
            frames[30 * k : 30 * k + 30],
            codec=codec,
            options=options,
            start=k * start,
        )
        for k in range(2)
    ]
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for cut, want in (
        ((None, None), range(60)),
        ((0.4, 0.8), range(10, 20)),
        ((1.6, 2.0), range(40, 50)),
    ):
        with open_clip(clip_of(path, *cut), decoder) as reader:
            assert numbers_in(reader.read(range(reader.info.frames))) == list(want)
            assert reader.info.fps == pytest.approx(25)


@pytest.mark.parametrize("kind", ["ts", "b.ts", "mpeg2.ts"])
def test_a_capture_that_begins_between_key_frames_is_whole(
    tmp_path, numbered_frames, numbers_in, clip_of, decoder, kind
):
    codec, options = PARTS[kind]
    data = write(
        tmp_path / f"whole.{kind}", numbered_frames(60), codec=codec, options=options
    ).read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    path = tmp_path / f"capture.{kind}"
    path.write_bytes(b"".join(packets[len(packets) * 27 // 60 :]))
    with open_clip(clip_of(path), decoder) as reader:
        numbers = numbers_in(reader.read(range(reader.info.frames)))
    assert numbers == list(range(numbers[0], 60))
    assert 27 <= numbers[0] <= 41


@pytest.mark.parametrize("stated", [False, True])
def test_a_webm_copied_without_durations_is_whole_and_a_cut_one_is_not(
    tmp_path, clip_of, numbered_frames, stated
):
    import av

    options = {"deadline": "realtime", "cpu-used": "8", "b": "500k", "g": "10"}
    whole = write(tmp_path / "whole.webm", numbered_frames(40), codec="libvpx", options=options)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "copied.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.duration = stream, packet.duration if stated else 0
                target.mux(packet)
    with open_clip(clip_of(tmp_path / "copied.webm")) as reader:
        assert reader.info.frames == 40
    data = (tmp_path / "copied.webm").read_bytes()
    for share in (0.5, 0.75, 0.9):
        (tmp_path / "cut.webm").write_bytes(data[: int(share * len(data))])
        with pytest.raises(TruncatedVideo, match=r"the container promises 1\.(56|60) s"):
            open_clip(clip_of(tmp_path / "cut.webm"))


def test_pictures_that_a_webm_hides_do_not_count(encode, clip_of, numbers_in):
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k", "g": "30"}
    for name, codec in (("hidden8.webm", "libvpx"), ("hidden9.webm", "libvpx-vp9")):
        with open_clip(clip_of(encode(name, codec, options=options)), "pyav") as reader:
            assert reader.info.frames == 60
            assert len(reader.read(range(60))) == 60


def test_no_frame_is_lost_above_a_thousand_a_second(
    tmp_path, numbered_frames, numbers_in, clip_of, decoder
):
    path = tmp_path / "fast.mp4"
    decode.write_video(path, numbered_frames(40), 4000)
    for cut, want in (
        ((None, None), range(40)),
        ((0, 0.01), range(40)),
        ((0.0025, 0.005), range(10, 20)),
    ):
        with open_clip(clip_of(path, *cut), decoder) as reader:
            assert reader.info.fps == 4000
            assert numbers_in(reader.read(range(reader.info.frames))) == list(want)


def test_an_avi_begins_with_its_first_frame(encode, clip_of, numbers_in):
    """FFmpeg gives its frames stamps in the order of decoding, the first of them one frame late."""
    path = encode("b.avi", "libx264", options={"bf": "2", "g": "12"})
    with open_clip(clip_of(path, 1.0, 1.4)) as reader:
        assert numbers_in(reader.read(range(reader.info.frames))) == list(range(25, 35))
