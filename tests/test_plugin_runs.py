"""Plug-in files through the commands: trained, extracted with, recorded, and never executed because
a record names them."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.__main__ import main
from heads.training.ablate import _TrainGroup
from heads.training.estimates import AblateOptions
from pipeline import plugins
from pipeline.cache.reader import Cache
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import ExtractShards, RunOptions
from tests.support import plugin_files
from tests.support.plugin_files import marked
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import make_videos

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def given_in_this_file_alone():
    """Workers get every file that their process was given: those of other tests must not."""
    kept = [(of, dict(of)) for of in (plugins._given, plugins._noted)]
    yield
    for of, before in kept:
        of.clear()
        of.update(before)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a cache; `ran` shows when a plug-in was executed."""
    monkeypatch.chdir(tmp_path)
    Tiny().write(tmp_path)
    return tmp_path


@pytest.fixture
def vidgraph(monkeypatch, capsys):
    """A command as in a process of its own: (exit code, standard output, standard error)."""

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(plugins, "_given", {})
        monkeypatch.setattr(plugins, "_noted", {})
        for name in [name for name in sys.modules if name.startswith("vidgraph_plugin_")]:
            del sys.modules[name]
        with pytest.raises(SystemExit) as left:
            main(list(map(str, args)))
        return left.value.code, *capsys.readouterr()

    return run


def save(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return path


def plugin_of(place: Path, source: str, name: str) -> Path:
    return save(place / name, marked(source, place / "ran"))


def executed(place: Path) -> bool:
    """Whether a plug-in was executed since the last question."""
    ran = (place / "ran").exists()
    (place / "ran").unlink(missing_ok=True)
    return ran


def trained(place: Path, vidgraph) -> Path:
    """A run of ./plug/my_head.py, which the recipe beside it names."""
    plugin_of(place, plugin_files.HEAD, "plug/my_head.py")
    save(place / "plug/mine.toml", plugin_files.RECIPE.replace("NAME", "./my_head.py"))
    code, _, said = vidgraph("train", "plug/mine.toml", "--cache", "cache", "--device", "cpu")
    assert code == 0, said
    assert executed(place)
    return place / "runs/mine-seed0"


def test_a_recipe_names_a_file_beside_it_and_the_run_records_its_checksum(place, vidgraph):
    run = trained(place, vidgraph)
    record = json.loads((run / "run.json").read_text())
    path = place / "plug/my_head.py"
    checksum = plugins.give_file(path).rpartition("@")[2]
    assert record["recipe"]["head"]["name"] == f"my_head.py@{checksum}"
    assert record["plugins"] == {checksum: str(path)}

    from heads.runs.run_files import load_checkpoint

    assert load_checkpoint(run / "last.pt")["about"]["plugins"] == {checksum: str(path)}


def test_a_run_of_a_file_is_evaluated_only_if_the_file_is_given_again(place, vidgraph):
    run = trained(place, vidgraph)
    path, elsewhere = place / "plug/my_head.py", place / "elsewhere/renamed.py"
    show = ("show", "clip-20", "--cache", "cache", "--run", run, "--out", place / "x.png")
    for command in (("evaluate", run, "--device", "cpu"), show, ("summary", run)):
        code, _, said = vidgraph(*command)
        assert code == 2
        assert f"--plugin {path}" in said
        assert len(said.splitlines()) == 1
        assert not executed(place)

        code, _, said = vidgraph(*command, "--plugin", path)
        assert code == 0, said
        assert executed(place)

    elsewhere.parent.mkdir()
    shutil.copy(path, elsewhere)
    assert vidgraph("evaluate", run, "--device", "cpu", "--plugin", elsewhere)[0] == 0
    assert executed(place)
    path.write_text(path.read_text() + "# changed\n")
    code, _, said = vidgraph("evaluate", run, "--device", "cpu", "--plugin", path)
    assert code == 2
    assert "changed since" in said
    assert not executed(place)


def test_lists_reports_and_ensembles_execute_nothing(place, vidgraph):
    run = trained(place, vidgraph)
    code, out, said = vidgraph("report", run, "--out", "report", "--pictures", "0")
    assert code == 0, said
    assert "executes no plug-in" in out + said
    assert "my_head" in (place / "report/report.md").read_text()
    assert vidgraph("ls", ".")[0] == 0
    shutil.copytree(run, place / "runs/copy")
    code, _, said = vidgraph("evaluate", run, place / "runs/copy", "--ensemble")
    assert code == 0, said
    assert not executed(place)


def test_the_same_command_continues_a_run_and_a_changed_file_is_another_run(place, vidgraph):
    run = trained(place, vidgraph)
    again = ("train", "plug/mine.toml", "--cache", "cache", "--device", "cpu")
    code, out, _ = vidgraph(*again)
    assert code == 0
    assert "finished before; reading its result" in out
    (run / "metrics.json").unlink()
    assert vidgraph(*again)[0] == 0
    # the recipe that the run folder has names no path: nothing of it is executed by itself
    executed(place)
    code, _, said = vidgraph("train", run / "recipe.toml", "--cache", "cache", "--name", "other")
    assert code == 2
    assert "--plugin my_head.py" in said
    assert not executed(place)

    moved = place / "moved"
    shutil.move(place / "plug", moved)
    again = ("train", "moved/mine.toml", "--cache", "cache", "--device", "cpu")
    assert "finished before" in vidgraph(*again)[1]
    (moved / "my_head.py").write_text((moved / "my_head.py").read_text() + "# changed\n")
    code, _, said = vidgraph(*again)
    assert code == 2
    assert "holds another run (recipe.head.name" in said


def test_a_path_on_the_command_line_starts_from_the_working_directory(place, vidgraph):
    plugin_of(place, plugin_files.HEAD, "my_head.py")
    save(place / "plug/pool.toml", plugin_files.RECIPE.replace("NAME", "pool"))
    code, _, said = vidgraph(
        *("train", "plug/pool.toml", "--cache", "cache", "--device", "cpu"),
        *("--set", "head.name=./my_head.py", "--set", "head.width=4"),
    )
    assert code == 0, said
    assert executed(place)
    code, _, said = vidgraph(
        *("train", "plug/pool.toml", "--cache", "cache", "--set", "head.name=./none.py")
    )
    assert code == 2
    assert "none.py: No such file" in said


def test_a_crafted_run_executes_nothing(place, vidgraph):
    """Paths in the place of a recorded name, in run.json and in the checkpoint."""
    import torch

    from heads.runs.run_files import read_json, write_json

    run = trained(place, vidgraph)
    bomb = str(plugin_of(place, plugin_files.HEAD, "bomb.py"))
    record = read_json(run / "run.json")
    record["recipe"]["head"]["name"] = bomb
    write_json(run / "run.json", record)
    for checkpoint in run.glob("*.pt"):
        saved = torch.load(checkpoint, weights_only=True)
        saved["about"]["recipe"]["head"]["name"] = bomb
        torch.save(saved, checkpoint)
    for command in (
        ("evaluate", run),
        ("summary", run),
        ("show", "clip-20", "--cache", "cache", "--run", run, "--out", place / "x.png"),
        ("report", run, "--out", "report", "--pictures", "0"),
        ("ls", "."),
    ):
        assert len(vidgraph(*command)[2].splitlines()) <= 2
        assert not executed(place)


def test_members_of_a_study_may_be_files(place, vidgraph):
    plugin_of(place, plugin_files.HEAD, "plug/my_head.py")
    save(
        place / "plug/study.toml",
        'source = "ours"\n[head]\nname = "pool"\n[train]\nepochs = 1\nlr = 0.1\n'
        '[grid]\nhead = ["pool", "./my_head.py"]\n"my_head.width" = [2, 4]\n',
    )
    code, out, said = vidgraph(
        *("ablate", "plug/study.toml", "--cache", "cache", "--device", "cpu")
    )
    assert code == 0, out + said
    folders = sorted(path.name for path in (place / "runs/study").iterdir() if path.is_dir())
    assert [name for name in folders if name != "logs"] == [
        "my_head,my_head.width=2-seed0",
        "my_head,my_head.width=4-seed0",
        "pool-seed0",
    ]


def test_summary_counts_files(place, vidgraph):
    save(place / "my_head.py", plugin_files.HEAD)
    save(place / "small.py", plugin_files.BACKBONE)
    assert vidgraph("summary", "./my_head.py", "--backbone", "./small.py")[0] == 0
    code, _, said = vidgraph("summary", "small.py", "--size", "32", "--set", "width=4")
    assert code == 0, said


# Extraction

SPLITS = ("train", "train", "val", "test")


def extract_command(place: Path, cache: str = "videos.cache", **more) -> list:
    options = {
        "--manifest": place / "videos/manifest.csv",
        "--cache": place / cache,
        "--backbone": "./small.py",
        "--weights": "none",
        "--proposals": "./halves.py",
        "--frames": 4,
        "--size": 32,
        "--workers": 0,
        "--device": "cpu",
        "--shard-size": 2,
        **more,
    }
    # A manifest with other splits reads it, too.
    return ["extract", "--views-for-all", *(text for pair in options.items() for text in pair)]


@pytest.fixture
def extracted(place, vidgraph):
    plugin_of(place, plugin_files.BACKBONE, "small.py")
    plugin_of(place, plugin_files.BOXES, "halves.py")
    make_videos(place / "videos", clips=4)
    code, _, said = vidgraph(*extract_command(place))
    assert code == 0, said
    assert executed(place)
    return place / "videos.cache"


def test_a_fingerprint_has_the_checksum_of_a_file_and_not_its_path(extracted, place, vidgraph):
    config = Cache(extracted).config
    record = json.loads((extracted / "cache.json").read_text())
    for key, name in (("backbone", "small.py"), ("proposals", "halves.py")):
        checksum = plugins.give_file(place / name).rpartition("@")[2]
        assert config[key] == f"plugin@{checksum}"
        assert record["plugins"][checksum] == str(place / name)
    assert Cache(extracted)["train"].shape("nodes") == (4, 2, 8)

    (place / "moved").mkdir()
    (place / "small.py").rename(place / "moved/renamed.py")
    code, out, _ = vidgraph(*extract_command(place, **{"--backbone": "moved/renamed.py"}))
    assert code == 0
    assert "every shard was complete already" in out
    (place / "moved/renamed.py").write_text(plugin_files.BACKBONE + "# changed\n")
    code, _, said = vidgraph(*extract_command(place, **{"--backbone": "moved/renamed.py"}))
    assert code == 2
    assert "backbone" in said


def test_repair_executes_files_only_if_they_are_given_again(extracted, place, vidgraph):
    next(extracted.glob("features/*.h5")).write_bytes(b"damaged")
    command = ("repair", "--cache", extracted, "--workers", "0", "--device", "cpu")
    code, _, said = vidgraph(*command)
    assert code == 2
    assert f"--plugin {place / 'small.py'}" in said
    assert not executed(place)
    code, _, said = vidgraph(*command, "--plugin", "small.py", "--plugin", "halves.py")
    assert code == 0, said
    code, out, said = vidgraph("verify", "--cache", extracted, "--workers", "0")
    assert code == 0, out + said


def test_finetuning_from_a_cache_of_a_file_takes_it_again(extracted, place, vidgraph):
    save(
        place / "mine.toml",
        plugin_files.RECIPE.replace("NAME", "pool").replace("epochs = 2", "epochs = 1"),
    )
    rows = [f"clip{k},videos/clip{k}.mp4,{split},{'ab'[k % 2]}" for k, split in enumerate(SPLITS)]
    save(place / "splits.csv", "\n".join(["clip,path,split,label", *rows, ""]))
    command = ("finetune", "mine.toml", "--cache", extracted, "--manifest", "splits.csv")
    command = (*command, "--device", "cpu", "--workers", "0")
    code, _, said = vidgraph(*command, "--name", "a")
    assert code == 2
    assert "--plugin" in said
    assert not executed(place)
    given = ("--plugin", "small.py", "--plugin", "halves.py")
    code, out, said = vidgraph(*command, "--name", "a", "--train-from", "conv1", *given)
    assert code == 0, out + said
    record = json.loads((place / "runs/a/run.json").read_text())
    assert str(place / "small.py") in record["plugins"].values()


def in_a_process(place: Path, *command) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, command)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.mark.slow
def test_dask_workers_load_the_files_of_the_client(place):
    plugin_of(place, plugin_files.BACKBONE, "small.py")
    plugin_of(place, plugin_files.BOXES, "halves.py")
    make_videos(place / "videos", clips=2)
    done = in_a_process(place, *extract_command(place, **{"--dask": 1}))
    assert done.returncode == 0, done.stderr
    assert Cache(place / "videos.cache")["train"].shape("nodes") == (4, 2, 8)


def test_workers_get_the_files_of_the_client_and_refuse_others(place, monkeypatch):
    """What Dask sends to a worker, without Dask."""
    small = plugins.give_file(plugin_of(place, plugin_files.BACKBONE, "small.py"))
    config = ExtractConfig(backbone=small, keep=("pooled",))
    job = pickle.dumps(ExtractShards(config, place, RunOptions(), redo=False))
    members = pickle.dumps(_TrainGroup(place / "cache", 0, AblateOptions()))

    monkeypatch.setattr(plugins, "_given", {})
    assert pickle.loads(job).models.backbone.channels("conv2") == 8
    monkeypatch.setattr(plugins, "_given", {})
    assert pickle.loads(members)([]) == []
    assert plugins.may_execute(small)

    monkeypatch.setattr(plugins, "_given", {})
    (place / "small.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match="another file than on the machine where"):
        pickle.loads(job)
    assert "another file than" in str(pickle.loads(members)([]))


# check-plugin


@pytest.mark.parametrize("kind", ["HEAD", "BACKBONE", "BOXES"])
def test_check_plugin_passes_what_keeps_the_contract(place, vidgraph, kind):
    save(place / "mine.py", getattr(plugin_files, kind))
    code, out, said = vidgraph("check-plugin", "./mine.py")
    assert code == 0, out + said
    assert "FAILED" not in out
    assert "of" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "was", "now", "said"),
    [
        ("HEAD", '"pooled",)', '"pooled", "boxes")', "it needs boxes, but gives logits without it"),
        ("HEAD", ".mean(1)", ".mean((0, 1))[None].expand(clips.size, -1)", "alone and in a batch"),
        ("HEAD", ".relu()", ".detach().relu()", "no gradient with respect to it"),
        ("HEAD", "dims.require", "print", "expected dims.require"),
        ("HEAD", "width: int = 8", "width=None", "expected a default that TOML has"),
        ("HEAD", "return HeadOutput(", "return (", "expected a heads.interface.clips.HeadOutput"),
        ("HEAD", "clips.get", "1 / 0 + clips.get", "ZeroDivisionError"),
        ("BACKBONE", "channels, self.path", "wrong, self.path", "FAILED"),
        ("BACKBONE", '"conv2"', '"final"', "is not the name of a cut"),
        ("BACKBONE", "self.conv(x).relu()", "self.conv(x.clamp_(max=0))", "in place"),
        ("BOXES", "0.5, 1]", "1.5, 1]", "boxes leave [0,1]"),
        ("BOXES", "[0, 0, 0.5, 1]", "[0.5, 0, 0.1, 1]", "not xyxy"),
        ("BOXES", "num_boxes = 2", "num_boxes = 3", "expected [3, 3, 4]"),
        ("BOXES", "np.float32)\n        return", "np.float64)\n        return", "expected float32"),
    ],
)
def test_check_plugin_says_what_is_broken(place, vidgraph, kind, was, now, said):
    source = getattr(plugin_files, kind)
    assert was in source
    save(place / "mine.py", source.replace(was, now))
    code, out, _ = vidgraph("check-plugin", "mine.py")
    assert code == 3, out
    assert any("FAILED" in line and said in line for line in out.splitlines()), out


def test_check_plugin_takes_names_and_options_and_refuses_others(place, vidgraph):
    assert vidgraph("check-plugin", "grid", "--set", "scales=[2,1]")[0] == 0
    code, _, said = vidgraph("check-plugin", "strgg")
    assert code == 2
    assert "did you mean strg" in said
    save(place / "mine.py", "def build():\n    return 3\n")
    code, _, said = vidgraph("check-plugin", "mine.py")
    assert code == 2
    assert "build returns int" in said
    save(place / "mine.py", "raise SystemExit(0)\n")
    assert vidgraph("check-plugin", "mine.py")[0] == 2
