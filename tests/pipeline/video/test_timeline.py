"""The recordings in a stream: stamps that start again or jump are parts that a player plays one
after the other.
"""

import pytest

from pipeline.video.packets import Packet
from pipeline.video.timeline import middle_step, parts_of

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
    found = parts_of(packets(even(10, begin), even(10)), TICK, False)
    assert found.starts == [0, 10]
    assert found.joints == {10}
    assert found.times == [begin + 40 * k for k in range(20)]
    assert found.places(20) == list(range(20))


def test_a_jump_ahead_is_another_clock_in_a_broadcast_and_a_wait_elsewhere():
    stream = packets(even(10), even(10, 60_000))
    assert parts_of(stream, TICK, True).times == [40 * k for k in range(20)]
    assert parts_of(stream, TICK, False).times[10] == 60_000
    gap = packets(even(10), even(10, 5_000))  # a player waits these 5 seconds
    assert parts_of(gap, TICK, True).times[10] == 5_000


def test_frames_that_are_far_apart_are_no_jumps():
    stamps = [60_000 * k for k in range(10)]
    assert len(parts_of(packets((stamps, stamps)), TICK, True)) == 1


def test_stamps_that_are_merely_untidy_are_one_recording():
    orders = [0, 40, 80, 70, 120, 160]
    assert len(parts_of(packets((orders, [0, 40, 80, 90, 120, 160])), TICK, True)) == 1


def test_frames_out_of_order_stay_within_their_recording():
    group = [0, 40, 80, 120], [80, 200, 120, 160]  # I P B B
    found = parts_of(packets(group, group), TICK, True)
    assert found.places(8) == [0, 3, 1, 2, 4, 7, 5, 6]
    assert sorted(found.times) == [80 + 40 * k for k in range(8)]


def test_what_no_key_frame_precedes_is_left_out_and_its_time_passes():
    """A capture that begins between key frames, after another recording."""
    found = parts_of(packets(even(5), keys=(0,)) + packets(even(10), keys=(4,)), TICK, True)
    assert found.unfed == {5, 6, 7, 8}
    assert found.times == [0, 40, 80, 120, 160, *(200 + 160 + 40 * k for k in range(6))]
    assert found.places(15) == [0, 1, 2, 3, 4, -1, -1, -1, -1, 5, 6, 7, 8, 9, 10]


def test_leading_pictures_of_every_recording_are_left_out():
    group = [0, 40, 80, 120], [120, 40, 80, 160]  # an open group whose beginning was cut away
    found = parts_of(packets(group, group), TICK, True)
    assert found.unfed == {1, 2, 5, 6}
    assert found.shown == [0, 3, 4, 7]


def test_without_any_stamp_nothing_is_known_of_times():
    found = parts_of([Packet(None, True, True, False, False)] * 3, TICK, True)
    assert (found.times, found.places(3), found.starts) == (None, [], [0])


def test_equal_stamps_tell_no_places():
    assert parts_of(packets(([0, 1, 2], [0, 0, 40])), TICK, False).places(3) == []


def test_a_stamp_of_the_next_recording_tells_nothing():
    """FFmpeg gives the last frame of an MPEG program stream that of the first frame behind the
    joint, 20 s ahead.
    """
    first = [0, 40, 80], [0, 40, 20_000]
    found = parts_of(packets(first, even(3, 20_000)), TICK, True)
    assert found.times == [40 * k for k in range(6)]
    assert found.places(6) == []


def test_the_middle_step_knows_no_zero():
    assert middle_step([0, 0, 40, 80, 1000]) == 40
    assert middle_step([5]) == middle_step([]) == 0
