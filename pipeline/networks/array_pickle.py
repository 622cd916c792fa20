"""Read pickles of NumPy arrays, the weights of Caffe2 and of detectron2, without running code.

A pickle names the functions that make its objects. Only those that make arrays are known here, and
they come from this table: nothing that a file names is ever imported.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

# NumPy gave its parts other places in version 2; files of both are read by both.
try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:  # NumPy 1
    from numpy.core.multiarray import _reconstruct, scalar

# How many levels of tables and lists are searched for arrays.
DEPTH = 20


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """The bytes of an array that Python 2 wrote; other encodings could import a codec."""
    if encoding.lower().replace("-", "").replace("_", "") not in ("latin1", "iso88591"):
        raise ValueError(f"loading it would execute the codec {encoding!r}: refused")
    return text.encode("latin1")


def _empty() -> bytes:
    """The data of an array without elements, as Python 3 writes it for Python 2."""
    return b""


# (module, name) in a pickle -> what it calls.
MAKERS = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _empty,
}


class _Arrays(pickle.Unpickler):
    """An unpickler that knows `MAKERS` alone."""

    def find_class(self, module: str, name: str):
        if (module, name) not in MAKERS:
            raise ValueError(f"loading it would execute {module}.{name}: refused")
        return MAKERS[module, name]


def is_pickle(path: str | Path) -> bool:
    """Tell whether a file is a plain pickle; those of torch.save are something else.

    Args:
        path: the file. Its name does not matter.
    """
    with open(path, "rb") as file:
        start = file.read(32)
    # torch.save writes a zip file, or (before torch 1.6) this number as a pickle of its own.
    torch_number = bytes.fromhex("6cfc9c46f9206aa85019")
    if torch_number in start:
        return False
    # A protocol's number from version 2 on; before, a mark, a table or a name.
    return start[:1] in (b"\x80", b"(", b"}", b"]", b"c")


def read_arrays(path: str | Path) -> Any:
    """Read a pickle of tables of arrays.

    Args:
        path: the file.

    Returns:
        What it holds, with a tensor in place of every numeric array.

    Raises:
        ValueError: the file would run code, or is damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            # Python 2 wrote the bytes of arrays as text.
            saved = _Arrays(file, encoding="latin1").load()
        except (ValueError, OSError):
            raise
        except Exception as error:  # a damaged pickle raises whatever it happens to trip
            raise ValueError(f"{type(error).__name__}: {error}") from error
    return _with_tensors(saved, DEPTH)


def _with_tensors(value: Any, depth: int) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        # A copy: torch wants memory that it may write to, in this machine's byte order.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if isinstance(value, dict) and depth:
        return {key: _with_tensors(entry, depth - 1) for key, entry in value.items()}
    return value
