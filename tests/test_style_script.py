"""`benchmarks/style.py` on made-up sources whose figures are counted by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "style.py"

LONG = " ".join(["word"] * 31)
JUST_RIGHT = " ".join(["word"] * 30)

TREE = {
    # The room names `Reader` and `open_cache` through the lazy table.
    "pipeline/cache/__init__.py": '''
        """Caches."""

        PLACES = {"Reader": "reader", "open_cache": "reader", "SIZE": "reader"}
        __getattr__ = load_lazily(__name__, PLACES)
    ''',
    "pipeline/cache/reader.py": f'''
        """Reads caches, e.g. those on a disk that is slow.

        {LONG}.
        {JUST_RIGHT}.

            x = {" ".join(["word"] * 20)}
            y = {" ".join(["word"] * 20)}
        """

        SIZE = 4


        class Reader:
            """A cache.

            Args:
                path: {JUST_RIGHT}
                fields: its fields.
            """

            def __init__(self, path, fields):
                self.path = path  # a remark behind code is no line of its own

            def row(self, number):
                """A row."""
                return number

            def close(self):
                """Takes nothing."""

            def _seek(self, number):
                return number


        def open_cache(path):
            """Open a cache.

            Args:
                path: its folder.
            """
            # The first line of a comment,
            # and its second one.
            return Reader(path, None)
    ''',
    # What is imported from elsewhere, and what is private, is not named by the room.
    "heads/training/__init__.py": '''
        """Training."""

        from heads.training._learner import Learner as Teacher
        from pipeline.cache import open_cache


        def _hidden(value):
            return open_cache(value)
    ''',
    "heads/training/_learner.py": '''
        from dataclasses import dataclass


        @dataclass
        class Learner:
            """Learns."""

            rate: float


        def step(rate):
            """In a private module."""
    ''',
    # `__all__` decides where there is one.
    "heads/data/__init__.py": """
        from .store import Store, split
        __getattr__ = load_lazily(__name__, {"Later": "store"})

        __all__ = ["split"]
    """,
    "heads/data/store.py": """
        class Store:
            def __init__(self, path):
                pass


        class Later(Store):
            rows: int


        def split(rows):
            pass
    """,
    "heads/zoo/mean.py": '''
        def build(dims, num_classes):
            """Build it.

            Args:
                dims: sizes.
                num_classes: K.
            """


        def helper(dims):
            """Without a list."""
    ''',
    "heads/zoo/one.py": "",
    "heads/zoo/two.py": "",
    "cli/dense.py": """
        plain = [x for x in range(3) if x > 1]
        pairs = [(x, y) for x in "ab" for y in "cd"]
        called = {x for x in pairs if len(x) > 1}
        inside = [x if x else 0 for x in plain]
        nested = 1 if plain else 2 if pairs else 3
        if plain and (first := plain[0]):
            pass
        if (second := called) is not None:
            pass
        done = 1
    """,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A checkout with the made-up sources."""
    root = tmp_path_factory.mktemp("checkout")
    for name, text in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
    return root


def run(*arguments: object) -> str:
    """Run the script and return what it prints."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    # A test before this one may have run the command in this process, which sets the variable. The
    # script imports modules beside it.
    env = os.environ | {"PYTHONSAFEPATH": ""}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout


@pytest.fixture(scope="module")
def record(tree) -> dict:
    """The script's JSON record of the made-up sources, with all places."""
    path = tree / "style.json"
    run("--root", tree, "--worst", 50, "--json", path)
    return json.loads(path.read_text())[0]


def named(record: dict, measure: str) -> list[str]:
    return sorted(f"{place['path']}:{place['line']}" for place in record["worst"][measure])


def test_a_package_that_is_absent_has_no_column(record):
    assert list(record["figures"]) == ["pipeline", "heads", "cli", "all"]


def test_density_is_counted_per_hundred_statements(record):
    # Ten lines, two of which are the bodies of an `if`; every line is a statement.
    cli = record["figures"]["cli"]
    assert cli["statements"] == 10
    assert cli["lines"] == 10
    assert cli["comprehensions / 100 statements"] == pytest.approx(40)
    assert cli["conditional expressions / 100"] == pytest.approx(30)


def test_dense_expressions_are_told_from_plain_ones(record):
    assert named(record, "dense comprehensions") == ["cli/dense.py:2", "cli/dense.py:3"]
    assert named(record, "conditionals in comprehensions") == ["cli/dense.py:4"]
    assert named(record, "nested conditionals") == ["cli/dense.py:5"]
    assert named(record, "walrus in compound conditions") == ["cli/dense.py:6"]


def test_widths_are_those_of_lines_that_are_not_blank(record):
    # 38, 44, 41, 39, 42, 33, 8, 34, 8 and 8: the ninth of ten is 42.
    cli = record["figures"]["cli"]
    assert cli["longest line"] == 44
    assert cli["line width, 90th percentile"] == 42


def test_only_comments_on_lines_of_their_own_count(record):
    text = dedent(TREE["pipeline/cache/reader.py"]).strip().splitlines()
    room = dedent(TREE["pipeline/cache/__init__.py"]).strip().splitlines()
    lines = sum(bool(line.strip()) for line in text + room)
    assert record["figures"]["pipeline"]["own-line comments, %"] == pytest.approx(100 * 2 / lines)


def test_sentences_of_thirty_words_and_equations_are_not_long(record):
    assert named(record, "long sentences") == ["pipeline/cache/reader.py:3"]


def test_the_fullest_folder_is_not_a_zoo(record):
    assert record["figures"]["heads"]["files in the fullest folder"] == 2
    assert "heads/zoo:1" not in named(record, "fullest folders")


def test_public_functions_are_those_with_something_to_give(record):
    # Reader.row and open_cache; not close, _seek, __init__.
    assert record["figures"]["pipeline"]["public functions with parameters"] == 2
    assert record["figures"]["pipeline"]["... with a list of parameters, %"] == 50
    # split, build and helper; `step` is in a private module.
    heads = record["figures"]["heads"]
    assert heads["public functions with parameters"] == 3
    assert heads["... with a docstring, %"] == pytest.approx(100 * 2 / 3)
    assert heads["... with a list of parameters, %"] == pytest.approx(100 / 3)


def test_names_are_followed_from_rooms_to_their_definitions(record):
    # Reader, its method `row`, and open_cache, which both go through the lazy table.
    pipeline = record["figures"]["pipeline"]
    assert pipeline["named public things"] == 3
    assert pipeline["named public things with a list, %"] == pytest.approx(100 * 2 / 3)
    # Learner, Later, split and mean.build.
    heads = record["figures"]["heads"]
    assert heads["named public things"] == 4
    assert heads["named public things with a list, %"] == 25
    lacking = {place["text"] for place in record["worst"]["named public things without a list"]}
    assert lacking == {"Reader.row", "Learner", "Later", "split"}


def test_only_measures_a_part_and_follows_names_through_the_rest(tree):
    path = tree / "part.json"
    run("--root", tree, "--only", "heads/training/_learner", "--json", path)
    figures = json.loads(path.read_text())[0]["figures"]
    assert list(figures) == ["heads", "all"]
    assert figures["all"]["files"] == 1
    assert figures["all"]["named public things"] == 1


def test_two_checkouts_are_printed_side_by_side(tree, tmp_path):
    other = tmp_path / "other"
    (other / "heads").mkdir(parents=True)
    (other / "heads" / "one.py").write_text("x = 1\n")
    lines = run("--root", tree, "--root", other).splitlines()
    statements = next(line for line in lines if line.startswith("statements"))
    assert statements.split()[-1] == "1"


def test_a_folder_without_code_is_said_in_a_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no Python files in pipeline, heads, cli, vidgraph" in done.stderr
