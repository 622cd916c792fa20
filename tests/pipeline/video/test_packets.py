"""What packets say about a file: its frames, their times, and what of the container's promise is
missing.
"""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from pipeline.video.bitstream import Packet
from pipeline.video.packets import MATROSKA, STAMPED, frame_rate, stream_contents

MP4 = STAMPED[0]


def described(
    stamps,
    keys=(0,),
    kind=MP4,
    cut_off=False,
    ends=None,
    start=0.0,
    rate=25,
    last=0,
    whole=False,
    **promises,
):
    """Contents of a stream whose header says 25 fps and a tick of 1 ms, and whose packets have
    these time stamps in its order.

    `keys` are positions in it; `last`: the stated duration of the last packet, ms; `whole`: the
    file has the bytes that it states; `promises`: duration (of all, seconds), own (of the stream,
    seconds), frames, tag.
    """
    container = SimpleNamespace(
        format=SimpleNamespace(name=kind),
        start_time=round(start * 1e6),
        duration=round(promises.get("duration", 0) * 1e6),
    )
    stream = SimpleNamespace(
        index=0,
        frames=promises.get("frames", 0),
        duration=round(promises["own"] * 1000) if "own" in promises else None,
        time_base=Fraction(1, 1000),
        average_rate=Fraction(rate) if rate else None,
        guessed_rate=None,
        metadata={
            **promises.get("tags", {}),
            **({"DURATION": promises["tag"]} if "tag" in promises else {}),
        },
    )
    end = len(stamps) - 1
    packets = [
        Packet(
            stamp, k in keys, k in keys, False, cut_off and k == end, None, last if k == end else 0
        )
        for k, stamp in enumerate(stamps)
    ]
    known = [stamp for stamp in stamps if stamp is not None]
    return stream_contents(
        container, stream, packets, ends or {0: (max(known, default=0) + 40) / 1000}, "", whole
    )


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
        # FFmpeg shortens the durations of an AVI to what is there.
        ("avi", {"frames": 100, "own": 2.0, "duration": 2.0}),
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
    # The sound begins at once.
    assert "promises 4.00 s" in described(late, start=0.0, own=4.0).missing
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
    assert not held.countable


def test_leading_pictures_of_a_first_group_do_not_count():
    held = described([120, 40, 80, 240, 160, 200], kind=MATROSKA)
    assert list(held.frame_of_stamp) == [120, 160, 200, 240]
    assert held.keys == [(0, 120)]
    assert not held.countable


def test_what_comes_before_the_first_key_frame_does_not_count():
    assert len(described(every_40_ms(10), keys=(4,)).times) == 6


def test_a_stream_is_steady_when_its_key_frames_have_the_same_place_in_file_and_time():
    closed = [0, 80, 40, 120, 200, 160]
    assert described(closed, keys=(0, 3)).countable
    open_group = [0, 80, 40, 200, 120, 160]
    assert not described(open_group, keys=(0, 3)).countable
    assert described(open_group, keys=(0, 3)).keys == [(0, 0), (5, 200)]


@pytest.mark.parametrize(
    ("stamps", "kind"), [([0, 40, 40], MP4), ([0, None, 80], MP4), ([0, 40, 80], "avi")]
)
def test_stamps_that_cannot_name_frames_are_not_used(stamps, kind):
    held = described(stamps, kind=kind)
    assert (held.frame_of_stamp, held.keys, held.countable) == ({}, [], False)
    assert len(held.times) == 3


@pytest.mark.parametrize("clock", [1000, 600, 60_000, 50, None])
@pytest.mark.parametrize("kind", [MATROSKA, "flv", "mpegts", "avi", "dv"])
def test_the_rate_is_that_of_the_stamps_where_the_header_states_a_clock(kind, clock):
    assert described(every_40_ms(50), kind=kind, rate=clock).fps == pytest.approx(25)
    uneven = [0, 20, 70, 100, 150, 170, 220, 300]
    # 300 ms and a median step of 50.
    assert described(uneven, kind=kind, rate=clock).fps == pytest.approx(8 / 0.35)


def test_a_rate_that_fits_rounded_stamps_is_exact():
    ntsc = Fraction(30_000, 1001)
    stamps = [round(1000 * k / ntsc) for k in range(60)]
    assert described(stamps, rate=ntsc).fps == float(ntsc)
    assert described(stamps[:3], rate=ntsc).fps == float(ntsc)
    assert described(stamps, rate=1000).fps == pytest.approx(float(ntsc), rel=1e-3)


def test_of_several_rates_in_a_header_the_one_that_fits_is_taken():
    assert frame_rate([50.0, 25.0], 100, 4.0, 0.04, 0.001) == 25.0  # fields, frames
    assert frame_rate([24.0], 1000, 40.0, 0.04, 0.001) == 25.0
    assert frame_rate([30.0], 0, 0.0, 0.0, 0.001) == 30.0
    assert frame_rate([], 1, 0.0, 0.0, 0.001) == 0.0


@pytest.mark.parametrize("last", [0, 40, 10_000])
def test_frames_at_even_steps_have_the_rate_of_the_steps(last):
    """Encoders give the last frame of a time lapse the duration of another rate."""
    assert described([10_000 * k for k in range(10)], rate=None, last=last).fps == pytest.approx(
        0.1
    )


def test_a_last_frame_of_unknown_duration_lasts_as_long_as_its_neighbours():
    assert described(every_40_ms(40)).until == pytest.approx(1.6)
    assert described(every_40_ms(40), last=1).until == pytest.approx(1.6)  # a container's clock


@pytest.mark.parametrize("whole", [False, True])
def test_a_matroska_file_whose_last_duration_is_unknown_lacks_nothing(whole):
    promises = {
        "kind": MATROSKA,
        "ends": {0: 1.56},
        "duration": 1.6,
        "tag": "00:00:01.600000000",
        "whole": whole,
    }
    assert described(every_40_ms(40), **promises).missing == ""
    assert "30 frames" in described(every_40_ms(30), **{**promises, "ends": {0: 1.16}}).missing


def test_a_matroska_file_that_has_all_its_bytes_may_count_a_frame_too_many():
    promises = {"kind": MATROSKA, "tag": "00:00:04.000000000"}
    assert described(every_40_ms(99), **promises).missing != ""
    assert described(every_40_ms(99), whole=True, **promises).missing == ""
    assert described(every_40_ms(90), whole=True, **promises).missing != ""


def test_a_tag_that_was_copied_from_a_longer_file_promises_nothing():
    stale = {"kind": MATROSKA, "tags": {"DURATION-eng": "00:00:09.000000000"}}
    assert described(every_40_ms(50), duration=2.0, **stale).missing == ""
    assert described(every_40_ms(50), duration=2.0, tag="00:00:02.000000000", **stale).missing == ""
    assert described(every_40_ms(25), duration=2.0, **stale).missing != ""


@pytest.mark.parametrize("kind", ["mpegts", "mpeg", "ogg", "h264", "m4v"])
def test_a_duration_that_is_guessed_from_what_is_there_is_no_promise(kind):
    assert described(every_40_ms(10), kind=kind, own=4.0, duration=4.0).missing == ""
