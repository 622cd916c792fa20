"""Reads a head's checkpoint file."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from heads.interface.run_records import CHECKPOINT
from pipeline.cache.records import require
from pipeline.files.regular_files import opened
from pipeline.plugins import note_paths
from pipeline.text.printable import first_line

CHECKPOINT_FORMAT = 1


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU. ValueError when it is missing, damaged, or of another format.

    torch.load does not look at the checksums that it writes: a flipped bit would be a weight like
    any other.
    """
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"damaged: the checksum of {broken} differs")
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such checkpoint; expected the folder of a run that `vidgraph train` made"
        ) from None
    except Exception as error:  # torch.load raises whatever the unpickler met
        said = first_line(error)
        raise ValueError(
            f"{path}: not a checkpoint of vidgraph ({said.split('. ')[0][:120]})"
        ) from None
    if not isinstance(payload, dict) or payload.get("format") != CHECKPOINT_FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise ValueError(
            f"{path}: expected a checkpoint of format {CHECKPOINT_FORMAT}, got {found}"
        )
    require(payload, CHECKPOINT, path)
    note_paths(payload.get("about", {}).get("plugins", {}))
    return payload
