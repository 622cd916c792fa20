"""The papers' digit experiments at a tiny size: every row trains, resumes, and stands beside the
paper's figure.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.reproduce import command
from heads.reproduction import place_training, reproduce
from heads.reproduction.earlier_results import read_results
from heads.reproduction.experiments import (
    has_row,
    reads_frames,
    recipe_of,
    row_has_regions,
    size_for,
)
from heads.reproduction.generated_frames import GeneratedFrames
from heads.reproduction.pretraining import Pretraining, pretrain
from heads.reproduction.report import (
    accuracy,
    beyond_spread,
    compare_order,
    markdown,
    record,
    write_report,
)
from heads.reproduction.reproduce import Reproduction, train_rows
from heads.reproduction.tables import DYREG, RSTG, TABLES
from heads.training.study_table import FigureSpread
from pipeline.backbones import build_backbone, freeze
from pipeline.digits import (
    DigitVideos,
    MultiSyncDigits,
    Sync3,
    SyncDigits,
    digit_cache,
    load_images,
)
from pipeline.digits.digit_cache import cache_digits

ROWS = [(table, row) for table in TABLES.values() for row in table.rows]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    # Of the digit network's training.
    monkeypatch.setattr(reproduce, "STEPS", 2)
    monkeypatch.setattr(place_training, "CHECKED", 20)
    monkeypatch.setattr(place_training, "CHECK_BATCH", 20)


def work(folder: Path, table=RSTG, said: list | None = None, stop: str = "never") -> Reproduction:
    def say(line: str) -> None:
        if said is not None:
            said.append(line)
        if stop in line:
            raise KeyboardInterrupt

    return Reproduction(table, table.sizes[0], folder, say=say)


def curves(found: dict) -> dict:
    """Loss and validation of the first task by row, without the clock."""
    rows = next(iter(found["tasks"].values()))["rows"]
    return {
        row["name"]: [(line["loss"], line["val"]) for run in row["runs"] for line in run["curve"]]
        for row in rows
    }


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_row_is_trained_resumed_and_written_beside_the_papers(table, tmp_path):
    task, said = table.tasks[0], []
    train_rows(work(tmp_path, table), task, table.rows, [0])
    first = record(work(tmp_path, table))
    assert all(len(row["runs"]) == 1 for row in first["tasks"][task]["rows"])
    assert all(
        np.isfinite(line["loss"])
        for row in first["tasks"][task]["rows"]
        for line in row["runs"][0]["curve"]
    )
    assert train_rows(work(tmp_path, table, said), task, table.rows, [0]) == []
    rows = [row for row in table.rows if has_row(row, table.sizes[0], task)]
    assert len(said) == len(rows)
    assert all("finished before" in line for line in said)
    assert record(work(tmp_path, table)) == first
    page = markdown(first)
    for row in rows:
        assert (
            f"| {row.title} | " + (f"{row.paper[task]:g} |" if task in row.paper else "– |") in page
        )


@pytest.mark.parametrize("change", [{"epochs": 2}, {"task": {"reach": 20}}])
def test_runs_of_a_size_that_was_another_one_are_no_figures_of_this_one(change, tmp_path):
    rows = [row for row in RSTG.rows if row.name in ("mean_lstm", "i3d")]
    train_rows(work(tmp_path), "sync3", rows, [0])
    changed = replace(work(tmp_path), size=replace(RSTG.sizes[0], **change))
    assert not [row for row in record(changed)["tasks"]["sync3"]["rows"] if row["runs"]]
    for row in rows:
        with pytest.raises(ValueError, match="another"):
            train_rows(changed, "sync3", [row], [0])


@pytest.mark.parametrize("stop", ["epoch 1/1", "I3D, seed 1"])
def test_a_table_that_was_stopped_anywhere_ends_with_the_same_curves(stop, tmp_path):
    rows = [row for row in RSTG.rows if row.name in ("mean_lstm", "i3d")]
    train_rows(work(tmp_path / "whole"), "sync3", rows, [0, 1])
    with pytest.raises(KeyboardInterrupt):
        train_rows(work(tmp_path / "stopped", stop=stop), "sync3", rows, [0, 1])
    train_rows(work(tmp_path / "stopped"), "sync3", rows, [0, 1])
    whole, stopped = (curves(record(work(tmp_path / name))) for name in ("whole", "stopped"))
    assert whole == stopped
    assert len(whole["i3d"]) == 2
    assert whole["i3d"][0] != whole["i3d"][1]


def test_the_command_writes_the_table_of_what_is_done(tmp_path):
    options = "--budget 0 --rows mean_lstm --tasks sync3 --seeds 1 --device cpu"
    asked = ["rstg", *options.split(), "--folder", str(tmp_path)]
    done = CliRunner().invoke(command, asked, standalone_mode=False)
    assert done.exception is None
    found = json.loads((tmp_path / "rstg-tiny" / "rstg-tiny.json").read_text())
    assert [row["name"] for row in found["tasks"]["sync3"]["rows"] if row["runs"]] == ["mean_lstm"]
    assert "| Conv + LSTM | 95 | not run |" in (tmp_path / "rstg-tiny" / "rstg-tiny.md").read_text()

    # The figures of its own table count where the run folders are gone.
    shutil.rmtree(tmp_path / "rstg-tiny" / "sync3")
    again = CliRunner().invoke(command, asked, standalone_mode=False)
    assert again.exception is None
    later = json.loads((tmp_path / "rstg-tiny" / "rstg-tiny.json").read_text())
    before, after = (one["tasks"]["sync3"]["rows"][0]["runs"][0] for one in (found, later))
    assert after == {**before, "earlier": True}
    assert not (tmp_path / "rstg-tiny" / "sync3").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--rows", "mean_lst"), ("--size", "tny"), ("--tasks", "sync4")]
)
def test_a_name_that_is_not_known_is_refused_with_the_nearest(option, value, tmp_path):
    done = CliRunner().invoke(
        command, ["rstg", option, value, "--folder", str(tmp_path)], standalone_mode=False
    )
    assert isinstance(done.exception, ValueError)
    assert "did you mean" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_row_whose_lower_part_is_not_frozen_is_trained_from_frames(tmp_path):
    size = replace(DYREG.sizes[0], videos=(60, 6, 6), batch=60)  # every label occurs
    whole = Reproduction(DYREG, replace(size, frozen=False), tmp_path, say=str)
    rows = [row for row in DYREG.rows if row.name in ("r18", "dyreg")]
    found = train_rows(whole, "multisync", rows, [0])
    assert not (tmp_path / "multisync" / "cache").exists()
    frozen = train_rows(
        Reproduction(DYREG, size, tmp_path / "frozen", say=str), "multisync", rows, [0]
    )
    assert (tmp_path / "frozen" / "multisync" / "cache").exists()
    lower = build_backbone("resnet18", width=size.trunk, **DYREG.lower_options)
    more = sum(p.numel() for p in lower.parameters())
    assert [
        one.parameters - other.parameters for one, other in zip(found, frozen, strict=True)
    ] == [more, more]


def test_the_small_size_of_dyreg_is_half_guessed_by_who_knows_the_digits_alone():
    task = Reproduction(DYREG, DYREG.sizes[1], Path()).task("multisync")
    scenes = task.scenes(load_images()["val"], 0, "val", np.arange(2000))
    assert task.guess == 0.5
    # Four standard deviations.
    assert abs((scenes.labels == task.labels.index("none")).mean() - 0.5) < 0.04
    room = task.canvas - task.tile - 1
    assert task.reach > room  # a digit on its own may be anywhere in the next frame


@pytest.mark.slow
def test_dyregs_graph_sees_that_digits_move_together_and_resnet_18_alone_does_not(
    tmp_path, monkeypatch
):
    """The size `small` with two of its three epochs: about three minutes of one core."""
    monkeypatch.setattr(reproduce, "STEPS", 400)
    small = Reproduction(DYREG, replace(DYREG.sizes[1], epochs=2), tmp_path, say=str)
    train_rows(
        small, "multisync", [row for row in DYREG.rows if row.name in ("r18", "dyreg")], [0, 1]
    )
    found = {row["name"]: accuracy(row) for row in record(small)["tasks"]["multisync"]["rows"]}
    assert found["r18"].mean < 60  # who knows the digits and no more: 50
    assert found["dyreg"].mean > 70
    assert beyond_spread(found["r18"], found["dyreg"])


# --- pre-training


def test_the_statistics_of_norms_come_from_the_training_digits_alone(tmp_path):
    how = Pretraining(
        "resnet18", 4, {"stages": 2, "grey": True}, tile=14, canvas=48, steps=3, batch=4
    )
    made = pretrain(tmp_path / "w.pt", load_images(), how, say=str)
    state = torch.load(made.path, weights_only=True)
    counts = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counts == {made.steps}


# --- sizes, recipes


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_larger_budget_never_takes_a_smaller_size(table):
    compare_order = [
        table.sizes.index(size_for(table, minutes, "cpu"))
        for minutes in (0, 1, 5, 20, 300, 1e4, 1e6)
    ]
    assert compare_order == sorted(compare_order)
    assert compare_order[0] == 0
    assert compare_order[-1] == len(table.sizes) - 1
    with pytest.raises(ValueError, match="budget"):
        size_for(table, -1, "cpu")
    small = table.sizes[1]
    assert [size_for(table, 3 * small.minutes, "cpu", seeds).name for seeds in (3, 4)] == [
        "small",
        "tiny",
    ]


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda one: one.name)
def test_a_rows_recipe_has_the_widths_of_the_size_and_the_rows_options(table, row):
    for size in table.sizes:
        recipe = recipe_of(row, size, table.tasks[-1])
        assert row.head.items() <= recipe.head.options.items()
        assert recipe.all_phases[0].train.epochs == size.epochs_of(table.tasks[-1])
        assert recipe.all_phases[0].reads == ("frames" if reads_frames(row, size) else "cache")
        assert (
            recipe.head.name not in ("rstg", "conv_lstm", "dyreg")
            or recipe.head.options["width"] == size.width
        )
        assert (
            recipe.head.name not in ("rstg", "dyreg")
            or size.graph.items() <= recipe.head.options.items()
        )


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda one: one.name)
def test_adam_trains_no_row_with_weight_decay(table, row):
    # Weights whose gradients are small at first would shrink to zero (regions of DyReg-GNN did).
    for size in table.sizes:
        for phase in recipe_of(row, size, table.tasks[-1]).all_phases:
            assert phase.train.optimiser == "adam"
            assert phase.train.weight_decay == 0


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_the_largest_size_is_the_papers_task(table):
    for name in table.tasks:
        assert (
            Reproduction(table, table.sizes[-1], Path()).task(name)
            == type(Reproduction(table, table.sizes[-1], Path()).task(name))()
        )


# --- digits of fewer classes


@pytest.mark.parametrize("kind", [Sync3, SyncDigits, MultiSyncDigits])
def test_fewer_classes_give_only_their_digits_and_labels(kind):
    task, images = kind(classes=6), load_images()["val"]
    scenes = task.scenes(images, 0, "val", np.arange(300))
    assert set(np.unique(scenes.classes)) == set(range(6))
    assert (images.classes[scenes.rows] == scenes.classes).all()
    assert len(task.labels) == 16 + 6 * (kind is MultiSyncDigits)
    for classes, chosen, label in zip(scenes.classes, scenes.chosen, scenes.labels, strict=True):
        some = classes[chosen]
        assert task.labels[label] == (f"{some.min()}-{some.max()}" if len(some) else "none")


def test_too_few_classes_for_digits_that_differ_are_refused():
    with pytest.raises(ValueError, match="classes from 5 to 10"):
        SyncDigits(classes=4)
    with pytest.raises(ValueError, match="classes from 2 to 10"):
        MultiSyncDigits(classes=1)


# --- where the videos come from


def test_the_cache_holds_the_maps_of_the_generated_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_cache, "PER_SHARD", 4)
    torch.manual_seed(0)
    backbone, weights = build_backbone("digit_cnn", width=8, pixels="unit"), tmp_path / "w.pt"
    torch.save(backbone.state_dict(), weights)
    task, images, frozen = Sync3(classes=3), load_images(), freeze(backbone)
    images = {split: one.only(np.flatnonzero(one.classes < 3)) for split, one in images.items()}
    counts = {"train": 6, "val": 3, "test": 3}
    cache = cache_digits(tmp_path / "cache", task, images, counts, frozen, weights)
    for split, group, first in (("train", "train", 0), ("val", "test", 6), ("test", "test", 9)):
        videos = DigitVideos(task, images[split], 0, split)[np.arange(counts[split])]
        for k in range(counts[split]):
            with torch.inference_mode():
                wanted = frozen(frozen.prepare(videos.rgb[k : k + 1]))[0].transpose(0, 1)
            view = cache[group].view(first + k)
            assert np.allclose(view["conv3"], wanted.numpy(), rtol=2e-3, atol=2e-3)
            assert np.allclose(view["pooled"], wanted.mean((-1, -2)).numpy(), rtol=2e-3, atol=2e-3)
            assert cache.manifest.clips[first + k].labels == (task.labels[videos.labels[k]],)
    assert cache["train"].ok.tolist() == [True] * 6 + [False] * 6
    assert not (cache["train"].ok & cache["test"].ok).any()
    before = cache.shards.path(0).stat().st_mtime_ns
    cache_digits(tmp_path / "cache", task, images, counts, frozen, weights)
    assert cache.shards.path(0).stat().st_mtime_ns == before


def test_generated_frames_are_the_videos_of_their_numbers():
    task = Reproduction(DYREG, DYREG.sizes[0], Path()).task("multisync")
    images = Reproduction(DYREG, DYREG.sizes[0], Path()).pictures(task)
    source = GeneratedFrames(task, images, {"train": 5, "val": 2, "test": 2}, "cpu")
    ((clips, places),) = next(source.batches("train", [np.array([4, 1])], 0))
    alone = DigitVideos(task, images["train"], 0, "train")[[4, 1]]
    assert clips.frames.equal(alone.rgb)
    assert places.tolist() == [0, 1]
    assert source.parts["train"].targets[[4, 1]].tolist() == alone.labels.tolist()


# --- the table


def rows(*given):
    """(title, paper, accuracies by seed)"""
    return [
        {"title": title, "paper": paper, "runs": [{"test": {"top1": value}} for value in values]}
        for title, paper, values in given
    ]


def test_a_row_is_the_mean_and_spread_of_its_seeds():
    assert accuracy(rows(("a", 50, (0.4, 0.6)))[0]).text(1) == "50.0 ± 14.1"
    assert accuracy(rows(("a", 50, ()))[0]) is None


def test_pairs_in_the_papers_order_are_counted_and_the_others_named():
    table = rows(
        ("a", 50, (0.4,)),
        ("b", 60, (0.3,)),
        ("c", 70, (0.9,)),
        ("no figure", None, (0.1,)),
        ("not run", 1, ()),
    )
    assert compare_order(table) == (2, 3, ["a is not below b"])
    # Equal figures are not in the paper's order.
    equal = rows(("a", 50, (0.4,)), ("b", 60, (0.4,)))
    assert compare_order(equal)[2] == ["a is not below b"]


@pytest.mark.parametrize(("gap", "beyond"), [(2.9, False), (3.1, True)])
def test_a_margin_beyond_the_spread_exceeds_both_deviations(gap, beyond):
    assert beyond_spread(FigureSpread(30, 1), FigureSpread(30 + gap, 2)) is beyond
    assert not beyond_spread(FigureSpread(30, None), FigureSpread(90, 2))


@pytest.mark.slow
def test_a_graph_over_time_beats_a_mean_over_the_map_beyond_the_spread_of_seeds(
    tmp_path, monkeypatch
):
    """RSTG's Table 1 on three digits in a fraction of the time that `small` takes."""
    small = next(size for size in RSTG.sizes if size.name == "small")
    fraction = replace(small, videos=(8000, 300, 600), epochs=4, place_steps=1200)
    rows = [row for row in RSTG.rows if row.name in ("mean_lstm", "all_temporal")]
    one = Reproduction(RSTG, fraction, tmp_path, say=str)
    train_rows(one, "sync3", rows, [0, 1])
    mean_lstm, graph = (
        accuracy(row) for row in record(one)["tasks"]["sync3"]["rows"] if row["runs"]
    )
    print(f"Mean + LSTM {mean_lstm.text(1)}, All-temp {graph.text(1)} %")  # shown by -s
    assert beyond_spread(mean_lstm, graph)
    assert graph.mean > mean_lstm.mean + 10


# --- from three digits to five


def test_a_row_on_five_digits_starts_from_its_own_on_three(tmp_path):
    said: list[str] = []
    rows = [row for row in RSTG.rows if row.name in ("mean_lstm", "all_temporal_fresh")]
    # Five digits alone are asked for: the run on three that is missing is trained first.
    train_rows(work(tmp_path, said=said), "sync5", rows, [0])
    assert [line for line in said if "Mean + LSTM, seed 0" in line] == [
        "sync3, Mean + LSTM, seed 0",
        "sync5, Mean + LSTM, seed 0",
    ]
    starts = [line for line in said if "starts from" in line]
    assert len(starts) == 1
    assert "fresh:" not in starts[0]  # the classifier comes along: both tasks have its labels
    run = json.loads((tmp_path / "sync5" / "mean_lstm-seed0" / "run.json").read_text())
    assert Path(run["start"]) == tmp_path / "sync3" / "mean_lstm-seed0"
    assert not (tmp_path / "sync3" / "all_temporal_fresh-seed0").exists()
    found = record(work(tmp_path))["tasks"]
    assert "all_temporal_fresh" not in [row["name"] for row in found["sync3"]["rows"]]


def test_both_tasks_share_one_digit_network(tmp_path):
    one = work(tmp_path)
    (_, first), (_, second) = one.digit_network("sync3"), one.digit_network("sync5")
    assert first == second
    assert one.task("sync3").labels == one.task("sync5").labels


# --- the digit network trained along with the head


def test_a_joint_size_trains_the_digit_network_on(tmp_path):
    joint = replace(RSTG.sizes[0], joint=True, videos=(24, 6, 6))
    one = Reproduction(RSTG, joint, tmp_path, say=str)
    rows = [row for row in RSTG.rows if row.name == "time_only"]
    train_rows(one, "sync5", rows, [0])
    before = torch.load(tmp_path / "digit_cnn.pt", weights_only=True)
    moved = {}
    for task in ("sync3", "sync5"):
        saved = torch.load(tmp_path / task / "time_only-seed0" / "best.pt", weights_only=False)
        moved[task] = {
            name: (tensor - before[name]).abs().max().item()
            for name, tensor in saved["backbone"].items()
        }
    # Adam moves a weight by about its rate a step, so this began with the pre-trained ones.
    assert 0 < max(moved["sync3"].values()) < 0.02
    # Five digits go on from where three ended.
    assert sum(moved["sync5"].values()) > sum(moved["sync3"].values())
    assert not (tmp_path / "sync3" / "cache").exists()


def test_fresh_epochs_never_repeat_a_training_video():
    one = work(Path())
    task = one.task("sync3")
    counts = {"train": 6, "val": 2, "test": 2}
    source = GeneratedFrames(task, one.pictures(task), counts, "cpu", fresh_epochs=3)
    seen = []
    for epoch in range(3):
        rows, videos, _ = source.parts["train"].draw(0, epoch)
        ((clips, _),) = next(source.batches("train", [rows], epoch))
        alone = DigitVideos(task, one.pictures(task)["train"], 0, "train")[rows]
        assert clips.frames.equal(alone.rgb)
        assert source.parts["train"].targets[videos].tolist() == alone.labels.tolist()
        seen += rows.tolist()
    assert sorted(seen) == list(range(18))
    assert len(source.parts["train"]) == 6


# --- figures of earlier records


def test_figures_of_an_earlier_record_stand_for_runs_whose_folders_are_gone(tmp_path):
    rows = [row for row in RSTG.rows if row.name == "mean_lstm"]
    first = work(tmp_path / "first")
    train_rows(first, "sync3", rows, [0])
    paths = write_report(first, tmp_path)
    figures = record(first)["tasks"]["sync3"]["rows"][0]["runs"]

    said: list[str] = []
    later = replace(work(tmp_path / "later", said=said), earlier=read_results([paths[0]]))
    assert train_rows(later, "sync3", rows, [0]) == []
    assert said == ["sync3, Mean + LSTM, seed 0: finished before"]
    (run,) = record(later)["tasks"]["sync3"]["rows"][0]["runs"]
    assert run == {**figures[0], "earlier": True}

    # Another seed is trained, and stands beside the earlier one.
    train_rows(later, "sync3", rows, [1])
    runs = record(later)["tasks"]["sync3"]["rows"][0]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert "earlier record, whose seconds are those of its machine: 1." in markdown(record(later))

    # Runs that were made otherwise do not count.
    for change in ({"epochs": 2}, {"place_steps": 3}, {"videos": (36, 12, 12)}):
        other = replace(later, size=replace(later.size, **change))
        found = record(other)["tasks"]["sync3"]["rows"][0]["runs"]
        assert not [run for run in found if "earlier" in run]


def test_a_file_that_is_no_record_is_refused(tmp_path):
    (tmp_path / "no.json").write_text('{"tasks": []}')
    with pytest.raises(ValueError, match="expected a record"):
        read_results([tmp_path / "no.json"])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_distance_of_regions_is_measured_before_and_after_training(frozen, tmp_path):
    size = replace(DYREG.sizes[0], videos=(60, 6, 6), batch=60, frozen=frozen)
    one = Reproduction(DYREG, size, tmp_path, say=str)
    rows = [row for row in DYREG.rows if row.name in ("r18", "dyreg")]
    train_rows(one, "multisync", rows, [0])
    found = record(one)
    without, regions = (
        row["runs"][0] for row in found["tasks"]["multisync"]["rows"] if row["runs"]
    )
    assert "distance" not in without
    figures = regions["distance"]
    assert set(figures) == {"dist", "dist_regions", "dist_start", "dist_regions_start"}
    # In sides of the frame. Training has moved the regions.
    assert all(0 < figure < 1.5 for figure in figures.values())
    assert figures["dist"] != figures["dist_start"]
    assert f"| DyReg | {figures['dist_start']:.3f} | {figures['dist']:.3f} |" in markdown(found)


def test_only_rows_that_pool_from_regions_have_places_to_measure():
    """A name of its own: `region_figures.has_regions` asks a built head instead."""
    assert any(row_has_regions(row) for row in DYREG.rows)
    assert not any(row_has_regions(row) for row in RSTG.rows)
