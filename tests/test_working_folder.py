"""Nothing in the folder that a command is started in is imported, by the command or by any process
that it starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workers.module_path import guard_children, guard_program

ROOT = Path(__file__).parents[1]
OTHERS = """
    av bokeh cli click cryptography cupy dask dask_cuda decord detectron2 distributed h5py
    hdf5plugin heads jinja2 lz4 msgpack numba numpy pandas PIL pipeline psutil pyarrow pydantic rich
    scipy sitecustomize sklearn snappy tensorboard test_pool tomli torch torchcodec torchvision
    tornado triton usercustomize uvloop vidgraph yaml
"""
FEW = (
    "struct",
    "pickle",
    "tempfile",
    "click",
    "numpy",
    "h5py",
    "multiprocessing",
    "torch",
    "pipeline",
    "heads",
)
TRAP = """
import os
with open(os.environ["SEEN"], "a") as file:
    print(__name__, file=file)
"""
# As pip writes it.
SCRIPT = (
    "import re, sys\nfrom cli.__main__ import main\n"
    "if __name__ == '__main__':\n    sys.exit(main())\n"
)
POOL = """
from pipeline.workers.decode_pool import WorkerPool
from tests.pipeline.workers.test_decode_pool import double_after
if __name__ == "__main__":
    with WorkerPool(double_after, workers=1) as pool:
        print(*[answer for _, answer in pool.imap([(21, 0.0)], ahead=1)])
"""


def plant(folder: Path, names) -> None:
    """Files that note that they were imported."""
    for name in names:
        (folder / f"{name}.py").write_text(TRAP)


@pytest.fixture
def traps(tmp_path, monkeypatch) -> Path:
    """A folder with a file for every module of the standard library and for every library that
    anything here looks for.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    plant(
        folder,
        {*(name for name in sys.stdlib_module_names if not name.startswith("_")), *OTHERS.split()},
    )
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def seen(traps: Path) -> list[str]:
    path = traps.parent / "seen"
    return sorted(set(path.read_text().split())) if path.exists() else []


def vidgraph(traps: Path, *words: object) -> subprocess.CompletedProcess:
    """Runs the command as it is installed, in the folder of traps."""
    script = traps.parent / "bin" / "vidgraph"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, script, *map(str, words)],
        cwd=traps,
        env=env,
        capture_output=True,
        text=True,
    )


def test_a_trap_that_is_imported_is_noticed(traps):
    subprocess.run([sys.executable, "-c", "import numpy"], cwd=traps, check=True)
    assert "numpy" in seen(traps)


def test_workers_import_nothing_of_the_working_folder(traps, tmp_path):
    """From a program that does nothing about it itself, as a notebook's kernel does not."""
    (tmp_path / "program.py").write_text(POOL)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], cwd=traps, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("42\n", "")
    assert not seen(traps)


def test_what_libraries_start_imports_nothing_of_it_either(traps, monkeypatch):
    """Such as the compilers' helpers of torch. Python 3.10 has no such switch."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    guard_program()
    subprocess.run([sys.executable, "-c", "import numpy"], cwd=traps, check=True)
    assert not seen(traps) or sys.version_info < (3, 11)


def test_the_command_imports_nothing_of_it(traps):
    assert vidgraph(traps, "ls").returncode == 0
    assert not seen(traps)


@pytest.fixture
def few_traps(traps) -> Path:
    """Only what the command itself imports: Python imports modules of its own before the first line
    of ours.
    """
    for path in traps.iterdir():
        path.unlink()
    plant(traps, FEW)
    return traps


def test_the_package_as_a_program_imports_nothing_of_it(few_traps):
    done = subprocess.run(
        [sys.executable, "-m", "cli", "ls"], cwd=few_traps, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not seen(few_traps)


def test_the_package_runs_from_its_own_folder_without_an_installation(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "cli", "ls", "docs"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("", ""),
        (":/mine", "/mine"),
        ("/mine:", "/mine"),
        ("/mine::.", "/mine:."),
        ("/a:/b", "/a:/b"),
        (None, None),
    ],
)
def test_empty_entries_of_pythonpath_are_dropped_and_named_folders_stay(monkeypatch, given, left):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", given or "")
    if given is None:
        monkeypatch.delenv("PYTHONPATH")
    guard_program()
    assert os.environ.get("PYTHONPATH") == left


def test_an_empty_entry_of_pythonpath_is_no_way_in(few_traps, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", str(ROOT))))
    assert vidgraph(few_traps, "ls").returncode == 0
    assert not seen(few_traps)


def test_a_folder_that_pythonpath_names_is_searched(traps, monkeypatch):
    (traps.parent / "mine").mkdir()
    plant(traps.parent / "mine", ["torchcodec"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(traps.parent / "mine"))))
    assert vidgraph(traps, "env").returncode == 0
    assert seen(traps) == ["torchcodec"]


SMALL = (
    "--backbone digit_cnn --weights none --set backbone_options.width=4 --keep pooled,nodes,conv2 "
    "--proposals grid "
    "--set proposal_options.scales=[2] --frames 4 --size 32 --train-views 1 --dtype float32 "
    "--device cpu --workers 1"
)
VERBS = f"""
manifest digits --out made --train 6 --val 2 --test 2 --workers 1
check --manifest made/manifest.csv --workers 1
plan --manifest made/manifest.csv --cache cache --clips 2 {SMALL}
extract --manifest made/manifest.csv --cache cache {SMALL}
extract --manifest made/manifest.csv --cache dasked {SMALL} --dask 1
graphs --cache cache
verify --cache cache --workers 1
repair --cache cache
train recipe.toml --cache cache --runs runs --name one --device cpu
evaluate runs/one --cache cache --device cpu
ablate study.toml --cache cache --runs runs --device cpu
finetune recipe.toml --cache cache --runs runs --name two --device cpu --workers 1
show test-00000 --cache cache --out picture.png
report runs/one --out report
summary pool
ls
env
completion bash
"""


@pytest.mark.slow
def test_no_verb_imports_anything_of_it(traps):
    recipe = 'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\nlr = 0.1\n'
    (traps / "recipe.toml").write_text(recipe)
    (traps / "study.toml").write_text('source = "a test"\nrecipes = ["recipe.toml"]\nseeds = [0]\n')
    for line in VERBS.strip().splitlines():
        done = vidgraph(traps, *line.split())
        assert not seen(traps), line
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_guard_is_set_up_once():
    from multiprocessing import util

    guard_children()
    once = util.spawnv_passfds
    guard_children()
    assert util.spawnv_passfds is once
