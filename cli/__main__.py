"""`vidgraph VERB`: finds the verbs by file, turns errors into one line and an exit code.

Exit codes: 0 done; 1 an error that is ours or the machine's; 2 bad usage or bad input; 3 done, but
something is wrong in the data; 130 interrupted.
"""

import importlib
import os
import pkgutil
import sys

import click

import cli
from cli._utf8 import ensure_utf8
from pipeline.text.printable import guard_output
from pipeline.text.suggestions import nearest
from pipeline.workers.module_path import guard_program


def _verbs() -> list[str]:
    return sorted(
        m.name.replace("_", "-")
        for m in pkgutil.iter_modules(cli.__path__)
        if not m.name.startswith("_")
    )


class Verbs(click.Group):
    """A group whose commands are the files beside this one, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _verbs()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _verbs():
            return None
        return importlib.import_module(f"cli.{name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]):
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _verbs():
            raise click.UsageError(f"no verb {name!r}: {nearest(name, _verbs())}", ctx)
        return super().resolve_command(ctx, args)


# color: Click would take some control sequences out where there is no terminal; they are shown as
# escapes everywhere.
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
    """Entry point of the `vidgraph` command; leaves through SystemExit with one of the codes
    above.
    """
    if args is None:  # a process of our own, not a function that somebody calls
        ensure_utf8()
    guard_program()
    if "_VIDGRAPH_COMPLETE" not in os.environ:  # then it speaks to the shell, in bytes
        guard_output()
    try:
        code = vidgraph.main(args=args, prog_name="vidgraph", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader left: nothing more to say
        code = 1
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
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, code: int) -> int:
    """One line for a person; the traceback only when VIDGRAPH_TRACEBACK is set."""
    if os.environ.get("VIDGRAPH_TRACEBACK"):
        raise error
    text = " ".join(_words(error).split()) or type(error).__name__
    print(f"vidgraph: {text}", file=sys.stderr)
    return code


def _words(error: BaseException) -> str:
    """What an error says; where it is the system's, the file, what it said, and what was expected
    of a file's rights.
    """
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    right = (
        "; expected a place that this user may use" if isinstance(error, PermissionError) else ""
    )
    return f"{error.filename}: {error.strerror}{right}"


if __name__ == "__main__":
    main()
