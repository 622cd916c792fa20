"""`vidgraph ls`, `vidgraph env` and `vidgraph completion`."""

import importlib
import json
import re
import shutil
import subprocess

import pytest
from click.testing import CliRunner

from cli.__main__ import vidgraph
from cli.env import NEEDED, _has_kernels
from cli.ls import age
from heads.config.recipe import read_recipe
from heads.runs import run_files
from heads.runs.find_runs import entries_below
from heads.training.train import train
from tests.support.tiny_cache import Tiny
from tests.support.wheels_elsewhere import requirements

RECIPE = 'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 2\nbatch = 5\nlr = 0.1\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a cache and a finished run."""
    folder = tmp_path_factory.mktemp("listing")
    (folder / "tiny.toml").write_text(RECIPE)
    cache = Tiny(per_shard=10).write(folder)
    train(
        read_recipe(folder / "tiny.toml"),
        cache,
        folder / "runs" / "a",
        device="cpu",
        say=lambda line: None,
        tensorboard=False,
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
    assert cache.bytes == sum(
        path.stat().st_size for path in (place / "cache").rglob("*") if path.is_file()
    )
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


def test_a_run_of_a_plugin_without_a_seed_is_listed_by_the_name_of_its_file(copied):
    file = copied / "runs" / "a" / "run.json"
    record = run_files.read_json(file)
    record["recipe"]["head"]["name"] = f"my_head.py@{'0' * 64}"
    del record["seed"]
    run_files.write_json(file, record)
    assert kinds(copied)["run"].what == "my_head"


def test_the_list_as_json_is_the_list(place):
    said = json.loads(CliRunner().invoke(vidgraph, ["ls", str(place), "--json"]).output)
    assert [entry["path"] for entry in said] == [str(entry.path) for entry in entries_below(place)]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        entries_below(tmp_path / "none")


def test_ages_are_in_the_largest_unit_that_fits():
    assert [age(s) for s in (-5, 59, 61, 3600, 90000)] == ["0 s", "59 s", "1 min", "1 h", "1 days"]


def seen_by_env(monkeypatch, broken: dict[str, Exception]) -> tuple[int, dict]:
    """Exit code and JSON of `vidgraph env` where imports of these modules raise."""
    # Whole, before imports are disturbed: torch loads it at the first use of an optimiser.
    importlib.import_module("torch._dynamo")
    from pipeline.video import decode

    real = importlib.import_module

    def imports(name, *more):
        if name in broken:
            raise broken[name]
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", imports)
    decode.why_no_decord.cache_clear()
    try:
        result = CliRunner().invoke(vidgraph, ["env", "--json"], standalone_mode=False)
    finally:
        decode.why_no_decord.cache_clear()
    return result.return_value, json.loads(result.output)


def test_the_environment_names_what_is_missing_and_what_it_is_for(monkeypatch):
    absent = {
        "bokeh": ModuleNotFoundError("No module named 'bokeh'", name="bokeh"),
        "decord": ModuleNotFoundError("No module named 'decord'", name="decord"),
        "torchcodec.decoders": RuntimeError("Could not load libtorchcodec.\nMore lines"),
        "distributed": ImportError("cannot import name 'parse_bytes' from 'dask.utils'"),
    }
    code, found = seen_by_env(monkeypatch, absent)
    assert code == 1
    assert found["packages"]["bokeh"] == "MISSING: not installed"
    assert found["packages"]["distributed"].startswith(
        "MISSING: installed, but does not load: ImportError: cannot import"
    )
    assert found["packages"]["torch"][0].isdigit()
    assert (
        found["optional"]["decord"] == "not installed; PyAV decodes in its place, the same frames"
    )
    assert found["optional"]["torchcodec"].startswith(
        "installed, but does not load: RuntimeError: Could not load libtorchcodec.;"
    )
    assert "--proposals detectron2" in found["optional"]["detectron2"]
    assert found["decoding"]["default"] == "pyav (decord is not installed)"


def test_the_environment_without_decord_lacks_nothing(monkeypatch):
    import av

    code, found = seen_by_env(
        monkeypatch, {"decord": ModuleNotFoundError("No module named 'decord'", name="decord")}
    )
    assert code == 0
    assert found["decoding"]["FFmpeg of PyAV"].startswith(av.ffmpeg_version_info)
    assert "kernels; bf16:" in found["machine"]["cpu"]


def test_the_environment_names_every_package_that_is_asked_for_and_no_other():
    # a part of Python from 3.11 on
    asked = {re.match(r"[\w-]+", line)[0] for line in requirements()} - {"tomli"}
    assert {*NEEDED, "decord"} == asked


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80"], (8, 9), True),  # machine code of a smaller minor version
        (["sm_90"], (8, 0), False),
        (["sm_80", "sm_90a"], (10, 0), False),  # of another major version
        (["sm_80", "compute_90"], (12, 0), True),  # PTX is compiled for newer ones
        (["sm_70", "sm_100", "sm_120"], (6, 1), False),
        ([], (9, 0), True),  # ROCm says nothing of the kind
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_known(built, capability, runs):
    """As NVIDIA's programming guide has it, "Binary Compatibility" and "PTX Compatibility"."""
    assert _has_kernels(built, *capability) == runs


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_asks_vidgraph_itself(shell):
    script = CliRunner().invoke(vidgraph, ["completion", shell]).output
    assert f"_VIDGRAPH_COMPLETE={shell}_complete" in script


def test_bash_accepts_the_completion_script():
    script = CliRunner().invoke(vidgraph, ["completion", "bash"]).output
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_ls_never_cuts_a_path(copied, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    for path in (copied / ("a" * 60) / "run", copied / ("b " * 40).strip() / "run"):
        shutil.copytree(next(copied.rglob("run.json")).parent, path)
    said = CliRunner().invoke(vidgraph, ["ls", str(copied)]).output
    for entry in json.loads(CliRunner().invoke(vidgraph, ["ls", str(copied), "--json"]).output):
        assert entry["path"] in said
