"""The sizes that the papers report, counted again.

Each count equals ours exactly. It rounds to the paper's number, or is within 1 % of it, unless
`unmet` gives a reason.
"""

from pathlib import Path

import pytest

from tests.support.published import FIGURES, markdown

PAGE = Path(__file__).parents[3] / "docs" / "counts.md"


@pytest.mark.parametrize("figure", FIGURES, ids=[figure.name for figure in FIGURES])
def test_a_published_size_is_ours_exactly_and_the_papers_within_a_hundredth_or_says_why_not(figure):
    assert figure.found() == figure.ours
    assert figure.met() is (None if figure.paper is None else not figure.unmet), figure.as_paper()
    assert figure.paper is not None or not figure.unmet


def test_no_figure_is_in_the_table_twice_and_every_system_has_some():
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    systems = {"GOS", "STRG", "DyReg-GNN", "RSTG", "EAN", "STIN", "STLT"}
    assert {figure.system for figure in FIGURES} == systems


def test_the_page_of_counts_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "write it again: python -m tests.support.published > docs/counts.md"
    )
