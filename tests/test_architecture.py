"""The arrows between the rooms point down only, and each heavy or delicate library has one
place.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cli", "heads", "pipeline")

# What a file of the pipeline may import from the others, beyond these, which are words and
# arithmetic rather than stages.
WORDS = {"names", "tensors", "boxes", "manifest", "sealed", "owners", "smallfile", "draws", "cores"}
WORDS |= {"memory_format", "precision", "shown", "texts", "wrappers"}
PIPELINE = {
    "rows": set(),
    "manifest": {"rows"},
    "timeline": {"container"},  # for its types alone
    "container": {"timeline"},
    "upright": set(),
    "images": set(),
    "reader": set(),
    "video_file": {"container", "images", "reader", "upright"},
    "decode": {"container", "images", "reader", "upright", "video_file"},
    "scan": {"images"},
    "datasets": {"scan"},
    "crops": set(),
    "sample": {"reader", "crops"},  # reader: the VideoInfo that it samples from
    "worker": set(),
    "module_path": set(),
    "tls": set(),
    "dask_nodes": set(),
    "scratch": set(),
    "dask_worker": {"module_path", "scratch"},
    "pool": {"worker", "module_path"},
    "memory": set(),
    "videos": set(),
    "pixels": {"config", "decode", "reader", "sample", "videos"},
    "check": {"pixels", "pool", "proposals", "reader", "sample"},
    "config": {"sample", "upright"},
    "backbones": set(),
    "proposals": {"reader"},
    "roi": set(),
    "partfile": set(),
    "shards": {"partfile"},
    "shardtables": {"shards", "partfile"},
    "handles": set(),
    "shardfile": {"shards", "shardtables", "handles"},
    "records": set(),
    "claims": set(),
    "home": set(),
    "waits": {"claims"},
    "folder": {"claims", "home", "records", "waits"},
    "cache": {"shards", "shardfile", "folder"},
    "slurm": {"dask_nodes", "dask_worker"},
    "flight": set(),
    "cluster": {
        "claims",
        "flight",
        "home",
        "pool",
        "slurm",
        "tls",
        "dask_nodes",
        "scratch",
        "waits",
    },
    "graphs": {"cache", "folder", "home", "shards", "claims", "cluster", "waits"},
    "values": {"shards"},
    "shardcheck": {"cache", "folder", "records", "shardfile", "shardtables", "values"},
    "verify": {"cache", "folder", "pool", "claims", "shardcheck"},
    "takeover": {"records", "shards", "shardfile", "values"},
    "digits": {"decode", "pool"},
    "digit_cache": {"digits", "backbones", "cache", "shards"},
    "forward": {"backbones", "proposals", "roi", "config", "pixels", "decode"},
    "jobs": {"claims"},
    "compose": {
        "jobs",
        "claims",
        "forward",
        "pixels",
        "pool",
        "reader",
        "sample",
        "shards",
        "proposals",
        "takeover",
        "records",
    },
    "extract": {
        "compose",
        "jobs",
        "claims",
        "cluster",
        "folder",
        "home",
        "forward",
        "config",
        "pixels",
        "pool",
        "sample",
        "cache",
        "takeover",
        "memory",
        "records",
        "videos",
        "waits",
    },
    "plan": {"cache", "cluster", "compose", "config", "extract", "folder", "forward"},
    "repair": {"extract", "config", "cache", "folder", "graphs", "records", "videos", "waits"},
}
HEADS_MAY_USE = {
    "cache",
    "tensors",
    "boxes",
    "roi",
    "graphs",
    "backbones",
    "cluster",
    "memory",
    "manifest",
    "sealed",
}
HEADS_MAY_USE |= {
    "digits",
    "digit_cache",
    "claims",
    "names",
    "memory_format",
    "precision",
    "shown",
    "texts",
}
HEADS_MAY_USE |= {"home", "owners", "reader", "records", "smallfile", "waits"}
ONE_PLACE = {
    "h5py": {"pipeline/cache/shard_writer.py", "pipeline/cache/shard_layout.py"},
    "hdf5plugin": {"pipeline/cache/shard_writer.py", "pipeline/cache/shard_reader.py"},
    "decord": {"pipeline/video/decode.py"},
    "av": {"pipeline/video/decode.py", "pipeline/video/video_file.py"},
    "torchcodec": {"pipeline/video/decode.py"},
    "detectron2": {"pipeline/proposals/detectron2.py"},
}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of_pipeline(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")


def test_arrows_point_down_only():
    above = {"pipeline": {"heads", "cli"}, "heads": {"cli"}, "cli": set()}
    for room in ROOMS:
        for path in files(room):
            wrong = {name for name in imports(path) if name.split(".")[0] in above[room]}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_stages_of_the_pipeline_meet_only_in_the_composer():
    for path in files("pipeline"):
        me = room_of_pipeline(path)
        if me == "__init__":
            continue
        assert me in PIPELINE or me in WORDS, (
            f"{path.relative_to(ROOT)}: add its row to the table of this test"
        )
        used = (
            {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
            - {me}
            - WORDS
        )
        assert used <= PIPELINE.get(me, set()), (
            f"{path.relative_to(ROOT)} imports {used - PIPELINE.get(me, set())}"
        )


def test_heads_import_only_what_loads_no_decoder():
    for path in files("heads"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
        if path.stem not in ("finetune", "footage", "draw", "draw_source", "pictures"):
            assert used <= HEADS_MAY_USE, f"{path.relative_to(ROOT)} imports {used - HEADS_MAY_USE}"


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_delicate_library_is_imported_in_one_place(library):
    users = {
        str(p.relative_to(ROOT))
        for room in ROOMS
        for p in files(room)
        if library in {n.split(".")[0] for n in imports(p)}
    }
    users.discard("pipeline/proposals/__init__.py")  # its own folder is named after it
    assert users <= ONE_PLACE[library]


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_heads_load_neither_a_decoder_nor_detectron2():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files("heads")]
    light = [
        m
        for m in modules
        if m.split(".")[-1] not in ("finetune", "footage", "draw", "draw_source", "__init__")
    ]
    assert not loaded_after("\n".join(f"import {m}" for m in light)) & {
        "decord",
        "av",
        "torchcodec",
        "detectron2",
    }


def test_a_client_that_hands_out_shards_does_without_torch():
    """It holds a manifest of a million clips, and runs on login nodes."""
    assert not loaded_after(
        "import pipeline.stages.extract, pipeline.workers.engines, dask, distributed"
    ) & {"torch", "torchvision"}


def test_the_command_line_answers_without_heavy_imports():
    """Every verb's file is imported for `vidgraph --help`; numpy alone would take a third of its
    half second.
    """
    verbs = [f"import cli.{p.stem}" for p in files("cli") if p.stem != "__init__"]
    assert not loaded_after("\n".join(verbs)) & {
        "torch",
        "numpy",
        "dask",
        "matplotlib",
        "h5py",
        "rich",
        "pydantic",
    }


def test_nothing_that_is_read_can_run_code():
    """Checkpoints load as tensors only; no pickle, no eval, no YAML."""
    for room in ROOMS:
        for path in files(room):
            where = path.relative_to(ROOT)
            assert not {n.split(".")[0] for n in imports(path)} & {
                "dill",
                "joblib",
                "yaml",
                "marshal",
                "shelve",
            }, where
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in ("eval", "exec", "pickle.load"), where
                    if name == "torch.load":
                        assert any(
                            k.arg == "weights_only" and ast.unparse(k.value) == "True"
                            for k in node.keywords
                        ), where
                    if name == "np.load":
                        assert not any(k.arg == "allow_pickle" for k in node.keywords), where


def test_text_for_people_goes_through_one_place():
    """Lines and tables of the terminal through cli/_say.py, tables for spreadsheets through
    pipeline/text/printable.py.
    """
    whole = {
        "ablate",
        "completion",
        "demo",
        "env",
        "extract",
        "ls",
        "reproduce",
        "summary",
        "verify",
    }  # several lines at once
    for room in ROOMS:
        for path in files(room):
            where, text = str(path.relative_to(ROOT)), path.read_text()
            assert where == "cli/_say.py" or "rich.console" not in imports(path), where
            data = (
                "pipeline/text/printable.py",
                "pipeline/manifests/manifest.py",
                "pipeline/stages/plan.py",
                "pipeline/digits/video_files.py",
            )  # for programs
            assert where in data or "csv.writer" not in text, where
            if room == "cli" and path.stem not in whole | {"_say"}:
                assert "click.echo" not in text, where
            if path.stem not in ("__main__", "_progress"):
                called = {
                    ast.unparse(node.func)
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Call)
                }
                assert "print" not in called, where
