"""Runs the contract of heads, backbones or sources of boxes on one plug-in.

for outcome in check_plugin("./my_head.py"):
    print(outcome.check, outcome.broken or "passed")
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from heads.interface import contract
from heads.interface.clips import Dims, MissingFields
from heads.zoo import build_head, head_names
from pipeline.backbones import Backbone, backbone_names, build_backbone
from pipeline.cache.fields import is_cut
from pipeline.plugins import (
    BACKBONE,
    HEAD,
    PROPOSALS,
    ContractBroken,
    PluginKind,
    given_name,
    is_recorded,
    kind_of,
    load_build,
)
from pipeline.text.printable import first_line
from pipeline.text.suggestions import nearest

MAP = (8, 5, 5)  # C, h, w of a map that a head needs beside those of the contract


@dataclass(frozen=True)
class CheckOutcome:
    """One check: its name, the kind of plug-in, and what is wrong ("": it passed)."""

    kind: str
    check: str
    broken: str


def check_plugin(plugin: str, options: Mapping[str, Any]) -> Iterator[CheckOutcome]:
    """Run all checks on a plug-in, one after the other. It executes the plug-in's code.

    Args:
        plugin: the path of a file, or the name of a head, a backbone or a source of boxes.
        options: options of its `build`.

    Yields:
        The outcome of each check.

    Raises:
        ValueError: there is no such plug-in, its file cannot be loaded, or an option is unknown.
    """
    name = given_name(plugin)
    kind, built = _kind_and_product(name, options)
    if kind == HEAD:
        checks = _head_checks(name, options)
    elif kind == BACKBONE:
        checks = _backbone_checks(name, options)
    else:
        checks = _source_checks(built)
    for check, run in checks:
        yield CheckOutcome(kind.noun, check, _what_is_wrong(run))


def _what_is_wrong(run: Callable[[], None]) -> str:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            run()
    except ContractBroken as error:
        return first_line(error)
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _kind_and_product(name: str, options: Mapping[str, Any]) -> tuple[PluginKind, Any]:
    """What a plug-in is and, where only that tells, what its `build` returns."""
    if not is_recorded(name):
        if name in head_names():
            return HEAD, None
        if name in backbone_names():
            return BACKBONE, None
        return PROPOSALS, _build_source(name, options)
    build = load_build(HEAD, name)
    if kind_of(build) == HEAD:
        return HEAD, None
    try:
        built = build(**options)
    except TypeError as error:
        raise ValueError(f"build: {first_line(error)}; give its options with --set") from error
    if isinstance(built, Backbone):
        return BACKBONE, built
    if hasattr(built, "propose"):
        return PROPOSALS, built
    raise ValueError(
        f"build returns {type(built).__name__}, expected a pipeline.backbones.Backbone, or an "
        "object with `propose`; the `build` of a head takes (dims, num_classes, *, options)"
    )


def _build_source(name: str, options: Mapping[str, Any]) -> Any:
    # Only here: rooms that read no frames do without sources of boxes.
    from pipeline.proposals import build_proposals, proposal_names

    names = (*head_names(), *backbone_names(), *proposal_names())
    if name not in names:
        raise ValueError(f"no head, backbone or source of boxes {name!r}: {nearest(name, names)}")
    return build_proposals(name, **options)


Checks = Iterator[tuple[str, Callable[[], None]]]


def _head_checks(name: str, options: Mapping[str, Any]) -> Checks:
    def build(dims: Dims) -> nn.Module:
        return build_head(name, dims, contract.CLASSES, **options)

    yield "options_have_defaults", lambda: contract.options_have_defaults(load_build(HEAD, name))
    case = contract.HeadCase(build, _dims_for(build), one_size=True)
    for check, run in contract.CHECKS.items():
        yield check, lambda run=run: run(case)


def _dims_for(build: Callable[[Dims], nn.Module]) -> Dims:
    """Sizes that a head can be built for: those of the contract, and maps of the cuts it needs."""
    dims = contract.DIMS
    with contextlib.suppress(Exception):  # the checks say what is wrong with it
        for _ in range(8):
            try:
                build(dims)
                break
            except MissingFields as error:
                maps = dict(dims.maps)
                for name in error.names:
                    if is_cut(name):
                        maps[name] = MAP
                dims = replace(dims, maps=maps)
    return dims


def _backbone_checks(name: str, options: Mapping[str, Any]) -> Checks:
    from pipeline.backbones import _contract

    def build(seed: int) -> Backbone:
        torch.manual_seed(seed)
        return build_backbone(name, **options).eval()

    backbone = build(0)
    yield "cuts_are_fields", lambda: _contract.cuts_are_fields(backbone, is_cut)
    for check, run in _contract.CHECKS.items():
        yield check, lambda run=run: run(backbone)
    yield (
        "saved_weights_give_the_same",
        lambda: _contract.saved_weights_give_the_same(backbone, build(1)),
    )


def _source_checks(source: Any) -> Checks:
    from pipeline.proposals import _contract

    info = SimpleNamespace(frames=8, fps=12.0, width=80, height=40, first=0)
    clip = SimpleNamespace(clip="17", path="videos/17.mp4", labels=("a",), split="train", extra={})
    case = _contract.SourceCase(source, clip, info)
    for check, run in _contract.CHECKS.items():
        yield check, lambda run=run: run(case)
