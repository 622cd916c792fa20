"""What single packets and headers say by their bytes."""

from pipeline.video.bitstream import is_idr, shows_nothing, stated_size


def test_only_an_idr_picture_is_fresh():
    lengths_of_4 = bytes([1, 100, 0, 31, 0xFF])

    def unit(kind: int) -> bytes:
        return (3).to_bytes(4, "big") + bytes([0x60 | kind, 0, 0])

    settings, recovery, idr, other = unit(7), unit(6), unit(5), unit(1)
    assert is_idr(memoryview(settings + idr), lengths_of_4)
    assert not is_idr(memoryview(recovery + other), lengths_of_4)
    assert not is_idr(memoryview(idr), None)
    assert not is_idr(memoryview(b""), lengths_of_4)


def test_pictures_that_are_only_referred_to_show_nothing():
    """RFC 6386, 9.1: bit 4 of a VP8 frame's first byte; VP9, 7.2: show_existing_frame,
    show_frame.
    """
    assert shows_nothing("vp8", memoryview(b"\x01\0"))
    assert not shows_nothing("vp8", memoryview(b"\x11\0"))
    hidden, shown, existing = b"\x84\0", b"\x86\0", b"\x88"
    assert shows_nothing("vp9", memoryview(hidden))
    assert not shows_nothing("vp9", memoryview(shown))
    assert not shows_nothing("vp9", memoryview(existing))
    superframe = hidden + shown + b"\xc1\x02\x02\xc1"
    assert not shows_nothing("vp9", memoryview(superframe))
    assert shows_nothing("vp9", memoryview(hidden + hidden + b"\xc1\x02\x02\xc1"))
    assert not shows_nothing("h264", memoryview(hidden))
    assert not shows_nothing("vp8", memoryview(b""))


def test_a_matroska_file_states_its_size():
    head = b"\x1a\x45\xdf\xa3\x83abc\x18\x53\x80\x67"
    assert stated_size(head + b"\x01\x00\x00\x00\x00\x00\x10\x00") == len(head) + 8 + 4096
    assert stated_size(head + b"\x50\x00") == len(head) + 2 + 4096
    for open_end in (b"\x01\xff\xff\xff\xff\xff\xff\xff", b"\xff"):
        assert stated_size(head + open_end) is None  # written live
    for other in (
        b"",
        b"\x1a\x45\xdf\xa3",
        head,
        head + b"\x01\x00",
        b"RIFF" + bytes(30),
        head.replace(b"\x18", b"\x19"),
    ):
        assert stated_size(other) is None
