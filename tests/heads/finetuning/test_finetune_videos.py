"""Fine-tuning on videos: frames must agree with the cache, a trained backbone makes a cache."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.__main__ import main
from heads.config.recipe import FOLDER, read_recipe, recipe_from
from heads.config.recipe_tables import DataOptions
from heads.data.splits import split_views
from heads.evaluation.evaluate import evaluate
from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
from heads.finetuning.frame_training import FrameRunOptions
from heads.finetuning.video_views import VideoViews
from heads.runs import run_files as runs
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.frozen_networks import source_of
from pipeline.stages.graphs import build_graphs
from pipeline.stages.repair import MovedFiles
from pipeline.video.decode import write_video
from pipeline.video.view_pixels import ClipOpener
from tests.support.tiny_backbone import tiny
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import config_of, make_videos, picture, write_csv
from tests.support.tiny_videos import run as extract_run

ROOT = Path(__file__).parents[3]
SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
OPTIONS = {"width": 8, "reduce": 8}
QUIET = {"say": lambda line: None, "device": "cpu"}
HERE = SourceOptions(workers=0)
HEADS = {
    "roi_pool": {},
    "strg": {},
    "gos_temp_conv": {"regions": "nodes", "neighbours": "cached", "width": 4},
    "rstg_map": {"backbone": "tsm_r18", "backbone_options": OPTIONS, "at": "res3.0", "width": 4},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Ten videos with boxes, their manifest with splits, the weights of a tiny network, and a cache
    in float16.
    """
    folder = make_videos(tmp_path_factory.mktemp("videos"), len(SPLITS))
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    rows = [
        (row["clip"], row["path"], split, row["label"])
        for row, split in zip(rows, SPLITS, strict=True)
    ]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    torch.save(tiny("tsm_r18", **OPTIONS).state_dict(), folder / "weights.pth")
    extract_run(folder, folder / "cache", config(folder))
    build_graphs(folder / "cache", ("iou", "nearest"))
    return folder


def config(folder: Path, **changes):
    network = {
        "backbone": "tsm_r18",
        "backbone_options": OPTIONS,
        "weights": str(folder / "weights.pth"),
    }
    keep = ("pooled", "nodes", "res3.0")
    return config_of(folder, **{**network, "keep": keep, "dtype": "float16", **changes})


def recipe(head="roi_pool", phases=None, **training):
    training = {"epochs": 1, "batch": 4, "lr": 0.01, **training}
    table = {"name": "tiny", "source": "a test", "head": {"name": head, **HEADS.get(head, {})}}
    if phases is None:
        return recipe_from({**table, "train": training})
    return recipe_from({**table, "phases": [{"train": training, **phase} for phase in phases]})


def tune(recipe_, folder, phase="", frames=None, **more):
    whole, chosen = frames_phase(recipe_, phase, **(frames or {}))
    given = {
        "source_options": HERE,
        "options": FrameRunOptions(tensorboard=False),
        **QUIET,
        **more,
    }
    return finetune(whole, folder, chosen, **given)


@pytest.mark.parametrize("head", HEADS)
def test_a_trained_head_goes_on_where_it_stopped_and_live_logits_equal_cached_ones(
    head, place, tmp_path
):
    cache, lines = Cache(place / "cache"), []
    train(recipe(head), cache, tmp_path / "head", tensorboard=False, **QUIET)
    result = tune(
        recipe(head),
        tmp_path / "whole",
        frames={"train_from": "res3"},
        cache=cache,
        start=tmp_path / "head",
        say=lines.append,
    )
    assert "starts from" in lines[0]
    (said,) = [line for line in lines if line.startswith("logits from the frames equal")]
    assert "the cached ones: 4 views differ by at most" in said
    assert 0 < float(said.split("at most ")[1].split()[0]) < 1e-2
    assert "for data" in lines[-1]
    assert result.metrics.keys() == {"val", "test"}
    here = tmp_path / "whole"
    names = {"recipe.toml", "run.json", "log.jsonl", "metrics.json"}
    names |= {"predictions_test.npz", "confusion_test.csv"}
    assert names <= {path.name for path in here.iterdir()}
    assert runs.read_json(here / "run.json")["cache"] == str(cache.path.resolve())


def test_without_a_start_a_line_says_that_the_head_is_random(place, tmp_path):
    cache, lines = Cache(place / "cache"), []
    tune(recipe(), tmp_path / "run", cache=cache, say=lines.append)
    assert "the head starts from random weights; --start RUN starts it from a trained one" in lines
    assert not any("the backbone starts from random" in line for line in lines)
    lines.clear()
    tune(recipe(), tmp_path / "next", cache=cache, start=tmp_path / "run", say=lines.append)
    assert not any("random weights" in line for line in lines)


def test_a_plain_recipe_trains_its_backbone_at_a_tenth_unless_another_factor_is_given():
    assert frames_phase(recipe())[1].frames.backbone_lr == 0.1
    assert frames_phase(recipe(), backbone_lr=1.0)[1].frames.backbone_lr == 1.0
    own = recipe(phases=[{"name": "joint", "reads": "frames", "frames": {"train_from": "stem"}}])
    assert frames_phase(own)[1].frames.backbone_lr == 1.0
    table = recipe().as_dict()
    table["phases"] = [{"name": "joint", "reads": "frames", "train": table.pop("train")}]
    assert frames_phase(recipe_from(table))[1].frames.backbone_lr == 1.0


def test_a_run_that_began_at_the_full_rate_goes_on_with_it(place, tmp_path):
    """Runs of earlier versions: the same command finds them finished, or continues them."""
    cache, lines = Cache(place / "cache"), []
    frames = {"train_from": "res3", "backbone_lr": 1.0}
    first = tune(recipe(), tmp_path / "run", cache=cache, frames=frames)
    frames.pop("backbone_lr")
    again = tune(recipe(), tmp_path / "run", cache=cache, frames=frames, say=lines.append)
    assert again.metrics == first.metrics
    assert any("goes on with the head's learning rate" in line for line in lines)
    assert any("finished before, read back" in line for line in lines)


def test_a_start_with_other_classes_brings_all_but_the_classifier(place, tmp_path):
    cache, lines = Cache(place / "cache"), []
    whole = recipe("rstg_map")
    train(whole, cache, tmp_path / "head", tensorboard=False, **QUIET)
    saved = runs.load_checkpoint(tmp_path / "head" / "last.pt")
    saved["about"]["classes"] = [f"another {name}" for name in saved["about"]["classes"]]
    runs.save_checkpoint(tmp_path / "others.pt", saved)

    more = {"cache": cache, "start": tmp_path / "others.pt", "say": lines.append}
    here = recipe("rstg_map", lr=1e-30)
    tune(here, tmp_path / "here", frames={"train_from": "none"}, **more)
    (line,) = [line for line in lines if "starts from" in line]
    assert "fresh, because the classes differ: fc.weight, fc.bias" in line
    old, new = saved["state"], runs.load_checkpoint(tmp_path / "here" / "last.pt")["state"]
    moved = [name for name in old if not torch.allclose(new[name], old[name])]
    assert moved == ["fc.weight", "fc.bias"]


def test_without_a_step_the_predictions_are_those_of_the_cached_head(place, tmp_path):
    """A learning rate so small that nothing moves: every test view, through evaluation from frames
    and from the cache.
    """
    cache = Cache(place / "cache")
    train(recipe("strg"), cache, tmp_path / "head", tensorboard=False, **QUIET)
    tune(recipe("strg", lr=1e-30), tmp_path / "whole", cache=cache, start=tmp_path / "head")
    cached, live = (np.load(tmp_path / name / "predictions_test.npz") for name in ("head", "whole"))
    assert list(cached["clip"]) == list(live["clip"])
    np.testing.assert_allclose(
        live["logits"], cached["logits"], atol=1e-2 * np.abs(cached["logits"]).max()
    )


def test_the_phase_that_reads_frames_follows_those_that_read_the_cache_in_one_folder(
    place, tmp_path
):
    phases = [
        {"name": "alone"},
        {"name": "joint", "reads": "frames", "start": "previous", "frames": {"train_from": "stem"}},
    ]
    cache, asked = Cache(place / "cache"), recipe("roi_pool", phases)
    with pytest.raises(
        ValueError, match=r"phase joint starts from phase alone.*train it there first, or .*--start"
    ):
        tune(asked, tmp_path, cache=cache)
    train(asked, cache, tmp_path, tensorboard=False, **QUIET)
    result = tune(
        asked, tmp_path, cache=cache, options=FrameRunOptions(precision="bf16", tensorboard=False)
    )
    assert (result.epochs, result.phase) == (2, "joint")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["phase"]) for line in log] == [(1, "alone"), (2, "joint")]
    assert {"alone.pt", "joint.pt"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="has trained phase joint, which comes after"):
        train(asked, cache, tmp_path, tensorboard=False, phase="alone", precision="bf16", **QUIET)


@pytest.mark.parametrize("fault", ["pixels", "length", "weights", "gone"])
def test_what_is_not_as_at_the_extraction_is_refused_in_one_line(fault, place, tmp_path):
    shutil.copytree(place, tmp_path / "videos")
    root, weights, cache = tmp_path / "videos", None, Cache(place / "cache")
    if fault == "weights":
        weights, match = (
            tmp_path / "other.pth",
            r"other\.pth: not those that .* was extracted with .*pass --weights",
        )
        torch.save(tiny("tsm_r18", seed=1, **OPTIONS).state_dict(), weights)
    else:
        match = {
            "pixels": "nodes computed from the frames differ from .* the videos or the decoder",
            "length": "is another file",
        }.get(fault, "cannot")
        for clip in range(len(SPLITS)):
            video = root / f"clip{clip}.mp4"
            video.unlink()
            if fault != "gone":
                write_video(video, picture(clip + 50)[: 8 if fault == "pixels" else 6], fps=8)
    moved = MovedFiles(root, weights)
    with pytest.raises(ValueError, match=match) as error:
        tune(recipe(), tmp_path / "run", cache=cache, source_options=replace(HERE, moved=moved))
    assert "\n" not in str(error.value)
    if fault == "pixels":
        tune(
            recipe(),
            tmp_path / "run",
            cache=cache,
            source_options=replace(HERE, moved=moved, check=False),
        )


def test_a_backbone_that_was_trained_from_scratch_is_what_the_next_cache_is_made_with(
    place, tmp_path
):
    """Its learned 1x1x1 convolution too; the head then predicts from the cache what it predicted
    from the frames.
    """
    phases = [
        {
            "name": "backbone",
            "reads": "frames",
            "frames": {"train_from": "stem", "frozen_bn": False},
        }
    ]
    scratch = config(place, cut="reduced", keep=("pooled", "nodes"), dtype="float32")
    image = {
        name: tensor
        for name, tensor in tiny("tsm_r18", **OPTIONS).state_dict().items()
        if "reduced" not in name
    }
    torch.save(image, tmp_path / "image.pth")
    begun = replace(
        scratch,
        weights=str(tmp_path / "image.pth"),
        backbone_options={**OPTIONS, "fresh": "reduced"},
    )
    manifest, lines = read_manifest(place / "manifest.csv"), []
    options = {"config": begun, "manifest": manifest, "say": lines.append}
    tune(recipe("roi_pool", phases, lr=0.02), tmp_path / "run", **options)
    assert "no cache: no logits to compare with" in lines
    saved = runs.load_checkpoint(tmp_path / "run" / "best.pt")
    assert "reduced.weight" in saved["backbone"]
    trained = replace(scratch, weights=str(tmp_path / "run" / "best.pt"))
    extract_run(place, tmp_path / "cache", trained)
    evaluate(tmp_path / "run", Cache(tmp_path / "cache"), "test", **QUIET)
    live = np.load(tmp_path / "run" / "predictions_test.npz")["logits"]
    (again,) = (path for path in (tmp_path / "run").glob("predictions_test_*.npz"))
    np.testing.assert_allclose(
        np.load(again)["logits"], live, rtol=1e-3, atol=1e-4 * np.abs(live).max()
    )
    # The same weights.
    assert evaluate(tmp_path / "run", Cache(tmp_path / "cache"), "test", phase="backbone", **QUIET)
    extract_run(place, tmp_path / "stale", scratch)
    with pytest.raises(ValueError, match=r"trained its backbone too.*--weights .*best\.pt"):
        evaluate(tmp_path / "run", Cache(tmp_path / "stale"), "test", **QUIET)
    with pytest.raises(ValueError, match=r"trained its backbone too.*--weights .*backbone\.pt"):
        evaluate(tmp_path / "run", Cache(tmp_path / "stale"), "test", phase="backbone", **QUIET)


def test_fresh_views_are_those_of_a_cache_with_another_seed_and_change_every_epoch(place, tmp_path):
    """Frames, mirroring and boxes: the nodes of epoch 3 are the cached ones of an extraction
    with that epoch's seed.
    """
    cache = Cache(place / "cache")
    asked = config(place, dtype="float32")
    manifest = read_manifest(place / "manifest.csv")
    parts = {"train": split_views(cache, "train", "train", manifest, ("0", "1"), DataOptions())}
    clips = {clip.clip: clip for clip in manifest.clips}
    rows = [parts["train"].rows[:, 0]]
    seed = int(np.random.SeedSequence([asked.seed, 4]).generate_state(1)[0])
    sampling = replace(asked.sampling, train_views=1, test_clips=0)
    other = replace(asked, sampling=sampling, seed=seed, weights=asked.weights)
    extract_run(place, tmp_path / "other", other)
    stored = Cache(tmp_path / "other")["train"].batch(range(6), fields=("boxes", "valid", "flip"))
    found = source_of(asked, "cpu")
    options = {"steps": 4, "cache": cache, "source": found, "fresh": True, "workers": 0}
    with VideoViews(asked, parts, clips, ClipOpener(manifest.root), **options) as source:
        ((drawn, at),) = next(iter(source.batches("train", rows, 3)))
        ((later, _),) = next(iter(source.batches("train", rows, 4)))
        ((own, _),) = next(iter(source.views(parts["train"], rows, None)))
    assert list(at) == list(range(6))
    for name in ("boxes", "valid", "flip"):
        np.testing.assert_array_equal(getattr(drawn, name).numpy(), stored[name])
    assert not drawn.frames.equal(later.frames)
    assert not drawn.frames.equal(own.frames)


# --- the command


def vidgraph(capsys, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_command_trains_from_frames_with_a_cache_and_without(place, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(
        'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\n'
    )
    run = (tmp_path / "tiny.toml", "--runs", tmp_path / "runs", "--device", "cpu", "--workers", 0)
    cached = ("--cache", place / "cache", "--train-from", "res4", "--checkpointing")
    code, out, _ = vidgraph(capsys, "finetune", *run, *cached)
    assert code == 0
    assert "logits from the frames equal the cached ones" in out
    assert "waiting for data; " in out
    assert (tmp_path / "runs" / "tiny-frames-seed0" / "best.pt").exists()
    frames = ("--manifest", place / "manifest.csv", "--frames", 4, "--size", 32)
    network = ("--backbone", "tsm_r18", "--weights", "none", "--set", "backbone_options.width=8")
    more = ("--name", "scratch", "--train-from", "stem", "--train-bn")
    code, out, err = vidgraph(capsys, "finetune", *run, *frames, *network, *more)
    assert (code, err) == (0, "")
    assert runs.read_json(tmp_path / "runs" / "scratch" / "run.json")["config"][
        "backbone_options"
    ] == {"width": 8}


def test_videos_that_cannot_be_decoded_are_left_out_and_exit_code_3_says_so(
    place, tmp_path, capsys
):
    """The second time, too, when the run is read back."""
    shutil.copytree(place, tmp_path / "videos", ignore=shutil.ignore_patterns("cache"))
    for clip in (1, 8):
        (tmp_path / "videos" / f"clip{clip}.mp4").write_text("not a video")
    (tmp_path / "tiny.toml").write_text(
        'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\n'
    )
    manifest = tmp_path / "videos" / "manifest.csv"
    frames = ("--manifest", manifest, "--frames", 4, "--size", 32, "--workers", 0)
    network = ("--backbone", "tsm_r18", "--weights", "none", "--set", "backbone_options.width=8")
    run = ("finetune", tmp_path / "tiny.toml", "--runs", tmp_path, "--name", "run")
    run += ("--device", "cpu", *frames, *network)
    code, out, _ = vidgraph(capsys, *run)
    assert code == 3
    assert (
        "split train: clip clip1 cannot be read and is left out; `vidgraph check` "
        "(with --annotations where boxes come from a file) says why"
    ) in out
    excluded = runs.read_json(tmp_path / "run" / "metrics.json")["excluded"]
    assert (excluded["train"]["undecoded"], excluded["test"]["undecoded"]) == (1, 1)
    code, out, _ = vidgraph(capsys, *run)
    assert (code, "read back" in out) == (3, True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((), "expected --cache, or --manifest"),
        (("--cache", "CACHE", "--backbone", "i3d_r50"), "--backbone: the cache fixes this"),
        (("--cache", "CACHE", "--train-from", "res9"), "train_from 'res9'"),
        (("--cache", "CACHE", "--phase", "joint"), "has no phase 'joint'"),
        (("--cache", "CACHE", "--root", "/nowhere"), "no such folder"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(options, match, place, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(
        'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\n'
    )
    options = [str(place / "cache") if option == "CACHE" else option for option in options]
    run = (tmp_path / "tiny.toml", "--runs", tmp_path / "runs", "--device", "cpu")
    code, _, err = vidgraph(capsys, "finetune", *run, *options)
    assert code == 2
    assert match in err


def test_a_cache_that_no_extraction_made_is_refused_in_one_line(tmp_path, capsys):
    """Such as those of generated digits: nothing says where its frames come from."""
    Tiny().write(tmp_path)
    (tmp_path / "tiny.toml").write_text(
        'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 1\nbatch = 4\n'
    )
    how = ("--cache", tmp_path / "cache", "--runs", tmp_path / "runs", "--device", "cpu")
    code, _, err = vidgraph(capsys, "finetune", tmp_path / "tiny.toml", *how)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a cache of `vidgraph extract`" in err
    assert not (tmp_path / "runs").exists()


def test_a_start_that_is_wrong_is_said_before_there_is_a_run_folder(place, tmp_path, capsys):
    (tmp_path / "head").mkdir()
    phases = "".join(
        f'[[phases]]\nname = "{name}"\n{more}[phases.train]\nepochs = 1\nbatch = 4\n'
        for name, more in (("head", ""), ("joint", 'reads = "frames"\nstart = "previous"\n'))
    )
    (tmp_path / "two.toml").write_text(f'source = "a test"\n[head]\nname = "roi_pool"\n{phases}')
    about = {
        "recipe": read_recipe(tmp_path / "two.toml").as_dict(),
        "classes": ["a", "b"],
        "config": {"backbone": "digit_cnn"},
    }
    runs.save_checkpoint(tmp_path / "head" / "last.pt", {"about": about, "state": {}})
    how = ("--cache", place / "cache", "--runs", tmp_path / "runs", "--device", "cpu")
    other = ("--start", tmp_path / "head" / "last.pt")
    for more, message in (
        ((), "starts from phase head, which"),
        (other, "--backbone digit_cnn there, --backbone tsm_r18 here"),
    ):
        code, _, err = vidgraph(capsys, "finetune", tmp_path / "two.toml", *how, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert not (tmp_path / "runs").exists()


def test_a_phase_that_reads_the_cache_is_sent_to_train(capsys):
    code, _, err = vidgraph(
        capsys, "finetune", "gos_table1", "--phase", "search", "--manifest", "none.csv"
    )
    assert code == 2
    assert (
        "phase search of recipe gos_table1 reads the cache: run `vidgraph train gos_table1 "
        "--phase search`" in err
    )


def test_torchrun_as_the_pages_have_it_leaves_every_option_to_finetune():
    """Without the `--` it takes `--start` for a start of its own."""
    from torch.distributed.run import get_args_parser

    from cli.finetune import command

    texts = [
        command.help,
        (ROOT / "docs" / "finetune.md").read_text(),
        (FOLDER / "ean_table1_sth.toml").read_text(),
    ]
    options = [
        word
        for option in command.params
        for word in (*option.opts, *option.secondary_opts)
        if word[0] == "-"
    ]
    assert {"--start", "--cache", "--frozen-bn", "--train-bn"} <= set(options)
    for text in texts:
        words = re.search(r"torchrun (--.*?\sfinetune)", text, re.DOTALL).group(1).split()
        for option in options:
            given = get_args_parser().parse_args([*words, "strg", option, "x"])
            assert (given.training_script, given.training_script_args[-2:]) == (
                "vidgraph",
                [option, "x"],
            )
            assert given.nproc_per_node == "8"
            assert given.no_python


@pytest.mark.slow
def test_torchrun_trains_as_one_process_does(place, tmp_path):
    """The command itself, from a cache and its head, through decode processes; only the first
    process talks and writes.
    """
    (tmp_path / "tiny.toml").write_text(
        'source = "a test"\n[head]\nname = "roi_pool"\ndropout = 0.0\n[train]\nepochs = 2\nbatch '
        "= 4\n[evaluate]\nbatch = 2\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    head = tmp_path / "head"
    cache = Cache(place / "cache")
    train(read_recipe(tmp_path / "tiny.toml"), cache, head, tensorboard=False, **QUIET)
    rest = ("finetune", tmp_path / "tiny.toml", "--cache", place / "cache", "--start", head)
    rest += ("--train-from", "res2", "--device", "cpu", "--workers", "1", "--runs", tmp_path)
    many = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--")
    many += (sys.executable, "-m", "cli")
    for name, start in (("one", ("cli",)), ("two", many)):
        command = [sys.executable, "-m", *start, *rest, "--name", name]
        done = subprocess.run(
            list(map(str, command)),
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("epoch 2/2") == 1
        assert done.stdout.count("waiting for data; ") == 1
    one, two = (runs.load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for part in ("state", "backbone"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(two[part][name], tensor, rtol=1e-3, atol=1e-5)
    logits = [
        np.load(tmp_path / name / "predictions_test.npz")["logits"] for name in ("one", "two")
    ]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)
