"""README's commands: each has the options that it names, and the walk from videos to a fine-tuned
head runs as written.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page that name one of these languages (by default none)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    return [text for language, text in fenced if language in (languages or ("",))]


def commands(block: str) -> list[str]:
    """The lines of a block that call vidgraph, with continued lines joined and comments gone."""
    lines = (line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith(("vidgraph ", "torchrun "))]


def listed() -> list:
    found = []
    for page in PAGES:
        lines = [line for block in blocks(page, "", "bash", "sh") for line in commands(block)]
        found += [pytest.param(line, id=f"{page.stem}-{k}") for k, line in enumerate(lines)]
    return found


@pytest.mark.parametrize(
    "line", [line for line in listed() if line.values[0].startswith("vidgraph")]
)
def test_a_command_has_only_options_that_there_are(line):
    from cli.__main__ import vidgraph

    command, words = vidgraph, shlex.split(re.split(r" [>|] ", line)[0])[1:]
    while isinstance(command, click.Group):
        command, words = command.get_command(click.Context(command), words[0]), words[1:]
    assert command is not None
    given, left, _ = command.make_parser(click.Context(command)).parse_args(words)
    assert not set(left) - {"..."}, left
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and given.get(parameter.name) is not None:
            assert given[parameter.name] in parameter.type.choices


def test_every_verb_is_in_the_table_of_verbs():
    from cli.__main__ import _verbs

    rows = [
        line.split("|")[1]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    named = {word.split()[0] for row in rows for word in re.findall(r"`([a-z][^`]*)`", row)}
    assert set(_verbs()) <= named


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with videos in VIDEOS/SPLIT/CLASS, and stand-ins for the weights that torchvision
    would fetch.
    """
    from pipeline.video.decode import write_video

    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, side in (("left", 0), ("right", 32)):
            folder = place / "VIDEOS" / split / name
            folder.mkdir(parents=True)
            frames = rng.integers(0, 40, (32, 64, 64, 3), dtype=np.uint8)
            frames[:, 16:48, side : side + 32] += 180
            write_video(folder / "0.mp4", frames, 12)
    stand_ins(place / "torch" / "hub" / "checkpoints")
    return place


def stand_ins(folder: Path) -> None:
    """Random weights under the names of torchvision's files; each block's last norm is damped, so
    that nothing overflows.
    """
    import torch
    from torchvision.models import get_weight, resnet50
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    networks = {
        "ResNet50_Weights.IMAGENET1K_V1": resnet50(weights=None),
        "FasterRCNN_ResNet50_FPN_Weights.COCO_V1": fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None
        ),
    }
    for name, network in networks.items():
        state = network.state_dict()
        for key in state:
            if key.endswith("bn3.weight"):
                state[key] = state[key] * 0.2
        torch.save(state, folder / get_weight(name).url.rsplit("/", 1)[-1])


def run(line: str, place: Path) -> subprocess.CompletedProcess:
    """A line of the README in `place`, with `vidgraph` this environment's."""
    words = shlex.split(line)
    words[:1] = [sys.executable, "-m", "cli"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "TORCH_HOME": str(place / "torch"), "PYTHONPATH": paths}
    return subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_walk_from_videos_to_a_fine_tuned_head_runs_as_written(place):
    walk = next(block for block in blocks(ROOT / "README.md") if "manifest folder" in block)
    further = next(block for block in blocks(ROOT / "README.md") if "vidgraph ablate" in block)
    (place / "study.toml").write_text(blocks(ROOT / "README.md", "toml")[0])
    shutil.copytree(place / "VIDEOS", place / "NEW_VIDEOS")
    for line in commands(walk) + commands(further):
        done = run(line, place)
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert (place / "runs" / "strg-seed0" / "metrics.json").exists()


@pytest.mark.slow
def test_the_way_to_work_on_dask_runs_with_a_small_network(place):
    block = next(block for block in blocks(ROOT / "README.md") if "--dask" in block)
    (line,) = [line for line in commands(block) if "--dask" in line]
    line = line.replace("--dask 8", "--dask 2").replace("M.csv", "VIDEOS/dask.csv")
    small = (
        "--weights none --proposals grid --backbone digit_cnn --set backbone_options.width=8 "
        "--frames 4 --size 64"
    )
    assert run("vidgraph manifest folder VIDEOS --out VIDEOS/dask.csv", place).returncode == 0
    done = run(f"{line} {small} --shard-size 2", place)
    assert done.returncode == 0, done.stderr[-1500:]
    assert len(list((place / "C" / "features").glob("*.h5"))) == 3


def test_the_way_from_official_files_to_a_manifest_runs_as_written(tmp_path):
    from tests.pipeline.manifests.test_datasets import v2

    annotations, videos = v2(tmp_path / "official")
    annotations.rename(tmp_path / "LABELS")
    videos.rename(tmp_path / "VIDEOS")
    block = next(
        block for block in blocks(ROOT / "README.md") if "manifest something-something-v2" in block
    )
    done = run(commands(block)[0], tmp_path)
    # The lists of this test are shorter than the official ones, and it says so.
    assert done.returncode == 3, done.stderr
    assert "168,913" in done.stdout + done.stderr
    assert (tmp_path / "sth-v2.csv").read_text().startswith("clip,path,split,label")


def test_the_example_for_a_notebook_runs_as_written(tmp_path, monkeypatch):
    from heads.config.recipe import read_recipe
    from heads.training.train import train
    from tests.support.tiny_cache import Tiny

    cache = Tiny().write(tmp_path)
    (tmp_path / "strg.toml").write_text('source = "a test"\n[head]\nname = "strg"\nwidth = 8\n')
    recipe = read_recipe(tmp_path / "strg.toml", {"train.epochs": 1})
    train(recipe, cache, tmp_path / "runs" / "strg-seed0", device="cpu")

    (tmp_path / "caches").mkdir()
    (tmp_path / "cache").rename(tmp_path / "caches" / "mine")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks(ROOT / "README.md", "python")[0], "README.md", "exec"), names)
    assert names["scores"].shape == (6, 3)  # the videos of the split val, the classes
