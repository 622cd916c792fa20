"""One packet of a video stream, and what codecs and Matroska write into their bytes.

Pure functions of bytes: nothing is decoded, and no decoder is imported.
"""

from typing import NamedTuple

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_MPEG_SEQUENCE_HEADER = b"\0\0\1\xb3"
_H264_SLICE, _H264_IDR_SLICE = 1, 5


class Packet(NamedTuple):
    """One packet of a video stream.

    Attributes:
        stamp: when its frame is shown (pts), in ticks of the stream; None where not stated.
        key: the container marks it as a key frame.
        fresh: a key frame that a decoder can start with: it needs no packet before it.
        hidden: its frame is never shown, because of an edit list or of the codec.
        cut_off: it is longer than the rest of the file.
        decoded: its position in decoding order (dts), in ticks; None where not stated.
        duration: how long its frame is shown, in ticks; 0 where not stated.
    """

    stamp: int | None
    key: bool
    fresh: bool
    hidden: bool
    cut_off: bool
    decoded: int | None = None
    duration: int = 0


def is_idr(data: memoryview, extradata: bytes | None) -> bool:
    """Return whether an H.264 key frame is an IDR picture, which needs nothing before it.

    Containers also mark recovery points as key frames. After one of these, a decoder may need
    many frames until its picture is right.

    Args:
        data: the packet as MP4 and Matroska store it, each unit after its length.
        extradata: the codec's header in the container (avcC), which has the size of a length.
    """
    if not extradata or len(extradata) < 5 or extradata[0] != 1:
        return False

    width = (extradata[4] & 3) + 1
    start = 0
    while start + width < len(data):
        kind = data[start + width] & 31
        if kind in (_H264_SLICE, _H264_IDR_SLICE):
            return kind == _H264_IDR_SLICE
        start += width + int.from_bytes(data[start : start + width], "big")
    return False


def shows_nothing(codec: str, data: memoryview) -> bool:
    """Return whether a packet of VP8 or VP9 holds reference pictures only, which are never shown.

    Args:
        codec: FFmpeg's name of the codec; False for all codecs but "vp8" and "vp9".
        data: the packet's bytes.
    """
    if not len(data):
        return False
    if codec == "vp8":
        return not data[0] & 0x10
    if codec != "vp9":
        return False

    for start in _vp9_frame_starts(data):
        if start < len(data) and _vp9_shows(data[start]):
            return False
    return True


def _vp9_frame_starts(data: memoryview) -> list[int]:
    """Return where the frames of a VP9 packet start; a superframe holds several."""
    # A superframe lists the sizes of its frames between two equal marker bytes at its end.
    marker = data[-1]
    if marker & 0xE0 != 0xC0:
        return [0]
    count = (marker & 7) + 1
    width = (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * width
    if index < 0 or data[index] != marker:
        return [0]

    starts = [0]
    for at in range(index + 1, len(data) - 1 - width, width):
        starts.append(starts[-1] + int.from_bytes(data[at : at + width], "little"))
    return starts


def _vp9_shows(first: int) -> bool:
    """Return whether a VP9 frame is shown, by its first byte.

    Its bits: marker (2), profile (2), [reserved], show_existing_frame, frame type, show_frame.
    """
    after_profile = 5 if first & 0x30 == 0x30 else 4
    show_existing = first >> (7 - after_profile) & 1
    show = first >> (5 - after_profile) & 1
    return bool(show_existing or show)


def stated_picture(codec: str, data: memoryview) -> bytes:
    """Return the picture size that a packet of MPEG-1 or MPEG-2 states, as raw bytes.

    Returns:
        The three bytes of width and height in a sequence header; b"" where there is no such
        header, and for other codecs.
    """
    if codec in ("mpeg1video", "mpeg2video") and bytes(data[:4]) == _MPEG_SEQUENCE_HEADER:
        return bytes(data[4:7])
    return b""


def stated_size(head: bytes) -> int | None:
    """Return how many bytes a Matroska file should have, by its first bytes.

    Args:
        head: the first bytes of the file, some hundreds at least.

    Returns:
        The size in bytes; None for another kind of file, and for one that was written live.
    """
    if not head.startswith(_EBML):
        return None
    size, start = _element_size(head, len(_EBML))
    if size is None:
        return None

    start += size
    if head[start : start + 4] != _SEGMENT:
        return None
    size, start = _element_size(head, start + 4)
    return None if size is None else start + size


def _element_size(head: bytes, at: int) -> tuple[int | None, int]:
    """Return (size of a Matroska element, None where it is left open; where its content starts).

    The number of leading zero bits of the first byte says how many bytes the size takes.
    """
    if at >= len(head) or not head[at]:
        return None, at
    width = 9 - head[at].bit_length()
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(head[at : at + width], "big") & unknown
    if size == unknown or at + width > len(head):
        return None, at + width
    return size, at + width
