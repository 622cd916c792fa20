"""Names from a manifest do nothing in HTML, Markdown and CSV; axes and drawings."""

import csv
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from heads.reporting.axes import Axis
from heads.reporting.document import Code, Column, Document, Spread, Table
from heads.reporting.escaping import as_html, as_markdown, cell_text, one_line, short_number
from heads.reporting.markdown import to_csv, to_markdown
from heads.reporting.plots import Series, bars, curves, matrix, standalone
from heads.reporting.report import report
from pipeline.text.printable import as_cell
from tests.support.report_runs import Made

NASTY = (
    "<script>alert(1)</script>",
    "a|b|c\nd",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://evil","x")',
    "+1+1",
    " @SUM(A1)",
    "`code` *bold* [link](http://evil) ![i](http://evil)",
    "# heading\r\n- list",
    "www.evil.com & https://evil.com",
    "\u202egnp.exe\x00\x1b[31m",
    "</style></script><!-- ",
    "$x$ ~~gone~~ \\| _it_ under_score",
)


class Elements(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A report of runs whose classes, clips, folders and cache have such names."""
    folder = tmp_path_factory.mktemp("nasty")
    clips = tuple(f"{name} {k}" for k, name in enumerate(NASTY * 2))
    for name, skill in (("a|b <b>x", 0.9), ("=1+1", 0.1)):
        Made(
            name, head="pool", classes=NASTY, clips=clips, skill=skill, cache="<i>no|where</i>"
        ).write(folder / "runs")
    report([folder / "runs"], folder / "out", title=NASTY[0], macs=False, say=lambda line: None)
    return folder / "out"


def test_no_name_becomes_an_element_of_the_page(nasty):
    page = Elements()
    page.feed((nasty / "report.html").read_text())
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "b", "i", "iframe"} & set(tags) - {"b"}
    assert not any(key.startswith("on") for _, attributes in page.found for key in attributes)
    assert "<script>alert(1)</script>" in "".join(page.text)  # it can be read as what it is
    for _, attributes in page.found:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))


def test_the_pages_policy_lets_its_own_script_run_and_nothing_be_loaded(nasty):
    import base64
    import hashlib

    text = (nasty / "report.html").read_text()
    script = re.search("<script>(.*?)</script>\n</body>", text, re.DOTALL)[1]
    policy = re.search('Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'")
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_commands_for_a_folder_whose_name_a_terminal_obeys_are_harmless():
    text, _ = to_markdown(
        Document("A title", (Code("vidgraph train 'a\x1b[2J\x9b'\\\n  --seed 0"),), ())
    )
    assert "vidgraph train 'a\\x1b[2J\\x9b'\\\n  --seed 0\n" in text


def test_no_name_ends_a_cell_of_markdown_or_is_markup(nasty):
    text = (nasty / "report.md").read_text()
    prose = "".join(text.split("```")[::2])  # commands stand in fences
    assert not re.search(r"<(?!br)[a-z/!]", prose)
    assert not re.search(r"(https?|ftp)://|www\.", re.sub(r"\\.", "", prose))
    width = None
    for line in prose.splitlines():
        bars = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        if not line.startswith("|"):
            assert bars == 0
            width = None
            continue
        width = width or bars
        assert bars == width, line


def test_no_name_is_a_formula_in_a_sheet_or_breaks_its_row(nasty):
    for path in (nasty / "tables").iterdir():
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1, path
        for cell in (cell for row in rows for cell in row):
            number = re.fullmatch(r"-?[0-9.]+(e[-+]?[0-9]+)?", cell)
            assert number or not cell.lstrip().startswith(("=", "+", "-", "@")), (path, cell)
            assert not re.search(r"[\x00-\x1f]", cell)


def test_drawings_of_nasty_names_are_well_formed(nasty):
    from xml.etree import ElementTree

    paths = list((nasty / "plots").iterdir())
    assert len(paths) > 5
    for path in paths:
        tags = {element.tag.split("}")[1] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "img", "a", "foreignObject"}, path


@pytest.mark.parametrize("name", NASTY)
def test_a_name_stays_one_line_without_unseen_characters(name):
    for made in (one_line(name), as_html(name), as_markdown(name), as_cell(name)):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202a-\u202e]", made)


def test_plain_names_stay_as_they_are():
    for name in ("Putting something on something", "under_score", "0-1", "Größe, 手"):
        assert as_markdown(name) == as_cell(name) == as_html(name) == name


def test_a_negative_number_is_no_formula():
    table = Table(
        "t",
        "",
        (Column("x", "percent"), Column("y", "percent")),
        ((-1.5, Spread(-2.0, 0.5, 3)), (None, None)),
    )
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows == [["x", "y", "y sd", "y runs"], ["-1.5", "-2", "0.5", "3"], ["", "", "", ""]]


def test_numbers_are_shown_for_people():
    assert short_number(999) == "999"
    assert short_number(46858) == "46.9 k"
    assert short_number(2_389_347_328) == "2.39 G"
    assert cell_text(Spread(91.27, 0.84, 3), "percent") == "91.3 ± 0.8"
    assert cell_text(math.nan, "percent") == cell_text(None, "count") == "–"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3, 3), (-5, 17), (1e-9, 2e-9), (1e6, 1e9), (0, 0), (math.nan, 1)]
)
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_holds_its_values_and_a_few_round_numbers(low, high, log):
    axis = Axis.over(low, high, 40, 300, log, margin=0.05)
    ticks = axis.ticks(6)
    assert 1 <= len(ticks) <= 8
    assert all(39.9 <= axis.at(tick) <= 300.1 for tick in ticks)
    if not math.isnan(low):
        assert 40 <= axis.at(low) <= axis.at(high) <= 300


def test_curves_with_gaps_are_drawn_as_far_as_they_go():
    drawn = curves([Series("a", 0, [1, 2, 3], [0.5, math.nan, 0.7], [0, 0, 0])], "x", "y", "label")
    points = re.search('polyline class="curve s0 d0" points="([^"]*)"', drawn)[1]
    assert len(points.split()) == 2
    assert "nan" not in drawn


def test_bars_of_gains_and_losses_start_at_one_zero():
    drawn = bars([("up", 10.0), ("down", -5.0)], "label")
    (up, long), (down, short_one) = [
        (float(x), float(w))
        for x, w in re.findall(r'<rect class="f[01]" x="([\d.]+)" y="\d+" width="([\d.]+)"', drawn)
    ]
    assert down + short_one == pytest.approx(up, abs=0.11)
    assert long == pytest.approx(2 * short_one, abs=0.2)


def test_a_matrix_of_many_classes_is_one_small_picture():
    counts = np.random.default_rng(0).integers(0, 9, (174, 174))
    drawn = matrix(counts, [f"class {k}" for k in range(174)], "label")
    assert drawn.count("<rect") == 1
    assert len(drawn) < 100_000


def test_a_drawing_of_its_own_brings_colours_and_legend():
    alone = standalone(bars([("up", 10.0)], "label"), [(0, "<one>")])
    assert "prefers-color-scheme: dark" in alone
    assert "&lt;one&gt;" in alone
