"""Read frames with PyAV: every stream that FFmpeg decodes, and each frame's own orientation.

The other readers fall back to this one.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.video.bitstream import stated_picture
from pipeline.video.frame_reader import DecodeError, FrameReader, clip_info, decode_error
from pipeline.video.orientation import fit, orient
from pipeline.video.video_file import (
    ScannedVideo,
    first_shape,
    open_video,
    pixel_aspect,
    shape_of,
)


class PyavReader(FrameReader):
    """Decodes forward from the last key frame before the first frame that is asked for.

    Time stamps identify the frames. Where several recordings share one clock, the packets do
    that the frames come from.
    """

    def __init__(self, clip: Clip, video: ScannedVideo):
        self._contents = video.contents
        self._shape = video.shape or first_shape(clip)
        info = clip_info(clip, video.contents, self._shape.display_size)
        super().__init__(clip, info, video.contents)

    def _decode(self, numbers: list[int]) -> np.ndarray:
        # Frame 0 needs no seek.
        keys = [stamp for number, stamp in self._contents.keys if 0 < number <= numbers[0]]
        if keys:
            try:
                return self._decode_from(keys[-1], numbers)
            except DecodeError:
                # Some streams can be decoded from their start only.
                pass
        return self._decode_from(None, numbers)

    def _decode_from(self, stamp: int | None, numbers: list[int]) -> np.ndarray:
        """Decode from the key frame with a time stamp, or from the start of the file (None)."""
        import av

        frames = np.empty((len(numbers), self.info.height, self.info.width, 3), np.uint8)
        missing = {number: k for k, number in enumerate(numbers)}
        # After a pass over the whole file, some containers do not seek back to their first
        # frame. So each call opens the file again.
        container, stream = open_video(self.clip)
        with container:
            try:
                if stamp is not None:
                    container.seek(stamp, stream=stream)
                for count, (frame, aspect) in enumerate(self._frames(container, stream)):
                    number = self._number(frame.pts, count)
                    if frame.is_corrupt and (number is None or number >= 0):
                        raise decode_error(self.clip, f"its data are damaged at frame {number}")
                    if number in missing:
                        frames[missing.pop(number)] = self._upright(frame, aspect)
                        if not missing:
                            return frames
            except av.FFmpegError as error:
                raise decode_error(
                    self.clip,
                    f"decoding stopped before frame {min(missing)} ({error.strerror})",
                ) from None
        raise decode_error(self.clip, f"frame {min(missing)} cannot be decoded")

    def _number(self, stamp: int | None, count: int) -> int | None:
        """Return the number of the `count`-th decoded frame; -1 for a frame that is not shown."""
        contents = self._contents
        if contents.frame_of_stamp:
            return contents.frame_of_stamp.get(stamp)
        if not contents.frame_of_packet:
            return count
        # `_frames` stamps these packets with their position.
        if stamp is None or stamp >= len(contents.frame_of_packet):
            return -1
        return contents.frame_of_packet[stamp]

    def _frames(self, container, stream) -> Iterator[tuple]:
        """Yield (frame, its pixel aspect), one recording after the other."""
        contents, codec = self._contents, stream.codec_context
        stream_aspect = pixel_aspect(stream)
        # An aspect that the container states holds for all frames. The codec's may change.
        codec_aspect = float(codec.sample_aspect_ratio or 1)
        by_codec = abs(stream_aspect - codec_aspect) < 1e-6
        aspects: dict[int | None, float] = {}

        picture_size = b""
        count = 0
        for packet in container.demux(stream):
            # Packets are counted as `scan` counts them: without the empty ones at the end.
            if packet.size:
                k, count = count, count + 1
                before = picture_size
                picture_size = stated_picture(codec.name, memoryview(packet)) or before

                # FFmpeg's decoder of MPEG-2 forgets the frame that it still holds when the
                # picture size changes.
                size_changes = bool(before) and before != picture_size
                if k in contents.boundaries or size_changes:
                    for frame in codec.decode(None):
                        yield frame, aspects.pop(frame.pts, stream_aspect)
                    codec.flush_buffers()

                # The last packet of a file that was cut short is incomplete.
                cut_off = packet.is_corrupt and contents.missing
                if k in contents.undecodable or cut_off:
                    continue
                if contents.frame_of_packet:
                    packet.pts = k

            stamp = packet.pts
            decoded = packet.decode()
            if by_codec and stamp is not None:
                aspects[stamp] = float(codec.sample_aspect_ratio or 1)
            for frame in decoded:
                yield frame, aspects.pop(frame.pts, stream_aspect)

    def _upright(self, frame, aspect: float) -> np.ndarray:
        """Return a frame [H,W,3] RGB as shown, at the size of the clip's first picture.

        A stream may change its size on the way.
        """
        if self._shape.aspect == 1.0:
            aspect = 1.0
        shape = shape_of(self.clip, frame, aspect, self._shape.orientation)
        pixels = frame.reformat(format="rgb24").to_ndarray()
        upright = orient(pixels, shape.orientation)
        return fit(upright, shape.display_size, (self.info.width, self.info.height))
