"""A video file as its packets tell: which stream a player shows, its frames and times, and how its
pictures are shown.

PyAV opens the file and hands out the packets; pipeline/video/packets.py works out what they mean.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

from pipeline.manifests.manifest import Clip
from pipeline.video.frame_reader import failed
from pipeline.video.orientation import EXIF_TURNS, QUARTERS, PictureShape, Rotation, turn_of
from pipeline.video.packets import (
    Packet,
    StreamContents,
    contents,
    same_colours,
    shows_nothing,
    starts_afresh,
    stated_size,
)
from pipeline.video.pictures import MAX_PIXELS, orientation_of

# FFmpeg's names of what a clip's file may be. Among the others are lists of files (HLS, DASH,
# ffconcat) that it would follow anywhere, cameras, screens and text.
CONTAINERS = (
    "3g2,3gp,apng,asf,av1,avi,dirac,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,live_flv,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vvc,wav,webm,wtv,yuv4mpegpipe"
)
FIRST_PACKETS = 64  # of a stream, among which its first picture is
HEAD = 4096  # bytes at a file's begin that say how long it is


@dataclass(frozen=True)
class ScannedVideo:
    """A video file as `scan` found it: what its packets say, which stream they are of, and how its
    pictures are shown.

    `shape` is None where the first picture cannot be decoded. `alone`: the file has no other video
    stream.
    """

    contents: StreamContents
    stream: int
    shape: PictureShape | None
    alone: bool


def open_video(clip: Clip):
    """PyAV's container and its video stream, to be decoded by one thread (several workers share the
    cores).
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
        raise failed(
            clip, f"FFmpeg cannot open it: not a video, or cut short ({error.strerror})"
        ) from None
    stream, pictures = _video_stream(container)
    if stream is None or stream.codec_context is None:
        container.close()
        if stream is None:
            reason = (
                "no video stream in it, only a cover picture"
                if pictures
                else "no video stream in it"
            )
        else:
            reason = "no decoder for its video stream, or its header is cut short"
        raise failed(clip, reason)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {
        "max_pixels": str(MAX_PIXELS)
    }  # a frame may claim more than the container does
    return container, stream


def _video_stream(container) -> tuple:
    """(the video stream that a player shows, or None; how many pictures are attached, such as a
    cover).
    """
    from av.stream import Disposition

    films = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    best = container.streams.best("video")
    if best is not None and best.disposition & Disposition.attached_pic:
        best = next(
            (stream for stream in films if stream.disposition & Disposition.default),
            films[0] if films else None,
        )
    return best, len(container.streams.video) - len(films)


def scan(clip: Clip) -> ScannedVideo:
    """Reads every packet once. DecodeError if the file does not open, or claims frames larger than
    MAX_PIXELS.
    """
    import av

    container, stream = open_video(clip)
    with container:
        codec = stream.codec_context
        if not codec.width * codec.height:  # FFmpeg itself takes back sizes beyond its arithmetic
            raise failed(clip, "it tells no frame size, or an impossible one")
        if codec.width * codec.height > MAX_PIXELS:
            raise failed(
                clip,
                f"claims frames of {codec.width}x{codec.height} pixels; expected {MAX_PIXELS:,} "
                f"pixels at most",
            )
        packets, begins, ends, stopped, first = [], {}, {}, "", _First(clip, stream)
        try:
            for packet in container.demux():
                if packet.size == 0:  # the end of a stream
                    continue
                which, stamp = packet.stream_index, packet.pts
                if stamp is not None:
                    end = stamp + (packet.duration or 0)
                    begins.setdefault(which, stamp)
                    ends[which] = max(ends.get(which, end), end)
                if which == stream.index:
                    packets.append(_described(packet, codec))
                    first.look(packet)
        except av.FFmpegError as error:
            stopped = f"reading stopped after {len(packets)} frames ({error.strerror})"
        seconds = {which: float(container.streams[which].time_base) for which in ends}
        begins = {which: begin * seconds[which] for which, begin in begins.items()}
        ends = {which: end * seconds[which] for which, end in ends.items()}
        held = contents(container, stream, packets, ends, stopped, _is_whole(clip), begins)
        held = replace(held, same_colours=same_colours(codec))
        return ScannedVideo(held, stream.index, first.shape, len(container.streams.video) == 1)


def _described(packet, codec) -> Packet:
    """What `contents` looks at of one of PyAV's packets."""
    key, data = packet.is_keyframe, memoryview(packet)
    fresh = key and (codec.name != "h264" or starts_afresh(data, codec.extradata))
    hidden = packet.is_discard or shows_nothing(codec.name, data)
    return Packet(
        packet.pts, key, fresh, hidden, packet.is_corrupt, packet.dts, packet.duration or 0
    )


def _is_whole(clip: Clip) -> bool:
    """Whether the file says how many bytes it has, and has them."""
    with suppress(OSError), open(clip.path, "rb") as file:
        size = stated_size(file.read(HEAD))
        return size is not None and file.seek(0, 2) >= size
    return False


class _First:
    """Decodes the first packets of a stream until there is a picture, for what it says about how it
    is shown.
    """

    def __init__(self, clip: Clip, stream):
        self.clip, self.stream, self.left, self.shape = clip, stream, FIRST_PACKETS, None

    def look(self, packet) -> None:
        """Takes the next packet of the stream."""
        import av

        if not self.left or not (packet.is_keyframe or self.left < FIRST_PACKETS):
            return
        self.left -= 1
        try:
            for frame in packet.decode():
                known = _exif_turn(packet) if self.stream.codec_context.name == "mjpeg" else None
                self.shape, self.left = shape_of(self.clip, frame, aspect_of(self.stream), known), 0
                return
        except av.FFmpegError:
            self.left = 0  # whoever decodes says why


def _exif_turn(packet) -> Rotation | None:
    """The turn that a JPEG's own metadata ask for, None where they ask for none."""
    return EXIF_TURNS.get(orientation_of(bytes(packet)))


def shape_of(clip: Clip, frame, aspect: float, known: Rotation | None = None) -> PictureShape:
    """How one of PyAV's frames is shown: by its matrix, or by the turn that is `known` where PyAV
    cannot tell.

    DecodeError for a matrix or an aspect that nothing can be shown by.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except (
        ValueError
    ):  # PyAV refuses all of a frame's side data if one of them is of a kind that it does not know
        turn = known or QUARTERS[round(frame.rotation / 90) % 4]
    else:
        try:
            turn = turn_of(bytes(matrix) if matrix is not None else None)
        except ValueError as error:
            raise failed(clip, str(error)) from None
    shape = PictureShape(frame.width, frame.height, turn, aspect)
    width, height = shape.shown
    if not 1 <= width * height <= MAX_PIXELS:
        raise failed(
            clip,
            f"claims pixels {aspect:g} times as wide as high: {width}x{height} pixels on the "
            f"screen",
        )
    return shape


def aspect_of(stream) -> float:
    """Width by height of a stored pixel: the container's word, else the codec's; 1 where neither
    says anything.
    """
    return float(stream.sample_aspect_ratio or 0) or 1.0


def first_shape(clip: Clip) -> PictureShape:
    """How the first picture of a file is shown. DecodeError if it cannot be decoded."""
    import av

    container, stream = open_video(clip)
    with container:
        try:
            frame = next(container.decode(stream))
        except (av.FFmpegError, StopIteration) as error:
            reason = f"its first frame cannot be decoded ({getattr(error, 'strerror', 'no data')})"
            raise failed(clip, reason) from None
        return shape_of(clip, frame, aspect_of(stream))
