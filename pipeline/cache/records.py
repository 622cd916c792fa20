"""Check records that were read from JSON: their keys, types and sizes.

The seal of a JSON file proves that the file has not changed since it was written. It does not
prove that vidgraph wrote it: people share caches and runs, and anybody can seal a file. So types
are checked, and sizes are compared with the file that they describe.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pipeline.cache.fields import GROUPS, MAX_VIEW, ROW_KEYS, field_of
from pipeline.files.atomic_files import Damaged, done_marker, read_json

# A float cannot represent every whole number beyond this one.
LARGEST = 2**53

# Bytes of a value of each dtype that a field may have.
SIZES = {"float16": 2, "float32": 4, "int16": 2, "int32": 4, "bool": 1}

# What messages call the types of JSON.
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
    """A JSON object with any keys, whose values all have one shape."""

    def __init__(self, shape: Any):
        """Describe the object.

        Args:
            shape: the shape of every value (see `require`).
        """
        self.shape = shape


class OneOf:
    """One of several texts."""

    def __init__(self, *texts: str):
        """List the texts.

        Args:
            *texts: the allowed values.
        """
        self.texts = texts


class Either:
    """A value of one of several shapes, of which at most one is a list or an object."""

    def __init__(self, *shapes: Any):
        """List the shapes.

        Args:
            *shapes: the allowed shapes (see `require`).
        """
        self.shapes = shapes


# Shapes of records, as `require` takes them. A key that ends in "?" may be missing.
FAILURE = {"clip": str, "error": str, "message": str, "seconds": float}
STATISTICS = {
    "attrs": {
        "format": int,
        "fingerprint": str,
        "shard": int,
        "source_sha256?": str,
        "clips_sha256?": str,
    },
    "compression": str,
    "groups": Each({"rows": int, "absent": [int], "fields": Each({"shape": [int], "dtype": str})}),
    "bytes": int,
    "sha256": str,
    "failures?": [FAILURE],
    "warnings?": [{"clip": str, "message": str}],
    "videos?": [str],
    "boxes?": {"views": int, "steps": int, "empty_views": int, "empty_steps": int},
    "options?": {"which": [str], "neighbours": int, "tracks?": bool},
    "sources?": [str],
    "asked?": dict,
    "batch?": int,
    "workers?": int,
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
    "precision?": OneOf("fp32", "tf32", "bf16", "fp16"),
    "sampling?": {"train_views?": int},
    "box_classes?": [str],
}
# What was planned together: `pipeline.cache.parts.Part`.
PART = {
    "clips": [[int]],
    "lengths": [[int]],
    "fingerprint": str,
    "format": int,
    "views?": Each([int]),
    "by_split?": bool,
    "keep?": [str],
    "test_clips?": int,
    "read_as?": Each([int]),
}
# Fields that were added later: the folder that they are in, and what it was made with.
ADDED = {"stage": str, "keep": [str], "fingerprint": str, "config": CONFIG}
CACHE = {
    "format": int,
    "config": CONFIG,
    "fingerprint": str,
    "manifest": {"sha256": str, "root": str},
    "per_shard?": int,  # of format 1
    "parts?": [PART],  # from format 2 on
    "added?": [ADDED],
    "removed?": [str],  # clips that the newest manifest does not have
    "splits?": Each(str),  # of clips whose rows were planned when they had another split
    "views_for_all?": bool,
    "plugins?": Each(str),  # files of plug-ins: SHA-256 -> path
}


def require(record: Any, shape: Any, path: Path, key: str = "") -> Any:
    """Check that a value has the expected shape.

    Args:
        record: a value that was read from JSON.
        shape: a type (`float` also takes whole numbers), `[shape]` for a list, or
            `{key: shape}` for an object with at least these keys. A key "name?" may be missing.
            `Each`, `OneOf` and `Either` describe the rest.
        path: the file, for messages.
        key: where in the file the value is, such as "groups.train", for messages.

    Returns:
        `record`.

    Raises:
        Damaged: the value has another shape. The message names the file and the key.
    """
    if isinstance(shape, OneOf):
        if not isinstance(record, str) or record not in shape.texts:
            raise Damaged(
                f"{path}: {key} is {shown(record)}, expected one of "
                f"{', '.join(map(repr, shape.texts))}"
            )
    elif isinstance(shape, Either):
        _require_either(record, shape, path, key)
    elif isinstance(shape, Each):
        _require_type(record, dict, path, key)
        for name, value in record.items():
            require(value, shape.shape, path, f"{key}.{name}".lstrip("."))
    elif isinstance(shape, Mapping):
        _require_type(record, dict, path, key)
        _require_keys(record, shape, path, key)
    elif isinstance(shape, list):
        _require_type(record, list, path, key)
        _require_items(record, shape[0], path, key)
    else:
        _require_type(record, shape, path, key)
    return record


def _require_type(record: Any, kind: type, path: Path, key: str) -> None:
    if not _is_of(record, kind):
        raise Damaged(
            f"{path}: {key or 'it'} is {shown(record)}, expected {WORDS[kind]}; written by "
            f"another version, or by hand"
        )


def _require_either(record: Any, either: Either, path: Path, key: str) -> None:
    # The last shape names what was expected if no other one does.
    deep = either.shapes[-1]
    for shape in either.shapes:
        if not isinstance(shape, type):
            deep = shape
        elif _is_of(record, shape):
            return
    require(record, deep, path, key)


def _require_keys(record: Mapping, shape: Mapping, path: Path, key: str) -> None:
    for name, inner in shape.items():
        bare = name.removesuffix("?")
        where = f"{key}.{bare}".lstrip(".")
        if bare in record:
            require(record[bare], inner, path, where)
        elif bare == name:
            raise Damaged(f"{path}: it holds no {where}; written by another version, or by hand")


def _require_items(record: list, shape: Any, path: Path, key: str) -> None:
    # A shortcut for long lists of numbers, such as the absent rows of a shard.
    if isinstance(shape, type) and all(_is_of(value, shape) for value in record):
        return
    for number, value in enumerate(record):
        require(value, shape, path, f"{key}[{number}]")


def _is_of(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) is float or _is_of(value, int)
    if kind is int:
        # `type`, because True is an instance of int.
        return type(value) is int and abs(value) <= LARGEST
    if kind is dict:
        # The weights of a checkpoint are an OrderedDict.
        return isinstance(value, dict)
    return type(value) is kind


def shown(value: Any) -> str:
    """Return a value of a file for a message.

    Args:
        value: any value, however long.

    Returns:
        Its `repr`, cut off after 60 characters.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_statistics(path: Path, attrs: Mapping[str, str | int] | None = None) -> dict:
    """Read and check the statistics of a shard.

    Args:
        path: the shard's HDF5 file, `CACHE/STAGE/NNNNN.h5`. The statistics are beside it.
        attrs: what identifies the shard in its cache (`Shards.attrs`). If given, the statistics
            must have it, and their sizes must fit the HDF5 file.

    Returns:
        The record (`STATISTICS`).

    Raises:
        Damaged: the statistics have changed, are not vidgraph's, or belong to another shard or
            cache.
        OSError: there are none, or they cannot be read.
    """
    marker = done_marker(path)
    record = require(read_json(marker), STATISTICS, marker)
    # The file names both groups; here one without rows is none.
    record["groups"] = {name: of for name, of in record["groups"].items() if of["rows"]}
    _check_groups(record, marker)
    if attrs is None:
        return record

    repair = f"run `vidgraph repair --cache {quote(str(cache_of(path)))}`"
    for key, expected in attrs.items():
        if record["attrs"].get(key) != expected:
            found = shown(record["attrs"].get(key, "missing"))
            raise Damaged(
                f"{path}: {key} is {found}, this cache's is {expected!r}: "
                f"it was made for another place; {repair}"
            )
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise Damaged(f"{path}: missing, although its statistics are there; {repair}") from None
    check_sizes(record, size, marker, repair)
    return record


def cache_of(path: Path) -> Path:
    """Return the cache that a shard's file belongs to.

    Args:
        path: `CACHE/features/NNNNN.h5`, `CACHE/features/FIELD/NNNNN.h5` or `CACHE/graphs/…`.
    """
    stage = path.parent
    # Added fields lie one folder deeper.
    return stage.parent if stage.name in ("features", "graphs") else stage.parent.parent


def _check_groups(record: Mapping, marker: Path) -> None:
    """Damaged unless a shard can have these groups, rows, fields, shapes and dtypes."""
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
        in_range = all(0 <= row < rows for row in absent)
        if rows < 1 or not in_range or len(set(absent)) < len(absent):
            raise Damaged(
                f"{marker}: {group} has {rows} rows, and {shown(absent)} are absent; expected "
                f"at least one row, and each absent one once and within them"
            )
        for name, field in table["fields"].items():
            _check_field(f"{marker}: {group}.{name}", name, field)


def _check_field(where: str, name: str, field: Mapping) -> None:
    shape, dtype = field["shape"], field["dtype"]
    try:
        known = field_of(name)
    except ValueError:
        raise Damaged(f"{where}: this version has no such field") from None

    allowed = ("float16", "float32") if known.dtype == "feature" else (known.dtype,)
    if name in ROW_KEYS or dtype not in allowed:
        raise Damaged(f"{where}: its dtype is {shown(dtype)}, expected {' or '.join(allowed)}")

    fits = len(shape) == len(known.dims) and min(shape, default=1) >= 1
    if not fits or math.prod(shape) * SIZES[dtype] > MAX_VIEW:
        dims = " ".join(known.dims) or "one value"
        raise Damaged(f"{where}: its shape is {shown(shape)}, expected lengths from 1 for {dims}")


def check_sizes(record: Mapping, size: int, marker: Path, repair: str) -> None:
    """Check that a file is large enough for the rows that its statistics describe.

    Args:
        record: the statistics.
        size: the length of the HDF5 file, in bytes.
        marker: the statistics' file, for the message.
        repair: what to do, for the message.

    Raises:
        Damaged: the file is too small. Every row needs an id of at least one byte, and every view
            of an uncompressed shard needs its values.
    """
    for group, table in record["groups"].items():
        needed = table["rows"]
        if record["compression"] == "none":
            view = 0
            for field in table["fields"].values():
                view += math.prod(field["shape"]) * SIZES[field["dtype"]]
            needed = max(needed, (table["rows"] - len(table["absent"])) * view)
        if needed > size:
            raise Damaged(
                f"{marker}: claims {table['rows']:,} rows in {group}, {needed:,} bytes, its file "
                f"has {size:,}; {repair}"
            )
