"""`vidgraph report`: what it says of runs, and of runs that are not as they should be."""

import csv
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli.__main__ import vidgraph
from cli._shared.extraction import config_of
from cli.extract import command as extract_command
from heads.config.recipe import recipe_with
from heads.reporting.cache_facts import boxes_per_clip, known_caches
from heads.reporting.document import Document
from heads.reporting.html_page import to_html
from heads.reporting.output_folder import write_report
from heads.reporting.predictions import predictions_by_video
from heads.reporting.report import report
from heads.reporting.run_folders import FoundRun, read_run
from heads.runs import run_files as runs
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.stages.config import ExtractConfig, with_settings
from tests.support import report_runs, tiny_videos
from tests.support.report_runs import CLASSES, Made
from tests.support.tiny_cache import Tiny


def quiet(line: str) -> None:
    """Nobody listens."""


def write(paths, out: Path, **options):
    """report() without the seconds that counting takes."""
    paths = paths if isinstance(paths, list) else [paths]
    return report(paths, out, **{"macs": False, "say": quiet, **options})


def table(out: Path, name: str) -> list[dict[str, str]]:
    with open(out / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predictions(folder: Path):
    with np.load(folder / "predictions_test.npz") as file:
        return predictions_by_video(dict(file), read_run(folder).recipe)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two heads, two seeds."""
    return report_runs.study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> Path:
    """Its report."""
    out = tmp_path_factory.mktemp("written") / "report"
    assert write(study, out).problems == ()
    return out


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Five videos, one of them no video, and a cache of them with boxes."""
    folder = tiny_videos.make_videos(tmp_path_factory.mktemp("videos"), clips=5, broken=(3,))
    tiny_videos.run(folder, folder / "cache", extraction_of(folder))
    return folder


def extraction_of(folder: Path) -> ExtractConfig:
    """Never mirrored, which is not the default."""
    return tiny_videos.config_of(
        folder, keep=("pooled", "boxes"), sampling=replace(tiny_videos.SAMPLING, flip=0.0)
    )


@pytest.fixture(scope="module")
def on_videos(videos, tmp_path_factory) -> Path:
    """Runs on that cache: what `strong` gets right, `weak` gets wrong."""
    folder, cache = tmp_path_factory.mktemp("on_videos"), Cache(videos / "cache")
    more = {
        "clips": ("clip0", "clip1", "clip2", "clip4"),
        "fingerprint": cache.fingerprint,
        "cache": str(cache.path),
    }
    Made("strong", 0, "strg", skill=1.0, config=cache.config, **more).write(folder)
    Made("weak", 0, "pool", skill=0.0, config=cache.config, **more).write(folder)
    return folder


# --- the study's table


def test_runs_that_differ_in_their_seed_alone_are_one_row_with_the_spread(study, written):
    rows = {row["name"]: row for row in table(written, "study")}
    assert list(rows) == ["strong", "weak"]  # the best first
    assert {row["videos"] for row in rows.values()} == {"30"}
    for name, row in rows.items():
        found = [
            100 * read_run(study / f"{name}-seed{seed}").figures("test")["top1"] for seed in (0, 1)
        ]
        assert float(row["test top-1 %"]) == pytest.approx(np.mean(found))
        assert float(row["test top-1 % sd"]) == pytest.approx(np.std(found, ddof=1))
        assert row["test top-1 % runs"] == row["seeds"] == "2"


def test_runs_that_differ_in_a_setting_are_rows_named_after_it(tmp_path):
    for dropout in (0.0, 0.5):
        Made("same", head="pool", options={"dropout": dropout}).write(tmp_path / str(dropout))
    write(tmp_path, tmp_path / "out")
    assert {row["name"] for row in table(tmp_path / "out", "study")} == {
        "same, dropout=0.0",
        "same, dropout=0.5",
    }
    assert {row["head.options.dropout"] for row in table(tmp_path / "out", "settings")} == {
        "0.0",
        "0.5",
    }


def test_a_run_that_was_repeated_is_no_further_seed(tmp_path):
    Made("same").write(tmp_path / "before")
    Made("same").write(tmp_path / "after")
    Made("same", seed=1).write(tmp_path / "after")
    write(tmp_path, tmp_path / "out")
    assert {row["name"]: row["seeds"] for row in table(tmp_path / "out", "study")} == {
        "same, in before": "1",
        "same, in after": "2",
    }


def test_a_pattern_a_folder_and_a_run_folder_name_the_same_runs(study, tmp_path):
    for number, paths in enumerate(([f"{study}/*-seed*"], [study], [study / "weak-seed0", study])):
        assert write(paths, tmp_path / str(number)).runs == 4


def test_macs_are_those_that_summary_counts(tmp_path):
    from heads.evaluation.summary import count_named

    folder = Made(head="pool").write(tmp_path)
    report([folder], tmp_path / "out", say=quiet)
    assert (
        int(table(tmp_path / "out", "study")[0]["MACs"]) == count_named(str(folder), {}).total.macs
    )


def test_the_same_runs_give_the_same_bytes(study, written, tmp_path):
    write(study, tmp_path / "again")
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert files == sorted(
        path.relative_to(tmp_path / "again")
        for path in (tmp_path / "again").rglob("*")
        if path.is_file()
    )
    assert all(
        (written / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in files
    )


def test_what_was_evaluated_after_the_training_is_told(tmp_path):
    folder = Made().write(tmp_path)
    runs.write_json(
        folder / "metrics_test_abc.json", {"checkpoint": "last", "fingerprint": "abc", "top1": 0.25}
    )
    write(folder, tmp_path / "out")
    (row,) = table(tmp_path / "out", "evaluations")
    assert (row["evaluation"], row["checkpoint"], row["top-1 %"]) == ("test_abc", "last", "25")


# --- classes


def test_recalls_and_gains_are_those_of_the_predictions(study, written):
    recall = {
        name: np.mean([predictions(study / f"{name}-seed{s}").per_class for s in (0, 1)], 0)
        for name in ("strong", "weak")
    }
    for k, row in enumerate(table(written, "classes")):
        assert (row["class"], row["videos"]) == (CLASSES[k], "10")
        assert float(row["strong %"]) == pytest.approx(100 * recall["strong"][k])
    drawn = (written / "plots" / "gains.svg").read_text()
    for k, name in enumerate(CLASSES):
        assert (
            f"<title>{name}: {100 * (recall['strong'] - recall['weak'])[k]:+.1f}</title>" in drawn
        )


def test_compare_chooses_which_row_gains_over_which(study, tmp_path):
    write(study, tmp_path / "out", compare=("weak", "strong"))
    assert "Recall of weak minus that of strong" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ValueError, match=r"no row 'stron' to compare.*strong"):
        write(study, tmp_path / "out", compare=("weak", "stron"))


def test_confusions_are_summed_over_seeds(study, written):
    counts = sum(predictions(study / f"strong-seed{seed}").confusion for seed in (0, 1))
    wrong = {
        (CLASSES[a], CLASSES[b]): int(counts[a, b])
        for a in range(3)
        for b in range(3)
        if a != b and counts[a, b]
    }
    assert {
        (row["label"], row["predicted"]): int(row["count"])
        for row in table(written, "confusions-0")
    } == wrong


def test_several_labels_per_video_are_reported_by_their_average_precision(tmp_path):
    targets = (np.arange(60).reshape(20, 3) % 4 == 0).astype(np.float32)
    clips = tuple(f"clip{k}" for k in range(20))
    for name, skill in (("good", 0.9), ("bad", 0.2)):
        Made(name, data={"target": "multi"}, targets=targets, clips=clips, skill=skill).write(
            tmp_path / "runs"
        )
    write(tmp_path / "runs", tmp_path / "out")
    assert "test mAP %" in table(tmp_path / "out", "study")[0]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Average precision of good minus that of bad" in text
    assert "## Confusions" not in text


def attributes_file(folder: Path, text: str) -> Path:
    path = folder / "attributes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_figures_by_attribute_are_means_over_the_classes_that_have_a_value(study, tmp_path):
    text = "class,attribute,value\nput,object,yes\ntake,object,yes\nturn,object,no\n"
    text += "turn,pose,10\nput,pose,9\n"
    out = tmp_path / "out"
    write(study, out, attributes=attributes_file(tmp_path, text))

    runs_of = {}
    for name in ("strong", "weak"):
        runs_of[name] = [predictions(study / f"{name}-seed{s}").per_class for s in (0, 1)]
    # Numbers ascend, words keep the file's order.
    chosen = {("object", "yes"): [0, 1], ("object", "no"): [2], ("pose", "9"): [0]}
    chosen[("pose", "10")] = [2]
    rows = table(out, "attributes")
    assert [(row["attribute"], row["value"]) for row in rows] == list(chosen)
    for row, classes in zip(rows, chosen.values(), strict=True):
        assert row["classes"] == str(len(classes))
        means = {}
        for name, recalls in runs_of.items():
            values = [100 * recall[classes].mean() for recall in recalls]
            means[name] = np.mean(values)
            assert float(row[f"{name} %"]) == pytest.approx(means[name])
            assert float(row[f"{name} % sd"]) == pytest.approx(np.std(values, ddof=1))
        assert float(row["gain"]) == pytest.approx(means["strong"] - means["weak"])

    drawn = (out / "plots" / "attribute-0.svg").read_text()
    assert f"<title>yes: strong: {float(rows[0]['strong %']):.1f}</title>" in drawn
    markdown = (out / "report.md").read_text()
    assert "## By attribute of the classes" in markdown
    assert "Classes without a value: pose 1, of 3." in markdown
    assert "By attribute of the classes" in (out / "report.html").read_text()


def test_with_several_labels_attributes_average_the_precisions(tmp_path):
    targets = (np.arange(60).reshape(20, 3) % 4 == 0).astype(np.float32)
    # The last class has no video, and so no figure.
    targets[:, 2] = 0
    clips = tuple(f"clip{k}" for k in range(20))
    made = Made("good", data={"target": "multi"}, targets=targets, clips=clips, skill=0.9)
    folder = made.write(tmp_path / "runs")
    text = "class,attribute,value\nput,object,yes\nturn,object,yes\ntake,object,no\n"
    out = tmp_path / "out"
    write(tmp_path / "runs", out, attributes=attributes_file(tmp_path, text))
    rows = table(out, "attributes")
    assert [row["classes"] for row in rows] == ["1", "1"]
    precision = predictions(folder).per_class
    assert [float(row["good %"]) for row in rows] == pytest.approx(list(100 * precision[:2]))
    assert "gain" not in rows[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,attribute\nput,object\n", "no column value"),
        ("class;attribute;value\nput;object;yes\n", "semicolons, expected commas"),
        ("", "empty"),
        ("class,attribute,value\n", "no rows below the header"),
        ("class,attribute,value\nputt,object,yes\n", "line 2: class 'putt' .*did you mean put"),
        ("class,attribute,value\nput,object,\n", "line 2: no value"),
        (
            "class,attribute,value\nput,object,yes\n\nput,object,no\n",
            "line 4: class 'put' has 'object' twice, before in line 2",
        ),
    ],
)
def test_bad_attributes_are_refused_in_a_line_before_anything_is_written(
    text, said, study, tmp_path
):
    out, path = tmp_path / "out", attributes_file(tmp_path, text)
    with pytest.raises(ValueError, match=said) as refused:
        write(study, out, attributes=path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert not out.exists()


def test_the_command_takes_attributes(study, tmp_path):
    path = attributes_file(tmp_path, "class,attribute,value\nput,object,yes\n")
    options = ["--no-macs", "--attributes", str(path), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(vidgraph, ["report", str(study), *options])
    assert found.exit_code == 0, found.output
    assert table(tmp_path / "out", "attributes")[0]["value"] == "yes"


def test_structures_are_counted_by_class(tmp_path):
    label = np.arange(30) % 3
    structure = np.stack([np.where(label == 2, 4, 1), np.zeros(30, int)], 1)[:, None]  # [R,cells,E]
    Made(head="gos", more={"structure": structure.astype(np.int16)}).write(tmp_path / "runs")
    write(tmp_path / "runs", tmp_path / "out")
    rows = {row["class"]: row for row in table(tmp_path / "out", "structures-0")}
    assert {
        name: (row["views"], row["most frequent"], row["its share %"]) for name, row in rows.items()
    } == {
        "put": ("10", "1-0", "100"),
        "take": ("10", "1-0", "100"),
        "turn": ("10", "4-0", "100"),
    }
    assert "0 none, 1 skip" in (tmp_path / "out" / "report.md").read_text()


def test_a_trained_head_leaves_the_structure_of_every_view(tmp_path):
    cache = Tiny(T=8, test_views=1, fields=("boxes", "scores", "valid", "grid", "res5")).write(
        tmp_path
    )
    tables = {
        "source": "a test",
        "head": {"name": "gos", "width": 4, "supernodes": 1},
        "train": {"epochs": 1, "batch": 12},
    }
    recipe = recipe_with(tables, {}, Path("gos.toml"))
    train(recipe, cache, tmp_path / "runs" / "gos", device="cpu", say=quiet, tensorboard=False)
    found = predictions(tmp_path / "runs" / "gos").structures
    assert found.shape == (6, 1, 1)
    assert set(np.unique(found)) <= set(range(5))
    write(tmp_path / "runs", tmp_path / "out")
    assert sum(int(row["views"]) for row in table(tmp_path / "out", "structures-0")) == 6


# --- views and boxes


def test_accuracy_by_views_takes_the_first_of_every_video_and_ends_at_the_runs_own(tmp_path):
    folder = Made(views=3).write(tmp_path / "runs")
    path = folder / "predictions_test.npz"
    arrays = dict(np.load(path))
    wrong = arrays["view"] == 0
    # The first view alone is the opposite of the others.
    arrays["logits"][wrong] = -arrays["logits"][wrong]
    shuffled = np.random.default_rng(0).permutation(len(wrong))
    runs.save_predictions(
        path,
        {
            k: v[shuffled] if k in ("clip", "view", "logits", "video") else v
            for k, v in arrays.items()
        },
    )
    found = predictions(folder)
    first = arrays["logits"][wrong].argmax(1) == arrays["targets"]
    assert list(found.by_views) == [1, 2, 3]
    assert found.by_views[1] == pytest.approx(first.mean())
    assert found.by_views[3] == pytest.approx(found.figures["top1"])


def test_accuracy_by_boxes_is_that_of_the_clips_with_so_many(tmp_path):
    cache = Tiny(T=6, N=4).write(tmp_path)
    group = cache["test"]
    clips = tuple(f"clip-{k}" for k in range(24))
    folder = Made(clips=clips, fingerprint=cache.fingerprint, cache=str(cache.path)).write(
        tmp_path / "runs"
    )
    boxes = np.array(
        [
            np.mean([group.view(row)["valid"].sum(-1) for row in group.rows_of(clip)])
            for clip in clips
        ]
    )
    assert boxes_per_clip(cache, clips) == pytest.approx(boxes)
    assert boxes.max() > boxes.min()
    write(folder, tmp_path / "out")
    rows, right = table(tmp_path / "out", "boxes"), predictions(folder).right
    assert sum(int(row["videos"]) for row in rows) == 24
    assert sum(int(row["videos"]) * float(row["pool %"]) / 100 for row in rows) == pytest.approx(
        right.sum()
    )
    most = boxes >= boxes.max() - (boxes.max() - boxes.min()) / 8
    assert (int(rows[-1]["videos"]), float(rows[-1]["pool %"])) == (
        most.sum(),
        pytest.approx(100 * right[most].mean()),
    )


def test_where_all_clips_have_as_many_boxes_the_report_says_so(on_videos, tmp_path):
    write(on_videos, tmp_path / "out")
    assert "Boxes per step: 1 in every clip of test" in (tmp_path / "out" / "report.md").read_text()


def test_what_training_views_buy_is_told_by_runs_that_differ_in_nothing_else(tmp_path):
    for views, skill in ((1, 0.3), (2, 0.6), (0, 0.9)):  # 0: all of the four that the cache has
        Made(f"views{views}", data={"train_views": views}, skill=skill).write(tmp_path / "runs")
    Made("other", head="strg", data={"train_views": 2}).write(tmp_path / "runs")
    write(tmp_path / "runs", tmp_path / "out")
    rows = table(tmp_path / "out", "training-views")
    assert len(rows) == 1
    values = [float(rows[0][count]) for count in ("1", "2", "4")]
    assert values == sorted(values)


# --- examples


def test_examples_are_what_one_head_gets_right_and_the_other_wrong(study, written):
    right = {
        name: np.mean([predictions(study / f"{name}-seed{s}").right for s in (0, 1)], 0)
        for name in ("strong", "weak")
    }
    clips = predictions(study / "strong-seed0").clips
    expected = {clips[k] for k in np.flatnonzero((right["strong"] > 0.5) & (right["weak"] < 0.5))}
    assert {row["clip"] for row in table(written, "examples-better")} == expected != set()


def test_examples_have_pictures_of_their_clips(on_videos, videos, tmp_path):
    write(on_videos, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    alt = "clip[0124]: frames [0-9, ]+ of clip[0124].mp4"
    assert len(re.findall(f'<img alt="{alt}" src="data:image/jpeg;base64,', page)) == 4
    pictures = list((tmp_path / "out" / "pictures").iterdir())
    assert len(pictures) == 4 * 4  # clips and frames
    for path in pictures:
        with Image.open(path) as image:
            assert image.height >= 240
    assert re.search(r"strong: put, score [01]\.\d\d</span>", page)
    assert re.search(r"weak: (take|turn), score [01]\.\d\d \(the label has 0\.\d\d\)", page)
    write(on_videos, tmp_path / "out", pictures=0)
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "pictures").exists()  # what an earlier report left is removed


def test_where_videos_or_the_cache_are_gone_the_report_says_so(on_videos, videos, tmp_path):
    moved = shutil.copytree(videos, tmp_path / "moved")
    record = json.loads((moved / "cache" / "cache.json").read_text())
    del record["seal"]
    record["manifest"]["root"] = str(moved)
    runs.write_json(moved / "cache" / "cache.json", record)
    for clip in moved.glob("*.mp4"):
        clip.unlink()
    write(on_videos, tmp_path / "out", caches=[moved / "cache"])
    assert "No picture: " in (page := (tmp_path / "out" / "report.html").read_text())
    assert f"{moved}/clip0.mp4 is not there" in page
    write(report_runs.study(tmp_path / "runs"), tmp_path / "other")  # of a cache that is nowhere
    assert (
        "No picture: the cache nowhere/cache is not there"
        in (tmp_path / "other" / "report.html").read_text()
    )


# --- where the numbers come from


def test_extraction_is_reported_with_failures_by_reason(on_videos, videos, tmp_path):
    write(on_videos, tmp_path / "out")
    row = table(tmp_path / "out", "extraction")[0]
    size = sum(path.stat().st_size for path in (videos / "cache" / "features").glob("*.h5"))
    assert (row["clips"], row["failed"], row["shards"]) == ("5", "1", "2 of 2")
    assert float(row["clips/s"]) > 0
    assert float(row["bytes"]) == size
    (reason,) = table(tmp_path / "out", f"failures-{Cache(videos / 'cache').fingerprint[:8]}")
    assert (reason["clips"], reason["of all %"]) == ("1", "20")
    (clip,) = table(tmp_path / "out", f"failed-clips-{Cache(videos / 'cache').fingerprint[:8]}")
    assert clip["clip"] == "clip3"


def test_the_pace_of_an_extraction_is_that_of_its_shards_seconds(on_videos, videos, tmp_path):
    write(on_videos, tmp_path / "out")
    (row,) = table(tmp_path / "out", "pace")
    views = wall = networks = writing = 0
    for path in (videos / "cache" / "features").glob("*.json"):
        record = json.loads(path.read_text())
        seconds = record["seconds"]
        views, wall = views + record["views"], wall + seconds["wall"]
        networks += seconds["backbone"] + seconds["proposals"]
        writing += seconds["write"]
    assert float(row["views/s"]) == pytest.approx(views / wall, rel=1e-3)
    assert float(row["networks alone, views/s"]) == pytest.approx(views / networks, rel=1e-3)
    assert float(row["networks busy %"]) == pytest.approx(100 * networks / wall, rel=1e-3)
    assert float(row["writer idle %"]) == pytest.approx(100 - 100 * writing / wall, rel=1e-3)
    assert row["what held it back"]


def test_the_command_for_a_cache_gives_the_configuration_that_it_was_made_with(
    on_videos, videos, tmp_path
):
    import shlex

    write(on_videos, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    line = next(
        block for block in text.split("```") if block.strip().startswith("vidgraph extract")
    )
    words = shlex.split(line.replace("\\\n", " "))
    # Flags, as a person would write them.
    for key in [words[k + 1] for k, word in enumerate(words) if word == "--set"]:
        assert key.startswith(("backbone_options.", "proposal_options."))
    assert words[words.index("--flip") + 1] == "0.0"
    context = extract_command.make_context("extract", words[2:])
    assert with_settings(config_of(context.params), context.params["settings"]) == replace(
        extraction_of(videos), decoder="decord"
    )


def test_no_two_caches_are_to_be_made_in_one_folder(videos):
    from heads.reporting.provenance_sections import reproduce

    about = {"fingerprint": Cache(videos / "cache").fingerprint, "cache": str(videos / "cache")}
    (known,) = known_caches([FoundRun(folder=videos, about=about)], [])
    (_, code, *_) = reproduce((), (), (known, known, known)).blocks
    assert re.findall(r"extract .* --cache (\S+)", code.text.replace("\\\n", " ")) == [
        *("NEW", "NEW2", "NEW3"),
    ]


def test_every_flag_of_the_commands_is_an_option_of_extract():
    from heads.reporting.provenance_sections import FLAGS, NAMED

    known = {option for parameter in extract_command.params for option in parameter.opts}
    assert {*FLAGS.values(), *[f"--{name.replace('_', '-')}" for name in NAMED]} <= known


def test_options_without_a_flag_are_given_with_set():
    from heads.reporting.provenance_sections import _extract_options

    asked = {"backbone_options": {"temporal": "alternating"}, "sampling": {"stretch": 2}}
    words = _extract_options({**asked, "allow_truncated": True, "keep": ["pooled", "res5"]})
    assert words == [
        *("--set", 'backbone_options.temporal="alternating"', "--set", "sampling.stretch=2"),
        *("--allow-truncated", "--keep", "pooled,res5"),
    ]


def test_the_command_for_a_run_names_its_recipe_cache_and_seed(study, written):
    # Long commands go over several lines.
    text = " ".join((written / "report.md").read_text().replace("\\\n", " ").split())
    assert f"vidgraph train {study}/weak-seed1/recipe.toml --cache nowhere/cache" in text
    assert "--seed 1" in text


def test_a_run_from_frames_is_a_row_of_its_own_with_the_command_that_trains_it(tmp_path):
    Made("head").write(tmp_path / "runs")
    Made(
        "whole", about={"frames": {"fresh": True}}, cache="", fingerprint="e" * 64, phase="joint"
    ).write(tmp_path / "runs")
    report([tmp_path / "runs"], tmp_path / "out", say=quiet)
    rows = {row["name"]: row for row in table(tmp_path / "out", "study")}
    assert rows["whole"]["MACs"] == "" != rows["head"]["MACs"]
    text = re.sub(r" \\\n +", " ", (tmp_path / "out" / "report.md").read_text())
    assert f"vidgraph finetune {tmp_path}/runs/whole-seed0/recipe.toml --name whole-seed0" in text
    assert "--phase joint" in text
    assert "whole network's" in text


def test_phases_of_one_recipe_are_rows_of_their_own(tmp_path):
    for phase in ("search", "discrete"):
        Made("gos", phase=phase).write(tmp_path / phase)
    write(tmp_path, tmp_path / "out")
    assert {row["name"] for row in table(tmp_path / "out", "study")} == {
        "gos, phase=search",
        "gos, phase=discrete",
    }


def test_a_report_neither_writes_nor_removes_through_a_link(study, written, tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.jpg").write_text("mine")
    out = shutil.copytree(written, tmp_path / "out")
    shutil.rmtree(out / "plots")
    (out / "plots").symlink_to(tmp_path / "album")
    (out / "vidgraph-report.json").write_text(
        json.dumps({"files": ["report.html", "report.md", "plots/holiday.jpg"]})
    )
    before = everything(out)
    with pytest.raises(
        ValueError, match="out/plots: expected a folder of the report's own, got a link"
    ):
        write(study, out)
    assert everything(out) == before
    assert [path.name for path in (tmp_path / "album").iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("odd", ["a link", "a file with a hole"])
def test_a_recipe_that_is_no_small_file_of_the_run_is_not_shown(study, tmp_path, odd):
    (tmp_path / "secret").write_text("of the reader")
    shutil.copytree(study, tmp_path / "runs")
    for recipe in (tmp_path / "runs").rglob("recipe.toml"):
        recipe.unlink()
        if odd == "a link":
            recipe.symlink_to(tmp_path / "secret")
        else:
            recipe.touch()
            os.truncate(recipe, 2**40)
    write(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "of the reader" not in text
    if odd == "a link":
        assert "is a link, which is not followed" in text
    else:
        assert "cannot be read: a file of 1,099,511,627,776" in text


# --- runs that are not as they should be


def spoil(path: Path) -> None:
    """One byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


WRONG = {
    "unfinished": (
        lambda run: (run / "metrics.json").unlink(),
        "not finished: stopped after 3 epochs",
        3,
    ),
    "damaged": (lambda run: spoil(run / "run.json"), "run.json", 3),
    "figures": (lambda run: spoil(run / "metrics.json"), "metrics.json", 3),
    "predictions": (
        lambda run: spoil(run / "predictions_test.npz"),
        "predictions_test.npz: damaged",
        4,
    ),
    "no predictions": (
        lambda run: (run / "predictions_test.npz").unlink(),
        "predictions_test.npz: no such file",
        4,
    ),
    "log": (
        lambda run: (run / "log.jsonl").write_text("{}\n"),
        "log.jsonl: line 1 cannot be read",
        4,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_run_that_is_not_as_it_should_be_is_listed_and_the_exit_code_is_3(what, study, tmp_path):
    shutil.copytree(study, tmp_path / "runs")
    change, said, left = WRONG[what]
    change(tmp_path / "runs" / "weak-seed1")
    done = CliRunner().invoke(
        vidgraph,
        ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-macs"],
        standalone_mode=False,
    )
    assert done.return_value == 3, done.output
    assert sum(int(row["seeds"]) for row in table(tmp_path / "out", "study")) == left
    assert len(table(tmp_path / "out", "runs")) == 4
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "weak-seed1" in text
        assert said.split(":")[0] in text
    assert said in done.output


def test_predictions_of_another_evaluation_are_not_passed_off_as_the_runs_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "runs")
    shutil.copy(
        study / "strong-seed0" / "predictions_test.npz",
        tmp_path / "runs" / "weak-seed1" / "predictions_test.npz",
    )
    (problem,) = write(tmp_path / "runs", tmp_path / "out").problems
    assert "gives other figures than metrics.json" in problem


def test_members_of_a_study_that_failed_are_listed(study, tmp_path):
    shutil.copytree(study, tmp_path / "runs")
    failed = {
        "folder": "gone-seed0",
        "seed": 0,
        "error": "LossNotFinite: the loss is nan",
        "epochs": 2,
    }
    (tmp_path / "runs" / "results.json").write_text(json.dumps({"rows": [{"failed": [failed]}]}))
    (problem,) = write(tmp_path / "runs", tmp_path / "out").problems
    assert problem.endswith("gone-seed0: failed after epoch 2: LossNotFinite: the loss is nan")


def test_without_a_finished_run_there_is_a_report_all_the_same(study, tmp_path):
    shutil.copytree(study / "weak-seed0", tmp_path / "runs" / "weak-seed0")
    (tmp_path / "runs" / "weak-seed0" / "metrics.json").unlink()
    outcome = write(tmp_path / "runs", tmp_path / "out")
    assert (outcome.runs, outcome.rows, len(outcome.problems)) == (1, 0, 1)
    assert "Finished runs: 0" in outcome.page.read_text()


def test_bad_input_is_refused_before_anything_is_written(study, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for paths, options, said in (
        ([tmp_path / "gone"], {}, "no such file or folder"),
        ([tmp_path / "empty"], {}, "holds no run"),
        ([study], {"compare": ("weak", "weak")}, "two different rows"),
        ([study], {"caches": [tmp_path / "empty"]}, "no cache here"),
    ):
        with pytest.raises(ValueError, match=said):
            write(paths, out, **options)
        assert not out.exists()
    with pytest.raises(ValueError, match="is no report"):
        write(study, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_with_anybodys_page_keeps_its_pictures(study, tmp_path):
    for name in (
        "report.html",
        "report.md",
        "pictures/holiday.jpg",
        "plots/mine.svg",
        "tables/mine.csv",
    ):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(f"<!doctype html> my {name}")
    before = everything(tmp_path / "site")
    with pytest.raises(ValueError, match="is no report"):
        write(study, tmp_path / "site")
    assert everything(tmp_path / "site") == before


def test_what_others_put_beside_a_report_stays(study, written, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(written, out)
    for name in ("notes.txt", "pictures/holiday.jpg", "tables/mine.csv", "lecture.mp4.part"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    assert len(list((out / "plots").iterdir())) > 1
    write(study / "weak-seed0", out)
    mine = {"notes.txt", "pictures/holiday.jpg", "tables/mine.csv", "lecture.mp4.part"}
    write(study / "weak-seed0", tmp_path / "fresh")
    assert everything(out) == everything(tmp_path / "fresh") | dict.fromkeys(mine, b"mine")


def test_a_report_replaces_no_file_that_it_has_not_written(study, written, tmp_path):
    shutil.copytree(written, tmp_path / "out")
    write(study / "weak-seed0", tmp_path / "out")
    plot = next(
        name
        for name in everything(written)
        if name[:6] == "plots/" and not (tmp_path / "out" / name).exists()
    )
    (tmp_path / "out" / plot).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / plot).write_text("mine")
    before = everything(tmp_path / "out")
    with pytest.raises(ValueError, match="is of no earlier report"):
        write(study, tmp_path / "out")
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize("over", ["nothing", "an earlier report"])
def test_a_report_stopped_anywhere_can_be_written_again(
    study, written, tmp_path, monkeypatch, over
):
    """The disk is full at every file in turn. The same call then ends as if nothing happened."""
    text, page = "# text", to_html(Document("title", (), ()))
    files = {"plots/a.svg": b"a", "plots/b.svg": b"b", "tables/t.csv": b"t"}
    write_report(tmp_path / "calm", page, text, files)
    moments = [
        (Path, "write_bytes"),
        (Path, "unlink"),
        (os, "replace"),
        (os, "fsync"),
        (Path, "mkdir"),
    ]
    stop, ended = 1, False
    while not ended:
        out, calls = tmp_path / f"stopped-{stop}", [0]
        if over != "nothing":
            shutil.copytree(written, out)

        def full(*args, real, stop=stop, calls=calls, **how):
            calls[0] += 1
            if calls[0] == stop:
                raise OSError(28, "No space left on device")
            return real(*args, **how)

        with monkeypatch.context() as patch:
            for where, name in moments:
                real = getattr(where, name)
                patch.setattr(
                    where, name, lambda *args, real=real, **how: full(*args, real=real, **how)
                )
            with suppress(OSError):
                write_report(out, page, text, files)
        ended = calls[0] < stop
        write_report(out, page, text, files)
        assert everything(out) == everything(tmp_path / "calm")
        stop += 1
    assert stop > 15


def test_a_report_of_a_version_without_a_marker_is_replaced_but_for_what_nobody_knows(
    study, written, tmp_path
):
    shutil.copytree(written, tmp_path / "out")
    (tmp_path / "out" / "vidgraph-report.json").unlink()
    (tmp_path / "out" / "pictures").mkdir(exist_ok=True)
    (tmp_path / "out" / "pictures" / "holiday.jpg").write_text("mine")
    write(study / "weak-seed0", tmp_path / "out")
    write(study / "weak-seed0", tmp_path / "fresh")
    left = everything(tmp_path / "out").keys() - everything(tmp_path / "fresh").keys()
    assert "pictures/holiday.jpg" in left
    assert not [name for name in left if name.startswith("plots/")]  # which its text showed


@pytest.mark.parametrize(
    "listed",
    [
        "../precious",
        "/etc/passwd",
        "notes.txt",
        "tables/../../precious",
        "tables/sub/x.csv",
        "plots/..",
        7,
    ],
)
def test_a_list_that_somebody_changed_removes_nothing_outside(study, written, tmp_path, listed):
    (tmp_path / "precious").write_text("mine")
    shutil.copytree(written, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    marker = tmp_path / "out" / "vidgraph-report.json"
    marker.write_text(json.dumps({"files": [*json.loads(marker.read_text())["files"], listed]}))
    write(study, tmp_path / "out")
    assert (
        (tmp_path / "precious").read_text()
        == (tmp_path / "out" / "notes.txt").read_text()
        == "mine"
    )
