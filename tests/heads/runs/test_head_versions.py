"""A run whose head means something else since it began is refused, never continued silently."""

import pytest

import heads.zoo.pool
import heads.zoo.strg
from heads.config.recipe import recipe_from
from heads.evaluation.evaluate import evaluate
from heads.interface.changes import Change, changes_since, version_after
from heads.runs import run_files
from heads.runs.head_versions import versions_of
from heads.zoo import head_changes, head_version
from tests.heads.training.test_train import Stop, recipe, run, stop_after
from tests.support.tiny_cache import Tiny

JOINT = Change(2, "joint graphs were added, and are averaged now", lambda o: o["form"] == "joint")
CUBED = Change(3, "similarities were squared, and are cubed now", lambda o: o["projection"] == 1)
SIMILARITY = {"form": "similarity"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Tiny().write(tmp_path_factory.mktemp("tiny"))


def changed(monkeypatch, *changes):
    monkeypatch.setattr(heads.zoo.strg, "CHANGES", changes, raising=False)


def begun(cache, folder, options=None):
    """A run that stopped after its first epoch."""
    with pytest.raises(Stop):
        run(recipe(options=options), cache, folder, say=stop_after(1))
    return folder


def rewrite(folder, change):
    """Write run.json as an earlier version would have, with a checksum that fits."""
    record = run_files.read_json(folder / "run.json")
    change(record)
    run_files.write_json(folder / "run.json", record)


def test_the_version_is_that_of_the_last_change():
    assert version_after(()) == 1
    assert version_after((JOINT, CUBED)) == 3


def test_only_later_changes_of_these_options_count():
    options = {"form": "joint", "projection": 1}
    assert changes_since((JOINT, CUBED), 1, options) == [JOINT, CUBED]
    assert changes_since((JOINT, CUBED), 2, options) == [CUBED]
    assert changes_since((JOINT, CUBED), 1, {"form": "similarity", "projection": 1}) == [CUBED]


def test_options_that_a_run_did_not_give_count_with_their_defaults(monkeypatch):
    changed(monkeypatch, JOINT)
    assert head_changes("strg", 1, {}) == [JOINT]
    assert head_changes("strg", 1, SIMILARITY) == []


def test_a_run_records_the_version_of_its_head(monkeypatch, cache, tmp_path):
    changed(monkeypatch, JOINT, CUBED)
    run(recipe(options=SIMILARITY), cache, tmp_path / "run")
    assert run_files.read_json(tmp_path / "run" / "run.json")["head_versions"] == {"strg": 3}
    about = run_files.load_checkpoint(tmp_path / "run" / "last.pt")["about"]
    assert about["head_versions"] == {"strg": 3}
    assert head_version("strg") == 3
    assert versions_of(recipe()) == {"strg": 3}


def two_heads():
    """A recipe whose first phase trains the head "pool", its second one "strg"."""
    table = recipe().as_dict()
    del table["train"]
    phase = {"train": {"epochs": 1, "batch": 5, "lr": 0.1}}
    table["phases"] = [
        {**phase, "name": "first", "head": {"name": "pool"}},
        {**phase, "name": "second"},
    ]
    return recipe_from(table)


def test_each_head_of_a_run_has_its_own_version(monkeypatch, cache, tmp_path):
    changed(monkeypatch, JOINT, CUBED)
    run(two_heads(), cache, tmp_path / "run")
    record = run_files.read_json(tmp_path / "run" / "run.json")
    assert record["head_versions"] == {"pool": 1, "strg": 3}
    # A later change of the other head, of a number that strg has passed already.
    pool = (Change(2, "steps were summed, and are averaged now", lambda options: True),)
    monkeypatch.setattr(heads.zoo.pool, "CHANGES", pool, raising=False)
    with pytest.raises(ValueError, match=r"head pool of this run is of version 1, .* steps were"):
        run(two_heads(), cache, tmp_path / "run")


def test_a_run_that_began_before_a_change_is_not_continued(monkeypatch, cache, tmp_path):
    folder = begun(cache, tmp_path / "run")
    before = (folder / "last.pt").read_bytes()
    changed(monkeypatch, JOINT)
    with pytest.raises(ValueError, match="version 1, this is version 2: joint graphs were added"):
        run(recipe(), cache, folder)
    assert (folder / "last.pt").read_bytes() == before


def test_a_finished_run_of_before_is_neither_read_back_nor_evaluated(monkeypatch, cache, tmp_path):
    run(recipe(), cache, tmp_path / "run")
    changed(monkeypatch, JOINT)
    with pytest.raises(ValueError, match=r"averaged now\. Train anew in another folder, or with"):
        run(recipe(), cache, tmp_path / "run")
    with pytest.raises(ValueError, match=r"averaged now\. Train it anew"):
        evaluate(tmp_path / "run", cache, "test", say=lambda line: None)


def test_a_run_that_a_change_does_not_concern_goes_on(monkeypatch, cache, tmp_path):
    folder = begun(cache, tmp_path / "run", SIMILARITY)
    changed(monkeypatch, JOINT)
    run(recipe(options=SIMILARITY), cache, folder)
    assert evaluate(folder, cache, "test", say=lambda line: None)


def test_a_record_without_a_version_is_of_the_first(monkeypatch, cache, tmp_path):
    run(recipe(), cache, tmp_path / "run")
    rewrite(tmp_path / "run", lambda record: record.pop("head_versions"))
    run(recipe(), cache, tmp_path / "run")
    changed(monkeypatch, JOINT)
    with pytest.raises(ValueError, match="version 1, this is version 2"):
        run(recipe(), cache, tmp_path / "run")


def test_options_that_recipes_have_had_since_count_with_their_defaults(cache, tmp_path):
    run(recipe(), cache, tmp_path / "run")
    rewrite(tmp_path / "run", lambda record: record["recipe"]["train"].pop("nesterov"))
    run(recipe(), cache, tmp_path / "run")
    with pytest.raises(ValueError, match=r"train\.nesterov is False there, True here"):
        run(recipe(nesterov=True), cache, tmp_path / "run")
