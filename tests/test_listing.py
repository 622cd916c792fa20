"""`vidgraph ls`, `vidgraph env` and `vidgraph completion`."""

import json
import shutil
import subprocess

import pytest
from click.testing import CliRunner
from tiny_cache import Tiny

from cli.__main__ import vidgraph
from cli.ls import age
from heads.listing import entries_below
from heads.recipe import read_recipe
from heads.train import train

RECIPE = 'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 2\nbatch = 5\nlr = 0.1\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a cache and a finished run."""
    folder = tmp_path_factory.mktemp("listing")
    (folder / "tiny.toml").write_text(RECIPE)
    cache = Tiny(per_shard=10).write(folder)
    train(
        read_recipe(folder / "tiny.toml"), cache, folder / "runs" / "a", device="cpu", say=lambda line: None, tensorboard=False
    )
    return folder


@pytest.fixture
def copied(place, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(place, tmp_path / "copy")


def kinds(folder) -> dict[str, object]:
    return {entry.kind: entry for entry in entries_below(folder)}


def test_caches_and_runs_are_found_with_their_sizes_and_fingerprint(place):
    found = kinds(place)
    cache, run = found["cache"], found["run"]
    assert cache.what == "digit_cnn, 24 clips"
    assert cache.stage == "complete, no graphs"
    assert cache.bytes == sum(path.stat().st_size for path in (place / "cache").rglob("*") if path.is_file())
    assert run.fingerprint == cache.fingerprint
    assert run.what == "pool, seed 0"
    assert run.stage.startswith("finished, test top1")


def test_what_is_not_finished_says_how_far_it_is(copied):
    (copied / "cache" / "features" / "00001.json").unlink()
    (copied / "runs" / "a" / "metrics.json").unlink()
    found = kinds(copied)
    assert found["cache"].stage == "2 of 3 shards, no graphs"
    assert found["run"].stage == "after epoch 2, unfinished"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3, "fingerprint": "x"}'])
def test_a_damaged_entry_is_listed_and_hides_no_other(copied, text):
    (copied / "cache" / "cache.json").write_text(text)
    found = kinds(copied)
    assert found["cache"].stage.startswith("damaged: cache.json")
    assert found["run"].stage.startswith("finished")


def test_the_list_as_json_is_the_list(place):
    said = json.loads(CliRunner().invoke(vidgraph, ["ls", str(place), "--json"]).output)
    assert [entry["path"] for entry in said] == [str(entry.path) for entry in entries_below(place)]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        entries_below(tmp_path / "none")


def test_ages_are_in_the_largest_unit_that_fits():
    assert [age(s) for s in (-5, 59, 61, 3600, 90000)] == ["0 s", "59 s", "1 min", "1 h", "1 days"]


def test_the_environment_names_what_is_missing_and_what_it_is_for(monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *more):
        if name in ("decord", "detectron2"):
            raise ImportError(f"No module named {name}")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    result = CliRunner().invoke(vidgraph, ["env", "--json"], standalone_mode=False)
    found = json.loads(result.output)
    assert result.return_value == 1
    assert found["packages"]["decord"].startswith("MISSING")
    assert "--proposals detectron2" in found["optional"]["detectron2"]
    assert found["packages"]["torch"][0].isdigit()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_asks_vidgraph_itself(shell):
    script = CliRunner().invoke(vidgraph, ["completion", shell]).output
    assert f"_VIDGRAPH_COMPLETE={shell}_complete" in script


def test_bash_accepts_the_completion_script():
    script = CliRunner().invoke(vidgraph, ["completion", "bash"]).output
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
