"""`vidgraph completion`: prints the script with which a shell completes verbs and options."""

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(vidgraph completion bash)"       in ~/.bashrc
    zsh:   eval "$(vidgraph completion zsh)"        in ~/.zshrc
    fish:  vidgraph completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from cli.__main__ import vidgraph

    script = get_completion_class(shell)(vidgraph, {}, "vidgraph", "_VIDGRAPH_COMPLETE")
    # Click's `source()` would start bash to ask for its version. The shell that evaluates the
    # script is bash already, so the template is filled in directly.
    click.echo(script.source_template % script.source_vars())
    return 0
