"""`import vidgraph`: what a notebook needs, in one flat list."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import vidgraph
from heads.config.recipe import read_recipe
from heads.training.train import train
from tests.support.tiny_cache import Tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Tiny(failed=(1, 13)).write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pool"
    text = 'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 2\nbatch = 4\nlr = 0.1\n'
    recipe = folder.parent / "pool.toml"
    recipe.write_text(text)
    train(read_recipe(recipe), cache, folder, device="cpu")
    return folder


def python(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", vidgraph.__all__)
def test_every_name_of_the_list_is_there(name):
    assert getattr(vidgraph, name) is not None
    assert name in dir(vidgraph)


def test_the_table_of_names_and_the_imports_for_type_checkers_agree():
    tree = ast.parse((ROOT / "vidgraph/__init__.py").read_text())
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("heads", "pipeline"):
            imported |= {alias.name: node.module for alias in node.names}
    assert imported == vidgraph._HOMES


def test_a_name_that_is_not_in_the_list_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'chache'"):
        vidgraph.chache  # noqa: B018


def test_importing_it_loads_nothing_heavy(tmp_path):
    code = "import vidgraph, sys; print(sorted({'torch', 'numpy', 'h5py'} & set(sys.modules)))"
    assert python(code, tmp_path).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["pipeline", "heads", "cli"])
def test_a_folder_that_hides_one_of_our_packages_is_named_in_one_line(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = python("import vidgraph", tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: ")
    assert f"{tmp_path / name} hides vidgraph's package {name}: rename it" in last


def test_a_file_that_hides_one_of_our_packages_is_named(tmp_path):
    (tmp_path / "pipeline.py").touch()
    last = python("import vidgraph", tmp_path).stderr.strip().splitlines()[-1]
    assert f"{tmp_path / 'pipeline.py'} hides vidgraph's package pipeline: rename it" in last


def test_a_folder_without_python_files_hides_nothing_or_is_named(tmp_path):
    """It hides packages that are installed as editable, and no others."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "notes.txt").touch()
    done = python("import vidgraph; vidgraph.Cache", tmp_path)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"ImportError: {tmp_path / 'pipeline'} hides vidgraph's package")


def test_a_head_built_from_a_dataset_runs_on_its_batches(cache):
    data = vidgraph.ViewDataset(cache, "train", ["pooled", "nodes", "boxes", "valid"])
    head = vidgraph.build_head("strg", data.dims, len(data.classes), width=8)
    batch = next(iter(DataLoader(data, batch_size=3)))
    del batch["target"]
    from heads.interface.clips import clips_of

    assert head(clips_of(batch, dtype=None)).logits.shape == (3, 3)


def test_predicted_scores_are_those_that_evaluate_writes(cache, run):
    from heads.evaluation.evaluate import evaluate

    scores = vidgraph.predict(vidgraph.load_run(run, cache), cache, "val", device="cpu")
    evaluate(run, cache, "val", device="cpu", say=lambda line: None)
    with np.load(run / "predictions_val.npz") as stored:
        views = torch.softmax(torch.from_numpy(stored["logits"]), 1).numpy()
        means = [views[stored["video"] == k].mean(0) for k in range(len(stored["clips"]))]
        assert list(scores.clips) == stored["clips"].tolist()
    np.testing.assert_allclose(scores.scores, means, rtol=1e-5)
    recorded = json.loads((run / "metrics_val.json").read_text())
    assert scores.figures["top1"] == pytest.approx(recorded["top1"])


def test_predict_writes_nothing(cache, run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    vidgraph.predict(vidgraph.load_run(run, cache.path), cache.path, "test", device="cpu")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_split_that_is_not_there_is_refused(cache, run):
    with pytest.raises(ValueError, match="no clip in split 'fold-1'"):
        vidgraph.predict(vidgraph.load_run(run, cache), cache, "fold-1")
