"""Studies that are trained from frames: members, order, failures, what is refused, the command."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.__main__ import main
from heads.config.study_file import read_study
from heads.evaluation.counting import count_backbone
from heads.finetuning import finetune_study as module
from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
from heads.finetuning.finetune_study import finetune_study
from heads.finetuning.frame_training import FrameRunOptions
from heads.finetuning.study_rows import rows_from_frames
from heads.runs import run_files
from heads.runs.folder_lock import lock_folders
from heads.training.ablate import ablate
from heads.training.estimates import AblateOptions, estimate_members
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.config import with_settings
from tests.support.tiny_videos import SAMPLING, config_of, make_videos, write_csv
from tests.support.tiny_videos import run as extract_run

SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
HERE = SourceOptions(workers=0)
QUIET = {"say": lambda line: None, "device": "cpu", "source_options": HERE}
PLAIN = FrameRunOptions(tensorboard=False)

# Rows that differ in the backbone, the frames and the head.
STUDY = """source = "a test"
seeds = [3, 1]
order_seed = 5
[head]
name = "pool"
[train]
epochs = 1
batch = 4
lr = 0.01
[set]
"extract.backbone" = "tsm_r18"
"extract.weights" = "none"
"extract.sampling.size" = 32
"frames.train_from" = "stem"
"frames.frozen_bn" = false
[rows.narrow]
"extract.backbone_options.width" = 8
"extract.sampling.frames" = 4
[rows.wide]
"extract.backbone_options.width" = 16
"extract.sampling.frames" = 2
"head.dropout" = 0.5
"""
CACHED = STUDY[: STUDY.index("[set]")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Eight videos with boxes, their manifest with splits, and a cache of a tiny network."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), len(SPLITS))
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    rows = [
        (row["clip"], row["path"], split, row["label"])
        for row, split in zip(rows, SPLITS, strict=True)
    ]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)
    extract_run(folder, folder / "cache", config(folder))
    return folder


def config(folder: Path):
    """The extraction of the cache, and the one that studies without a cache start from."""
    network = {"backbone": "tsm_r18", "backbone_options": {"width": 8}}
    return config_of(folder, keep=("pooled", "nodes"), **network)


def plan_of(folder: Path, text: str = STUDY, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(text)
    return read_study(folder / "mine.toml", settings)


def tune(plan, folder, place=None, **more):
    """Train a study without a cache, or with the one in `more`."""
    if place is not None:
        more = {
            "config": config_of(place),
            "manifest": read_manifest(place / "manifest.csv"),
            **more,
        }
    return finetune_study(plan, folder, **{**QUIET, "options": PLAIN, **more})


def weights(folder):
    saved = run_files.load_checkpoint(folder / "last.pt")
    return {**saved["state"], **{f"backbone.{key}": one for key, one in saved["backbone"].items()}}


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


# --- training


def test_a_member_is_what_finetune_computes_with_its_recipe_options_and_seed(place, tmp_path):
    plan = plan_of(tmp_path)
    outcome = tune(plan, tmp_path / "study", place)
    assert not outcome.failed
    row = plan.rows[1]
    recipe, phase = frames_phase(row.recipe)
    assert row.extract["backbone_options.width"] == 16
    own = with_settings(config_of(place), row.extract)
    finetune(
        recipe,
        tmp_path / "alone",
        phase,
        config=own,
        manifest=read_manifest(place / "manifest.csv"),
        options=FrameRunOptions(seed=1, order_seed=5, tensorboard=False),
        **QUIET,
    )
    assert same(weights(tmp_path / "alone"), weights(tmp_path / "study" / "wide-seed1"))
    record = run_files.read_json(tmp_path / "study" / "wide-seed1" / "run.json")
    assert record["config"]["sampling"]["frames"] == 2
    assert record["recipe"]["head"]["options"] == {"dropout": 0.5}
    assert record["recipe"]["phases"][0]["frames"]["train_from"] == "stem"


def test_all_rows_come_with_the_first_seed_first_and_the_table_after_every_member(place, tmp_path):
    lines, seen = [], []

    def say(line):
        lines.append(line)
        table = tmp_path / "study" / "results.json"
        if line.startswith("member ") and table.exists():
            rows = json.loads(table.read_text())["rows"]
            seen.append([len(row["members"]) for row in rows])

    tune(plan_of(tmp_path), tmp_path / "study", place, say=say)
    order = [line.split(": ")[1] for line in lines if line.startswith("member ")]
    assert order == ["narrow-seed3", "wide-seed3", "narrow-seed1", "wide-seed1"]
    assert seen == [[1, 0], [1, 1], [2, 1]]


def test_the_table_is_that_of_ablate_and_counts_the_whole_network(place, tmp_path):
    outcome = tune(plan_of(tmp_path), tmp_path / "study", place)
    text = (tmp_path / "study" / "results.txt").read_text()
    assert outcome.table.text() + "\n" == text
    assert "MACs of the whole network for one view" in text
    record = json.loads((tmp_path / "study" / "results.json").read_text())
    assert record["extraction"]["sampling"]["size"] == SAMPLING.size
    assert [row["cells"]["row"] for row in record["rows"]] == ["narrow", "wide"]
    for row, width, frames in zip(record["rows"], (8, 16), (4, 2), strict=True):
        counted = count_backbone("tsm_r18", {"width": width}, frames=frames, size=(32, 32)).total
        classifier = 8 * width * 2
        assert row["macs"] == counted.macs + classifier
        assert row["parameters"]["mean"] == counted.parameters + classifier + 2
        assert [one["seed"] for one in row["members"]] == [3, 1]


def test_a_stopped_study_goes_on_and_leaves_out_what_is_finished(place, tmp_path):
    plan = plan_of(tmp_path)
    tune(plan, tmp_path / "whole", place)

    def stops(line):
        if line.startswith("member 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(plan, tmp_path / "parts", place, say=stops)
    outcome = tune(plan, tmp_path / "parts", place)
    assert outcome.before == 2
    for name in ("narrow-seed3", "wide-seed3", "narrow-seed1", "wide-seed1"):
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name))
    assert tune(plan, tmp_path / "parts", place).before == 4


def test_a_member_that_fails_is_a_line_and_the_next_call_tries_it_again(
    place, tmp_path, monkeypatch
):
    plan, real = plan_of(tmp_path, seeds := STUDY.replace("[3, 1]", "[3]")), module.finetune
    assert "seeds = [3]" in seeds

    def fails(recipe, folder, phase, **more):
        if Path(folder).name == "narrow-seed3":
            raise torch.OutOfMemoryError("no memory\nfor this")
        return real(recipe, folder, phase, **more)

    monkeypatch.setattr(module, "finetune", fails)
    outcome = tune(plan, tmp_path / "study", place)
    assert [one.error for one in outcome.failed] == ["OutOfMemoryError: no memory for this"]
    assert [len(row.results) for row in outcome.table.rows] == [0, 1]
    text = (tmp_path / "study" / "results.txt").read_text()
    assert "narrow-seed3 failed after epoch 0: OutOfMemoryError: no memory for this" in text
    monkeypatch.setattr(module, "finetune", real)
    outcome = tune(plan, tmp_path / "study", place)
    assert (len(outcome.failed), outcome.before) == (0, 1)


def test_a_member_of_another_process_is_left_to_it_and_counts_if_it_is_finished(place, tmp_path):
    plan = plan_of(tmp_path, STUDY.replace("[3, 1]", "[3]"))
    tune(plan, tmp_path / "other", place)
    (tmp_path / "study").mkdir()
    (lock,) = lock_folders([tmp_path / "study" / "narrow-seed3"], lambda line: None)

    def finishes(line):
        # The other process ends while this one is at its last member.
        if line.startswith("member 2"):
            lock.leave()
            (tmp_path / "study" / "narrow-seed3").mkdir(exist_ok=True)
            for path in (tmp_path / "other" / "narrow-seed3").iterdir():
                if path.is_file():
                    path.rename(tmp_path / "study" / "narrow-seed3" / path.name)

    outcome = tune(plan, tmp_path / "study", place, say=finishes)
    assert not outcome.failed
    assert [len(row.results) for row in outcome.table.rows] == [1, 1]


# --- with a cache


JOINT = """source = "a test"
seeds = [0]
recipes = ["two.toml"]
[grid]
"head.dropout" = [0.0, 0.5]
"""
TWO = """source = "a test"
[head]
name = "pool"
[[phases]]
name = "alone"
[phases.train]
epochs = 1
batch = 4
[[phases]]
name = "joint"
reads = "frames"
start = "previous"
[phases.frames]
train_from = "res4"
[phases.train]
epochs = 1
batch = 4
"""


def test_phases_on_the_cache_and_from_frames_share_the_folders_of_the_study(place, tmp_path):
    (tmp_path / "two.toml").write_text(TWO)
    plan, cache = plan_of(tmp_path, JOINT), Cache(place / "cache")
    outcome = tune(plan, tmp_path / "study", cache=cache)
    # Nothing to start from: each member says so.
    assert len(outcome.failed) == 2
    assert "starts from phase alone" in outcome.failed[0].error
    ablate(plan, cache, tmp_path / "study", AblateOptions(device="cpu"), say=lambda line: None)
    outcome = tune(plan, tmp_path / "study", cache=cache)
    assert not outcome.failed
    for row in outcome.table.rows:
        assert [(one.phase, one.epochs) for one in row.results.values()] == [("joint", 2)]
    about = json.loads((tmp_path / "study" / "results.json").read_text())
    assert about["fingerprint"] == cache.fingerprint


def test_each_command_names_the_other_where_that_one_is_needed(place, tmp_path):
    cache, manifest = Cache(place / "cache"), read_manifest(place / "manifest.csv")
    trained = plan_of(tmp_path / "a", CACHED + '[set]\n"frames.train_from" = "stem"\n')
    with pytest.raises(
        ValueError,
        match=r"all phases of recipe mine read frames: run `vidgraph finetune --study STUDY`",
    ):
        estimate_members(trained, cache, tmp_path, say=lambda line: None)
    text = CACHED + '[grid]\n"extract.backbone_options.width" = [8, 16]\n'
    width = plan_of(tmp_path / "b", text)
    for work in (
        lambda: estimate_members(width, cache, tmp_path, say=lambda line: None),
        lambda: rows_from_frames(width, cache=cache),
    ):
        with pytest.raises(
            ValueError,
            match=r"study mine varies extract.backbone_options.width, which a cache fixes: run "
            r"`vidgraph finetune --study STUDY` with --manifest",
        ):
            work()
    alone = plan_of(tmp_path / "c", CACHED)
    with pytest.raises(
        ValueError, match=r"study mine reads a cache alone: run `vidgraph ablate STUDY --cache"
    ):
        rows_from_frames(alone, config=config_of(place), manifest=manifest)
    # Where the backbone is trained, too, the same study needs frames.
    assert rows_from_frames(alone, cache=cache, frames={"train_from": "res4"})


def test_options_of_the_extraction_must_be_those_of_a_cache(place, tmp_path):
    cache = Cache(place / "cache")
    same_as_there = (
        '"extract.backbone" = "tsm_r18"\n"extract.sampling.frames" = 4\n'
        '"extract.weights" = "none"\n"extract.pixel_aspect" = "displayed"\n'
        '"extract.backbone_options.width" = 8\n"extract.backbone_options.shift" = "residual"\n'
    )
    from pipeline.backbones import backbone_options

    # An option that the extraction did not name has the backbone's default.
    name, default = next(
        (key, value) for key, value in backbone_options("tsm_r18").items() if key != "width"
    )
    same_as_there = same_as_there.replace(
        '"extract.backbone_options.shift" = "residual"',
        f'"extract.backbone_options.{name}" = {json.dumps(default)}',
    )
    right = plan_of(tmp_path / "a", CACHED + "[set]\n" + same_as_there)
    assert estimate_members(right, cache, tmp_path / "x", say=lambda line: None)
    for key, value in (("backbone_options.width", 16), ("sampling.frame", 4), ("cuts", '"res5"')):
        wrong = plan_of(tmp_path / "b", f'{CACHED}[set]\n"extract.{key}" = {value}\n')
        with pytest.raises(ValueError, match=rf"extract.{key}: .*cache was made with "):
            estimate_members(wrong, cache, tmp_path / "x", say=lambda line: None)


# --- what is refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("extract.backbone", '"tsm_r81"', "backbone 'tsm_r81' is not known: did you mean tsm_r18"),
        ("extract.backbone_options.widht", "8", "has no option 'widht': did you mean width"),
        (
            "extract.sampling.frame",
            "8",
            "extract.sampling.frame: no such option; did you mean",
        ),
        ("extract.backbon", '"x"', "extract.backbon: expected one of backbone, "),
        ("extract.sampling.frames", '"many"', "extract.sampling.frames"),
        ("extract.roi_pool", '"median"', "extract.roi_pool: expected one of max, mean"),
        ("frames.train_form", '"stem"', "no key phases.train.frames.train_form; did you mean"),
        ("frames.train_from", '"res9"', "train_from 'res9'"),
        ("train.alternate.parameters", '"nothing"', "nothing"),
        ("data.first_labels", "9", "data.first_labels: expected at most the 2 classes"),
        ("head.dropuot", "0.5", "head pool has no option 'dropuot': did you mean dropout"),
    ],
)
def test_a_member_that_cannot_be_trained_is_one_line_before_the_first_step(
    key, value, message, place, tmp_path
):
    text = STUDY.replace("[rows.wide]", f'[rows.wide]\n"{key}" = {value}')
    for line in STUDY.splitlines():
        # A key may be in one place only.
        if line.startswith(f'"{key}"'):
            text = text.replace(f"{line}\n", "", 1)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tune(plan_of(tmp_path, text), tmp_path / "study", place)
    assert "\n" not in str(error.value)
    assert "member wide" in str(error.value)
    assert not (tmp_path / "study").exists()


def test_frames_of_a_recipe_that_reads_the_cache_alone_are_refused(tmp_path):
    (tmp_path / "two.toml").write_text(
        TWO.replace('reads = "frames"', 'reads = "cache"').replace(
            '[phases.frames]\ntrain_from = "res4"\n', ""
        )
    )
    with pytest.raises(
        ValueError,
        match=r"no key frames.train_from: all phases of recipe two read the cache",
    ):
        plan_of(tmp_path, JOINT + '[set]\n"frames.train_from" = "stem"\n')


def test_under_torchrun_a_study_is_refused_in_words(place, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="once per GPU without torchrun"):
        tune(plan_of(tmp_path), tmp_path / "study", place)
    assert not (tmp_path / "study").exists()


# --- the command


def vidgraph(capsys, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_the_command_lists_trains_tabulates_reads_back_and_reports(place, tmp_path, capsys):
    plan_of(tmp_path, STUDY.replace("[3, 1]", "[3]"))
    run = ("finetune", "--study", tmp_path / "mine.toml", "--manifest", place / "manifest.csv")
    run += ("--runs", tmp_path / "runs", "--device", "cpu", "--workers", 0)
    code, out, _ = vidgraph(capsys, *run, "--list")
    assert code == 0
    assert "mine: 2 rows, 2 members, one after another" in out
    assert re.search(r"  wide: phase train, [\d.]+ GMACs a view", out)
    assert not (tmp_path / "runs").exists()
    code, out, err = vidgraph(capsys, *run)
    assert (code, err) == (0, "")
    table = (tmp_path / "runs" / "mine" / "results.txt").read_text()
    assert table in out
    assert "| narrow |" in table
    code, out, _ = vidgraph(capsys, *run)
    assert (code, "2 members finished before" in out) == (0, True)
    assert table in out
    code, out, _ = vidgraph(capsys, "report", tmp_path / "runs" / "mine", "--out", tmp_path / "r")
    assert code == 0
    page = "".join(path.read_text() for path in (tmp_path / "r").glob("*.md"))
    assert "wide-seed3" in page


def test_a_study_is_trained_on_every_fold_into_one_table(place, tmp_path, capsys):
    """A fold's own table is that of the study with its manifest alone."""
    plan_of(tmp_path, STUDY.replace("[3, 1]", "[3]"))
    rows = list(csv.reader((place / "manifest.csv").open()))
    for number, (first, second) in {1: ("val", "test"), 2: ("test", "val")}.items():
        other = {"val": first, "test": second, "train": "train"}
        cells = [(row[0], row[1], other[row[2]], row[3]) for row in rows[1:]]
        (tmp_path / "folds").mkdir(exist_ok=True)
        write_csv(tmp_path / f"folds/fold{number}.csv", rows[0], cells)
    study = ("finetune", "--study", tmp_path / "mine.toml", "--device", "cpu", "--workers", 0)
    study += ("--runs", tmp_path / "runs", "--root", place)
    code, out, _ = vidgraph(capsys, *study, "--folds", tmp_path / "folds", "--list")
    assert (code, out.count("mine: 2 rows, 2 members")) == (0, 2)
    assert not (tmp_path / "runs").exists()
    code, out, _ = vidgraph(capsys, *study, "--folds", tmp_path / "folds")
    assert code == 0
    assert "over folds" in out

    code, _, _ = vidgraph(
        capsys, *study, "--manifest", tmp_path / "folds/fold2.csv", "--name", "alone"
    )
    assert code == 0
    folder = tmp_path / "runs" / "mine"
    of_fold = json.loads((folder / "fold2" / "results.json").read_text())
    alone = json.loads((tmp_path / "runs" / "alone" / "results.json").read_text())
    whole = json.loads((folder / "results.json").read_text())
    for k, row in enumerate(alone["rows"]):
        figures = [one["metrics"] for one in row["members"]]
        assert [one["metrics"] for one in of_fold["rows"][k]["members"]] == figures
        members = whole["rows"][k]["members"]
        assert [one["fold"] for one in members] == ["fold1", "fold2"]
        assert members[1]["metrics"] == figures[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("recipe.toml",), "expected RECIPE or --study STUDY, got both"),
        (("--folds", "."), "--manifest and --folds: expected one of them, got both"),
        (("--seed", 1), "--seed: a study has its own seeds"),
        (("--size", 64), "--size: the study sets extract.sampling.size"),
        (("--backbone", "i3d_r50"), "--backbone: the study sets extract.backbone"),
        (("--set", "extract.backbone_options.width=4"), "expected it in [rows], or in [set]"),
        (("--phase", "joint"), "has no phase 'joint'"),
        (("--study", "ean_tabel8"), "study 'ean_tabel8': no such file, nor a study of the package"),
    ],
)
def test_bad_usage_of_the_command_is_one_line_and_exit_code_2(
    more, message, place, tmp_path, capsys
):
    plan_of(tmp_path)
    run = ("finetune", "--study", tmp_path / "mine.toml", "--manifest", place / "manifest.csv")
    code, _, err = vidgraph(capsys, *run, "--runs", tmp_path / "runs", "--device", "cpu", *more)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_listing_and_training_want_a_study_or_a_recipe(capsys):
    for args, message in (
        ((), "expected RECIPE or --study STUDY, got neither"),
        (("gos_table1", "--list"), "--list prints the members of a study"),
    ):
        code, _, err = vidgraph(capsys, "finetune", *args, "--manifest", "none.csv")
        assert code == 2
        assert message in err


def test_settings_of_the_extraction_are_keys_of_the_study_and_recorded(place, tmp_path, capsys):
    text = STUDY.replace("[3, 1]", "[3]").replace('"extract.sampling.size" = 32\n', "")
    plan_of(tmp_path, text)
    run = ("finetune", "--study", tmp_path / "mine.toml", "--manifest", place / "manifest.csv")
    run += ("--runs", tmp_path / "runs", "--device", "cpu", "--workers", 0)
    code, _, _ = vidgraph(capsys, *run, "--set", "sampling.size=32", "--set", "train.batch=2")
    assert code == 0
    record = json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())
    assert record["settings"] == {"train.batch": 2, "extract.sampling.size": 32}
    config = run_files.read_json(tmp_path / "runs/mine/narrow-seed3/run.json")["config"]
    assert config["sampling"]["size"] == 32
    assert np.isfinite(record["rows"][0]["metrics"]["test"]["loss"]["mean"])
