"""docs/tutorial.md: its commands run as written, and print what the page says."""

import re
import shlex
from pathlib import Path

import pytest

from cli.__main__ import main
from pipeline import plugins

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
# Decode in this process: a process for each command takes longer than the clips.
HERE = {"check", "plan", "extract", "predict", "windows"}


def comparable(text: str) -> list[str]:
    """Return the lines without their numbers, which another machine rounds otherwise.

    What took time, and what would help, differs more: it is left out.
    """
    text = re.sub(r"\(decode [^)]*\)", "", text)
    text = re.sub(r"(writer idle \d+ %)[^\n]*", r"\1", text)
    lines = [re.sub(r"\d[\d,.]*", "0", line) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip()]


def run(line: str, monkeypatch) -> int:
    """Run a command as a process of its own would; return its exit code."""
    words = shlex.split(line.split(" #")[0])[1:]
    if HERE & set(words[:2]):
        words += ["--workers", "0"]
    monkeypatch.setattr(plugins, "_given", {})
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


def test_the_walk_runs_as_written_and_prints_what_the_page_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.M | re.S)
    (study,) = [text for language, text in blocks if language == "toml"]
    (tmp_path / "study.toml").write_text(study)

    names, said = {}, ""
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "tutorial.md", "exec"), names)
        elif language == "text":
            missing = set(comparable(text)) - set(comparable(said))
            assert not missing, f"{missing} not in what was printed:\n{said}"
        elif not language:
            said = ""
            for line in text.replace("\\\n", " ").splitlines():
                code = run(line, monkeypatch)
                printed = capfd.readouterr()
                said += printed.err + printed.out
                wanted = 3 if "# exit code 3" in line else 0
                assert code == wanted, f"{line}\n{printed.out}{printed.err}"

    for made in ("clip.png", "report/report.html", "when.csv", "clips.check.csv"):
        assert (tmp_path / made).is_file()
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert len((tmp_path / "when.csv").read_text().splitlines()) == 1 + 6
