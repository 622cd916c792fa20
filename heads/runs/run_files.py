"""The run folder: what a training run leaves behind, and reading it back.

recipe.toml              the recipe as it was run, overrides included
run.json                 seed, classes, dims, precision, versions, the cache's path, fingerprint and
                         configuration, and the manifest: path, checksum of labels and splits,
                         counts (heads/runs/manifest_record.py)
log.jsonl, tensorboard/  one line per epoch
last.pt, best.pt         checkpoints: dictionaries of tensors and plain values, loadable with
                         weights_only=True
PHASE.pt                 the weights that a phase ended with, where the recipe has phases
predictions_SPLIT.npz    logits of every test view: clip and view [R], logits [R,K], video [R],
                         clips [V], targets and what a head's output has under `stored`, such as
                         GOS's structure [R,cells,E]
confusion_SPLIT.csv      one label per video only: rows are labels, columns predictions
metrics.json             the figures of every split that was evaluated: written last, the mark of a
                         finished run
run.claim                while a process trains here (heads/runs/folder_lock.py)
"""

import io
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from heads.interface.checkpoints import CHECKPOINT_FORMAT, load_checkpoint  # noqa: F401
from heads.interface.run_records import LOG_LINE
from heads.runs.folder_lock import refuse_if_lost
from heads.runs.manifest_record import refuse_other_labels
from pipeline.cache.records import require
from pipeline.files import atomic_files as sealed
from pipeline.files.owners import new_claim_name, part_path
from pipeline.files.regular_files import read_small_text
from pipeline.text.printable import write_table


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` with an open file that becomes `path` only once it is whole and on the disk.

    Busy, and nothing of it stays, if this process worked in the folder and has lost it to another
    (see `heads.runs.folder_lock`).
    """
    part = part_path(path, new_claim_name())
    try:
        with sealed.naming_errors(path), open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        refuse_if_lost(path)
        sealed.move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all, with its own checksum as its last key; a NaN is written as
    such. Busy as above.
    """
    with sealed.json_part(path, record, new_claim_name(), allow_nan=True) as part:
        refuse_if_lost(path)
        sealed.move_into_place(part, path)


def read_json(path: Path, shape: Any = None) -> dict[str, Any]:
    """A file of `write_json`, of a `shape` of heads/interface/run_records.py.

    ValueError when it is missing, a single bit of it has changed, or it is of another shape.
    """
    try:
        record = sealed.read_json(path)
        if shape is not None:
            require(record, shape, path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; expected the folder of a run that `vidgraph train` made"
        ) from None
    except sealed.Changed:
        raise ValueError(
            f"{path}: changed since it was written; the run folder is damaged, train it again"
        ) from None
    del record["seal"]
    return record


def versions() -> dict[str, str]:
    """What computed the run: Python, the packages that matter, the machine's kind."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    for name in ("vidgraph", "numpy", "h5py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """A checkpoint, whole or not at all; `payload` holds tensors and plain values only.

    Its tensors are written as the CPU's, so that torch.load opens it on a machine without the GPU
    that it was made on.
    """
    payload = _on_cpu({"format": CHECKPOINT_FORMAT, **payload}, {})
    write_atomically(path, lambda file: torch.save(payload, file))


def _on_cpu(value: Any, moved: dict[int, torch.Tensor]) -> Any:
    """`value` with the tensors in it on the CPU; one that is there twice stays one (`moved` has
    them by identity).
    """
    if isinstance(value, torch.Tensor):
        if id(value) not in moved:
            moved[id(value)] = value.cpu()
        return moved[id(value)]
    if isinstance(value, dict):
        return {key: _on_cpu(one, moved) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(one, moved) for one in value)
    return value


def start_log(path: Path, epochs_done: int) -> None:
    """Leaves in the log only the lines of epochs that the checkpoint has, so that a resumed run
    repeats none.
    """
    kept = []
    if path.exists():
        for line in read_small_text(path, errors="replace").splitlines():
            try:
                if require(sealed.parse_json(line, path), LOG_LINE, path)["epoch"] <= epochs_done:
                    kept.append(line)
            except sealed.Damaged:
                break  # the line that a killed run was writing
    write_text(path, "".join(line + "\n" for line in kept))


def append_log(path: Path, record: dict[str, Any]) -> None:
    """One more line of the log. Busy as above."""
    refuse_if_lost(path)
    with sealed.naming_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def save_predictions(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file of arrays, whole or not at all; no array of objects, so that it loads without
    pickle.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def save_confusion(path: Path, table: np.ndarray, classes: tuple[str, ...]) -> None:
    """The confusion matrix as CSV with the class names along both sides."""
    text = io.StringIO()
    rows = ([name, *row] for name, row in zip(classes, table.tolist(), strict=True))
    write_table(text, [["label \\ predicted", *classes], *rows])
    write_text(path, text.getvalue())


def require_same_run(folder: Path, there: dict, asked: dict, start: str = "") -> None:
    """ValueError naming what differs unless the run in `folder` is the one that is asked for.
    `start`: what another folder would be given to start from what is in this one."""
    # runs of earlier versions have no record of theirs
    if "manifest" in there and "manifest" in asked:
        refuse_other_labels(folder, there["manifest"], asked["manifest"])
    there, asked = (
        {key: value for key, value in one.items() if key != "manifest"} for one in (there, asked)
    )
    old, new = _flat(there), _flat(asked)
    keys = [key for key in new if old.get(key) != new[key]]
    keys += [key for key in old if key not in new and key.split(".")[0] in asked]
    if keys:
        shown = "; ".join(
            f"{key} is {old.get(key)!r} there, {new.get(key)!r} here" for key in keys[:3]
        )
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        how = (
            f"choose another folder (--name) with {start}"
            if start
            else "choose another folder, or start over with --no-resume"
        )
        raise ValueError(f"{folder} holds another run ({shown}{more}): {how}")


def _flat(record: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if (
            isinstance(value, (list, tuple))
            and value
            and all(isinstance(row, dict) and "name" in row for row in value)
        ):
            value = {row["name"]: row for row in value}  # the phases of a recipe
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
