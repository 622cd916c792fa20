"""Nothing that is read is executed: not from a manifest, a recipe, a cache, a checkpoint or an
array file.
"""

import ast
import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from heads.runs.run_files import load_checkpoint
from pipeline.backbones._checkpoints import read
from pipeline.cache.reader import Cache
from pipeline.proposals._rpn import read_state
from pipeline.proposals.detectron2 import _rpn_state
from pipeline.stages.verify import verify
from tests.pipeline.stages.test_verify import reseal
from tests.support.small_cache import make_cache

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("cli", "heads", "pipeline") for path in (ROOT / room).rglob("*.py")
)
# Libraries whose files can hold code, or whose readers run what they find.
RUNS_CODE = {
    "cloudpickle",
    "cPickle",
    "dill",
    "jinja2",
    "joblib",
    "marshal",
    "pandas",
    "pickle",
    "runpy",
    "shelve",
    "yaml",
}
PICKLES = {
    # between a process and its own children, over a pipe that nobody else has
    "pipeline/workers/decode_pool.py",
    "pipeline/workers/pool_process.py",
    "pipeline/workers/pool_worker.py",  # the children's end of it
    "pipeline/workers/dask_jobs.py",  # between a run and its own Dask workers
    # files of weights of Caffe2 and detectron2, by a reader that makes arrays and nothing else
    "pipeline/networks/array_pickle.py",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.hub.load",
    "torch.jit.load",
    "builtins.eval",
}


# Reads the one template of the package, page.html.
TEMPLATES = "heads/reporting/html_page.py"


def calls(path: Path):
    """(name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def wrong(path: Path) -> list[str]:
    """What in a file could run what it reads."""
    where = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    imported = modules(path) & RUNS_CODE
    if where == TEMPLATES:
        imported.discard("jinja2")
    found = []
    if where not in PICKLES:
        found = [f"imports {name}" for name in sorted(imported)]
    for name, call in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        last = name.split(".")[-1]
        if name in CALLS:
            found.append(f"calls {name}")
        if name.startswith("torch.") and last == "load" and given.get("weights_only") != "True":
            found.append(f"calls {name} without weights_only=True")
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"calls {name} with {given}")
        # A template is code. The package's own file is read, and no text becomes one.
        if last in ("add_safe_globals", "from_string"):
            found.append(f"calls {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_run_what_it_reads(path):
    assert wrong(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "import yaml",
        "from pickle import loads",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "torch.serialization.add_safe_globals([X])",
        "import jinja2",
        "environment.from_string(x)",
    ],
)
def test_the_check_sees_what_it_looks_for(tmp_path, line):
    (tmp_path / "a.py").write_text(f"def f():\n    {line}\n")
    assert wrong(tmp_path / "a.py")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def malicious(folder: Path, kind: str) -> tuple[Path, Path]:
    """(a checkpoint that runs code where it is trusted, the folder that the code would make)."""
    file, made = folder / "bad.pt", folder / "owned"
    payload = {"format": 1, "state": {"w": torch.zeros(2)}, "about": Bomb(made)}
    if kind == "zip":
        torch.save(payload, file)
    elif kind == "legacy":
        torch.save(payload, file, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    else:  # TorchScript: code is what it holds
        torch.save({"w": torch.zeros(2)}, file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("bad/constants.pkl", pickle.dumps(Bomb(made)))
            archive.writestr("bad/code/__torch__.py", "raise SystemExit")
    return file, made


@pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:.torch.load. received a zip file"
)
@pytest.mark.parametrize(
    "load",
    [read, lambda path: read_state(path, ["w"]), load_checkpoint],
    ids=["weights", "rpn", "run"],
)
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "script"])
def test_a_malicious_checkpoint_is_refused_in_one_line(tmp_path, kind, load):
    file, made = malicious(tmp_path, kind)
    try:
        load(file)
    except ValueError as error:
        said = str(error)
    else:
        # Its tensors are plain, and its code was not looked at.
        said = "" if kind == "script" else "taken"
    assert said != "taken"
    assert len(said.splitlines()) <= 1
    assert not made.exists()


def test_the_malicious_checkpoint_would_work_on_who_trusts_it(tmp_path):
    for kind in ("zip", "legacy"):
        folder = tmp_path / kind
        folder.mkdir()
        file, made = malicious(folder, kind)
        torch.load(file, weights_only=False)
        assert made.exists()


def test_a_malicious_file_of_the_model_zoo_is_refused(tmp_path):
    """Its files are pickles, read by one that knows arrays only."""
    (tmp_path / "bad.pkl").write_bytes(
        pickle.dumps({"model": {"w": Bomb(tmp_path / "owned")}}, protocol=2)
    )
    with pytest.raises(ValueError, match=r"would execute posix\.mkdir"):
        _rpn_state(tmp_path / "bad.pkl", ["w"])
    assert not (tmp_path / "owned").exists()


def test_pickles_in_array_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", scores=np.array([Bomb(tmp_path / "owned")], object))
    with np.load(tmp_path / "a.npz") as file, pytest.raises(ValueError, match="allow_pickle"):
        file["scores"]
    assert not (tmp_path / "owned").exists()


def test_a_shard_cannot_lead_to_another_file(tmp_path):
    """HDF5 has links to other files, and datasets whose bytes lie elsewhere."""
    cache = make_cache(tmp_path)
    shard, secret = cache / "features/00000.h5", tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros((6, 4, 6), np.float16)
    with h5py.File(shard, "r+") as file:
        del file["train/pooled"]
        file["train/pooled"] = h5py.ExternalLink(str(secret), "x")
    reseal(shard)
    assert any("pooled" in finding.what for finding in verify(cache))
    with h5py.File(shard, "r+") as file:
        del file["train/pooled"]
        (tmp_path / "raw").write_bytes(bytes(6 * 4 * 6 * 2))
        size = 6 * 4 * 6 * 2
        file["train"].create_dataset(
            "pooled", (6, 4, 6), np.float16, external=[(str(tmp_path / "raw"), 0, size)]
        )
    reseal(shard)
    assert any("pooled" in finding.what for finding in verify(cache))


@pytest.mark.parametrize(
    "name",
    [
        "os",
        "os.path",
        "../zoo/pool",
        "__init__",
        "_single",
        "pool.build",
        "",
        "pipeline.cache.reader",
    ],
)
def test_names_from_files_load_nothing_but_what_is_listed(name):
    """Recipes and configurations name heads, backbones, sources of boxes; only those there are
    become a module.
    """
    from heads.zoo import check_options
    from pipeline.backbones import build_backbone
    from pipeline.proposals import build_proposals

    for look_up in (
        lambda: check_options(name, {}),
        lambda: build_backbone(name),
        lambda: build_proposals(name),
    ):
        with pytest.raises(ValueError, match=r"name|known|such|head"):
            look_up()


def test_a_cache_that_was_read_is_still_the_same(tmp_path):
    cache = make_cache(tmp_path)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    opened = Cache(cache)
    opened["train"].batch(range(len(opened["train"])))
    assert verify(cache) == []
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
