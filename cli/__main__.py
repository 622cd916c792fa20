"""`vidgraph VERB`: finds a verb by its file, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 our error or the machine's; 2 bad usage or bad input; 3 done, but something is
wrong in the data; 130 interrupted.
"""

import importlib
import os
import pkgutil
import sys

import click

import cli
from cli._shared.caches import refuse_repeated_cache
from cli._shared.set_keys import with_set_named
from cli._shared.utf8 import ensure_utf8
from pipeline.text.printable import guard_output
from pipeline.text.suggestions import nearest
from pipeline.workers.module_path import guard_program


def _verbs() -> list[str]:
    """The names of all verbs: the files of this folder without a leading underscore."""
    verbs = []
    for module in pkgutil.iter_modules(cli.__path__):
        if not module.name.startswith("_"):
            verbs.append(module.name.replace("_", "-"))
    return sorted(verbs)


class Verbs(click.Group):
    """A group whose commands are the files of this folder. Each is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _verbs()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _verbs():
            return None
        return importlib.import_module(f"cli.{name.replace('-', '_')}").command

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except ValueError as error:
            text = with_set_named(str(error), ctx)
            if text == str(error):
                raise
            raise ValueError(text) from error

    def resolve_command(self, ctx: click.Context, args: list[str]):
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _verbs():
            raise click.UsageError(f"no verb {name!r}: {nearest(name, _verbs())}", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            refuse_repeated_cache(ctx, command, rest)
        return name, command, rest


# color: without a terminal, Click would strip some control sequences. We print them as escapes
# everywhere instead.
@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "color": True},
)
@click.version_option(package_name="vidgraph")
def vidgraph() -> None:
    """Relational video recognition from cached features.

    \b
    videos -> extract -> graphs -> train -> evaluate
    `vidgraph demo` runs all of it on generated videos.
    """


def main(args: list[str] | None = None) -> None:
    """Run the `vidgraph` command.

    Args:
        args: the arguments; None for those of this process.

    Raises:
        SystemExit: always, with one of the exit codes above.
    """
    if args is None:
        # This may restart the process, which a caller from Python would not expect.
        ensure_utf8()
    guard_program()

    # Shell completion reads bytes from us, which must stay as they are.
    if "_VIDGRAPH_COMPLETE" not in os.environ:
        guard_output()

    try:
        # Click alone would exit by itself, with exit codes of its own.
        code = vidgraph.main(args=args, prog_name="vidgraph", standalone_mode=False)
    except click.MissingParameter as error:
        # Click lists an option's choices on lines of their own, indented by control characters.
        click.UsageError(" ".join(error.format_message().split()), error.ctx).show()
        code = 2
    except click.ClickException as error:
        error.show()
        code = 2
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of a pipe is gone. What is still in the buffer must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    # These errors come from a path or value that was given, those below from us or the machine.
    except (
        ValueError,
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
    ) as error:
        code = _report(error, 2)
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        code = _report(error, 1)
    # Some verbs return nothing.
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, code: int) -> int:
    """Print an error as one line; raise it again if VIDGRAPH_TRACEBACK is set."""
    if os.environ.get("VIDGRAPH_TRACEBACK"):
        raise error
    text = " ".join(_words(error).split()) or type(error).__name__
    print(f"vidgraph: {text}", file=sys.stderr)
    return code


def _words(error: BaseException) -> str:
    """The text of an error. An error of the operating system names its file first."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)

    text = f"{error.filename}: {error.strerror}"
    if isinstance(error, PermissionError):
        text += "; expected a place that this user may use"
    return text


if __name__ == "__main__":
    main()
