"""Heads, one file each: a head `NAME` is the module `NAME.py`, with a function
`build(dims, num_classes, *, named options) -> nn.Module`.

A head is an nn.Module with

- `needs`: the fields that it reads, named as in `pipeline.cache.fields` (cuts by their own names);
- `uses`, if there are any: fields that it reads where the cache has them, and works without;
- `has_regions`, True where its maps hold regions as those of `dyreg` do: `vidgraph evaluate` then
  measures how far these are from annotated boxes (see `heads.interface.region_distance`);
- `forward(clips, want_maps=False)`: `heads.interface.clips.Clips` -> `HeadOutput`.

A module whose head computes something else than in an earlier version, with the same options, has
a constant CHANGES (see `heads.interface.changes`).

Files whose names start with "_" are shared code. Heads of other packages and files are found too
(see `pipeline.plugins`). docs/heads.md lists the options of ours, docs/adding_a_head.md shows how
to add one.
"""

import inspect
from typing import TYPE_CHECKING, Any

from heads.interface.changes import Change, changes_since, version_after
from pipeline.plugins import (
    HEAD,
    display_name,
    is_known,
    is_recorded,
    kind_of,
    known_names,
    load_build,
    may_execute,
)
from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from torch import nn

    from heads.interface.clips import Dims

__all__ = [
    "build_head",
    "check_options",
    "head_changes",
    "head_names",
    "head_options",
    "head_version",
]

# The value of the option `cut` that leaves the choice to the views.
LAST = "last"


def head_names() -> tuple[str, ...]:
    """Return the names of all heads, ours and those of installed packages, in alphabetical order.

    It imports none of them.
    """
    return known_names(HEAD)


def head_options(name: str) -> dict[str, Any]:
    """Return the options of a head with their defaults.

    Args:
        name: a name of `head_names`, or that of a file (see `pipeline.plugins.give_file`).

    Raises:
        ValueError: there is no such head; the message has the nearest names.
    """
    if not is_known(HEAD, name):
        raise ValueError(f"no head {name!r}: {nearest(name, head_names())}")
    parameters = inspect.signature(load_build(HEAD, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def head_version(name: str) -> int:
    """Return the version of what a head computes: 1, or that of its last change.

    Args:
        name: a name of `head_names`, or that of a file. A file that this process may not execute
            has version 1: its checksum tells versions apart.
    """
    return version_after(_changes(name))


def head_changes(name: str, version: int, options: dict[str, Any]) -> list[Change]:
    """Return what a head with some options computes otherwise since a version.

    Args:
        name: as for `head_version`.
        version: that a run recorded.
        options: those that the run gave; the others have their defaults.
    """
    changes = _changes(name)
    if not changes:
        return []
    return changes_since(changes, version, {**head_options(name), **options})


def _changes(name: str) -> tuple[Change, ...]:
    if is_recorded(name) and not may_execute(name):
        return ()
    return getattr(load_build(HEAD, name), "__globals__", {}).get("CHANGES", ())


def build_head(name: str, dims: "Dims", num_classes: int, **options: Any) -> "nn.Module":
    """Build a head, freshly initialised from torch's generator.

    Args:
        name: a name of `head_names`, or that of a file (see `pipeline.plugins.give_file`).
        dims: the sizes of the views that it will read.
        num_classes: K, at least 2.
        **options: options of the head's own `build`. `cut="last"` is the deepest cut whose map the
            views have, for any head that reads a map.

    Returns:
        The head, on the CPU.

    Raises:
        MissingFields: `dims` lack what the head needs.
        ValueError: unknown head or option (with the nearest names), an option of another type than
            its default, fewer than 2 classes, or a plug-in that is no head.
    """
    # Here, so that listing the names of heads does not import torch.
    from torch import nn

    from pipeline.networks.memory_format import guard

    _check_types(name, options)
    if num_classes < 2:
        raise ValueError(
            f"head {display_name(name)}: expected at least 2 classes, got {num_classes}"
        )
    build = load_build(HEAD, name)
    if kind_of(build) != HEAD:
        raise ValueError(
            f"head {display_name(name)}: this is no head; expected a function {HEAD.call}, found "
            f"build{inspect.signature(build)}"
        )
    if options.get("cut") == LAST:
        options = {**options, "cut": dims.last_cut}
    head = build(dims, num_classes, **options)
    if not isinstance(head, nn.Module):
        raise ValueError(
            f"head {display_name(name)}: build returns {type(head).__name__}, expected a "
            f"torch.nn.Module"
        )
    return guard(head)


def check_options(name: str, options: dict[str, Any]) -> None:
    """Check the options of a head before it is built.

    The record of a run may name a plug-in's file that this process may not execute. Then nothing is
    checked: reading a record executes nothing, and `build_head` refuses such a file.

    Args:
        name: as for `build_head`.
        options: option -> value. An int may stand for a float.

    Raises:
        ValueError: unknown head or option, or a value of another type than the default.
    """
    if not is_recorded(name) or may_execute(name):
        _check_types(name, options)


def _check_types(name: str, options: dict[str, Any]) -> None:
    defaults = head_options(name)
    for key, value in options.items():
        if key not in defaults:
            raise ValueError(
                f"head {display_name(name)} has no option {key!r}: {nearest(key, defaults)}"
            )
        # Not isinstance, which takes a bool for an int.
        wanted = type(defaults[key])
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"head {display_name(name)}, option {key}: expected {wanted.__name__} like "
                f"{defaults[key]!r}, got {value!r}"
            )
