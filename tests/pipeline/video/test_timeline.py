"""The recordings in a stream: stamps that start again or jump are parts that a player plays one
after the other.
"""

import pytest

from pipeline.video.bitstream import Packet
from pipeline.video.timeline import find_recordings, frames_between, middle_step, rounding_slack

TICK = 0.001


def packets(*parts, keys=(0,)):
    """Packets of recordings, each (order of decoding, time stamps) in ms; the packets at `keys` of
    each are key frames.
    """
    return [
        Packet(stamp, k in keys, k in keys, False, False, order, 40)
        for orders, stamps in parts
        for k, (order, stamp) in enumerate(zip(orders, stamps, strict=True))
    ]


def even(count: int, begin: int = 0):
    stamps = [begin + 40 * k for k in range(count)]
    return stamps, stamps


@pytest.mark.parametrize("begin", [0, 40, 200, 7_000_000])
def test_stamps_that_start_again_follow_the_recording_before(begin):
    found = find_recordings(packets(even(10, begin), even(10)), TICK, False)
    assert found.starts == [0, 10]
    assert found.boundaries == {10}
    assert found.times == [begin + 40 * k for k in range(20)]
    assert found.frame_of_packet(20) == list(range(20))


def test_a_jump_ahead_is_another_clock_in_a_broadcast_and_a_wait_elsewhere():
    stream = packets(even(10), even(10, 60_000))
    assert find_recordings(stream, TICK, True).times == [40 * k for k in range(20)]
    assert find_recordings(stream, TICK, False).times[10] == 60_000
    gap = packets(even(10), even(10, 5_000))  # a player waits these 5 seconds
    assert find_recordings(gap, TICK, True).times[10] == 5_000


def test_frames_that_are_far_apart_are_no_jumps():
    stamps = [60_000 * k for k in range(10)]
    assert len(find_recordings(packets((stamps, stamps)), TICK, True)) == 1


def test_stamps_that_are_merely_untidy_are_one_recording():
    orders = [0, 40, 80, 70, 120, 160]
    assert len(find_recordings(packets((orders, [0, 40, 80, 90, 120, 160])), TICK, True)) == 1


def test_frames_out_of_order_stay_within_their_recording():
    group = [0, 40, 80, 120], [80, 200, 120, 160]  # I P B B
    found = find_recordings(packets(group, group), TICK, True)
    assert found.frame_of_packet(8) == [0, 3, 1, 2, 4, 7, 5, 6]
    assert sorted(found.times) == [80 + 40 * k for k in range(8)]


def test_what_no_key_frame_precedes_is_left_out_and_its_time_passes():
    """A capture that begins between key frames, after another recording."""
    found = find_recordings(packets(even(5), keys=(0,)) + packets(even(10), keys=(4,)), TICK, True)
    assert found.undecodable == {5, 6, 7, 8}
    assert found.times == [0, 40, 80, 120, 160, *(200 + 160 + 40 * k for k in range(6))]
    assert found.frame_of_packet(15) == [0, 1, 2, 3, 4, -1, -1, -1, -1, 5, 6, 7, 8, 9, 10]


def test_leading_pictures_of_every_recording_are_left_out():
    group = [0, 40, 80, 120], [120, 40, 80, 160]  # an open group whose beginning was cut away
    found = find_recordings(packets(group, group), TICK, True)
    assert found.undecodable == {1, 2, 5, 6}
    assert found.shown == [0, 3, 4, 7]


def test_without_any_stamp_nothing_is_known_of_times():
    found = find_recordings([Packet(None, True, True, False, False)] * 3, TICK, True)
    assert (found.times, found.frame_of_packet(3), found.starts) == (None, [], [0])


def test_equal_stamps_tell_no_places():
    assert find_recordings(packets(([0, 1, 2], [0, 0, 40])), TICK, False).frame_of_packet(3) == []


def test_a_stamp_of_the_next_recording_tells_nothing():
    """FFmpeg gives the last frame of an MPEG program stream that of the first frame behind the
    joint, 20 s ahead.
    """
    first = [0, 40, 80], [0, 40, 20_000]
    found = find_recordings(packets(first, even(3, 20_000)), TICK, True)
    assert found.times == [40 * k for k in range(6)]
    assert found.frame_of_packet(6) == []


def test_the_middle_step_knows_no_zero():
    assert middle_step([0, 0, 40, 80, 1000]) == 40
    assert middle_step([5]) == middle_step([]) == 0


@pytest.mark.parametrize("rate", [25, 240, 1000, 2000, 10_000, 0.1])
def test_no_frame_is_lost_at_the_ends_at_any_rate(rate):
    times = [k / rate for k in range(60)]
    until = 60 / rate
    assert frames_between(times, until, None, None) == (0, 60)
    assert frames_between(times, until, 0.0, until) == (0, 60)
    assert frames_between(times, until, 10 / rate, 20 / rate) == (10, 10)
    assert rounding_slack(times) <= min(1e-3, 0.5 / rate) or rate < 500


def test_rounded_times_mean_the_frames_that_they_are_of():
    """Matroska rounds to milliseconds, and so do people."""
    for rate in (25, 29.97, 240, 960):
        times = [round(k / rate, 3) for k in range(300)]
        for k in range(299):
            assert frames_between(
                times, 300 / rate, k / rate, (k + 1) / rate, rounding_slack(times, 1e-3)
            ) == (
                k,
                1,
            )


def test_between_starts_with_what_is_on_screen():
    times = [0.0, 1.0, 1.5, 3.0]
    assert frames_between(times, 4.0, None, None) == (0, 4)
    assert frames_between(times, 4.0, 1.2, 3.0) == (1, 2)
    assert frames_between(times, 4.0, 1.0, 1.1) == (1, 1)
    assert frames_between(times, 4.0, 3.5, 9.0) == (3, 1)
    for start, end in ((4.0, None), (2.0, 2.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="no frame between"):
            frames_between(times, 4.0, start, end)
    with pytest.raises(ValueError, match="no frame between 0 and 1 s: there are frames from 2"):
        frames_between([2.0, 3.0], 4.0, None, 1.0)
