"""Options that several verbs share, and values given as `--set key=value`."""

from collections.abc import Callable, Sequence
from typing import Any

import click


def together(options: Sequence[Callable]) -> Callable:
    """One decorator of several options, which --help lists in this order."""

    def add(function):
        for option in reversed(options):
            function = option(function)
        return function

    return add


def settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Click callback: `key=value` pairs, the value read as TOML where it is TOML (numbers, lists, true), else as text."""
    found = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"expected key=value, got {text!r}", ctx, param)
        found[key.strip()] = toml_value(value.strip())
    return found


def toml_value(text: str) -> Any:
    """One TOML value, or the text itself where it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def commas(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Click callback: a comma-separated list of names."""
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


def shard_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Click callback: `3`, `10-20` (both ends included) or a comma-separated list of these."""
    if value is None:
        return None
    numbers: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise click.BadParameter(f"expected a number, a range such as 10-20, or a list of these, got {value!r}", ctx, param)
        numbers += range(int(first), int(last or first) + 1)
    return numbers


set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=settings, help="Any configuration key; may be repeated."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where the networks run; auto takes a GPU if there is one.",
)


def pick_device(name: str) -> str:
    """The device that `--device` names. ValueError if it asks for a GPU that is not there."""
    from pipeline import cluster

    return cluster.pick_device(name)
