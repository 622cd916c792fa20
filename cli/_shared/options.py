"""Options that several verbs share, and values given as `--set key=value`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from cli._shared.real_numbers import RealNumber
from cli._shared.say import warn
from cli._shared.set_keys import keep_set_keys

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
MOST_SHARDS = 10_000_000  # a larger number in --shard is a typing error


def together(options: Sequence[Callable]) -> Callable:
    """Combine options into one decorator. --help lists them in this order."""

    def add(function):
        # Click lists the option first that was added last.
        for option in reversed(options):
            function = option(function)
        return function

    return add


def settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Click callback: parse `key=value` pairs. Values are TOML (numbers, lists, true) or text."""
    found = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"expected key=value, got {text!r}", ctx, param)
        found[key.strip()] = toml_value(value.strip())
    keep_set_keys(ctx, found)
    return found


def toml_value(text: str) -> Any:
    """Parse one TOML value; return the text itself if it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def commas(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Click callback: split a comma-separated list of names."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    return tuple(name for name in names if name)


def shard_numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> list[int] | None:
    """Click callback: parse `3`, `10-20` (both ends included) or a list of these."""
    if value is None:
        return None
    numbers: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MOST_SHARDS):
            expected = f"a number below {MOST_SHARDS:,}, a range such as 10-20, or a list of these"
            raise click.BadParameter(f"expected {expected}, got {value!r}", ctx, param)
        numbers += range(int(first), int(last) + 1)
    return numbers


def require_writable(path: Path, as_it_is: bool = False) -> None:
    """Check that a file can be written, before hours of work rather than after them.

    Args:
        path: of the file. Missing folders would be made.
        as_it_is: an existing file, such as /dev/stdout, is written to and not replaced.

    Raises:
        ValueError: the file could not be written there.
    """
    if as_it_is and path.exists() and not path.is_dir() and os.access(path, os.W_OK):
        return

    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        raise ValueError(
            f"{path}: expected a file that can be written, {folder} cannot be written; give "
            f"another name"
        )


def time_limit_option(seconds: float) -> Callable:
    """Make the option --time-limit with its default."""
    positive = RealNumber(min=0, min_open=True)
    return click.option(
        "--time-limit", default=seconds, type=positive, help="Seconds a clip may take to decode."
    )


def installed(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Click callback: refuse `--decoder decord` if decord is not installed.

    Only when it was asked for: where the default is missing, PyAV decodes in its place.
    """
    source = ctx.get_parameter_source(param.name)
    if value != "decord" or source is not click.core.ParameterSource.COMMANDLINE:
        return value

    from pipeline.video.decode import why_no_decord

    reason = why_no_decord()
    if reason:
        advice = "leave --decoder out: PyAV decodes then, with the same frames"
        raise click.BadParameter(
            f"expected decord to be installed here, it is {reason}; {advice}", ctx, param
        )
    return value


decoder_option = click.option(
    "--decoder",
    default="decord",
    type=click.Choice(["decord", "pyav", "torchcodec", "torchcodec-cuda"]),
    callback=installed,
    help="Video decoder. Where decord is not installed, PyAV replaces the default, with the same "
    "frames. torchcodec-cuda decodes on the GPU, with colours that differ by rounding.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    callback=settings,
    help="Any configuration key; may be repeated.",
)


def _give(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> None:
    """Click callback: allow this process to execute the files of plug-ins."""
    from pipeline.plugins import give_file

    for path in paths:
        try:
            give_file(path)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None


plugin_option = click.option(
    "--plugin",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=_give,
    expose_value=False,
    help="A plug-in's file that the run or the cache names: it is executed if its SHA-256 is the "
    "recorded one; may be repeated.",
)
frame_pattern_option = click.option(
    "--frame-pattern",
    default="",
    show_default=False,
    metavar="GLOB",
    help="Names of a folder's frames, such as 'img_*.jpg'.  [default: all, if they count one "
    "series]",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where the networks run; auto takes a GPU if there is one.",
)


def say_cost(precision: str, device: str, elsewhere: bool = False) -> None:
    """Print what --precision costs where it is slower than fp32.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: as `--device` names it.
        elsewhere: the work runs on other machines, whose CPUs are unknown here.
    """
    # The usual case needs no import of torch.
    if precision != "bf16" or (elsewhere and device == "cuda"):
        return
    if elsewhere:
        warn(
            "precision bf16: workers whose CPU has no bf16 arithmetic take about 12 times as long "
            "as with fp32"
        )
        return

    from pipeline.networks.precision import cost

    line = cost(precision, pick_device(device))
    if line:
        warn(line)


def pick_device(name: str) -> str:
    """Return the device that --device names; ValueError if it is a GPU that is not there."""
    from pipeline.workers import engines

    return engines.pick_device(name)
