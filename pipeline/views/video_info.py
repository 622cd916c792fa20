"""What the choice of frames and crops needs to know about a video."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VideoInfo:
    """A clip as it will be read: `frames` it has, `fps` on average (0: unknown), `width` and
    `height` as shown, in pixels.

    `fps` is the manifest's where it has a column `fps`, else frames by the seconds for which they
    are shown. `first` is the number in the file of the clip's frame 0; it is not 0 where the
    manifest's `start` cuts the clip. `until` is the second at which the file's last frame ends, 0
    where that is unknown.
    """

    frames: int
    fps: float
    width: int
    height: int
    first: int = 0
    until: float = field(default=0.0, compare=False)
