"""vidgraph computes what the papers' releases and equations compute: see README.md."""

from pathlib import Path

import check_parity
import names
import pytest
import torch

FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))

# Cases that differ, and where. A case that agrees after a fix turns its test red: remove its row.
DIFFERS: dict[str, str] = {}
CANNOT_LOAD: set[str] = set()  # the weights have other shapes: load_state_dict refuses them


def case(name: str):
    """The parameter of one case. A missing module or name is never the expected failure."""
    if name not in DIFFERS:
        return name
    error = RuntimeError if name in CANNOT_LOAD else AssertionError
    mark = pytest.mark.xfail(strict=True, raises=error, reason=DIFFERS[name])
    return pytest.param(name, marks=mark)


@pytest.fixture(autouse=True)
def settings_of_torch_stay():
    before = torch.get_default_dtype(), torch.get_num_threads()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before


@pytest.mark.parametrize("name", [case(name) for name in CASES])
def test_outputs_are_those_of_the_release_or_the_paper(name):
    results = check_parity.check(FOLDER / f"{name}.npz")
    assert results
    wrong = {output: result for output, result in results.items() if not result[0] <= result[1]}
    assert not wrong, "outputs that differ: {name: (difference, tolerance)}"


def test_every_file_of_the_readme_is_a_case():
    rows = []
    for line in (FOLDER / "README.md").read_text().splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else ""
        if first.endswith(".npz"):
            rows.append(first.removesuffix(".npz"))
    assert sorted(rows) == CASES


def test_every_expected_failure_is_a_case():
    assert set(DIFFERS) <= set(CASES)
    assert set(DIFFERS) >= CANNOT_LOAD


def test_a_name_follows_its_module_and_its_own_row_comes_first(monkeypatch):
    monkeypatch.setattr(names, "MODULES", {"heads.old": "heads.room.new"})
    monkeypatch.setattr(names, "NAMES", {"heads.old:Lite": "heads.other:LiteGenerator"})
    assert names.current_name("heads.old:Graph") == "heads.room.new:Graph"
    assert names.current_name("heads.old:Lite") == "heads.other:LiteGenerator"
    assert names.current_name("heads.zoo:build_head") == "heads.zoo:build_head"


def test_names_of_cases_and_of_the_checker_are_translated(monkeypatch):
    monkeypatch.setattr(names, "NAMES", {"heads.gone:Count": "collections:Counter"})
    spec = {"class": "heads.gone:Count", "args": ["aab"], "kwargs": {}}
    assert check_parity.made(spec) == {"a": 2, "b": 1}


def test_the_default_dtype_is_restored_when_a_case_cannot_run(monkeypatch):
    def refuse(about, inputs, state):
        assert torch.get_default_dtype() == torch.float64
        raise ValueError("no such head")

    monkeypatch.setitem(check_parity.RUNNERS, "table", refuse)
    before = torch.get_default_dtype()
    with pytest.raises(ValueError, match="no such head"):
        check_parity.check(FOLDER / "strg_iou.npz")
    assert torch.get_default_dtype() == before
