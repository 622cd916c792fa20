"""Prints what verbs say. Names from data stay plain text: no terminal commands, no extra lines, no
markup of tables.
"""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from pipeline.text.printable import visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console


LOG_WIDTH = 200  # columns of a table without a terminal, so that paths in logs stay in one piece


def say(line: object, err: bool = False) -> None:
    """Prints one line; control characters and line ends in it become escapes."""
    click.echo(visible(str(line)), err=err)


def warn(line: object) -> None:
    """Prints one line on standard error, as `say` does."""
    say(line, err=True)


def to_json(record: Any, plain: bool = True) -> str:
    """JSON whose control characters are escaped; with `plain`, all characters beyond ASCII too."""
    return visible_json(json.dumps(record, indent=1, ensure_ascii=plain))


def console(err: bool = False) -> "Console":
    """The console for tables and bars. Cells and titles are plain text, without markup and emoji
    names.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **how):
            return super().render_str(visible(text), **how)

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else LOG_WIDTH
    return Plain(file=getattr(stream, "unguarded", stream), markup=False, emoji=False, width=width)
