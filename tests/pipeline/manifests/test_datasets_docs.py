"""The commands on the data sets' pages are commands of this program."""

import re
import shlex
from pathlib import Path

import click
import pytest

PAGES = sorted((Path(__file__).parents[3] / "data_manifests").glob("*.md"))
COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{k}")
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    for k, line in enumerate(block.replace("\\\n", " ").splitlines())
]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the words name, and its arguments."""
    from cli.__main__ import vidgraph

    command, words = vidgraph, words[1:]
    while isinstance(command, click.Group):
        command, words = command.get_command(click.Context(command), words[0]), words[1:]
    return command, words


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_on_a_page_has_only_options_that_there_are(line):
    words = shlex.split(line)
    assert words[0] == "vidgraph"
    command, rest = command_of(words)
    assert command is not None
    given, left, _ = command.make_parser(click.Context(command)).parse_args(rest)
    assert not left
    for parameter in command.params:
        if parameter.required:
            assert given.get(parameter.name) is not None, parameter.name
        if isinstance(parameter.type, click.Choice) and given.get(parameter.name) is not None:
            assert given[parameter.name] in parameter.type.choices
    if command.name == "train":
        from heads.config.recipe import recipe_names

        assert given["recipe"] in recipe_names()


def test_every_dataset_has_a_page_that_starts_with_its_command():
    from cli.manifest import command

    kinds = set(command.list_commands(click.Context(command))) - {
        *("folder", "windows", "folds", "digits")
    }
    assert len(kinds) == 5
    readme = (Path(__file__).parents[3] / "data_manifests/README.md").read_text()
    for kind in kinds:
        page = next(page for page in PAGES if page.stem == kind)
        assert f"vidgraph manifest {kind} " in page.read_text()
        assert f"[{page.name}]({page.name})" in readme
