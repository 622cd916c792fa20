"""Find state dicts in a checkpoint, and remove the prefixes that other programs put before names.

`torch.compile` puts `_orig_mod.` before every name below it, data-parallel wrappers `module.`,
training frameworks `model.`, `backbone.` or `encoder.`. Prefixes come in any order and depth, and
in the middle of a name where only a part was wrapped.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Parts of names that wrappers add; they may stand anywhere in a name.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_module",
)

# Keys under which training scripts save the weights, the most specific first.
HOLDERS = (
    *("backbone", "encoder", "model_state", "model_state_dict", "state_dict"),
    *("model", "network", "net", "module", "params", "weights", "blobs"),
)

# How many levels of nested tables are searched.
DEPTH = 6

# How many parts of a name may be a prefix.
LONGEST_PREFIX = 64

# Classifiers, which may stand beside a backbone in one table.
BESIDE = re.compile(r"(^|\.)(fc|fc_cls|new_fc|classifier|head|heads|cls_head|logits)\.")

# Counters of weight averages.
COUNTERS = re.compile(r"(^|\.)(n_averaged|_extra_state)$")


def states(saved: object, depth: int = DEPTH) -> Iterator[dict[str, Any]]:
    """Find the state dicts under usual keys in what was saved.

    Args:
        saved: what torch.load returned: a state dict, or a table that holds one below a key of
            `HOLDERS`, at any depth.
        depth: how many levels to search.

    Yields:
        name -> tensor, in the order of `HOLDERS`; other values of a table are left out.
    """
    if not isinstance(saved, dict):
        return
    tensors = {}
    for key, value in saved.items():
        if isinstance(key, str) and hasattr(value, "shape"):
            tensors[key] = value
    if tensors and len(tensors) == len(saved):
        yield tensors
        return

    if depth:
        for key in HOLDERS:
            if key in saved:
                yield from states(saved[key], depth - 1)
    if tensors:
        yield tensors


def other_states(saved: object, depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Any]]]:
    """Find the state dicts below every key of what was saved, whatever its name.

    Args:
        saved: what torch.load returned.
        depth: how many levels to search.

    Yields:
        (the keys that lead to it, separated by blanks; name -> tensor).
    """
    if not isinstance(saved, dict):
        return
    for key, value in saved.items():
        if not isinstance(value, dict) or not isinstance(key, str):
            continue
        found = list(states(value, depth))
        for table in found:
            yield key, table
        if not found and depth:
            for deeper, table in other_states(value, depth - 1):
                yield f"{key} {deeper}", table


def without_wrappers(state: Mapping[str, Any], known: Collection[str]) -> Mapping[str, Any]:
    """Remove `WRAPPERS` from names, and counters from the table, unless `known` has them.

    Args:
        state: name -> tensor.
        known: the names that the network has.

    Returns:
        A new table. Wrappers stay in the names if two names would become equal.
    """
    removed = set(WRAPPERS) - _parts(known)
    kept, plain = {}, {}
    for name, value in state.items():
        if name not in known and COUNTERS.search(name):
            continue
        kept[name] = value
        parts = [part for part in name.split(".") if part not in removed]
        plain[".".join(parts)] = value
    return plain if len(plain) == len(kept) else kept


def unwrapped(
    state: Mapping[str, Any], known: Collection[str]
) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Read a state dict in every way that a prefix of its names allows, the plainest first.

    Args:
        state: name -> tensor.
        known: the names that the network has.

    Yields:
        (prefix; name -> tensor below it; unexpected names beside it). The names of classifiers
        are expected beside a backbone. `WRAPPERS` are removed from all names.
    """
    plain = without_wrappers(state, known)

    # How many names begin with each prefix.
    counts = {"": len(plain)}
    for name in plain:
        parts = name.split(".")[:-1][:LONGEST_PREFIX]
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1

    # Fewer names below a prefix than this cannot be the network.
    least = len(known) // 2
    for prefix, count in counts.items():
        if prefix and count < least:
            continue
        below, beside = {}, []
        for name, value in plain.items():
            if name.startswith(prefix):
                below[name[len(prefix) :]] = value
            elif not BESIDE.search(name):
                beside.append(name)
        yield prefix, below, beside

    # Some wrappers put another character than a dot behind their name.
    prefix = _common_prefix(plain)
    if prefix and not prefix.endswith(".") and not _common_prefix(known):
        yield prefix, {name.removeprefix(prefix): value for name, value in plain.items()}, []


def _common_prefix(names: Collection[str]) -> str:
    """Return what all of several names begin with; "" for fewer than two."""
    if len(names) < 2:
        return ""
    # What the first and the last in alphabetical order share, all between them share.
    first, last = min(names), max(names)
    length = 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    return first[:length]


def _parts(names: Collection[str]) -> set[str]:
    """Return what stands between the dots of all names."""
    parts = set()
    for name in names:
        parts.update(name.split("."))
    return parts


def tried(prefixes: Collection[str], state: Mapping[str, Any], known: Collection[str]) -> str:
    """Return which prefixes were removed from names, as a part of a message.

    Args:
        prefixes: prefixes of `unwrapped` that were tried.
        state: name -> anything.
        known: the names that the network has.

    Returns:
        "tried without the prefixes …", or "" if there was none.
    """
    parts = _parts(state) - _parts(known)
    found = [f"{part}." for part in WRAPPERS if part in parts]
    found += [prefix for prefix in prefixes if prefix]
    if not found:
        return ""
    # Without duplicates, in this order.
    return f"tried without the prefixes {', '.join(dict.fromkeys(found))}"
