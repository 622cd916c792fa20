"""The page of the papers' tables: every recipe and study is in it, and all that it names exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from heads.config.recipe import read_recipe, recipe_names
from heads.config.study_file import read_study, study_names
from tests.heads.config.test_recipe_rows import tables_of
from tests.support.paper_tables import TABLES
from tests.support.recipes_page import SYSTEMS, page

DOCS = Path(__file__).parents[3] / "docs"
# Tables and figures of each paper, from its own numbering.
NUMBERED = {
    "gos": [
        *("Table 1", "Table 2", "Figure 5"),
        *(f"supp. Table {number}" for number in range(1, 9)),
    ],
    "strg": ["Table 1", "Table 2a", "Table 2b", "Table 3", "Table 4", "Figure 5", "sec. 6.1"],
    "dyreg": [f"Table {number}" for number in range(1, 7)],
    "rstg": ["Table 1", "Table 2", "Table 3"],
    "ean": [*(f"Table {number}" for number in range(1, 11)), "Figures 9 to 11"],
}


def source_of(name: str) -> str:
    return read_recipe(name).source if name in recipe_names() else read_study(name).source


def test_every_recipe_and_study_of_the_package_is_in_the_row_of_a_table():
    listed = {name for table in TABLES for name in table.made_by}
    shipped = {*recipe_names(), *study_names()}
    assert shipped - listed == set(), "add these to their table in tests/support/paper_tables.py"
    assert listed - shipped == set(), "these are neither a recipe nor a study of the package"


@pytest.mark.parametrize("system", NUMBERED)
def test_every_numbered_table_of_a_paper_has_a_row(system):
    rows = {table.where for table in TABLES if table.system == system}
    assert set(NUMBERED[system]) <= rows
    assert system in SYSTEMS


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.system} {table.where}")
def test_what_makes_a_table_names_it_as_its_source(table):
    number = re.fullmatch(r"(?:supp\. )?Table (\d+)[ab]?", table.where)
    for name in table.made_by:
        if number:
            assert int(number.group(1)) in tables_of(source_of(name)), name
        elif table.where.startswith("sec. "):
            assert table.where in source_of(name), name


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
    for clause in read_recipe("gos_supp_table6_transfer").ours.split("; "):
        assert clause in row
    # A clause that several recipes of a table share is there once.
    one, other = ("gos_table2_feat_aggr", "gos_table2_diff_prop")
    shared = set(read_recipe(one).ours.split("; ")) & set(read_recipe(other).ours.split("; "))
    row = next(line for line in text.splitlines() if f"`{one}`, `{other}`" in line)
    assert shared
    for clause in shared:
        assert row.count(clause) == 1
