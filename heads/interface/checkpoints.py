"""Read the checkpoint of a run."""

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
    """Read a checkpoint file onto the CPU.

    Args:
        path: the file, as `vidgraph train` wrote it.

    Returns:
        The checkpoint; `run_records.CHECKPOINT` lists its keys. "state" holds the weights.

    Raises:
        ValueError: the file is missing, damaged, or of another format.
    """
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            # torch.load ignores the checksums in the file: a flipped bit would become a weight.
            broken = archive.testzip()
            if broken is not None:
                raise ValueError(f"damaged: the checksum of {broken} differs")
            file.seek(0)
            payload = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such checkpoint; expected the folder of a run that `vidgraph train` made"
        ) from None
    # torch.load raises whatever its unpickler came across, so nothing narrower would do.
    except Exception as error:
        reason = first_line(error).split(". ")[0][:120]
        raise ValueError(f"{path}: not a checkpoint of vidgraph ({reason})") from None

    found = type(payload).__name__
    if isinstance(payload, dict):
        found = payload.get("format")
    if found != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path}: expected a checkpoint of format {CHECKPOINT_FORMAT}, got {found}"
        )
    require(payload, CHECKPOINT, path)
    note_paths(payload.get("about", {}).get("plugins", {}))
    return payload
