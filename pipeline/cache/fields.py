"""The tensors of a cache: one row of `FIELDS` for each, and the names of maps at cuts.

Axes are named by letters:

    R   rows of a group, one view each; row r is the same view in every file of a shard
    F   frames fed to the backbone
    T   feature steps that the backbone returns
    N   boxes per step
    C   channels
    h w height and width of a map, in cells
    S   steps that have class and register tokens of their own: T, or 1 for a whole view
    P   class and register tokens
    M   neighbours kept per node

R is the first axis of every stored dataset, and no `dims` names it.
"""

import re
from dataclasses import dataclass, field

import numpy as np

# What is written. Raise this number when older versions would misread new files.
FORMAT = 2
# What is read. Format 1 has no parts, and its fingerprint covers the clips.
FORMATS = (1, 2)

# Bytes of one view: Linux reads no more in one system call. HDF5's own limit is 4 GiB.
MAX_VIEW = 0x7FFFF000

# Training and test views are stored apart, because their maps may differ in size.
GROUPS = ("train", "test")


@dataclass(frozen=True)
class Field:
    """One stored tensor.

    Attributes:
        name: the name of the HDF5 dataset.
        dims: the names of its axes after R.
        dtype: the dtype on disk. "feature" is the extraction's `--dtype`: float16 or float32.
        unit: what the values mean, as the dataset's attribute `unit` says it.
        stage: the stage that makes it, "features" or "graphs".
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    stage: str = "features"


_ROWS = (
    Field("frames", ("F",), "int32", "frame numbers in the file, from 0"),
    Field(
        "crop",
        ("6",),
        "float32",
        "x, y, width, height of the crop, then source width, height; source pixels",
    ),
    Field("flip", (), "bool", "whether the crop was mirrored left to right"),
    Field(
        "time",
        ("T",),
        "float32",
        "when the frame of each step is shown, in seconds from the start of the video; -1: unknown",
    ),
    Field(
        "grid",
        ("2",),
        "int16",
        "true height and width of the last cut's map, in cells; the rest is padding",
    ),
    Field("pooled", ("T", "C"), "feature", "mean over the grid of the last cut"),
    Field("tokens", ("S", "P", "C"), "feature", "class and register tokens at the last cut"),
    Field(
        "boxes",
        ("T", "N", "4"),
        "float32",
        "x1 y1 x2 y2 in [0,1] of the view's crop; padded rows are 0",
    ),
    Field("scores", ("T", "N"), "float32", "objectness; padded rows are 0"),
    # Caches whose objects keep their slots have gaps. The text stays: it is part of the file.
    Field("valid", ("T", "N"), "bool", "whether the row is a box; valid rows come first"),
    Field(
        "box_class",
        ("T", "N"),
        "int16",
        "number of the box's class, a position in box_classes of cache.json; -1 for none",
    ),
    Field("track", ("T", "N"), "int32", "number of the object in its clip; -1 for none"),
    Field("nodes", ("T", "N", "C"), "feature", "RoIAlign of the last cut; invalid rows are 0"),
    Field("iou", ("T-1", "N", "N"), "float32", "IoU of box i at t with box j at t+1", "graphs"),
    Field(
        "nearest",
        ("T", "N", "T"),
        "int32",
        "node index in each frame with the largest inner product",
        "graphs",
    ),
    Field(
        "similar",
        ("T", "N", "M"),
        "int32",
        "flat indices t*N+i of the most similar other nodes",
        "graphs",
    ),
    Field("similarity", ("T", "N", "M"), "float32", "their inner products", "graphs"),
)

FIELDS = {row.name: row for row in _ROWS}

# What a source of boxes may say of a box beside where it is: -1 is the value for "nothing".
LABELS = ("box_class", "track")

# These datasets say which rows a group has. Every row has them, whether its clip failed or not.
ROW_KEYS = ("clip", "view", "ok")

_CUT = re.compile(
    r"^(stem|res[2-5]|conv[1-9]|layer\d{1,3}|stage\d{1,3}|last|reduced)(\.\d+)?$", re.ASCII
)


def is_cut(name: str) -> bool:
    """Return whether `name` is a cut: a point of a backbone whose map can be stored.

    Args:
        name: for example "res4" (a stage), "res4.3" (a block of a stage), or "reduced" (the
            learned 1×1×1 convolution after the last stage).

    Returns:
        True for a cut. Its map is stored as [R,T,C,h,w] under this name.
    """
    return bool(_CUT.match(name))


def grid_at(cut: str) -> str:
    """Return the name of the field with the true size of the map at `cut`.

    Args:
        cut: a cut that is not the extraction's last one, whose size is in `grid`.

    Returns:
        For example "grid.res4.3".
    """
    return f"grid.{cut}"


def field_of(name: str) -> Field:
    """Return the description of a field.

    Args:
        name: a name of `FIELDS`, a cut (see `is_cut`), or `grid_at(cut)`.

    Returns:
        The row of `FIELDS`, or one made for the cut.

    Raises:
        ValueError: no field has this name.
    """
    if name in FIELDS:
        return FIELDS[name]
    if is_cut(name):
        return Field(name, ("T", "C", "h", "w"), "feature", "the backbone's map at this cut")

    prefix = grid_at("")
    if name.startswith(prefix) and is_cut(name.removeprefix(prefix)):
        unit = "true height and width of the map at this cut, where it is not the last one"
        return Field(name, ("2",), "int16", unit)

    raise ValueError(
        f"field {name!r}: expected one of {', '.join(FIELDS)}, or a cut such as res5, res4.3, "
        f"reduced"
    )


@dataclass
class Extracted:
    """The tensors of one view, before they are written.

    Attributes:
        clip: the clip's id.
        view: the view's number within its clip and group, from 0.
        tensors: field -> array without the axis R, in the dims that `FIELDS` gives.
    """

    clip: str
    view: int
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
