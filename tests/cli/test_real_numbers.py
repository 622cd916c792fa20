"""Options that take a number refuse "nan", which passes every comparison with a limit."""

import click
import pytest

from cli.__main__ import vidgraph
from cli._shared.real_numbers import RealNumber


def options_with_fractions() -> dict[str, click.Option]:
    """Every option of every verb, down to the last group, that takes a number with a fraction."""
    found, waiting = {}, [("vidgraph", vidgraph)]
    while waiting:
        name, command = waiting.pop()
        if isinstance(command, click.Group):
            context = click.Context(command)
            for verb in command.list_commands(context):
                waiting.append((f"{name} {verb}", command.get_command(context, verb)))
        for option in command.params:
            kinds = getattr(option.type, "types", [option.type])
            for kind in kinds:
                if isinstance(kind, click.types.FloatParamType):
                    found[f"{name} {option.opts[0]}"] = kind
    return found


def test_there_are_options_with_fractions():
    assert len(options_with_fractions()) > 10


@pytest.mark.parametrize("option", sorted(options_with_fractions()))
def test_no_option_takes_nan_for_a_number(option):
    kind = options_with_fractions()[option]
    with pytest.raises(click.BadParameter, match="nan"):
        kind.convert("nan", None, None)


def test_infinity_is_taken_where_it_has_a_meaning_and_limits_hold():
    assert RealNumber(min=0, infinite=True).convert("inf", None, None) == float("inf")
    for text in ("inf", "-1", "many"):
        with pytest.raises(click.BadParameter, match=text):
            RealNumber(min=0).convert(text, None, None)


@pytest.mark.parametrize("option", sorted(options_with_fractions()))
def test_help_names_only_limits_that_there_are(option):
    kind = options_with_fractions()[option]
    record = click.Option(["--any"], type=kind).get_help_record(click.Context(click.Command("v")))
    words = " ".join(record)
    assert "None" not in words
    limits = (getattr(kind, "min", None), getattr(kind, "max", None))
    assert ("RANGE" in words) == (limits != (None, None))
