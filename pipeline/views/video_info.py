"""What the choice of frames and crops must know about a video."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VideoInfo:
    """Length, rate and size of a clip as it will be read.

    Attributes:
        frames: how many frames the clip has.
        fps: frames per second, 0 if unknown. The manifest's column `fps` if it has one, else the
            average: frames divided by the seconds for which they are shown.
        width: pixels of the upright frame.
        height: pixels of the upright frame.
        first: number, in the file, of the clip's frame 0; above 0 where the manifest's `start`
            cuts the clip.
        until: the second at which the file's last frame ends, 0 if unknown. Not compared.
    """

    frames: int
    fps: float
    width: int
    height: int
    first: int = 0
    until: float = field(default=0.0, compare=False)
