"""`vidgraph check-plugin`: checks that a plug-in does what extraction and training rely on."""

import click

from cli._options import set_option
from cli._say import say


@click.command("check-plugin")
@click.argument("plugin", metavar="FILE_OR_NAME")
@set_option
def command(plugin, settings) -> int:
    """Check a head, a backbone or a source of boxes: a plug-in's file, or a name.

    IT EXECUTES THE FILE, with all rights of yours: check only files whose code you trust.

    \b
    vidgraph check-plugin ./my_head.py --set width=64
    vidgraph check-plugin strg

    The checks are those that the project's own heads, backbones and sources pass, on random views
    and frames. Each is one line. --set KEY=VALUE gives an option of the plug-in's `build`. Exit
    code 0: all passed; 3: some failed.
    """
    from heads.plugin_check import check_plugin

    failed = count = 0
    kind = None
    for outcome in check_plugin(plugin, settings):
        if outcome.kind != kind:
            kind = outcome.kind
            say(f"{plugin}: a {kind}")
        count += 1
        failed += bool(outcome.broken)
        what = outcome.check.replace("_", " ")
        say(f"FAILED  {what}: {outcome.broken}" if outcome.broken else f"passed  {what}")
    say(f"{count - failed} of {count} checks passed")
    return 3 if failed else 0
