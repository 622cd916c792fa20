"""What packets say about a file: its frames, their times, and what of the container's promise is missing."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from pipeline.container import MATROSKA, STAMPED, Packet, between, contents, starts_afresh

MP4 = STAMPED[0]


def described(stamps, keys=(0,), kind=MP4, cut_off=False, ends=None, start=0.0, **promises):
    """Contents of a stream at 25 fps and a tick of 1 ms, whose packets have these time stamps in the file's order.

    `keys` are positions in it; `promises`: duration (of all, seconds), own (of the stream, seconds), frames, tag.
    """
    container = SimpleNamespace(
        format=SimpleNamespace(name=kind), start_time=round(start * 1e6), duration=round(promises.get("duration", 0) * 1e6)
    )
    stream = SimpleNamespace(
        index=0,
        frames=promises.get("frames", 0),
        duration=round(promises["own"] * 1000) if "own" in promises else None,
        time_base=Fraction(1, 1000),
        average_rate=Fraction(25),
        guessed_rate=None,
        metadata={"DURATION": promises["tag"]} if "tag" in promises else {},
    )
    last = len(stamps) - 1
    packets = [Packet(stamp, k in keys, k in keys, False, cut_off and k == last) for k, stamp in enumerate(stamps)]
    known = [stamp for stamp in stamps if stamp is not None]
    return contents(container, stream, packets, ends or {0: (max(known, default=0) + 40) / 1000}, "")


def every_40_ms(count: int, begin: int = 0) -> list[int]:
    return [begin + 40 * k for k in range(count)]


@pytest.mark.parametrize("kind", [MP4, MATROSKA, "avi", "flv", "mpegts"])
def test_a_container_that_promises_nothing_lacks_nothing(kind):
    assert described(every_40_ms(10), kind=kind).missing == ""


@pytest.mark.parametrize(
    ("kind", "promises"),
    [
        (MP4, {"own": 4.0, "frames": 100}),
        (MATROSKA, {"tag": "00:00:04.000000000"}),
        (MATROSKA, {"duration": 4.0}),
        ("avi", {"frames": 100, "own": 2.0, "duration": 2.0}),  # FFmpeg shortens the durations of an AVI to what is there
        ("flv", {"duration": 4.0}),
    ],
)
def test_half_of_what_was_promised_is_missing(kind, promises):
    assert described(every_40_ms(100), kind=kind, **promises).missing == ""
    held = described(every_40_ms(50), kind=kind, **promises)
    assert "50 frames at 2.00 s; the container promises 4.00 s" in held.missing
    assert len(held.times) == 50


def test_durations_count_from_the_start_of_the_stream_but_in_matroska_from_zero():
    late = every_40_ms(50, begin=2000)
    assert "promises 4.00 s" in described(late, start=2.0, own=4.0).missing
    assert "promises 4.00 s" in described(late, start=0.0, own=4.0).missing  # behind sound that begins at once
    assert described(late, kind=MATROSKA, start=2.0, tag="00:00:04.000000000").missing == ""


def test_a_duration_of_all_streams_is_kept_by_the_longest():
    assert described(every_40_ms(50), kind="flv", duration=4.0, ends={0: 2.0, 1: 4.0}).missing == ""
    assert described(every_40_ms(50), kind="flv", duration=4.0, ends={0: 2.0, 1: 2.1}).missing != ""


def test_a_header_that_counts_a_frame_too_many_is_forgiven_but_not_in_matroska():
    assert described(every_40_ms(99), kind="avi", frames=100).missing == ""
    assert described(every_40_ms(99), kind=MATROSKA, tag="00:00:04.000000000").missing != ""


def test_a_last_frame_that_is_cut_off_does_not_count():
    held = described(every_40_ms(10), cut_off=True, own=0.4, frames=10)
    assert "the last of 10 frames is cut off" in held.missing
    assert len(held.times) == 9
    assert not held.steady


def test_leading_pictures_of_a_first_group_do_not_count():
    held = described([120, 40, 80, 240, 160, 200], kind=MATROSKA)
    assert list(held.number) == [120, 160, 200, 240]
    assert held.keys == [(0, 120)]
    assert not held.steady


def test_what_comes_before_the_first_key_frame_does_not_count():
    assert len(described(every_40_ms(10), keys=(4,)).times) == 6


def test_a_stream_is_steady_when_its_key_frames_have_the_same_place_in_file_and_time():
    closed = [0, 80, 40, 120, 200, 160]
    assert described(closed, keys=(0, 3)).steady
    open_group = [0, 80, 40, 200, 120, 160]
    assert not described(open_group, keys=(0, 3)).steady
    assert described(open_group, keys=(0, 3)).keys == [(0, 0), (5, 200)]


@pytest.mark.parametrize(("stamps", "kind"), [([0, 40, 40], MP4), ([0, None, 80], MP4), ([0, 40, 80], "avi")])
def test_stamps_that_cannot_name_frames_are_not_used(stamps, kind):
    held = described(stamps, kind=kind)
    assert (held.number, held.keys, held.steady) == ({}, [], False)
    assert len(held.times) == 3


def test_between_starts_with_what_is_on_screen():
    times = [0.0, 1.0, 1.5, 3.0]
    assert between(times, 4.0, None, None) == (0, 4)
    assert between(times, 4.0, 1.2, 3.0) == (1, 2)
    assert between(times, 4.0, 1.0, 1.1) == (1, 1)
    assert between(times, 4.0, 3.5, 9.0) == (3, 1)
    for start, end in ((4.0, None), (2.0, 2.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="no frame between"):
            between(times, 4.0, start, end)
    with pytest.raises(ValueError, match="no frame between 0 and 1 s: there are frames from 2"):
        between([2.0, 3.0], 4.0, None, 1.0)


def test_only_an_idr_picture_starts_afresh():
    lengths_of_4 = bytes([1, 100, 0, 31, 0xFF])

    def unit(kind: int) -> bytes:
        return (3).to_bytes(4, "big") + bytes([0x60 | kind, 0, 0])

    settings, recovery, idr, other = unit(7), unit(6), unit(5), unit(1)
    assert starts_afresh(memoryview(settings + idr), lengths_of_4)
    assert not starts_afresh(memoryview(recovery + other), lengths_of_4)
    assert not starts_afresh(memoryview(idr), None)
    assert not starts_afresh(memoryview(b""), lengths_of_4)
