"""The files of a run folder: what a training run leaves behind, and how to read it back.

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
run.claim                the lock, while a process trains here (heads/runs/folder_lock.py)

Every file is written whole or not at all. A process that has lost the folder to another one gets
FolderBusy instead of writing (see `heads.runs.folder_lock.refuse_if_lost`).
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

from heads.config.recipe import recipe_from
from heads.interface.checkpoints import CHECKPOINT_FORMAT, load_checkpoint  # noqa: F401
from heads.interface.run_records import LOG_LINE
from heads.runs.folder_lock import refuse_if_lost
from heads.runs.grown_cache import as_if_added_before
from heads.runs.head_versions import refuse_changed_head
from heads.runs.manifest_record import refuse_other_labels
from pipeline.cache.records import require
from pipeline.files import atomic_files
from pipeline.files.owners import new_claim_name, part_path
from pipeline.files.regular_files import read_small_text
from pipeline.plugins import mentioned_in, note_paths
from pipeline.text.printable import write_table
from pipeline.text.typed_options import short

# Manifests are compared by their labels. A plug-in is compared by its name, which has the checksum
# of its file: where the file lies does not matter.
# The versions of the heads count only if they concern the run's options: `refuse_changed_head`.
NOT_COMPARED = ("manifest", "plugins", "head_versions")


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that gets its name only once it is complete and on the disk.

    Args:
        path: the file.
        write: called with an open binary file.

    Raises:
        FolderBusy: this process has lost the folder to another one; nothing is left behind.
    """
    part = part_path(path, new_claim_name())
    try:
        with atomic_files.naming_errors(path), open(part, "wb") as file:
            write(file)
            file.flush()
            # On the disk before it gets its name: a crash leaves the old file or the new one.
            os.fsync(file.fileno())
        # As late as possible, so that little time is left in which the lock could be lost.
        refuse_if_lost(path)
        atomic_files.move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, with its own checksum as its last key.

    Args:
        path: the file.
        record: its content; NaN is written as NaN.

    Raises:
        FolderBusy: this process has lost the folder to another one.
    """
    with atomic_files.json_part(path, record, new_claim_name(), allow_nan=True) as part:
        refuse_if_lost(path)
        atomic_files.move_into_place(part, path)


def read_json(path: Path, shape: Any = None) -> dict[str, Any]:
    """Read a file of `write_json`.

    Args:
        path: the file.
        shape: a shape of heads/interface/run_records.py; None: any.

    Returns:
        The record, without its checksum.

    Raises:
        ValueError: the file is missing, a bit of it has changed, or it is of another shape.
    """
    try:
        record = atomic_files.read_json(path)
        if shape is not None:
            require(record, shape, path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; expected the folder of a run that `vidgraph train` made"
        ) from None
    except atomic_files.Changed:
        raise ValueError(
            f"{path}: changed since it was written; the run folder is damaged, train it again"
        ) from None
    del record["seal"]
    if shape is not None:
        note_paths(record.get("plugins", {}))
    return record


def with_plugins(about: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a run's description where the files of its plug-ins are.

    Args:
        about: the description.

    Returns:
        A copy with the key "plugins" (checksum -> path); without plug-ins nothing is added.
    """
    plugins = mentioned_in(about)
    if not plugins:
        return dict(about)
    return {**about, "plugins": plugins}


def versions() -> dict[str, str]:
    """Return what computes: the versions of Python and of the main packages, the machine's kind."""
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    # By their records, not by importing them.
    for name in ("vidgraph", "numpy", "h5py"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file.
        payload: tensors and plain values only. Tensors are moved to the CPU, so that torch.load
            opens the file on a machine without a GPU.
    """
    payload = _on_cpu({"format": CHECKPOINT_FORMAT, **payload}, {})
    write_atomically(path, lambda file: torch.save(payload, file))


def _on_cpu(value: Any, moved: dict[int, torch.Tensor]) -> Any:
    """Return `value` with its tensors on the CPU.

    `moved` maps a tensor's id to its copy, so that a tensor that occurs twice is stored once.
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
    """Drop the log lines of epochs that a resumed run will repeat.

    Args:
        path: log.jsonl, which need not exist.
        epochs_done: epochs that the checkpoint has.
    """
    kept = []
    if path.exists():
        for line in read_small_text(path, errors="replace").splitlines():
            try:
                record = require(atomic_files.parse_json(line, path), LOG_LINE, path)
            except atomic_files.Damaged:
                # The line that a killed run was writing.
                break
            if record["epoch"] <= epochs_done:
                kept.append(line + "\n")
    write_text(path, "".join(kept))


def append_log(path: Path, record: dict[str, Any]) -> None:
    """Append one line to the log.

    Raises:
        FolderBusy: this process has lost the folder to another one.
    """
    refuse_if_lost(path)
    with atomic_files.naming_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        # On the disk before last.pt says that the epoch is over.
        os.fsync(file.fileno())


def save_predictions(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file, whole or not at all.

    Args:
        path: the file.
        arrays: no arrays of objects, so that the file loads without pickle.
    """
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def save_confusion(path: Path, table: np.ndarray, classes: tuple[str, ...]) -> None:
    """Write a confusion matrix as CSV, with the class names along both sides.

    Args:
        path: the file.
        table: [K,K] counts, rows are labels, columns predictions.
        classes: the K names.
    """
    text = io.StringIO()
    rows = [[name, *row] for name, row in zip(classes, table.tolist(), strict=True)]
    write_table(text, [["label \\ predicted", *classes], *rows])
    write_text(path, text.getvalue())


def require_same_run(folder: Path, stored: dict, asked: dict, start: str = "") -> None:
    """Check that the run in a folder is the one that is asked for.

    Args:
        folder: the run folder, for the message.
        stored: the description of the run in it.
        asked: the description of the run that is asked for.
        start: the option that would start another folder from what is in this one.

    Raises:
        ValueError: they differ; the message names up to three keys.
    """
    # Runs of earlier versions recorded no manifest.
    if "manifest" in stored and "manifest" in asked:
        refuse_other_labels(folder, stored["manifest"], asked["manifest"])
    if "recipe" in stored:
        # Options that the recipe has had since then count with their defaults.
        recipe = recipe_from(stored["recipe"], str(folder))
        stored = as_if_added_before({**stored, "recipe": recipe.as_dict()}, asked, recipe)

    old, new = _flat(stored), _flat(asked)
    differing = []
    for key, value in new.items():
        if _top(key) not in NOT_COMPARED and old.get(key) != value:
            differing.append(key)
    # A key that the asked run lacks counts only if its table was asked for.
    for key in old:
        if _top(key) not in NOT_COMPARED and key not in new and _top(key) in asked:
            differing.append(key)
    if not differing:
        if "recipe" in stored:
            refuse_changed_head(folder, stored, "Train anew in another folder, or with --no-resume")
        return

    shown = []
    for key in differing[:3]:
        there, here = short(repr(old.get(key))), short(repr(new.get(key)))
        shown.append(f"{key} is {there} there, {here} here")
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    if start:
        advice = f"choose another folder (--name) with {start}"
    else:
        advice = "choose another folder (--name), or start over with --no-resume"
    raise ValueError(f"{folder} holds another run ({'; '.join(shown)}{more}): {advice}")


def _top(key: str) -> str:
    return key.partition(".")[0]


def _flat(record: dict, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted keys; a recipe's phases are keyed by their names."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if _is_named_rows(value):
            # By name, so that a message says "phases.joint.train.lr".
            value = {row["name"]: row for row in value}
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, tuple):
            # JSON has lists only.
            flat[f"{prefix}{key}"] = list(value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_named_rows(value: Any) -> bool:
    """Return whether a value is a list of tables that have names."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(row, dict) and "name" in row for row in value)
