"""Read predictions_SPLIT.npz, a zip of arrays, and check that it is complete and consistent.

One changed byte can make zipfile, zlib or numpy raise BadZipFile, zlib.error, NotImplementedError,
EOFError, RuntimeError, struct.error and more: all of them become Damaged. Before any memory is
taken, the sizes in the zip directory, in the arrays' headers and of the file are compared.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.files.atomic_files import Damaged
from pipeline.files.regular_files import opened

# Array -> numpy's letters for the kinds of dtype that it may have.
KINDS = {
    "logits": "f",
    "video": "iu",
    "view": "iu",
    "clip": "U",
    "clips": "U",
    "classes": "U",
    "targets": "iuf",
}
NEEDED = ("logits", "video", "view", "clips", "classes")
MOST_ARRAYS = 64
# A file may claim to unpack to FREE bytes, plus DENSEST times its own size: logits compress by far
# less than that.
FREE = 64 << 20
DENSEST = 200


def read_predictions(path: Path, advice: str) -> dict[str, np.ndarray]:
    """Read the arrays of a predictions_SPLIT.npz.

    Args:
        path: the file.
        advice: the command that writes the file again, for the message.

    Returns:
        logits [R,K] float, video [R] in 0..V-1, view [R], clips [V], classes [K]. If they were
        stored: clip [R], targets [V] or [V,K], and further outputs of the head [R,...].

    Raises:
        FileNotFoundError: the file does not exist.
        Damaged: the file is damaged, or its arrays do not fit one another.
    """
    try:
        with opened(path) as file:
            arrays = _arrays(file)
        _require_fit(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:160]
        raise Damaged(f"{path}: damaged ({reason}); {advice}") from None
    return arrays


def _arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    size = file.seek(0, 2)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if len(members) > MOST_ARRAYS or claimed > FREE + DENSEST * size:
            raise ValueError(f"{len(members):,} arrays of {claimed:,} bytes, in a file of {size:,}")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} has format {version}")
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)

        valid_shape = all(type(n) is int and n >= 0 for n in shape)
        # An array of objects would be unpickled, which can execute code.
        if dtype.kind not in "biufU" or not valid_shape:
            raise ValueError(f"{member.filename} has the dtype {dtype} and the shape {shape}")
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(
                f"{member.filename} claims the shape {shape}, its data are {member.file_size:,} "
                f"bytes"
            )
        # zipfile compares the checksum when it reaches the end.
        data = file.read()
    # frombuffer returns a read-only view.
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _require_fit(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless all needed arrays are there and fit one another."""
    for name in NEEDED:
        if name not in arrays:
            raise ValueError(f"it holds no {name}")
    for name, kinds in KINDS.items():
        if name in arrays and arrays[name].dtype.kind not in kinds:
            raise ValueError(f"{name} is of dtype {arrays[name].dtype}")

    if arrays["logits"].ndim != 2 or arrays["clips"].ndim != 1:
        raise ValueError(f"logits are {arrays['logits'].shape}, clips {arrays['clips'].shape}")
    (views, classes), videos = arrays["logits"].shape, len(arrays["clips"])
    shapes = {"video": (views,), "view": (views,), "clip": (views,), "classes": (classes,)}
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].shape}, expected {shape}")

    if not views or not classes or not np.isfinite(arrays["logits"]).all():
        raise ValueError("logits are empty, or not finite")
    # Every video needs at least one view: there is no score without one.
    video, targets = arrays["video"], arrays.get("targets")
    if video.min() < 0 or video.max() >= videos or len(np.unique(video)) < videos:
        raise ValueError(f"video does not number the {videos} clips")

    if targets is None:
        return
    if targets.shape == (videos,) and targets.dtype.kind != "f":
        fits = targets.min() >= 0 and targets.max() < classes
    else:
        fits = targets.shape == (videos, classes) and bool(np.isin(targets, (0, 1)).all())
    if not fits:
        raise ValueError(
            f"targets {targets.shape} are not of {videos} videos and {classes} classes"
        )
    if "structure" in arrays and len(arrays["structure"]) != views:
        raise ValueError(f"structure has {len(arrays['structure'])} views, expected {views}")
