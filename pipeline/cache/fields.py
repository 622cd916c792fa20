"""What the cache stores: one row of `FIELDS` per tensor, and `Extracted`, one view's results.

Dimension letters: R rows (views), F frames fed to the backbone, T feature steps, N boxes per step,
C channels, h w grid, M neighbours kept per node. The dims of a field name its axes without R; row r
of a group is the same view in every file.
"""

import re
from dataclasses import dataclass, field

import numpy as np

FORMAT = 1  # raised whenever a file written before can no longer be read as it was meant

MAX_VIEW = 0x7FFFF000  # bytes of a view: what one system call reads on Linux; HDF5's limit is 4 GiB
GROUPS = ("train", "test")


@dataclass(frozen=True)
class Field:
    """One stored tensor: its name, its axes after R, the dtype on disk and the unit of its values.

    `dtype` "feature" is the run's feature dtype (float16 unless asked otherwise); `stage` is the
    folder that holds it.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    stage: str = "features"


FIELDS = {
    row.name: row
    for row in (
        Field("frames", ("F",), "int32", "frame numbers in the file, from 0"),
        Field(
            "crop",
            ("6",),
            "float32",
            "x, y, width, height of the crop, then source width, height; source pixels",
        ),
        Field("flip", (), "bool", "whether the crop was mirrored left to right"),
        Field(
            "grid",
            ("2",),
            "int16",
            "true height and width of the last cut's map, in cells; the rest is padding",
        ),
        Field("pooled", ("T", "C"), "feature", "mean over the grid of the last cut"),
        Field(
            "boxes",
            ("T", "N", "4"),
            "float32",
            "x1 y1 x2 y2 in [0,1] of the view's crop; padded rows are 0",
        ),
        Field("scores", ("T", "N"), "float32", "objectness; padded rows are 0"),
        Field("valid", ("T", "N"), "bool", "whether the row is a box; valid rows come first"),
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
}

# Which rows there are, not what was computed for them: written for every row, failed or not.
ROW_KEYS = ("clip", "view", "ok")

# A cut is a point of a backbone: a stage, a block of a stage, or the learned reduction.
_CUT = re.compile(r"^(stem|res[2-5]|conv[1-9]|layer[1-4]|reduced)(\.\d+)?$")


def is_cut(name: str) -> bool:
    """Whether `name` is the name of a backbone's cut, so that its map [T,C,h,w] can be a stored
    field.
    """
    return bool(_CUT.match(name))


def grid_at(cut: str) -> str:
    """The field with the true size of the map at a cut that is not the extraction's last, whose own
    is in `grid`.
    """
    return f"grid.{cut}"


def field_of(name: str) -> Field:
    """The row of `FIELDS` for `name`; a cut (`res4`, `res4.3`, `reduced`) gives a map field, and
    `grid_at(cut)` its true size. ValueError for anything else."""
    if name in FIELDS:
        return FIELDS[name]
    if is_cut(name):
        return Field(name, ("T", "C", "h", "w"), "feature", "the backbone's map at this cut")
    if name.startswith(grid_at("")) and is_cut(name.removeprefix(grid_at(""))):
        return Field(
            name,
            ("2",),
            "int16",
            "true height and width of the map at this cut, where it is not the last one",
        )
    raise ValueError(
        f"field {name!r}: expected one of {', '.join(FIELDS)}, or a cut such as res5, res4.3, "
        f"reduced"
    )


@dataclass
class Extracted:
    """One view's results: `tensors` maps field names to arrays without the R axis, in the dims that
    `FIELDS` gives.
    """

    clip: str
    view: int
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
