"""The arrows between the rooms point down only, and each heavy or delicate library has one
place.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cli", "heads", "pipeline")

# The rooms, from the ground up. A room imports from rooms above its own line only, and only from
# those that its row names. Rooms of `heads` may use all of `pipeline` but NEEDS_FRAMES.
PIPELINE = {
    "lazy_names": set(),
    "files": set(),
    "encoder_names": {"files"},
    "text": {"files"},
    "plugins": {"encoder_names", "files", "text"},
    "networks": set(),
    "views": {"text"},
    "manifests": {"files", "text", "views"},
    "video": {"manifests", "text", "views"},
    "regions": set(),
    "backbones": {"encoder_names", "files", "networks", "plugins", "text"},
    "encoders": {"encoder_names", "networks", "text", "backbones"},
    "box_files": {"files", "networks", "text"},
    "proposals": {"box_files", "files", "networks", "plugins", "regions", "text"},
    "workers": {"files", "text"},
    "cache": {"files", "manifests", "plugins", "text", "workers"},
    "stages": {
        *("files", "text", "plugins", "views", "manifests", "video", "regions", "networks"),
        *("backbones", "proposals", "workers", "cache", "encoder_names"),
    },
    "export": {"files", "manifests", "text", "video", "cache"},
    "digits": {"files", "manifests", "video", "backbones", "workers", "cache"},
}
HEADS = {
    "interface": set(),
    "papers": {"interface"},
    "zoo": {"interface", "papers"},
    "plugin_check": {"interface", "zoo"},
    "config": {"zoo"},
    "data": {"interface", "config"},
    "runs": {"interface", "zoo", "config"},
    "evaluation": {"interface", "zoo", "config", "data", "runs"},
    "training": {"interface", "papers", "zoo", "config", "data", "runs", "evaluation"},
    "finetuning": {"interface", "zoo", "config", "data", "runs", "evaluation", "training"},
    "drawing": {"interface", "data", "runs", "evaluation"},
    "prediction": {
        *("interface", "config", "data", "runs", "evaluation", "finetuning", "drawing"),
    },
    "reporting": {"interface", "papers", "zoo", "config", "runs", "evaluation"},
    "reproduction": {
        *("interface", "config", "data", "runs", "evaluation", "training", "finetuning"),
    },
}
# What decodes videos or runs a network that proposes boxes, and who may use it.
NEEDS_FRAMES = {"video", "proposals", "stages", "export"}
READ_FRAMES = {"finetuning", "drawing", "prediction", "reporting", "plugin_check"}
ONE_PLACE = {
    "h5py": {"pipeline/cache/shard_writer.py", "pipeline/cache/shard_layout.py"},
    "hdf5plugin": {"pipeline/cache/shard_writer.py", "pipeline/cache/shard_reader.py"},
    "decord": {"pipeline/video/decord_reader.py"},
    "av": {
        *("pipeline/video/decode.py", "pipeline/video/pyav_reader.py"),
        "pipeline/video/video_file.py",
    },
    "torchcodec": {"pipeline/video/torchcodec_reader.py"},
    "detectron2": {
        *("pipeline/proposals/detectron2.py", "pipeline/proposals/detectron2_detector.py"),
    },
    "safetensors": {"pipeline/encoders/weights.py"},
    "timm": {"pipeline/encoders/timm_models.py"},
    "transformers": {"pipeline/encoders/hf_models.py"},
    "jinja2": {"heads/reporting/html_page.py"},
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


def room_of(path: Path) -> str:
    """The room of a module: the folder, or the module, below its package."""
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


def rooms_used(path: Path, package: str) -> set[str]:
    """The rooms of `package` that a module imports anything from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{package}.")}


def test_arrows_between_packages_point_down_only():
    above = {"pipeline": {"heads", "cli"}, "heads": {"cli"}, "cli": set()}
    for package in PACKAGES:
        for path in files(package):
            wrong = {name for name in imports(path) if name.split(".")[0] in above[package]}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize(("package", "rooms"), [("pipeline", PIPELINE), ("heads", HEADS)])
def test_arrows_between_rooms_are_those_of_the_table(package, rooms):
    for path in files(package):
        me = room_of(path)
        if me in ("__init__", "recipes", "studies"):
            continue
        assert me in rooms, f"{path.relative_to(ROOT)}: add the room to the table of this test"
        wrong = rooms_used(path, package) - {me, "lazy_names"} - rooms[me]
        assert not wrong, f"{path.relative_to(ROOT)} imports from {wrong}"


@pytest.mark.parametrize("rooms", [PIPELINE, HEADS])
def test_the_table_of_rooms_has_no_circle(rooms):
    lower = set()
    for room, uses in rooms.items():
        assert uses <= lower, f"{room} uses {uses - lower}, which the table lists after it"
        lower.add(room)


def test_the_table_has_no_arrow_that_nobody_uses():
    for package, rooms in (("pipeline", PIPELINE), ("heads", HEADS)):
        used = {room: set() for room in rooms}
        for path in files(package):
            if room_of(path) in rooms:
                used[room_of(path)] |= rooms_used(path, package)
        for room, uses in rooms.items():
            assert uses <= used[room], f"{package}.{room} does not use {uses - used[room]}"


def test_modules_import_one_another_without_a_circle():
    """Imports inside functions and for type checkers count, too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in PACKAGES
        for path in files(package)
        if path.stem != "__init__"
    }
    waits_for = {name: imports(path) & set(modules) for name, path in modules.items()}
    while True:
        used = set().union(*waits_for.values())
        # A module that imports no other one left, or that none imports, is on no circle.
        free = {name for name, uses in waits_for.items() if not uses or name not in used}
        if not free:
            break
        waits_for = {name: uses - free for name, uses in waits_for.items() if name not in free}
    assert not waits_for, f"these modules import one another: {waits_for}"


def test_no_folder_is_crowded():
    """A room of more than 20 modules is two rooms; zoos have one file for each of their kind."""
    zoos = {ROOT / "heads/zoo", ROOT / "pipeline/backbones"}
    for package in ("pipeline", "heads"):
        for folder in {path.parent for path in files(package)} - zoos:
            count = len([path for path in folder.glob("*.py") if path.stem != "__init__"])
            assert count <= 20, f"{folder.relative_to(ROOT)} has {count} modules"


def test_every_room_says_what_it_is_for():
    for package, rooms in (("pipeline", PIPELINE), ("heads", HEADS)):
        for room in rooms:
            folder = ROOT / package / room
            if folder.is_dir():
                tree = ast.parse((folder / "__init__.py").read_text())
                assert ast.get_docstring(tree), f"{package}/{room}/__init__.py has no docstring"


def test_only_rooms_that_need_frames_import_what_reads_them():
    for path in files("heads"):
        if room_of(path) not in READ_FRAMES:
            wrong = rooms_used(path, "pipeline") & NEEDS_FRAMES
            assert not wrong, f"{path.relative_to(ROOT)} imports from {wrong}"


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_delicate_library_is_imported_in_one_place(library):
    users = {
        str(p.relative_to(ROOT))
        for room in PACKAGES
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
    verbs = [f"import cli.{p.stem}" for p in (ROOT / "cli").glob("*.py") if p.stem != "__init__"]
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
    for room in PACKAGES:
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
    """Lines and tables of the terminal through cli/_shared/say.py, tables for spreadsheets through
    pipeline/text/printable.py.
    """
    # These print texts of several lines.
    whole = {"ablate", "completion", "demo", "env", "extract", "ls", "reproduce", "summary"}
    whole |= {"verify", "say", "frames_study"}
    for room in PACKAGES:
        for path in files(room):
            where, text = str(path.relative_to(ROOT)), path.read_text()
            assert where == "cli/_shared/say.py" or "rich.console" not in imports(path), where
            # Tables that programs read.
            data = (
                "pipeline/text/printable.py",
                "pipeline/manifests/manifest.py",
                "pipeline/stages/plan.py",
                "pipeline/digits/video_files.py",
                "pipeline/export/arrays.py",
            )
            assert where in data or "csv.writer" not in text, where
            if room == "cli" and path.stem not in whole:
                assert "click.echo" not in text, where
            if path.stem not in ("__main__", "progress"):
                called = {
                    ast.unparse(node.func)
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Call)
                }
                assert "print" not in called, where
