"""What verbs print. Names from data are text: never commands of a terminal, lines of their own, or a table's markup."""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from pipeline.shown import visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console


LOG_WIDTH = 200  # columns of a table where there is no terminal: a path stays in one piece, to be searched for


def say(line: object, err: bool = False) -> None:
    """Prints one line, control characters and line ends in it as escapes."""
    click.echo(visible(str(line)), err=err)


def warn(line: object) -> None:
    """The same on standard error."""
    say(line, err=True)


def to_json(record: Any, plain: bool = True) -> str:
    """JSON that is safe to look at: control characters are escaped; `plain`: whatever is not ASCII, too."""
    return visible_json(json.dumps(record, indent=1, ensure_ascii=plain))


def console(err: bool = False) -> "Console":
    """Where tables and bars are drawn; cells and titles are taken as they are, without markup and emoji names."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how):
            return super().render_str(visible(text), **how)

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else LOG_WIDTH
    return Plain(file=getattr(stream, "unguarded", stream), markup=False, emoji=False, width=width)
