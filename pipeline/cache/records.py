"""Checks records that were read from JSON: their keys, types and sizes.

A seal proves that a file has not changed since it was written. It does not prove that we wrote it:
people share caches and runs, and anybody can seal a file. So types are checked, and sizes are
compared with the file that they describe.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.cache.fields import GROUPS, MAX_VIEW, ROW_KEYS, field_of
from pipeline.files.atomic_files import Damaged, done_marker, read_json

LARGEST = 2**53  # beyond it a float tells no whole numbers apart
SIZES = {"float16": 2, "float32": 4, "int16": 2, "int32": 4, "bool": 1}
WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "nothing",
}


class Each:
    """An object with any keys, whose values all have one shape."""

    def __init__(self, shape: Any):
        self.shape = shape


class OneOf:
    """One of some texts."""

    def __init__(self, *texts: str):
        self.texts = texts


class Either:
    """One of several shapes of which at most one is a list or an object."""

    def __init__(self, *shapes: Any):
        self.shapes = shapes


FAILURE = {"clip": str, "error": str, "message": str, "seconds": float}
STATISTICS = {
    "attrs": {"format": int, "fingerprint": str, "shard": int, "source_sha256?": str},
    "compression": str,
    "groups": Each({"rows": int, "absent": [int], "fields": Each({"shape": [int], "dtype": str})}),
    "bytes": int,
    "sha256": str,
    "failures?": [FAILURE],
    "warnings?": [{"clip": str, "message": str}],
    "videos?": [str],
    "options?": {"which": [str], "neighbours": int},
    "asked?": dict,
    "batch?": int,
    "views?": int,
    "clips?": int,
    "stage?": str,
    "shard?": int,
    "device?": str,
    "versions?": Each(str),
    "seconds?": Either(float, Each(float)),
}
CONFIG = {
    "weights?": str,
    "dtype?": OneOf("float16", "float32"),
    "precision?": OneOf("fp32", "bf16", "fp16"),
    "sampling?": {"train_views?": int},
}
CACHE = {
    "format": int,
    "config": CONFIG,
    "fingerprint": str,
    "manifest": {"sha256": str, "root": str},
    "per_shard": int,
    "plugins?": Each(str),  # files of plug-ins: SHA-256 -> path
}


def require(record: Any, shape: Any, path: Path, key: str = "") -> Any:
    """Returns `record`; Damaged, with the file and the key, unless it has the shape.

    shape: a type of Python (a float may be a whole number), `[shape]` for a list, `{key: shape}`
    for an object with at least these keys (`"key?"`: if it is there), or one of the classes above.
    """
    if isinstance(shape, OneOf):
        if not isinstance(record, str) or record not in shape.texts:
            raise Damaged(
                f"{path}: {key} is {shown(record)}, expected one of "
                f"{', '.join(map(repr, shape.texts))}"
            )
        return record
    if isinstance(shape, Either):
        plain = next(
            (one for one in shape.shapes if isinstance(one, type) and _is_of(record, one)), None
        )
        deep = next((one for one in shape.shapes if not isinstance(one, type)), shape.shapes[-1])
        return record if plain is not None else require(record, deep, path, key)
    kind = shape if isinstance(shape, type) else list if isinstance(shape, list) else dict
    if not _is_of(record, kind):
        said = f"{key or 'it'} is {shown(record)}, expected {WORDS[kind]}"
        raise Damaged(f"{path}: {said}; written by another version, or by hand")
    if isinstance(shape, Each):
        for name, value in record.items():
            require(value, shape.shape, path, f"{key}.{name}".lstrip("."))
    elif isinstance(shape, Mapping):
        for name, inner in shape.items():
            where = f"{key}.{name.removesuffix('?')}".lstrip(".")
            if name.removesuffix("?") in record:
                require(record[name.removesuffix("?")], inner, path, where)
            elif not name.endswith("?"):
                raise Damaged(
                    f"{path}: it holds no {where}; written by another version, or by hand"
                )
    elif isinstance(shape, list) and not (
        isinstance(shape[0], type) and all(_is_of(value, shape[0]) for value in record)
    ):
        for number, value in enumerate(record):
            require(value, shape[0], path, f"{key}[{number}]")
    return record


def _is_of(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) is float or (type(value) is int and abs(value) <= LARGEST)
    if kind is dict:
        return isinstance(value, dict)  # of a checkpoint: weights are an OrderedDict
    return type(value) is kind and (kind is not int or abs(value) <= LARGEST)


def shown(value: Any) -> str:
    """A value of a file, for a message: not more of it than fits a line."""
    try:
        said = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        said = type(value).__name__
    return said if len(said) <= 60 else f"{said[:60]}…"


def read_statistics(path: Path, attrs: Mapping[str, str | int] | None = None) -> dict:
    """The statistics of a shard, by the path of its HDF5 file.

    Args:
        path: `CACHE/STAGE/NNNNN.h5`.
        attrs: what identifies the shard in its cache (`Shards.attrs`): then it is compared, and
        sizes are with the file's.

    Raises:
        Damaged: they have changed, are not what ours are, or belong to another shard or cache.
        OSError: there are none, or they cannot be read.
    """
    marker = done_marker(path)
    record = require(read_json(marker), STATISTICS, marker)
    _check_groups(record, marker)
    if attrs is not None:
        repair = f"run `vidgraph repair --cache {quote(str(path.parent.parent))}`"
        for key in attrs:
            if record["attrs"].get(key) != attrs[key]:
                said = f"{key} is {shown(record['attrs'].get(key, 'missing'))}, this cache's is {attrs[key]!r}"
                raise Damaged(f"{path}: {said}: it was made for another place; {repair}")
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{path}: missing, although its statistics are there; {repair}") from None
        check_sizes(record, size, marker, repair)
    return record


def _check_groups(record: Mapping, marker: Path) -> None:
    """Damaged unless groups, fields, shapes and dtypes are some that a shard of ours can have."""
    if not record["groups"] or not set(record["groups"]) <= set(GROUPS):
        raise Damaged(
            f"{marker}: groups are {shown(list(record['groups']))}, expected "
            f"{' and/or '.join(GROUPS)}"
        )
    if record["compression"] not in ("none", "lzf", "zstd"):
        raise Damaged(
            f"{marker}: compression is {shown(record['compression'])}, expected none, lzf or zstd"
        )
    for group, table in record["groups"].items():
        rows, absent = table["rows"], table["absent"]
        if rows < 1 or any(not 0 <= row < rows for row in absent) or len(set(absent)) < len(absent):
            raise Damaged(
                f"{marker}: {group} has {rows} rows, of which {shown(absent)} are absent: this "
                f"cannot be"
            )
        for name, field in table["fields"].items():
            _check_field(f"{marker}: {group}.{name}", name, field)


def _check_field(where: str, name: str, field: Mapping) -> None:
    shape, dtype = field["shape"], field["dtype"]
    try:
        known = field_of(name)
    except ValueError:
        raise Damaged(f"{where}: no field of this version") from None
    allowed = ("float16", "float32") if known.dtype == "feature" else (known.dtype,)
    if name in ROW_KEYS or dtype not in allowed:
        raise Damaged(f"{where}: its dtype is {shown(dtype)}, expected {' or '.join(allowed)}")
    if (
        len(shape) != len(known.dims)
        or min(shape, default=1) < 1
        or math.prod(shape) * SIZES[dtype] > MAX_VIEW
    ):
        dims = " ".join(known.dims) or "one value"
        raise Damaged(f"{where}: its shape is {shown(shape)}, expected lengths from 1 for {dims}")


def check_sizes(record: Mapping, size: int, marker: Path, repair: str) -> None:
    """Damaged if the file is too small for what its statistics claim: every row has an id, and
    every view its values.
    """
    for group, table in record["groups"].items():
        views = table["rows"] - len(table["absent"])
        each = sum(math.prod(f["shape"]) * SIZES[f["dtype"]] for f in table["fields"].values())
        claimed = max(table["rows"], views * each if record["compression"] == "none" else 0)
        if claimed > size:
            raise Damaged(
                f"{marker}: claims {table['rows']:,} rows in {group}, {claimed:,} bytes, its file "
                f"has {size:,}; {repair}"
            )
