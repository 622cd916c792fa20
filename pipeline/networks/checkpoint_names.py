"""Takes off what other programs put around a model's names: prefixes of wrappers, and the keys of a
checkpoint's tables.

`torch.compile` puts `_orig_mod.` before every name below it, data-parallel wrappers `module.`,
training frameworks `model.`, `backbone.` or `encoder.`; in any order and depth, and in the middle
of a name where only a part was wrapped.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Of wrappers that add nothing but their name: these may stand anywhere in a name.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_module",
)
# Where training scripts keep the weights in what they save, the most specific first.
HOLDERS = (
    *(
        "backbone",
        "encoder",
        "model_state",
        "model_state_dict",
        "state_dict",
        "model",
        "network",
        "net",
        "module",
    ),
    *("params", "weights"),
)
DEPTH = 6  # tables in one another that are looked through
LONGEST = 64  # names before a name that are looked through
# What may stand beside a backbone in one table: the classifier; and what averages count.
BESIDE = re.compile(r"(^|\.)(fc|fc_cls|classifier|head|heads|cls_head|logits)\.")
COUNTERS = re.compile(r"(^|\.)(n_averaged|_extra_state)$")


def states(saved: object, depth: int = DEPTH) -> Iterator[dict[str, Any]]:
    """Every table of named tensors in what was saved, the outermost first.

    Args:
        saved: what torch.load returned: a table of tensors, or one that holds it below a key of
        HOLDERS, in any depth. depth: how deep to look.

    Yields:
        name -> tensor, with whatever else a table holds left out.
    """
    if not isinstance(saved, dict):
        return
    tensors = {
        key: value
        for key, value in saved.items()
        if isinstance(key, str) and hasattr(value, "shape")
    }
    if tensors and len(tensors) == len(saved):
        yield tensors
        return
    for key in HOLDERS if depth else ():
        if key in saved:
            yield from states(saved[key], depth - 1)
    if tensors:
        yield tensors


def other_states(saved: object, depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Any]]]:
    """(keys that lead to it, table of named tensors) below every key of what was saved, whatever it
    is called; see `states`.
    """
    for key, value in saved.items() if isinstance(saved, dict) else ():
        if isinstance(value, dict) and isinstance(key, str):
            if found := list(states(value, depth)):
                yield from ((key, table) for table in found)
            elif depth:
                yield from (
                    (f"{key} {deeper}", table) for deeper, table in other_states(value, depth - 1)
                )


def without_wrappers(state: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """A copy of the table without the parts that wrappers add to names and without their counters,
    unless `own` has them.

    The table itself if two names would become equal.
    """
    theirs = {part for name in own for part in name.split(".")}
    extra = set(WRAPPERS) - theirs
    state = {
        name: value for name, value in state.items() if name in own or not COUNTERS.search(name)
    }
    plain = {
        ".".join(part for part in name.split(".") if part not in extra): value
        for name, value in state.items()
    }
    return plain if len(plain) == len(state) else state


def unwrapped(
    state: Mapping[str, Any], own: Collection[str]
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """The ways to read a table without its prefixes, the plainest first.

    Args:
        state: name -> tensor.
        own: the names that the network has.

    Yields:
        (prefix, name -> tensor below it, names beside it that are neither below it nor known to
        stand beside a backbone). WRAPPERS are removed from the names in all of them.
    """
    plain = without_wrappers(state, own)
    prefixes = {"": len(plain)}
    for name in plain:
        parts = name.split(".")[:-1][:LONGEST]
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end]) + "."
            prefixes[prefix] = prefixes.get(prefix, 0) + 1
    least = len(own) // 2  # fewer names below a prefix are not this network
    for prefix in (p for p in prefixes if p == "" or prefixes[p] >= least):
        below = {
            name[len(prefix) :]: value for name, value in plain.items() if name.startswith(prefix)
        }
        beside = [name for name in plain if not name.startswith(prefix) and not BESIDE.search(name)]
        yield prefix, below, beside
    # Of a wrapper that puts something else than a dot behind its name.
    prefix = _beginning(plain)
    if prefix and not prefix.endswith(".") and not _beginning(own):
        yield prefix, {name.removeprefix(prefix): value for name, value in plain.items()}, []


def _beginning(names: Collection[str]) -> str:
    """What all of several names begin with."""
    first, last = (min(names), max(names)) if len(names) > 1 else ("", "")
    return first[
        : next(
            (k for k, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]),
            len(first),
        )
    ]


def tried(prefixes: Collection[str], state: Mapping[str, Any], own: Collection[str]) -> str:
    """In words, which prefixes were taken off the names of a table; "" where there was none to
    take.
    """
    parts = {part for name in state for part in name.split(".")} - {
        part for name in own for part in name.split(".")
    }
    found = [f"{part}." for part in WRAPPERS if part in parts] + [
        prefix for prefix in prefixes if prefix
    ]
    return f"tried without the prefixes {', '.join(dict.fromkeys(found))}" if found else ""
