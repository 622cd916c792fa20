"""The commands in the first comment of a recipe or a study.

A command is on a line `# vidgraph ...`, continued by lines that start with an option. Remarks are
in brackets: `(I3D.pt: ...)`. After an option, brackets stand for its value.
"""

import re
import shlex
from pathlib import Path


def first_comment(path: Path) -> list[str]:
    """Return the lines of the comment that a TOML file opens with, without the marks."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def commands_of(path: Path) -> list[list[str]]:
    """Return the commands of the first comment, each as its words without `vidgraph`."""
    texts: list[str] = []
    open_command = False
    for line in first_comment(path):
        if line.startswith("vidgraph "):
            texts.append(line)
            open_command = True
        elif open_command and line.startswith("--"):
            texts[-1] += f" {line}"
        else:
            open_command = open_command and line.startswith("(")
    commands = []
    for text in texts:
        # `--flip-protect (the six classes of left and right)`
        text = re.sub(r"(--[\w-]+) +\([^)]*\)", r"\1 x", text)
        words = shlex.split(re.sub(r" +\(.*", "", text))
        commands.append(words[1:])
    return commands
