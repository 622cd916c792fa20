"""A video file before decoding: the stream that a player shows, its frames, how they are shown.

PyAV opens the file and reads its packets; `packets.py` works out what they mean.
"""

from contextlib import suppress
from dataclasses import dataclass

from pipeline.manifests.manifest import Clip
from pipeline.text.counted import counted
from pipeline.video.bitstream import Packet, is_idr, shows_nothing, stated_size
from pipeline.video.frame_reader import decode_error
from pipeline.video.orientation import (
    EXIF_ORIENTATIONS,
    QUARTER_TURNS,
    Orientation,
    PictureShape,
    orientation_of_matrix,
)
from pipeline.video.packets import StreamContents, stream_contents
from pipeline.video.pictures import MAX_PIXELS, exif_orientation

# FFmpeg's names of the formats that a clip's file may have. The others include lists of files
# (HLS, DASH, ffconcat), which FFmpeg would follow anywhere, cameras, screens and text.
CONTAINERS = ",".join(
    (
        *("3g2", "3gp", "apng", "asf", "av1", "avi", "dirac", "dv", "flv", "gif", "gxf", "h261"),
        *("h263", "h264", "hevc", "ivf", "live_flv", "m4v", "matroska", "mjpeg", "mov", "mp4"),
        *("mpeg", "mpegts", "mpegvideo", "mxf", "nsv", "nut", "obu", "ogg", "rm", "vc1", "vvc"),
        *("wav", "webm", "wtv", "yuv4mpegpipe"),
    )
)
# The first picture of a stream is looked for among this many packets.
FIRST_PACKETS = 64
# Bytes at the start of a file that state its length.
HEAD = 4096


@dataclass(frozen=True)
class ScannedVideo:
    """What a scan of a video file found.

    Attributes:
        contents: its frames and their times.
        stream: index of the video stream.
        shape: how its pictures are shown; None where the first one cannot be decoded.
        alone: the file has no other video stream.
        same_colours: every version of FFmpeg converts its frames to the same RGB.
    """

    contents: StreamContents
    stream: int
    shape: PictureShape | None
    alone: bool
    same_colours: bool


def open_video(clip: Clip):
    """Open a clip's file for one decoding thread: several workers share the cores.

    Args:
        clip: the clip; its path is a file.

    Returns:
        (PyAV's container, its video stream). The caller closes the container.

    Raises:
        DecodeError: it is not a video, has no video stream, or has none that can be decoded.
    """
    import av

    try:
        # Titles in an unknown encoding are no reason to refuse a video.
        container = av.open(
            str(clip.path),
            metadata_errors="replace",
            container_options={"format_whitelist": CONTAINERS},
        )
    except av.FFmpegError as error:
        reason = f"FFmpeg cannot open it: not a video, or cut short ({error.strerror})"
        raise decode_error(clip, reason) from None

    stream, covers = _video_stream(container)
    if stream is None or stream.codec_context is None:
        container.close()
        if stream is not None:
            reason = "no decoder for its video stream, or its header is cut short"
        elif covers:
            reason = "no video stream in it, only a cover picture"
        else:
            reason = "no video stream in it"
        raise decode_error(clip, reason)

    stream.codec_context.thread_count = 1
    # A frame may claim more pixels than the container does.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _video_stream(container) -> tuple:
    """Return (the video stream that a player shows, or None; number of attached pictures)."""
    from av.stream import Disposition

    films = []
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            films.append(stream)

    best = container.streams.best("video")
    if best is not None and best.disposition & Disposition.attached_pic:
        defaults = [stream for stream in films if stream.disposition & Disposition.default]
        best = next(iter(defaults or films), None)
    return best, len(container.streams.video) - len(films)


def scan(clip: Clip) -> ScannedVideo:
    """Read every packet of a clip's file once, without decoding more than the first picture.

    Args:
        clip: the clip; its path is a file.

    Returns:
        The frames of the file, their times, and how they are shown.

    Raises:
        DecodeError: the file does not open, or claims frames of more than MAX_PIXELS.
    """
    import av

    container, stream = open_video(clip)
    with container:
        codec = stream.codec_context
        # FFmpeg itself resets sizes beyond its arithmetic to 0.
        if not codec.width * codec.height:
            raise decode_error(clip, "the file reports no valid frame size")
        if codec.width * codec.height > MAX_PIXELS:
            raise decode_error(
                clip,
                f"claims frames of {codec.width}x{codec.height} pixels; expected {MAX_PIXELS:,} "
                "pixels at most",
            )

        packets, begins, ends, stopped = [], {}, {}, ""
        first_picture = _FirstPicture(clip, stream)
        try:
            for packet in container.demux():
                # An empty packet marks the end of a stream.
                if packet.size == 0:
                    continue
                index, stamp = packet.stream_index, packet.pts
                if stamp is not None:
                    end = stamp + (packet.duration or 0)
                    begins.setdefault(index, stamp)
                    ends[index] = max(ends.get(index, end), end)
                if index == stream.index:
                    packets.append(_describe_packet(packet, codec))
                    first_picture.add(packet)
        except av.FFmpegError as error:
            stopped = f"reading stopped after {counted(len(packets), 'frame')} ({error.strerror})"

        ticks = {index: float(container.streams[index].time_base) for index in ends}
        begins = {index: begin * ticks[index] for index, begin in begins.items()}
        ends = {index: end * ticks[index] for index, end in ends.items()}
        whole = _has_stated_size(clip)
        return ScannedVideo(
            stream_contents(container, stream, packets, ends, stopped, whole, begins),
            stream.index,
            first_picture.shape,
            len(container.streams.video) == 1,
            _same_colours(codec),
        )


def _describe_packet(packet, codec) -> Packet:
    """Reduce one of PyAV's packets to what `stream_contents` needs."""
    data = memoryview(packet)
    key = packet.is_keyframe
    return Packet(
        stamp=packet.pts,
        key=key,
        fresh=key and (codec.name != "h264" or is_idr(data, codec.extradata)),
        hidden=packet.is_discard or shows_nothing(codec.name, data),
        cut_off=packet.is_corrupt,
        decoded=packet.dts,
        duration=packet.duration or 0,
    )


def _has_stated_size(clip: Clip) -> bool:
    """Return whether the file states how many bytes it has, and has them."""
    with suppress(OSError), open(clip.path, "rb") as file:
        size = stated_size(file.read(HEAD))
        return size is not None and file.seek(0, 2) >= size
    return False


def _same_colours(codec) -> bool:
    """Return whether every version of FFmpeg converts the frames of a codec to the same RGB.

    That holds for 8 bits without interpolated chroma: planes of one size, or the usual formats
    (4:2:0, 4:2:2, 4:1:1) with an even height. Elsewhere the FFmpeg 4 in decord shifts chroma by
    half a line. A smooth picture of an odd height then has 1.5 to 2.4 times the error of
    FFmpeg 8. Deeper colours are rounded differently.
    """
    if codec.format is None:
        return False
    planes = codec.format.components
    if any(plane.bits != 8 for plane in planes):
        return False

    full = (codec.width, codec.height)
    halved = ((codec.width + 1) // 2, codec.height // 2)
    coarse = [plane for plane in planes if (plane.width, plane.height) != full]
    for plane in coarse:
        if plane.height != codec.height and (plane.width, plane.height) != halved:
            return False
    return not coarse or codec.height % 2 == 0


class _FirstPicture:
    """Decodes the first packets of a stream until one gives a picture, for its shape."""

    def __init__(self, clip: Clip, stream):
        self.clip, self.stream = clip, stream
        self.shape: PictureShape | None = None
        self._packets_left = FIRST_PACKETS

    def add(self, packet) -> None:
        """Look at the next packet of the stream."""
        import av

        begun = self._packets_left < FIRST_PACKETS
        if not self._packets_left or not (packet.is_keyframe or begun):
            return
        self._packets_left -= 1
        try:
            frame = next(iter(packet.decode()), None)
        except av.FFmpegError:
            # The reader that decodes this packet later reports the reason.
            self._packets_left = 0
            return
        if frame is None:
            return

        known = None
        if self.stream.codec_context.name == "mjpeg":
            known = EXIF_ORIENTATIONS[exif_orientation(bytes(packet))]
        self.shape = shape_of(self.clip, frame, pixel_aspect(self.stream), known)
        self._packets_left = 0


def shape_of(clip: Clip, frame, aspect: float, known: Orientation | None = None) -> PictureShape:
    """Return how a decoded frame is shown.

    Args:
        clip: the clip, for the error.
        frame: PyAV's frame.
        aspect: width of a stored pixel divided by its height.
        known: the orientation where PyAV cannot read the frame's display matrix.

    Raises:
        DecodeError: a display matrix or an aspect by which nothing can be shown.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV refuses all side data of a frame if it does not know the kind of one of them.
        orientation = known or QUARTER_TURNS[round(frame.rotation / 90) % 4]
    else:
        try:
            orientation = orientation_of_matrix(None if matrix is None else bytes(matrix))
        except ValueError as error:
            raise decode_error(clip, str(error)) from None

    shape = PictureShape(frame.width, frame.height, orientation, aspect)
    width, height = shape.display_size
    if not 1 <= width * height <= MAX_PIXELS:
        raise decode_error(
            clip,
            f"claims pixels {aspect:g} times as wide as high: {width}x{height} pixels on the "
            "screen",
        )
    return shape


def pixel_aspect(stream) -> float:
    """Return the width of a stored pixel divided by its height.

    The container's value comes before the codec's; 1 where neither has one.
    """
    return float(stream.sample_aspect_ratio or 0) or 1.0


def first_shape(clip: Clip) -> PictureShape:
    """Decode the first picture of a clip's file, and return how it is shown.

    Raises:
        DecodeError: it cannot be decoded.
    """
    import av

    container, stream = open_video(clip)
    with container:
        try:
            frame = next(container.decode(stream))
        except (av.FFmpegError, StopIteration) as error:
            cause = getattr(error, "strerror", "no data")
            raise decode_error(clip, f"its first frame cannot be decoded ({cause})") from None
        return shape_of(clip, frame, pixel_aspect(stream))
