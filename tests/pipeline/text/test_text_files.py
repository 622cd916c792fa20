"""Text files as other programs write them: marks of encodings, and the separators of tables."""

import csv
import io
import re

import pytest

from pipeline.text.text_files import decoded, other_separator, read_names, read_text

COLUMNS = ("clip", "path", "split", "label")


def header(quoting: int, **dialect) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=quoting, **dialect).writerow((*COLUMNS, "start"))
    return text.getvalue()


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(
    ("mark", "words"),
    [(",", ""), (";", "semicolons"), ("\t", "tabs"), ("|", "pipes"), (" ", "blanks")],
)
def test_the_first_line_tells_the_separator_that_a_table_was_written_with(quoting, mark, words):
    told = other_separator(header(quoting, delimiter=mark), COLUMNS)
    assert told.startswith(words)
    assert bool(told) == bool(words)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "clip",
        "a;b;c",
        "a;b;c;d,e",
        "clip,path,split,label;class",
        '"clip, path; split"',
        "\0",
        '"',
    ],
)
def test_other_first_lines_are_left_to_whoever_reads_the_table(line):
    assert other_separator(line, COLUMNS) == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Clip;Path;Split;Label", "semicolons"),
        ("id\tfile\tsubset\tclass\tnote", "tabs"),
        ("a|b c|d|e", "pipes (|)"),
    ],
)
def test_enough_cells_show_their_separator_whatever_they_are_called(line, words):
    assert other_separator(line, COLUMNS) == words


@pytest.mark.parametrize("line", ['"sep=;"', "sep=;", "SEP=,\r\n", "sep=\t"])
def test_the_line_that_names_a_separator_is_known(line):
    assert re.search(r"the line '\"?sep=", other_separator(line, COLUMNS).lower())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_mark_of_utf8_changes_nothing(tmp_path, encoding):
    (tmp_path / "t").write_bytes("é\nb\n".encode(encoding))
    assert read_text(tmp_path / "t") == "é\nb\n"
    assert read_names(tmp_path / "t", "names") == ("é", "b")


def test_marks_of_texts_that_were_marked_twice_or_joined_change_nothing(tmp_path):
    (tmp_path / "t").write_bytes("é\n".encode("utf-8-sig") + "b\n".encode("utf-8-sig"))
    assert read_names(tmp_path / "t", "names") == ("é", "b")
    assert decoded(b"\xef\xbb\xbf" * 2 + b"b", "t") == "b"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused_with_the_name_of_the_file(encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    data = mark + "é".encode(encoding)
    expected = r"^list.txt: (UTF-16 text|byte 0 \(0xe9\) is not UTF-8).* as UTF-8$"
    with pytest.raises(ValueError, match=expected):
        decoded(data, "list.txt", "names")


def test_a_duplicate_name_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / "t").write_text("a\nb\n a\n")
    with pytest.raises(ValueError, match="duplicate name 'a'"):
        read_names(tmp_path / "t", "names")
    with pytest.raises(ValueError, match="No such file or directory; expected one class per line"):
        read_names(tmp_path / "none", "one class per line")
