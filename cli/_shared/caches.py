"""The option --cache: of verbs that read several caches as one, and of those that take one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click


def caches_option(help_text: str, required: bool = True) -> Callable:
    """Make the option --cache that may be repeated; the verb gets a tuple of paths.

    Args:
        help_text: of the option.
        required: whether it must be given.

    Returns:
        The decorator.
    """
    return click.option(
        "--cache",
        multiple=True,
        required=required,
        type=click.Path(path_type=Path),
        help=f"{help_text} Repeat it to read several caches as one: same options, other clips.",
    )


def refuse_repeated_cache(ctx: click.Context, command: click.Command, args: Sequence[str]) -> None:
    """Refuse a second --cache where a verb takes one: Click would take the last in silence.

    Args:
        ctx: of the verb's parent.
        command: the verb.
        args: what follows the verb on the command line.

    Raises:
        UsageError: --cache was given twice.
    """
    options = [param for param in command.params if "--cache" in param.opts]
    if not options or getattr(options[0], "multiple", False):
        return
    with click.Context(command, info_name=command.name, parent=ctx) as own:
        try:
            _, _, order = command.make_parser(own).parse_args(list(args))
        except click.UsageError:
            # The verb itself reports the error when it runs.
            return
        if sum([param is options[0] for param in order]) > 1:
            raise click.UsageError(
                f"--cache was given twice: expected one cache, since {command.name} takes one; "
                f"train, evaluate, ablate, report and export read several",
                own,
            )


def refuse_no_cache(paths: Sequence[Path]) -> None:
    """Refuse an empty list of caches.

    Args:
        paths: of the command line.

    Raises:
        UsageError: there is none.
    """
    if not paths:
        raise click.UsageError("expected CACHE, the folder of a cache")
