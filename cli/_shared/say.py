"""Prints lines and tables. Names from data stay plain text in them."""

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from pipeline.text.printable import visible, visible_json

if TYPE_CHECKING:
    from rich.console import Console


LOG_WIDTH = 200  # columns of a table in a log, where long paths should not be broken


def say(line: object, err: bool = False, file: TextIO | None = None) -> None:
    """Print one line. Control characters and line ends in it become escapes.

    Args:
        line: what to print.
        err: on standard error.
        file: a stream to print on in place of both.
    """
    click.echo(visible(str(line)), file=file, err=err)


def warn(line: object) -> None:
    """Print one line on standard error, as `say` does."""
    say(line, err=True)


def to_json(record: Any, plain: bool = True) -> str:
    """Write JSON with escaped control characters; with `plain`, escape all beyond ASCII, too."""
    return visible_json(json.dumps(record, indent=1, ensure_ascii=plain))


def console(err: bool = False) -> "Console":
    """Make a console for tables and bars, where markup and emoji names stay plain text."""
    from rich.console import Console

    # rich takes its texts through render_str, so one place makes them safe to print.
    class Plain(Console):
        def render_str(self, text: str, **options):
            return super().render_str(visible(text), **options)

    stream = sys.stderr if err else sys.stdout
    # Without a terminal rich would take 80 columns.
    width = None if stream.isatty() or os.environ.get("COLUMNS") else LOG_WIDTH
    return Plain(file=getattr(stream, "unguarded", stream), markup=False, emoji=False, width=width)
