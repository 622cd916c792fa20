"""Read frames with torchcodec, which finds each frame by its time stamp.

On a GPU the video unit decodes, and its colours differ from FFmpeg's by rounding. Each decode
process then takes some hundred MB of the GPU's memory for its CUDA context.
"""

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.text.printable import first_line
from pipeline.video.frame_reader import FrameReader, clip_info, decode_error, import_decoder
from pipeline.video.orientation import STRAIGHT, fit_all
from pipeline.video.pyav_reader import PyavReader
from pipeline.video.video_file import ScannedVideo

_ADVICE = "choose another --decoder (decord, pyav, torchcodec)"


class TorchcodecReader(FrameReader):
    """Reads with torchcodec; PyAV takes over where it stops, as at a change of size.

    Damage that FFmpeg conceals stays unnoticed.
    """

    def __init__(self, clip: Clip, video: ScannedVideo, decoders, device: str = "cpu"):
        try:
            self._video = decoders.VideoDecoder(
                str(clip.path),
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
                stream_index=video.stream,
                device=device,
            )
        except (RuntimeError, ValueError) as error:
            # What is wrong with the decoder is wrong with every video.
            if device != "cpu" and "Unsupported device" in str(error):
                raise ValueError(
                    f"decoder torchcodec-cuda: this torchcodec was built without CUDA "
                    f"({first_line(error)}); install its CUDA wheel, or {_ADVICE}"
                ) from None
            reason = f"torchcodec cannot open it ({first_line(error)})"
            raise decode_error(clip, reason) from None
        self._scanned = video
        info = clip_info(clip, video.contents, video.shape.display_size)
        super().__init__(clip, info, video.contents)
        # torchcodec reads the display matrix of the container only.
        self.rotates = bool(self._video.metadata.rotation)

        counted, expected = len(self._video), len(video.contents.times)
        if counted < expected or (counted > expected and not video.contents.missing):
            raise decode_error(
                clip,
                f"torchcodec counts {counted} frames in it, FFmpeg {expected}; choose pyav",
            )

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            frames = self._video.get_frames_at(numbers).data.cpu().numpy()
        except (RuntimeError, ValueError, IndexError):
            return PyavReader(self.clip, self._scanned)._decode(numbers)
        return fit_all(frames, (self.info.width, self.info.height))


def open_torchcodec(clip: Clip, video: ScannedVideo) -> FrameReader:
    """Open a clip with torchcodec, or with PyAV what torchcodec shows differently from a player.

    That is a stream of several recordings, and pictures that are mirrored.
    """
    return _open(clip, video, "cpu")


def open_torchcodec_cuda(clip: Clip, video: ScannedVideo) -> FrameReader:
    """Open a clip with torchcodec on the GPU, or with PyAV as `open_torchcodec` does.

    ValueError where torchcodec cannot use a GPU.
    """
    reason = why_no_cuda()
    if reason:
        raise ValueError(reason)
    return _open(clip, video, "cuda")


def why_no_cuda() -> str:
    """Return why torchcodec cannot decode on a GPU here; "" if nothing speaks against it.

    A build of torchcodec without CUDA is found out when it opens the first video.

    Raises:
        ValueError: torchcodec is not installed or does not load.
    """
    import_decoder("torchcodec.decoders")
    import torch

    if torch.cuda.is_available():
        return ""
    return f"decoder torchcodec-cuda: expected a GPU that torch can use, found none; {_ADVICE}"


def _open(clip: Clip, video: ScannedVideo, device: str) -> FrameReader:
    decoders = import_decoder("torchcodec.decoders")
    shape = video.shape
    if video.contents.continuous and shape and not shape.mirrored:
        reader = TorchcodecReader(clip, video, decoders, device)
        if reader.rotates == (shape.orientation != STRAIGHT):
            return reader
    return PyavReader(clip, video)
