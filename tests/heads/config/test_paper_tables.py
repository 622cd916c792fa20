"""The page of the papers' tables: every recipe and study is in it, and all that it names exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from heads.config.recipe import recipe_names
from heads.config.study_file import study_names
from tests.support.paper_tables import TABLES, file_of, numbered
from tests.support.recipes_page import SYSTEMS, page

DOCS = Path(__file__).parents[3] / "docs"
# Tables and figures of each paper, from its own numbering.
NUMBERED = {
    "gos": [
        *("Table 1", "Table 2", "Figure 5"),
        *(f"supp. Table {number}" for number in range(1, 9)),
    ],
    "strg": ["Table 1", "Table 2a", "Table 2b", "Table 3", "Table 4", "Figure 5"],
    "dyreg": [f"Table {number}" for number in range(1, 7)],
    "rstg": ["Table 1", "Table 2", "Table 3"],
    "ean": [*(f"Table {number}" for number in range(1, 11)), "Figures 9 to 11"],
}


def test_every_recipe_and_study_of_the_package_is_in_the_row_of_a_table():
    listed = {name for table in TABLES for name in table.made_by}
    shipped = {*recipe_names(), *study_names()}
    assert shipped - listed == set(), "their source names no table of tests/support/paper_tables.py"
    assert listed - shipped == set(), "these are neither a recipe nor a study of the package"


@pytest.mark.parametrize("system", NUMBERED)
def test_every_numbered_table_of_a_paper_has_a_row(system):
    rows = {table.where for table in TABLES if table.system == system}
    assert set(NUMBERED[system]) <= rows
    assert system in SYSTEMS


@pytest.mark.parametrize(
    ("source", "tables"),
    [
        ("GOS (CVPR 2020), supplement, Table 7, rows 2, 3 and 4 supernodes", {"supp. Table 7"}),
        ("GOS (CVPR 2020), Table 1, rows a; sec. 3.4, 4.1; supp. 1", {"Table 1"}),
        (
            "GOS (CVPR 2020), supplement, sec. 2, stage 1: the backbone of Tables 1 and 2",
            {"Table 1", "Table 2"},
        ),
        (
            "EAN (IJCV 2022), Table 1, Something-Something; Tables 5 to 7; sec. 4.1",
            {"Table 1", "Table 5", "Table 6", "Table 7"},
        ),
        ("STRG (ECCV 2018), Table 2a, rows Joint; sec. 6.1, 25 and 50 proposals", {"Table 2a"}),
        (
            "DyReg-GNN, Table 2, rows TSM-R18; Tables 3, 4, row TSM",
            {"Table 2", "Table 3", "Table 4"},
        ),
        ("EAN (IJCV 2022), Table 4, Diving48, 16 frames", {"Table 4"}),
    ],
)
def test_the_tables_of_a_source_are_found(source, tables):
    assert numbered(source) == tables


@pytest.mark.parametrize("name", [*recipe_names(), *study_names()])
def test_the_name_of_a_file_has_the_table_that_its_source_names(name):
    found = re.match(r"[a-z]+_(supp_)?table(\d+[ab]?)_?", name)
    if found:
        supplement, number = found.groups()
        assert f"{'supp. ' if supplement else ''}Table {number}" in numbered(file_of(name).source)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.system} {table.where}")
def test_a_row_says_what_makes_it_and_its_commands_and_links_exist(table):
    assert table.made_by or table.how
    for words in re.findall(r"`vidgraph ([^`]*)`", table.how):
        name, *options = words.split()
        command = import_module(f"cli.{name}").command
        known = {option for one in command.params for option in one.opts}
        assert {option for option in options if option.startswith("--")} <= known, words
    for link in re.findall(r"\]\(([^)#]*)", f"{table.how} {table.trained} {table.ours}"):
        assert (DOCS / link).exists(), link


def test_the_page_has_a_row_per_table_with_what_is_our_choice():
    text = page()
    for table in TABLES:
        found = [line for line in text.splitlines() if line.startswith(f"| {table.where} | ")]
        assert any(table.what in line for line in found), table.where
    row = next(line for line in text.splitlines() if line.startswith("| supp. Table 6 |"))
    for clause in file_of("gos_supp_table6_transfer").ours.split("; "):
        assert clause in row
    # A clause that several recipes of a table share is there once.
    one, other = ("gos_table2_feat_aggr", "gos_table2_diff_prop")
    shared = set(file_of(one).ours.split("; ")) & set(file_of(other).ours.split("; "))
    row = next(line for line in text.splitlines() if f"`{other}`, `{one}`" in line)
    assert shared
    for clause in shared:
        assert row.count(clause) == 1
