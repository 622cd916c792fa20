"""Make damaged files: videos, pictures, and the small text and weight files that a run reads.

All randomness is seeded, so that the name of a case is enough to make it again.
"""

import gzip
import io
import struct
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Of every video: pixels, frames.
SIDE, LENGTH = 64, 12
# The videos that are damaged: (suffix, encoder, options of the container).
VIDEOS = {
    "h264": (".mp4", "libx264", {}),
    "faststart": (".mp4", "libx264", {"movflags": "faststart"}),
    "fragments": (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "mpeg4": (".mp4", "mpeg4", {}),
    "matroska": (".mkv", "libx264", {}),
    "webm": (".webm", "libvpx", {}),
    "vp9": (".webm", "libvpx-vp9", {}),
    "avi": (".avi", "mpeg4", {}),
    "pictures": (".avi", "mjpeg", {}),
    "stream": (".ts", "libx264", {}),
    "flash": (".flv", "flv", {}),
    "mpeg2": (".mpg", "mpeg2video", {}),
    "windows": (".wmv", "wmv2", {}),
}
# Those whose containers state what they hold.
PROMISES = {"h264", "faststart", "mpeg4", "matroska", "webm", "vp9", "avi", "pictures"}


class Case(NamedTuple):
    """A damaged file.

    Attributes:
        name: names the kind of damage.
        data: the bytes.
        hopeless: nobody can read it as what it claims to be.
    """

    name: str
    data: bytes
    hopeless: bool = False


def whole_videos(folder: Path) -> dict[str, bytes]:
    """Make a tiny video in each container of VIDEOS that this PyAV can write."""
    import av

    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (LENGTH, SIDE // 16, SIDE // 16, 3), np.uint8)
    frames = frames.repeat(16, 1).repeat(16, 2)
    made = {}
    for name, (suffix, codec, options) in VIDEOS.items():
        if codec not in av.codecs_available:
            continue
        path = folder / f"{name}{suffix}"
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            if codec == "libx264":
                stream.options = {"preset": "ultrafast", "g": "6"}
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        made[name] = path.read_bytes()
    return made


def damaged_videos(whole: dict[str, bytes], count: int, seed: int = 0) -> Iterator[Case]:
    """Make `count` cases.

    Half of them, at most, are cuts at a tenth, other formats and absurd sizes. The others have
    flipped bits, noise or wrong headers.
    """
    rng = np.random.default_rng(seed)
    fixed = [*_cuts(whole), *_other_formats(), *_absurd(whole)]
    take = min(len(fixed), count // 2)
    chosen = [fixed[k] for k in np.sort(rng.permutation(len(fixed))[:take])]
    names = list(whole)
    for k in range(count):
        if k < take:
            case = chosen[k]
        else:
            name = names[k % len(names)]
            kind = DRAWN[k // len(names) % len(DRAWN)]
            others = whole[names[int(rng.integers(len(names)))]]
            data = kind(bytearray(whole[name]), rng, others)
            case = Case(f"{kind.__name__[1:]}-{name}{VIDEOS[name][0]}", bytes(data))
        yield case._replace(name=f"{k:04d}-{case.name}")


def _cuts(whole: dict[str, bytes]) -> Iterator[Case]:
    for name, data in whole.items():
        for tenth in range(10):
            hopeless = tenth == 0 or name in PROMISES
            suffix = VIDEOS[name][0]
            yield Case(f"cut{tenth}-{name}{suffix}", data[: len(data) * tenth // 10], hopeless)


def _other_formats() -> Iterator[Case]:
    """Make files that are not videos, under the names of videos."""
    sound, archive = io.BytesIO(), io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("video.mp4", bytes(1000))
    contents = {
        "text": b"This is not a video.\n" * 50,
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "json": b'{"error": "quota exceeded"}',
        "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "script": b"#!/bin/sh\ntouch owned\n",
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "sound": sound.getvalue(),
        "zip": archive.getvalue(),
        "gzip": gzip.compress(bytes(5000)),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(500),
        "pdf": b"%PDF-1.7\n" + bytes(range(256)) * 4,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "sdp": (
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        ),
        "newline": b"\n",
    }
    for what, data in contents.items():
        for suffix in (".mp4", ".mkv", ".avi", ".webm"):
            yield Case(f"{what}{suffix}", data, True)


def _absurd(whole: dict[str, bytes]) -> Iterator[Case]:
    """Make headers that claim impossible sizes of frames, of tables, or of parts of the file."""
    mp4, avi = whole["h264"], whole["avi"]
    for tag, at, kind in (("avc1", 28, ">HH"), ("tkhd", 80, ">II"), ("btrt", 8, ">II")):
        found = mp4.find(tag.encode())
        if found > 0:
            for value in (0, 1, 65_535, 100_000, 0xFFFFFFFF):
                value = min(value, 65_535) if kind == ">HH" else value
                data = _put(mp4, found + at, struct.pack(kind, value, value))
                yield Case(f"{tag}{value}.mp4", data)
    for tag in ("stsz", "stts", "stco", "stsc", "stss", "mdhd", "mvhd", "elst", "ctts"):
        found = mp4.find(tag.encode())
        if found > 0:
            for offset in (4, 8, 12, 16, 20):
                for value in (0, 0x7FFFFFFF, 0xFFFFFFFF):
                    data = _put(mp4, found + offset, struct.pack(">I", value))
                    yield Case(f"{tag}{offset}-{value}.mp4", data)
    for tag in ("ftyp", "moov", "trak", "mdia", "stbl", "mdat"):
        for value in (0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF):
            data = _put(mp4, mp4.find(tag.encode()) - 4, struct.pack(">I", value))
            yield Case(f"size-{tag}{value}.mp4", data)
    for value in (0, -1, 100_000, 0x7FFFFFFF):
        size = _put(avi, avi.find(b"strf") + 12, struct.pack("<ii", value, value))
        yield Case(f"frame{value}.avi", size)
        count = _put(avi, avi.find(b"avih") + 24, struct.pack("<i", value))
        yield Case(f"frames{value}.avi", count)


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _flip1(data: bytearray, rng, other: bytes) -> bytearray:
    return _flips(data, rng, 1)


def _flip20(data: bytearray, rng, other: bytes) -> bytearray:
    return _flips(data, rng, 20)


def _flips(data: bytearray, rng, count: int) -> bytearray:
    for bit in rng.integers(0, 8 * len(data), count).tolist():
        data[bit // 8] ^= 1 << bit % 8
    return data


def _head_flips(data: bytearray, rng, other: bytes) -> bytearray:
    """Flip bits in the header of the container."""
    for bit in rng.integers(0, 8 * min(len(data), 400), 4).tolist():
        data[bit // 8] ^= 1 << bit % 8
    return data


def _tail_flips(data: bytearray, rng, other: bytes) -> bytearray:
    """Flip bits in the tables of an MP4, the index of an AVI or of Matroska."""
    for bit in rng.integers(8 * max(0, len(data) - 700), 8 * len(data), 4).tolist():
        data[bit // 8] ^= 1 << bit % 8
    return data


def _other_header(data: bytearray, rng, other: bytes) -> bytearray:
    size = int(rng.choice([4, 16, 64, 256]))
    data[:size] = other[:size]
    return data


def _noise_header(data: bytearray, rng, other: bytes) -> bytearray:
    size = int(rng.choice([4, 16, 64, 256]))
    data[:size] = rng.bytes(size)
    return data


def _no_header(data: bytearray, rng, other: bytes) -> bytearray:
    return data[int(rng.integers(1, 200)) :]


def _zeroed(data: bytearray, rng, other: bytes) -> bytearray:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 400))
    size = min(size, len(data) - at)
    data[at : at + size] = bytes(size)
    return data


def _noise(data: bytearray, rng, other: bytes) -> bytearray:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 400))
    size = min(size, len(data) - at)
    data[at : at + size] = rng.bytes(size)
    return data


def _gap(data: bytearray, rng, other: bytes) -> bytearray:
    at = int(rng.integers(len(data)))
    del data[at : at + int(rng.integers(1, 300))]
    return data


def _twice(data: bytearray, rng, other: bytes) -> bytearray:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 600))
    data[at:at] = data[at : at + size]
    return data


def _spliced(data: bytearray, rng, other: bytes) -> bytearray:
    return data[: int(rng.integers(len(data)))] + bytearray(other[int(rng.integers(len(other))) :])


def _numbers(data: bytearray, rng, other: bytes) -> bytearray:
    """Replace 32 bits by a number at the edge of its range."""
    for _ in range(2):
        at = int(rng.integers(max(1, len(data) - 4)))
        value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        data[at : at + 4] = struct.pack(">I", value)
    return data


DRAWN = (
    *(_flip1, _flip20, _head_flips, _tail_flips, _other_header, _noise_header, _no_header),
    *(_zeroed, _noise, _gap, _twice, _spliced, _numbers),
)


def damaged_pictures(good: bytes, suffix: str, seed: int = 0) -> Iterator[Case]:
    """Make damaged versions of a PNG or JPEG picture with the bytes `good`."""
    rng = np.random.default_rng(seed)
    for tenth in range(10):
        yield Case(f"cut{tenth}{suffix}", good[: len(good) * tenth // 10], tenth < 5)
    for k, kind in enumerate((*DRAWN, *DRAWN)):
        data = bytes(kind(bytearray(good), rng, b"GIF89a" + bytes(300)))
        yield Case(f"{kind.__name__[1:]}{k}{suffix}", data)
    svg = b'<svg width="100000" height="100000"/>'
    for what, data in (("text", b"no picture"), ("zeros", bytes(500)), ("svg", svg)):
        yield Case(f"{what}{suffix}", data, True)
    for side in (0, 9_000, 65_500, 100_000, 0x7FFFFFFF):
        yield Case(f"claims{side}{suffix}", picture_that_claims(good, suffix, side), True)


def picture_that_claims(good: bytes, suffix: str, side: int) -> bytes:
    """Change the header of a picture: it claims `side` x `side` pixels.

    The header of a JPEG claims 65,535 at most.
    """
    if suffix == ".png":
        import zlib

        head = b"IHDR" + struct.pack(">II", side, side) + good[24:29]
        return good[:12] + head + struct.pack(">I", zlib.crc32(head)) + good[33:]
    at = good.index(b"\xff\xc0") + 5
    return _put(good, at, struct.pack(">HH", min(side, 65_535), min(side, 65_535)))


def damaged_text(good: str, count: int, seed: int = 0) -> Iterator[Case]:
    """Make `count` damaged versions of a text file.

    They have cuts, flipped bits, other encodings, other values, moved lines, nesting, long lines.
    """
    rng = np.random.default_rng(seed)
    data = good.encode()
    fixed = [data[: len(data) * tenth // 10] for tenth in range(10)]
    fixed += [
        b"\xef\xbb\xbf" + data,
        good.encode("utf-16"),
        good.encode("utf-32"),
        data.replace(b"\n", b"\r"),
        b"\0" + data,
    ]
    fixed += [data + data, data * 40, b"\n" * 1000, b'"' * 999, data + b"\xff\xfe"]
    fixed += [data + b"\x1a", b"[" * 100_000, b'{"a":' * 50_000]
    fixed += [
        data.replace(b",", b";"),
        data.replace(b"\n", b""),
        data.replace(b'"', b"'"),
        data + b"x" * 300_000,
        data.upper(),
    ]
    for k in range(count):
        if k < min(len(fixed), count // 3):
            which = k if count >= 3 * len(fixed) else int(rng.integers(len(fixed)))
            yield Case(f"{k:04d}-fixed", fixed[which])
            continue
        kind = TEXT[k % len(TEXT)]
        yield Case(f"{k:04d}-{kind.__name__[1:]}", kind(data, rng))


VALUES = (
    *(b"", b"null", b"true", b"-1", b"0", b"1e999", b"nan", b"NaN", b"inf", b"Infinity", b"-0.0"),
    *(b"9" * 400, b"9" * 5000, b"[]", b"{}", b'""', b'"\\ud800"', b"\\u0000"),
    *(b"../../etc/passwd", b"/etc/passwd", b"~", b"$HOME", b"__import__('os')"),
    *(b"!!python/object/apply:os.system [true]", b"2020-01-01", b"0x10", b"1_000"),
    *("é".encode(), "\u202e".encode(), b"%s%n"),
)


def _values(data: bytes, rng) -> bytes:
    """Replace a word by another word, or by none."""
    import re

    words = list(re.finditer(rb"[\w.+-]+", data))
    word = words[int(rng.integers(len(words)))]
    return data[: word.start()] + VALUES[int(rng.integers(len(VALUES)))] + data[word.end() :]


def _bytes(data: bytes, rng) -> bytes:
    text = bytearray(data)
    for at in rng.integers(0, len(text), int(rng.integers(1, 6))).tolist():
        text[at] = int(rng.integers(256))
    return bytes(text)


def _bits(data: bytes, rng) -> bytes:
    return bytes(_flips(bytearray(data), rng, int(rng.integers(1, 6))))


def _lines(data: bytes, rng) -> bytes:
    """Change the order of lines, repeat some and drop some."""
    lines = data.splitlines(keepends=True)
    return b"".join(lines[k] for k in rng.integers(0, len(lines), len(lines)).tolist())


def _signs(data: bytes, rng) -> bytes:
    """Insert or remove a character that has a meaning."""
    at = int(rng.integers(len(data)))
    sign = rng.choice(list(b",;:\"'[]{}=#\n\t\\\0-."))
    inserted = bytes([sign]) if rng.random() < 0.6 else b""
    return data[:at] + inserted + data[at + int(rng.integers(2)) :]


TEXT = (_values, _bytes, _bits, _lines, _values, _signs)


def damaged_weights(good: bytes, count: int, seed: int = 0) -> Iterator[Case]:
    """Make `count` damaged versions of a file of torch.save (a zip archive with a pickle)."""
    rng = np.random.default_rng(seed)
    fixed = [good[: len(good) * tenth // 10] for tenth in range(10)]
    fixed += [b"text\n" * 99, bytes(5000), b"PK\x03\x04" + bytes(99)]
    for k in range(count):
        if k < min(len(fixed), count // 3):
            yield Case(f"{k:04d}-fixed", fixed[k], True)
            continue
        kind = DRAWN[k % len(DRAWN)]
        yield Case(f"{k:04d}-{kind.__name__[1:]}", bytes(kind(bytearray(good), rng, bytes(600))))
