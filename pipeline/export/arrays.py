"""Export as arrays: npy (one file a field), safetensors, or Parquet (one row a view)."""

import csv
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.export.export_rows import SplitRows, label_text

# Bytes of a safetensors file, which is written at once.
FILE_BYTES = 1 << 30


def needed(name: str) -> ModuleType:
    """Import a package of the extra `export`.

    Args:
        name: of the package.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this format needs {name}, which cannot be imported ({error}): run "
            f"`pip install 'vidgraph[export]'`"
        ) from None


def write_npy(split: SplitRows, folder: Path) -> None:
    """Write SPLIT/FIELD.npy [R,...] for each field, and SPLIT/rows.csv.

    Args:
        split: the rows.
        folder: exists.
    """
    own = folder / split.split
    own.mkdir()
    out = {}
    for name in split.fields:
        shape = (len(split.rows), *split.group.shape(name))
        path, dtype = own / f"{name}.npy", split.group.dtype(name)
        out[name] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    for part, arrays in split.blocks():
        for name, values in arrays.items():
            out[name][part] = values
    for array in out.values():
        array.flush()
    write_rows(own / "rows.csv", split, range(len(split.rows)))


def write_safetensors(split: SplitRows, folder: Path) -> None:
    """Write SPLIT-00000.safetensors and so on, each with a table SPLIT-00000.csv of its rows.

    Args:
        split: the rows.
        folder: exists.
    """
    save = needed("safetensors.numpy").save_file
    number, first = 0, 0
    kept: dict[str, list[np.ndarray]] = {name: [] for name in split.fields}
    size = 0

    def flush(stop: int) -> None:
        nonlocal number, first, size
        stem = folder / f"{split.split}-{number:05d}"
        joined = {name: np.concatenate(arrays) for name, arrays in kept.items()}
        save(joined, f"{stem}.safetensors", metadata={"split": split.split})
        write_rows(Path(f"{stem}.csv"), split, range(first, stop))
        for arrays in kept.values():
            arrays.clear()
        number, first, size = number + 1, stop, 0

    done = 0
    for part, arrays in split.blocks():
        for name, values in arrays.items():
            kept[name].append(values)
            size += values.nbytes
        done = part.stop
        if size >= FILE_BYTES:
            flush(done)
    if done > first:
        flush(done)


def write_parquet(split: SplitRows, folder: Path) -> None:
    """Write SPLIT.parquet: a row for each view, each field a list of its values in C order.

    The shape of a field is in its metadata, as "4,5,6". Halves are written as float32, which every
    reader knows.

    Args:
        split: the rows.
        folder: exists.
    """
    pa, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    text = [pa.field("clip", pa.string()), pa.field("view", pa.int32())]
    text += [pa.field("split", pa.string()), pa.field("labels", pa.list_(pa.string()))]
    columns = list(text)
    for name in split.fields:
        shape, dtype = split.group.shape(name), _plain(split.group.dtype(name))
        kind = pa.from_numpy_dtype(dtype)
        about = {"shape": ",".join(map(str, shape))}
        size = int(np.prod(shape))
        columns.append(pa.field(name, pa.list_(kind, size) if shape else kind, metadata=about))
    schema = pa.schema(columns)

    with parquet.ParquetWriter(folder / f"{split.split}.parquet", schema) as writer:
        for part, arrays in split.blocks():
            clips = split.clips[part]
            values = [
                pa.array([clip.clip for clip in clips]),
                pa.array(split.group.views[list(split.rows[part])], pa.int32()),
                pa.array([split.split] * len(clips)),
                pa.array([list(clip.labels) for clip in clips], pa.list_(pa.string())),
            ]
            for name in split.fields:
                flat = arrays[name].astype(_plain(arrays[name].dtype)).reshape(-1)
                array = pa.array(flat)
                if arrays[name].ndim > 1:
                    size = int(np.prod(arrays[name].shape[1:]))
                    array = pa.FixedSizeListArray.from_arrays(array, size)
                values.append(array)
            writer.write_table(pa.table(values, schema=schema))


def _plain(dtype: np.dtype) -> np.dtype:
    """float32 for halves, else the dtype in the machine's order."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def write_rows(path: Path, split: SplitRows, rows: Iterable[int]) -> None:
    """Write a CSV file that says which view each row of the arrays is.

    Args:
        path: of the file.
        split: the rows.
        rows: positions in `split.rows`.
    """
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "clip", "view", "split", "label"))
        for number, k in enumerate(rows):
            clip, view = split.clips[k], int(split.group.views[split.rows[k]])
            writer.writerow((number, clip.clip, view, clip.split, label_text(clip)))
