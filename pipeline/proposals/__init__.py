"""Sources of boxes, one file each, found under the file's name: `build_proposals("torchvision",
size=480)`.

A source has

`frame_size`      short side, in pixels, to which whole frames are resized before it sees them;
                  None: it needs no pixels
`in_view`         False: its boxes are in [0,1] of the whole upright frame; True: already in [0,1]
                  of the view's crop
`num_boxes`       N, the rows it gives per frame
`weights_sha256`  of the file that decides its boxes (weights or annotations); "" where there is
                  none
`to(device, precision)`  moves it there and returns it; precision is "fp32", "bf16" or "fp16"
`propose(frames, clip, info, numbers)`
    frames uint8 tensor [K,H,W,3] RGB (None if `frame_size` is None), `clip` a manifest.Clip, `info`
    its decode.VideoInfo, numbers the K frame numbers in the file (info.first + number in the clip).
    Returns numpy float32 boxes [K,N,4] xyxy and scores [K,N], best first; rows after the last box
    have score -1 and zero boxes. A `BoxesError` is the clip's failure.

A new source is one new file here with build(named options); a name that starts with "_" is not a
source.
"""

import importlib
import inspect
import pkgutil

from pipeline.text.suggestions import nearest

# Options that the command line calls otherwise.
_FLAGS = {
    "num_boxes": "--boxes",
    "size": "--proposal-size",
    "file": "--annotations",
    "weights": "--proposal-weights",
}


class BoxesError(ValueError):
    """One clip's boxes cannot be given; the run records it as that clip's failure and goes on.
    Picklable.

    `clip` is its id, `path` the file that should have given the boxes, `reason` one line.
    """

    def __init__(self, clip: str, path, reason: str):
        super().__init__(clip, str(path), reason)
        self.clip, self.path, self.reason = clip, str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: clip {self.clip!r}: {self.reason}"


class MissingBoxes(BoxesError):
    """The annotation file does not list the clip at all."""


def proposal_names() -> tuple[str, ...]:
    """The names that `build_proposals` knows, in alphabetical order: one per file of this
    folder.
    """
    return tuple(
        sorted(
            found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")
        )
    )


def build_proposals(name: str, **options):
    """The source of boxes in the file `name`, built with its named options (each file's `build`
    lists them).

    ValueError, naming the nearest names, for an unknown source or option; for a missing one; for a
    bad value.
    """
    names = proposal_names()
    if name not in names:
        raise ValueError(f"proposals {name!r}: no such source of boxes; {nearest(name, names)}")
    build = importlib.import_module(f"{__name__}.{name}").build
    known = inspect.signature(build).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"proposals {name!r} has no option {_called(option)}: {nearest(option, known)}"
            )
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"proposals {name!r} needs the option {_called(option)}, which was not given"
            )
    return build(**options)


def _called(option: str) -> str:
    """An option, with its name on the command line where that is another."""
    return f"{option!r} ({_FLAGS[option]})" if option in _FLAGS else repr(option)
