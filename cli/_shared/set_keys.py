"""Errors about keys that `--set` gave say so: "data.labels: …" becomes "--set data.labels: …".

The code below the command line does not know whether a value comes from a file or from an option.
"""

import re
from collections.abc import Iterable

import click

# Where a context keeps the keys. Contexts of a verb and of the whole command share it.
_KEPT = "vidgraph.set_keys"


def keep_set_keys(ctx: click.Context, keys: Iterable[str]) -> None:
    """Remember the keys that --set gave in a context.

    Args:
        ctx: the context of the verb.
        keys: dotted keys, such as "data.labels".
    """
    ctx.meta[_KEPT] = tuple(keys)


def with_set_named(text: str, ctx: click.Context) -> str:
    """Return an error's text in which a key that --set gave stands as it was typed.

    Args:
        text: the text.
        ctx: the context of the verb, or of the whole command.
    """
    # A text that names the option already says it where it matters.
    keys = () if "--set" in text else ctx.meta.get(_KEPT, ())
    for key in keys:
        # A key without a dot may be any word: only at the beginning of a clause is it meant.
        end = r"(?![\w.])" if "." in key else r"(?=:)"
        # "no key train.lrr" is about the key itself.
        pattern = rf"(?<![\w.\-/])(?<!key ){re.escape(key)}{end}"
        text = re.sub(pattern, f"--set {key}", text, count=1)
    return text
