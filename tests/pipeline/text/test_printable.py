"""Names from data are text: no terminal commands, no extra lines, no markup, no formulas."""

import csv
import io
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from rich.table import Table

from cli.__main__ import main, vidgraph
from cli._progress import progress
from cli._say import console, say, to_json
from cli.verify import _print_table
from heads.runs.run_files import save_confusion
from pipeline.stages.check import CheckResult, ClipFinding, write_findings
from pipeline.text.printable import (
    EscapingStream,
    as_cell,
    guard_output,
    unguarded_error,
    visible,
    visible_lines,
)

CONTROLS = [chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))]
TURNS = list("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029")
EVIL = "x\x1b]0;title\x07\x1b[2J\x9b31m\u202e[/b][red]:smile:\nnothing wrong"
SAFE = r"x\x1b]0;title\x07\x1b[2J\x9b31m\u202e[/b][red]:smile:\nnothing wrong"
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.parametrize("character", [*CONTROLS, *TURNS, "\udcff"])
def test_every_control_character_is_shown_as_its_escape(character):
    shown = visible(f"a{character}b")
    assert re.fullmatch(r"a\\([tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})b", shown)
    assert shown.encode().decode("unicode_escape") == f"a{character}b"
    assert visible_lines(f"a{character}b") == (shown if character != "\n" else "a\nb")


def test_other_text_stays_as_it_is():
    for name in ("Größe, 手", "a\u200cb", "👩\u200d🔬", r"C:\x1b", "שלום", "[old]"):
        assert visible(name) == name
        assert visible(visible(name)) == name


def test_every_line_that_a_verb_says_is_one_line_of_text(capsys):
    say(EVIL)
    say(EVIL, err=True)
    assert tuple(capsys.readouterr()) == (SAFE + "\n", SAFE + "\n")


def test_tables_take_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    report = SimpleNamespace(
        shards={EVIL: 1}, views={EVIL: 1}, bytes={EVIL: 1}, seconds=1.0,
        findings=[SimpleNamespace(stage=EVIL, where=EVIL, what=EVIL, fix=EVIL)],
    )  # fmt: skip
    _print_table(Path(f"place/[old]/{EVIL}"), report)
    said = capsys.readouterr().out
    assert not FORBIDDEN.search(said)
    assert "[/b][red]:smile:" in said
    assert f"{SAFE}: {SAFE}; {SAFE}" in said
    assert "\nnothing wrong" not in said


def test_a_long_path_stays_in_one_piece_in_a_log(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    path = "/data/of everybody/" + "a long name with blanks " * 4 + "cache"
    report = SimpleNamespace(
        shards={"features": 1},
        views={"features": 1},
        bytes={"features": 1},
        seconds=1.0,
        findings=[],
    )
    _print_table(Path(path), report)
    table = Table("path")
    table.add_row(path)
    console().print(table)
    assert capsys.readouterr().out.count(path) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_said_beside_a_bar_is_text_too(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", sys.stderr)
    guard_output()
    terminal = sys.stderr.unguarded
    with progress("verify", 2, "MB") as advance:
        click.echo(EVIL)
        print(EVIL, file=sys.stderr)
        advance(1, 1)
    click.echo(EVIL)
    said = terminal.getvalue()
    assert "\x1b[" in said  # the bar's own
    for sequence in ("\x1b]0;", "\x07", "\x1b[2J", "\x9b", "\u202e"):
        assert sequence not in said
    assert said.count(r"\x1b]0;title\x07") == 3


def guarded_streams(monkeypatch) -> tuple[io.StringIO, io.StringIO]:
    """Guard both streams of the process, and return where they write to.

    This is no fixture: between a fixture and its test, pytest sets streams of its own.
    """
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.StringIO())
    guard_output()
    return sys.stdout.unguarded, sys.stderr.unguarded


@pytest.mark.parametrize(
    "args",
    ["ls NAME", "NAME", "ls --NAME", "show x --cache NAME", "verify --cache . --workers NAME"],
)
def test_errors_of_ours_and_of_click_are_text(monkeypatch, args):
    streams = guarded_streams(monkeypatch)
    with pytest.raises(SystemExit) as left:
        main([word.replace("NAME", EVIL) for word in args.split()])
    assert left.value.code == 2
    said = "".join(stream.getvalue() for stream in streams)
    assert not FORBIDDEN.search(said)
    assert r"\x1b]0;title\x07" in said


def test_logs_and_tracebacks_are_text(monkeypatch):
    streams = guarded_streams(monkeypatch)
    logging.StreamHandler().emit(logging.LogRecord("a", logging.ERROR, "a.py", 1, EVIL, (), None))
    sys.excepthook(ValueError, ValueError(EVIL), None)
    said = streams[1].getvalue()
    assert not FORBIDDEN.search(said)
    assert said.count(r"\x1b]0;title\x07") >= 2


def test_a_stream_is_guarded_once_and_a_librarys_bar_gets_it_as_it_is(monkeypatch):
    guarded_streams(monkeypatch)
    before = sys.stderr
    guard_output()
    assert sys.stderr is before
    with unguarded_error():
        assert not isinstance(sys.stderr, EscapingStream)
    assert sys.stderr is before


def test_what_an_encoding_has_not_is_an_escape_and_no_error(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    guard_output()
    click.echo("Größe \x1b")
    assert raw.getvalue() == b"Gr\\xf6\\xdfe \\x1b\n"


def test_json_stays_json_and_text():
    for plain in (True, False):
        text = to_json({"name": EVIL, "more": "\x7f\x85"}, plain)
        assert not FORBIDDEN.search(text)
        assert json.loads(text) == {"name": EVIL, "more": "\x7f\x85"}


def test_click_takes_no_sequence_out_before_it_is_seen(monkeypatch):
    """In a pipe it would take colours out of a name, which then reads like another name."""
    streams = guarded_streams(monkeypatch)

    @vidgraph.command("speak")
    def speak() -> None:
        click.echo("a\x1b[31mb")

    monkeypatch.setattr("cli.__main__.Verbs.get_command", lambda *given: speak)
    monkeypatch.setattr("cli.__main__._verbs", lambda: ["speak"])
    with pytest.raises(SystemExit):
        main(["speak"])
    vidgraph.commands.pop("speak")
    assert streams[0].getvalue() == "a\\x1b[31mb\n"


# Tables that people open.


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "@SUM(A1)", "-1+1", " =1", "\t=1", "\r=1", "\uff1d1", "-", "- a", "+49 30"],
)
def test_what_a_spreadsheet_would_calculate_stays_text(text):
    assert as_cell(text).startswith("'")


@pytest.mark.parametrize("text", ["-1", "-1.5e-07", "-.5", "1e5", "a=b", "a-b", "", "手", "'=1"])
def test_numbers_and_names_stay_as_they_are_in_a_table(text):
    assert as_cell(text) == text


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_findings_and_confusion_matrices_hold_no_formula(tmp_path):
    import numpy as np

    name = "=1+1"
    result = CheckResult(1, 1.0, [ClipFinding(name, "-x.mp4", "label", EVIL)])
    write_findings(tmp_path / "f.csv", result)
    assert cells(tmp_path / "f.csv")[1] == ["'=1+1", "'-x.mp4", "label", SAFE]
    write_findings(tmp_path / "f.json", result)
    assert json.loads((tmp_path / "f.json").read_text())["findings"][0]["clip"] == name
    save_confusion(tmp_path / "c.csv", np.array([[1, 0], [2, 3]]), (name, "-1"))
    assert cells(tmp_path / "c.csv") == [
        ["label \\ predicted", "'=1+1", "-1"],
        ["'=1+1", "1", "0"],
        ["-1", "2", "3"],
    ]
