"""Read a file of weights: one of torch.save, or a pickle of arrays. No code in it is ever run."""

import errno
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.networks.array_pickle import MAKERS, is_pickle, read_arrays

# Tables of options and scores of training, which many scripts save beside the weights.
_HARMLESS = [Namespace]
_HARMLESS += [(made, f"{module}.{name}") for (module, name), made in MAKERS.items()]
_HARMLESS += [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of weights, on the CPU. The file's name does not matter.

    Args:
        path: the file, which exists.

    Returns:
        What it holds; NumPy arrays of a pickle are tensors.

    Raises:
        ValueError: it holds anything else than plain tensors, arrays and data; the message is the
            reason.
        OSError: the disk fails.
    """
    try:
        if is_pickle(path):
            return read_arrays(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file fails in whichever operation it happens to reach.
    except Exception as error:
        # EINVAL is such a failure too: the file's table points before its start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        text = " ".join(str(error).split())
        foreign = re.search(r"Unsupported global: GLOBAL ([\w.]+)", text)
        if foreign:
            raise ValueError(f"it holds {foreign[1]}, an object that only code can make") from error
        # What follows the first sentence is advice about loading code.
        raise ValueError(f"{type(error).__name__}: {text.split('. ')[0][:120]}") from error
