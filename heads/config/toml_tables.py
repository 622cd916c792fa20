"""Tables of TOML and JSON, to and from dataclasses: reading, checking, setting a key, writing."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline.files.regular_files import MOST_TEXT, read_small
from pipeline.text import text_files as texts
from pipeline.text.suggestions import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Checked = TypeVar("Checked")


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file; ValueError if it is none."""
    try:
        return tomllib.loads(texts.decoded(read_small(path, MOST_TEXT), path, "a TOML file"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise ValueError(
            f"{path}: expected tables of values and lists, got lists without end"
        ) from None


def validated(cls: type[Checked], table: Mapping[str, Any], where: str) -> Checked:
    """Make a dataclass from plain tables.

    Args:
        cls: the dataclass.
        table: its fields.
        where: what messages call it.

    Raises:
        ValueError: the first thing that is wrong, and `where` it is.
    """
    # First, because pydantic ignores unknown keys.
    _refuse_unknown(cls, table, where, "")
    try:
        # From JSON, where strict mode takes a list for a tuple; from Python it does not.
        return TypeAdapter(cls).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        place = f"{where}, {key}" if key else where
        raise ValueError(f"{place}: {message[:1].lower()}{message[1:]}{shown}") from None


def set_key(table: dict[str, Any], key: str, value: Any) -> None:
    """Set a value by its dotted key, in place; tables that are missing are made.

    Args:
        table: the tables of a recipe.
        key: e.g. "train.lr", or "phases.NAME.train.lr".
        value: the new value.

    Raises:
        ValueError: there is no such phase, or a value is in the place of a table.
    """
    *parents, last = key.split(".")
    if parents[:1] == ["train"] and "phases" in table:
        raise ValueError(
            f"--set {key}: the recipe has phases, each with its own train: phases.NAME.{key}"
        )
    for parent in parents:
        if isinstance(table, list):
            # The phases of a recipe: they are found by their names.
            names = []
            for row in table:
                names.append(str(row.get("name")) if isinstance(row, dict) else "")
            if parent not in names:
                raise ValueError(f"--set {key}: no phase {parent!r}; {nearest(parent, names)}")
            table = table[names.index(parent)]
        else:
            table = table.setdefault(parent, {})
        if not isinstance(table, (dict, list)):
            raise ValueError(f"--set {key}: {parent} is a value, expected a table")
    if isinstance(table, list):
        raise ValueError(
            f"--set {key}: expected phases.NAME.KEY, e.g. phases.{table[0].get('name')}.train.lr"
        )
    table[last] = value


def as_list(cls: type, key: str, value: Any) -> Any:
    """Return what `--set KEY=VALUE` means where the key is a list: `a,b` is ["a", "b"].

    Args:
        cls: the dataclass of the whole table.
        key: a dotted key; names of rows in a list of tables, such as phases, are skipped.
        value: the value as TOML reads it, or text.

    Returns:
        A list where the key is a list of texts or numbers; else the value.
    """
    hint: Any = cls
    for part in key.split("."):
        inner, container = _dataclass_in(hint)
        if container is tuple:
            # The name of a row: its keys follow.
            hint = inner
            continue
        hint = get_type_hints(inner).get(part) if inner is not None else None
    kinds = get_args(hint)
    if get_origin(hint) is not tuple or len(kinds) != 2 or kinds[1] is not Ellipsis:
        return value
    kind = kinds[0]
    if isinstance(value, list) or kind not in (str, int, float):
        return value

    parts = [part.strip() for part in str(value).split(",")]
    found: list[Any] = [part for part in parts if part]
    if kind is str:
        return found
    # What is no number is refused later, by its key.
    for k, part in enumerate(found):
        with suppress(ValueError):
            found[k] = kind(part)
    return found


def toml_lines(table: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the lines of a table: its values, then the tables in it, whose own values are
    written in one line each.

    Args:
        table: what to write.
        prefix: of the names of the tables in it, such as "phases.".
    """
    tables = {}
    for key, value in table.items():
        if isinstance(value, dict):
            tables[key] = value
    # Values first: in TOML a key belongs to the table written above it.
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if key not in tables]
    for name, rows in tables.items():
        lines += ["", f"[{prefix}{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in rows.items()]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()]
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value)  # TOML's strings, numbers and booleans are written as JSON's


def _refuse_unknown(cls: type, table: Mapping[str, Any], where: str, prefix: str) -> None:
    """ValueError for a key that is no field of `cls`, or of the dataclasses in its fields."""
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"{where}: no key {prefix}{key}; {nearest(key, hints)}")
        inner, container = _dataclass_in(hints[key])
        if inner is None:
            continue
        name = f"{prefix}{key}"
        for row_name, row in _rows_of(value, container, where, name).items():
            if not isinstance(row, Mapping):
                raise ValueError(f"{where}: {name}.{row_name} is a table, got {row!r}")
            _refuse_unknown(inner, row, where, f"{name}.{row_name}." if row_name else f"{name}.")
    for f in fields(cls):
        if f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}: {prefix}{f.name} is missing")


def _rows_of(value: Any, container: type | None, where: str, name: str) -> dict[str, Any]:
    """The tables that a key holds, by their names; "" for the only one."""
    if container is tuple:
        if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
            key = name.rpartition(".")[2]
            raise ValueError(f"{where}: {name} are tables [[{key}]], got {value!r}")
        return {str(row.get("name", k)): row for k, row in enumerate(value)}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {name} is a table, got {value!r}")
    return {"": value} if container is None else dict(value)


def _dataclass_in(hint: Any) -> tuple[type | None, type | None]:
    """The dataclass that a field of this type holds, and the container that it is in: tuple, dict,
    or None. (None, None) for plain values."""
    container = get_origin(hint)
    if container in (tuple, dict):
        for inner in get_args(hint):
            if is_dataclass(inner):
                return inner, container
        return None, None
    for inner in (hint, *get_args(hint)):  # X | None
        if is_dataclass(inner):
            return inner, None
    return None, None
