"""Sources of boxes. A source `NAME` is the module `NAME.py`, with a function
`build(*, named options)`: `build_proposals("torchvision", size=480)`.

A source is an object with

- `frame_size`: short side, in pixels, to which whole frames are resized before it gets them;
  None if it needs no pixels;
- `in_view`: False if its boxes are in [0,1] of the whole upright frame, True if they are in [0,1]
  of the view's crop already;
- `num_boxes`: N, the rows that it gives per frame;
- `weights_sha256`: checksum of the file that decides its boxes (weights or annotations), "" where
  there is none;
- `to(device, precision)`: moves it there and returns it; precision is "fp32", "tf32", "bf16" or
  "fp16";
- `propose(frames, clip, info, numbers)`: the boxes of K frames of a clip.
  `frames` is a uint8 tensor [K,H,W,3], RGB, or None where `frame_size` is None. `clip` is a
  `pipeline.manifests.rows.Clip`, `info` its `pipeline.views.video_info.VideoInfo`, and
  `numbers` are the K frame numbers in the file. It returns two numpy arrays, float32: boxes
  [K,N,4] xyxy and scores [K,N], best first. Rows after the last box have score -1 and a box of
  zeros. A `BoxesError` fails that clip, and the run continues.

A source that also knows classes, or which box is the same object at another time, has

- `labels`: the fields that it gives, of `LABELS`: "box_class" (whole numbers), "track" (one number
  per object of a clip), or both;
- `class_names`: the names of the classes by their numbers; () without classes;
- `propose_labelled(frames, clip, info, numbers)`: boxes and scores as `propose`, and a dictionary
  with an array [K,N] of whole numbers for each of `labels`, -1 for none;
- `slots`, if every object keeps its row: rows of `propose_labelled` may then be empty between
  others, and scores need not fall.

Files whose names start with "_" are shared code. Sources of other packages and files are found too
(see `pipeline.plugins`). docs/adding_a_source_of_boxes.md shows how to add one.
"""

import inspect
from collections.abc import Sequence

import numpy as np

from pipeline.plugins import PROPOSALS, display_name, is_known, known_names, load_build
from pipeline.text.suggestions import nearest

__all__ = [
    "LABELS",
    "BoxesError",
    "MissingBoxes",
    "build_proposals",
    "labels_in_columns",
    "proposal_names",
    "with_underscores",
]

# Options that have another name on the command line.
_FLAGS = {
    "num_boxes": "--boxes",
    "size": "--proposal-size",
    "file": "--annotations",
    "weights": "--proposal-weights",
    "nearest": "--nearest-boxes",
}


# The fields that a source may give beside boxes and scores.
LABELS = ("box_class", "track")


class BoxesError(ValueError):
    """The boxes of one clip cannot be given: the clip fails, and the run continues. Picklable.

    Attributes:
        clip: the clip's id.
        path: the file that should have given its boxes.
        reason: one line.
    """

    def __init__(self, clip: str, path, reason: str):
        super().__init__(clip, str(path), reason)
        self.clip, self.path, self.reason = clip, str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: clip {self.clip!r}: {self.reason}"


class MissingBoxes(BoxesError):
    """The annotation file does not list the clip at all."""


def proposal_names() -> tuple[str, ...]:
    """Return the names of all sources of boxes, ours and those of installed packages, in
    alphabetical order.

    It imports none of them.
    """
    return known_names(PROPOSALS)


def with_underscores(name: str) -> str:
    """Return the name of a source as its module is called: torchvision-detector has underscores."""
    other = name.replace("-", "_")
    return other if other in proposal_names() else name


def build_proposals(name: str, **options):
    """Build a source of boxes, on the CPU.

    Args:
        name: a name of `proposal_names`, or that of a file (see `pipeline.plugins.give_file`).
        **options: options of the source's own `build`.

    Returns:
        The source; the docstring of this package says what it has.

    Raises:
        ValueError: unknown source or option (with the nearest names), a missing option, or a bad
            value.
    """
    name = with_underscores(name)
    if not is_known(PROPOSALS, name):
        raise ValueError(
            f"proposals {name!r}: no such source of boxes; {nearest(name, proposal_names())}"
        )
    build, shown = load_build(PROPOSALS, name), display_name(name)
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"proposals {shown!r} has no option {_with_flag(option)}: {nearest(option, known)}"
            )
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"proposals {shown!r} needs the option {_with_flag(option)}, which was not given"
            )
    source = build(**options)
    if not hasattr(source, "propose"):
        raise ValueError(
            f"proposals {shown!r}: build returns {type(source).__name__}, "
            f"expected an object with `propose`"
        )
    return source


def labels_in_columns(found: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the labels of boxes that `launch` of a source gave.

    Args:
        found: float32 [K,N,5+L]: the box, its score, and a column for each label.
        labels: the L names, in the order of the columns.

    Returns:
        Name -> int32 [K,N].
    """
    columns = {}
    for k, name in enumerate(labels):
        columns[name] = found[..., 5 + k].astype(np.int32)
    return columns


def _with_flag(option: str) -> str:
    """An option; first its name on the command line, where that is another."""
    return f"{_FLAGS[option]} ({option!r})" if option in _FLAGS else repr(option)
