"""What an error says about a checkpoint that does not fit: which keys, and what to do."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pipeline.backbones._base import Backbone
from pipeline.backbones._checkpoint_origins import (
    advice_on_blobs,
    objection,
    odd_kernels,
    stranger,
)
from pipeline.backbones._checkpoint_readings import FRESH, Reading, readings_of
from pipeline.networks.checkpoint_names import tried
from pipeline.plugins import BACKBONE, own_names


def refusal(
    backbone: Backbone,
    readings: list[Reading],
    found: list[dict[str, Tensor]],
    fresh: Iterable[str],
) -> str:
    """Return the rest of the error: the backbone, the keys that do not fit, and what to do.

    Args:
        backbone: the one that the checkpoint should fit.
        readings: all ways to read it, at least one. The keys are those of the nearest one.
        found: the state dicts of the checkpoint.
        fresh: parts that may be missing.
    """
    nearest = min(readings, key=_distance)
    known = _known_network(nearest, found)
    if known:
        return f"{backbone.name or 'the backbone'}: {known}"
    groups = dict(nearest.faults)
    if nearest.beside:
        groups["beside it"] = nearest.beside
    faults = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in groups.items()]
    words = [f"{backbone.name or 'the backbone'}: {'; '.join(faults)}"]

    names: dict[str, None] = {}
    for state in found:
        names.update(dict.fromkeys(state))
    prefixes = tried([nearest.prefix], names, backbone.state_dict())
    if prefixes:
        words.append(prefixes)
    words.append(_advice(backbone, nearest, readings, found, fresh))
    return "; ".join(words)


def _known_network(nearest: Reading, found: list[dict[str, Tensor]]) -> str:
    """Name a network that no backbone computes, and what would help; "" for any other."""
    names: dict[str, Tensor] = {}
    for state in found:
        names.update(state)
    return stranger(names) or advice_on_blobs(nearest.names) or odd_kernels(nearest.state)


def _distance(reading: Reading) -> tuple[int, int]:
    return sum(len(keys) for keys in reading.faults.values()), len(reading.beside)


def _some(keys: list[str]) -> str:
    words = ", ".join(keys[:3])
    return f"{words}, ..." if len(keys) > 3 else words


def _advice(
    backbone: Backbone,
    nearest: Reading,
    readings: list[Reading],
    found: list[dict[str, Tensor]],
    fresh: Iterable[str],
) -> str:
    """What to do about a checkpoint that does not fit."""
    whole = [repr(reading.prefix) for reading in readings if not reading.faults]
    if whole:
        return (
            f"the names below {' or '.join(whole)} would fit, but other names stand beside them: "
            f"save a state dict of these alone"
        )

    missing_parts = set()
    for key in nearest.faults.get("missing", ()):
        missing_parts.update(key.split("."))
    absent = [part for part in FRESH if part in missing_parts]
    if absent:
        return f"fresh={','.join(absent)} leaves those at their start"

    others = _others_that_fit(backbone, nearest, found, fresh)
    if others:
        return f"they fit {' or '.join(others)}"
    names = ", ".join(getattr(backbone, "options", {}))
    options = f" ({names})" if names else ""
    return f"choose the options that the weights had{options}, or another backbone"


def _others_that_fit(
    backbone: Backbone, nearest: Reading, found: list[dict[str, Tensor]], fresh: Iterable[str]
) -> list[str]:
    """What a checkpoint fits instead, at most three.

    That is this backbone with another value of one option, or another backbone.
    """
    given = getattr(backbone, "options", {})
    shapes = [{key: value.to("meta") for key, value in state.items()} for state in found]
    fitting = []
    if "mis-shaped" in nearest.faults:
        for option, value in _other_values(given, shapes):
            if _fits(backbone.name, {**given, option: value}, shapes, fresh):
                fitting.append(f"{backbone.name} with --set backbone_options.{option}={value}")

    # Other backbones with the same width and reduction, or with their defaults.
    kept = {option: given[option] for option in ("width", "reduce") if option in given}
    for name in own_names(BACKBONE):
        # By the names first: to build a network takes a good part of a second.
        if name == backbone.name or not _fits(name, {}, shapes, fresh, names_only=True):
            continue
        if _fits(name, kept, shapes, fresh) or _fits(name, {}, shapes, fresh):
            fitting.append(f"the backbone {name}")
    return fitting[:3]


def _other_values(given: dict, shapes: list[dict[str, Tensor]]) -> Iterator[tuple[str, object]]:
    """(option, value) pairs to try, of options that the names or shapes of tensors depend on."""
    # The smallest sizes in a checkpoint may be its width, or the channels of its reduction.
    sizes = set()
    for state in shapes:
        for value in state.values():
            if value.dim() and value.shape[0] > 1:
                sizes.add(value.shape[0])
    smallest = sorted(sizes)[:4]
    choices = {
        "temporal": ("alternating", "every", "none"),
        "reduce": (0, *smallest),
        "width": smallest,
        "stages": (2, 3, 4),
    }
    for option, values in choices.items():
        for value in values:
            if option in given and value != given[option]:
                yield option, value


def _fits(
    name: str,
    options: dict,
    shapes: list[dict[str, Tensor]],
    fresh: Iterable[str],
    names_only: bool = False,
) -> bool:
    """Whether one of the state dicts fits a backbone, or (`names_only`) its names do."""
    from pipeline.backbones import build_backbone

    try:
        with torch.device("meta"):  # only shapes are compared
            backbone = build_backbone(name, **options)
    except ValueError:  # an option or a value that it does not take
        return False

    allowed = {"mis-shaped"} if names_only else set()
    for state in shapes:
        for reading in readings_of(state, backbone.state_dict(), "mean", fresh):
            if reading.beside or not reading.faults.keys() <= allowed:
                continue
            if not objection(reading.project, reading.names, reading.prefix, backbone.options):
                return True
    return False
