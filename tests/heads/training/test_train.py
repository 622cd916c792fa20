"""Training on a real (tiny) cache: what a run computes, resumes, writes, refuses."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from heads.config.recipe import recipe_from
from heads.config.recipe_tables import DataOptions
from heads.config.training_options import Training
from heads.data.classes import find_classes, mirrored
from heads.data.feature_store import FeatureStore
from heads.data.splits import split_views
from heads.evaluation.evaluate import evaluate
from heads.evaluation.metrics import aggregate, scores_of, summarise
from heads.interface.loss import LossNotFinite, device_for
from heads.runs import run_files as runs
from heads.training.learner import Learner
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.files.atomic_files import fletcher32
from pipeline.manifests.manifest import write_manifest
from pipeline.workers.memory import free_memory
from tests.support.tiny_cache import SPLITS, Tiny


def recipe(head="strg", options=None, data=None, evaluate=None, **training):
    training = {"epochs": 3, "batch": 5, "lr": 0.1, **training}
    if "iterations" in training:
        training.pop("epochs")
    return recipe_from(
        {
            "name": "tiny",
            "source": "a test",
            "head": {"name": head, **(options or {})},
            "data": data or {},
            "train": training,
            "evaluate": evaluate or {},
        }
    )


def run(recipe_, cache, folder, **how):
    return train(
        recipe_,
        cache,
        folder,
        **{"say": lambda line: None, "tensorboard": False, "device": "cpu", **how},
    )


def weights(folder: Path, name: str = "last") -> dict:
    return runs.load_checkpoint(folder / f"{name}.pt")["state"]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Tiny(failed=(1, 14)).write(tmp_path_factory.mktemp("tiny"))


class Stop(Exception):
    pass


def stop_after(epoch: int):
    def say(line: str) -> None:
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    return say


# --- what a run computes


def test_a_head_learns_what_its_features_tell(cache, tmp_path):
    result = run(recipe(epochs=10), cache, tmp_path)
    assert result.split == "test"
    assert result.metrics["test"]["top1"] > 0.8
    assert result.metrics["val"].keys() == {"top1", "class_mean", "loss"}
    assert result.parameters == sum(p.numel() for p in weights(tmp_path).values())


def test_a_run_depends_on_its_seed_and_on_nothing_else(cache, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(hash(name) % 1000)
        run(recipe(), cache, tmp_path / name, seed=seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_resident_and_streamed_features_give_the_same_run(cache, tmp_path):
    for resident in ("ram", "disk", "auto"):
        run(recipe(), cache, tmp_path / resident, resident=resident)
    assert same(weights(tmp_path / "ram"), weights(tmp_path / "disk"))
    assert same(weights(tmp_path / "ram"), weights(tmp_path / "auto"))


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 4, "optimiser": "sgd", "nesterov": True},
        {"epochs": 4, "optimiser": "adam", "schedule": "cosine", "clip_norm": 0.5},
        {"epochs": 4, "schedule": "plateau", "patience": 1, "factor": 0.5},
        {"iterations": 10, "schedule": "steps", "drop_at": [7]},
    ],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(training, cache, tmp_path):
    chosen = recipe(options={"dropout": 0.5}, **training)
    whole = run(chosen, cache, tmp_path / "whole", seed=3)
    with pytest.raises(Stop):
        run(chosen, cache, tmp_path / "parts", seed=3, say=stop_after(1))
    with pytest.raises(Stop):
        run(chosen, cache, tmp_path / "parts", seed=3, say=stop_after(3))
    lines: list[str] = []
    parts = run(chosen, cache, tmp_path / "parts", seed=3, say=lines.append)
    assert lines[2].endswith("continued after epoch 3")
    assert not any(line.startswith("epoch 3/") for line in lines)
    assert parts.metrics == whole.metrics
    assert parts.epochs == whole.epochs
    for name in ("last", "best"):
        assert same(weights(tmp_path / "parts", name), weights(tmp_path / "whole", name))
    one, other = (runs.load_checkpoint(tmp_path / name / "last.pt") for name in ("parts", "whole"))
    assert one["progress"] == other["progress"]
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("parts", "whole")
    ]
    assert [(line["epoch"], line["loss"], line["val"]) for line in logs[0]] == [
        (line["epoch"], line["loss"], line["val"]) for line in logs[1]
    ]


def test_a_run_that_dies_between_its_log_and_its_checkpoint_repeats_no_line(
    cache, tmp_path, monkeypatch
):
    whole = run(recipe(), cache, tmp_path / "whole")
    save = runs.save_checkpoint

    def dies(path, payload):
        if path.name == "last.pt" and payload["progress"]["epoch"] == 2:
            raise Stop
        save(path, payload)

    monkeypatch.setattr(runs, "save_checkpoint", dies)
    with pytest.raises(Stop):
        run(recipe(), cache, tmp_path / "parts")
    monkeypatch.setattr(runs, "save_checkpoint", save)
    with open(tmp_path / "parts" / "log.jsonl", "a") as log:
        log.write('{"epoch": 3, "st')  # and a line cut short
    assert run(recipe(), cache, tmp_path / "parts").metrics == whole.metrics
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_finished_run_is_read_back_and_another_one_is_refused(cache, tmp_path):
    first = run(recipe(), cache, tmp_path)
    os.utime(tmp_path / "last.pt", (1, 1))
    assert run(recipe(), cache, tmp_path) == first
    assert (tmp_path / "last.pt").stat().st_mtime == 1
    with pytest.raises(ValueError, match=r"another run \(recipe.train.lr is 0.1 there, 0.2 here\)"):
        run(recipe(lr=0.2), cache, tmp_path)
    run(recipe(lr=0.2), cache, tmp_path, resume=False)
    assert (tmp_path / "last.pt").stat().st_mtime > 1


def test_an_unfinished_run_of_other_options_is_not_continued(cache, tmp_path):
    with pytest.raises(Stop):
        run(recipe(), cache, tmp_path, say=stop_after(1))
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        run(recipe(), cache, tmp_path, seed=1)


def test_the_order_of_views_can_belong_to_a_study(cache, tmp_path):
    """Two members with the same order seed see the same batches, whatever their own seeds."""
    seen = {}
    original = Learner.step
    for name, seed, order in (("a", 0, 7), ("b", 1, 7), ("c", 0, 8)):
        seen[name] = []

        def step(self, clips, targets, name=name):
            seen[name].append(clips.pooled.clone())
            return original(self, clips, targets)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "step", step)
            run(recipe(epochs=1), cache, tmp_path / name, seed=seed, order_seed=order)
    assert all(x.equal(y) for x, y in zip(seen["a"], seen["b"], strict=True))
    assert not all(x.equal(y) for x, y in zip(seen["a"], seen["c"], strict=True))


def test_bfloat16_trains(cache, tmp_path):
    assert run(recipe(epochs=10), cache, tmp_path, precision="bf16").metrics["test"]["top1"] > 0.8


def test_the_last_checkpoint_can_be_what_counts(cache, tmp_path):
    result = run(recipe(epochs=6, lr=0.5, evaluate={"checkpoint": "last"}), cache, tmp_path)
    assert result.best_epoch == 6
    assert evaluate(tmp_path, cache, "test", device="cpu", say=str) == result.metrics["test"]


# --- views, labels, splits


def a_part(cache, split="train", data=None):
    data = data or DataOptions()
    group = "train" if split == "train" else "test"
    return split_views(
        cache, group, split, cache.manifest, find_classes(cache.manifest, data), data
    )


def test_an_epoch_draws_one_view_of_every_clip(cache):
    part = a_part(cache)
    clips = [cache["train"].clips[row] for row in part.draw(0, 0)[0]]
    assert sorted(clips) == sorted(part.clips)
    assert [part.clips[v] for v in part.draw(0, 0)[1]] == clips
    assert part.draw(0, 0)[0].tolist() == part.draw(0, 0)[0].tolist()
    assert part.draw(0, 0)[0].tolist() != part.draw(0, 1)[0].tolist() != part.draw(1, 1)[0].tolist()
    seen = {row for epoch in range(20) for row in part.draw(0, epoch)[0]}
    assert seen == set(part.all_rows()[0])
    assert len(seen) == 2 * len(part)


def test_the_number_of_training_views_is_one_option(cache):
    part = a_part(cache, data=DataOptions(train_views=1))
    assert {cache["train"].views[row] for epoch in range(10) for row in part.draw(0, epoch)[0]} == {
        0
    }


def test_failed_clips_are_left_out_and_said(cache, tmp_path):
    lines = []
    result = run(recipe(epochs=1), cache, tmp_path, say=lines.append)
    assert result.excluded["train"] == {"failed": 1, "absent": 0, "other": 0}
    assert result.excluded["val"] == {"failed": 1, "absent": 0, "other": 0}
    assert "split train: 1 of 12 clips failed at extraction and is left out: clip-1" in lines
    rows = a_part(cache).all_rows()[0]
    assert cache["train"].ok[rows].all()


def test_labels_and_splits_can_come_from_another_manifest(cache, tmp_path):
    rows = [
        {
            "clip": f"clip-{k}",
            "path": "x",
            "split": "val" if k < 4 else "train",
            "label": "ab"[k % 2],
        }
        for k in range(20)
    ]
    rows.append({"clip": "new", "path": "y", "split": "train", "label": "a"})
    manifest = write_manifest(tmp_path / "other.csv", rows)
    lines = []
    result = run(recipe(epochs=1), cache, tmp_path / "run", manifest=manifest, say=lines.append)
    assert result.split == "val"
    assert "test" not in result.metrics
    assert any("is not in the cache and is left out: new" in line for line in lines)
    assert runs.read_json(tmp_path / "run" / "run.json")["classes"] == ["a", "b"]


def test_whole_numbers_keep_their_class(tmp_path):
    cache = Tiny(splits=("train", "train", "val"), labels=["10", "2", "2"]).write(tmp_path)
    assert find_classes(cache.manifest, DataOptions()) == tuple(map(str, range(11)))
    assert len(find_classes(cache.manifest, DataOptions(num_classes=12))) == 12
    with pytest.raises(ValueError, match=r"label '10' is class 10, expected classes 0 to 4"):
        find_classes(cache.manifest, DataOptions(num_classes=5))


@pytest.mark.parametrize(("label", "number"), [("99999999999999999999", 0), ("1", 10**12)])
def test_numbers_that_are_no_classes_are_refused_before_they_are_counted_out(
    tmp_path, label, number
):
    cache = Tiny(splits=("train", "train", "val"), labels=["0", label, label]).write(tmp_path)
    with pytest.raises(
        ValueError, match=f"{number or label}'?: expected class ids up to 1,000,000"
    ):
        find_classes(cache.manifest, DataOptions(num_classes=number))


def test_a_class_list_fixes_the_order(cache, tmp_path):
    (tmp_path / "list.txt").write_text("class 2\nclass 0\nclass 1\nunused\n")
    assert (
        find_classes(cache.manifest, DataOptions(class_list=str(tmp_path / "list.txt")))[0]
        == "class 2"
    )
    (tmp_path / "list.txt").write_text("class 2\nclass 0\n")
    with pytest.raises(ValueError, match="label 'class 1' is not in"):
        find_classes(cache.manifest, DataOptions(class_list=str(tmp_path / "list.txt")))


def test_a_label_that_reads_like_none_is_no_class_in_silence(tmp_path):
    """A test split whose labels are withheld as -1: refused, or read as no label; never scored as a
    class.
    """
    labels = ["2", "10", "2", "10", "-1", "-1"]
    cache = Tiny(
        splits=("train", "train", "val", "val", "test", "test"), labels=labels, fields=("pooled",)
    ).write(tmp_path / "c")
    with pytest.raises(ValueError, match=r"label '-1' \(2 clips of test\) .*data\.no_label"):
        find_classes(cache.manifest, DataOptions())
    data = DataOptions(no_label=("-1",))
    assert [name for name in find_classes(cache.manifest, data) if name in labels] == ["2", "10"]
    assert a_part(cache, "test", data).targets is None
    assert a_part(cache, "val", data).targets.tolist() == [2, 10]
    # A manifest that comes later, to a run that knows its classes.
    with pytest.raises(ValueError, match="label '-1'"):
        split_views(cache, "test", "test", cache.manifest, ("2", "10"), DataOptions())
    (tmp_path / "classes.txt").write_text("-1\n2\n10\n")
    assert find_classes(cache.manifest, DataOptions(class_list=str(tmp_path / "classes.txt"))) == (
        "-1",
        "2",
        "10",
    )


def test_a_label_that_reads_like_none_is_left_out_of_several(tmp_path):
    cache = Tiny(splits=("train",) * 3, fields=("pooled",)).write(tmp_path / "c")
    rows = [
        {"clip": c.clip, "path": "x", "split": "train", "label": text}
        for c, text in zip(cache.manifest.clips, ("a;?", "b", "?"), strict=True)
    ]
    manifest = write_manifest(tmp_path / "other.csv", rows)
    with pytest.raises(ValueError, match=r"label '\?'"):
        find_classes(manifest, DataOptions(target="multi"))
    data = DataOptions(target="multi", no_label=("?",))
    assert find_classes(manifest, data) == ("a", "b")
    assert split_views(cache, "train", "train", manifest, ("a", "b"), data).targets.tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
    ]


def test_a_recipe_without_no_label_is_recorded_as_before():
    assert "no_label" not in recipe("pool").as_dict()["data"]
    assert recipe("pool", data={"no_label": ["-1"]}).as_dict()["data"]["no_label"] == ["-1"]


@pytest.mark.parametrize("data", ["\ufeffb\r\na\r\n".encode(), b"b\na", b"\n b \n\na\n"])
def test_a_class_list_may_be_written_by_any_editor(tmp_path, data):
    cache = Tiny(splits=("train", "train"), labels=["a", "b"], fields=("pooled",)).write(
        tmp_path / "c"
    )
    (tmp_path / "classes.txt").write_bytes(data)
    assert find_classes(cache.manifest, DataOptions(class_list=str(tmp_path / "classes.txt"))) == (
        "b",
        "a",
    )
    (tmp_path / "classes.txt").write_bytes("b\na\n".encode("utf-16"))
    with pytest.raises(
        ValueError, match=r"data\.class_list: .*UTF-16 text; save the file as UTF-8"
    ):
        find_classes(cache.manifest, DataOptions(class_list=str(tmp_path / "classes.txt")))


def test_a_subset_of_the_labels_leaves_the_other_videos_out_and_counts_them(cache, tmp_path):
    lines = []
    chosen = recipe("pool", epochs=1, data={"labels": ["class 2", "class 0"]})
    result = run(chosen, cache, tmp_path, say=lines.append)
    assert runs.read_json(tmp_path / "run.json")["classes"] == ["class 0", "class 2"]
    assert result.excluded["train"] == {"failed": 1, "absent": 0, "other": 3}
    assert any(
        line.startswith("split train: 3 of 12 clips have other labels than those that are kept")
        for line in lines
    )
    assert np.load(tmp_path / "predictions_test.npz")["logits"].shape == (8, 2)
    assert evaluate(tmp_path, cache, "test", device="cpu", say=str) == result.metrics["test"]
    assert find_classes(cache.manifest, DataOptions(first_labels=2)) == ("class 0", "class 1")
    for data, match in [
        (
            DataOptions(labels=("class 7",)),
            r"data.labels: 'class 7' is no class; did you mean class",
        ),
        (DataOptions(first_labels=9), "data.first_labels: expected at most the 3 classes"),
        (DataOptions(labels=("class 1",)), "expected at least 2 classes"),
        (
            DataOptions(labels=("class 0", "class 1"), swap_on_flip=(("class 1", "class 2"),)),
            "exchanged by a flip: keep both",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            find_classes(cache.manifest, data)


def test_a_subset_sees_its_videos_in_the_order_of_the_whole_split(cache):
    whole, part = a_part(cache), a_part(cache, data=DataOptions(labels=("class 0", "class 2")))
    assert set(part.clips) < set(whole.clips)
    for epoch in range(3):
        rows, video, turn = whole.draw(7, epoch)
        mine = [k for k, v in enumerate(video) if whole.clips[v] in part.clips]
        assert part.draw(7, epoch)[0].tolist() == rows[mine].tolist()
        assert part.draw(7, epoch)[2].tolist() == turn[mine].tolist()


def test_balanced_classes_are_drawn_or_weighed_alike(tmp_path):
    labels = ["a"] * 9 + ["b"] * 3 + ["a", "b"]
    cache = Tiny(splits=("train",) * 12 + ("val",) * 2, labels=labels, fields=("pooled",)).write(
        tmp_path
    )
    part = a_part(cache, data=DataOptions(balance="sampling"))
    drawn = np.concatenate([part.targets[part.draw(0, epoch)[1]] for epoch in range(200)])
    assert len(drawn) == 200 * 12
    assert abs((drawn == 0).mean() - 0.5) < 0.03
    plain = a_part(cache)
    assert plain.class_weights(3).tolist() == pytest.approx([12 / 18, 12 / 6, 6])
    assert plain.class_weights(2)[plain.targets].mean() == pytest.approx(1)
    metrics = [
        run(recipe("pool", data={"balance": how}), cache, tmp_path / how).metrics["val"]["loss"]
        for how in ("none", "sampling", "loss")
    ]
    assert len(set(metrics)) == 3
    with pytest.raises(ValueError, match="needs target 'single'"):
        recipe(data={"balance": "loss", "target": "multi"})


def test_mirrored_views_exchange_protected_classes(tmp_path):
    swap = torch.tensor([1, 0, 2])
    assert mirrored(torch.tensor([0, 0, 2]), torch.tensor([True, False, True]), swap).tolist() == [
        1,
        0,
        2,
    ]
    table = mirrored(torch.tensor([[1.0, 0, 0], [1, 0, 0]]), torch.tensor([True, False]), swap)
    assert table.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_mirrored_training_views_reach_the_head_with_the_other_class(cache, tmp_path):
    """Odd clips of the tiny cache are mirrored; nothing else may change its target."""
    pairs = {"swap_on_flip": [["class 0", "class 1"]]}
    part, targets = a_part(cache), []
    original = Learner.step

    def step(self, clips, target):
        targets.extend(target.tolist())
        return original(self, clips, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        run(recipe(epochs=1, data=pairs), cache, tmp_path)
    expected = []
    for video in part.draw(0, 0)[1]:
        number = int(part.clips[video].removeprefix("clip-"))
        expected.append([1, 0, 2][number % 3] if number % 2 else number % 3)
    assert targets == expected


def test_several_labels_per_clip_are_scored_by_mean_average_precision(tmp_path):
    labels = [["a", "b"] if k % 3 == 0 else ["b"] if k % 3 == 1 else [] for k in range(len(SPLITS))]
    cache = Tiny(labels=labels).write(tmp_path)
    chosen = recipe(data={"target": "multi"}, evaluate={"aggregate": "max"}, epochs=2)
    assert chosen.scores == "sigmoid"
    result = run(chosen, cache, tmp_path / "run")
    assert result.metrics["test"].keys() == {"map", "loss"}
    assert not (tmp_path / "run" / "confusion_test.csv").exists()
    with pytest.raises(ValueError, match=r"2 labels, expected one|no label, expected one"):
        run(recipe(), cache, tmp_path / "single")


def test_a_test_split_without_labels_is_predicted_but_not_scored(tmp_path):
    labels = [f"class {k % 3}" if split != "test" else [] for k, split in enumerate(SPLITS)]
    result = run(recipe(epochs=1), Tiny(labels=labels).write(tmp_path), tmp_path / "run")
    assert result.metrics["test"] == {}
    assert result.split == "val"
    assert np.load(tmp_path / "run" / "predictions_test.npz")["logits"].shape == (12, 3)


# --- what a run leaves behind


def test_a_run_folder_holds_what_any_metric_needs_later(cache, tmp_path):
    result = run(recipe(epochs=2), cache, tmp_path, tensorboard=True)
    saved = np.load(tmp_path / "predictions_test.npz", allow_pickle=False)
    assert [f"{c}/{v}" for c, v in zip(saved["clip"], saved["view"], strict=True)][:3] == [
        "clip-18/0",
        "clip-18/1",
        "clip-19/0",
    ]
    scores = aggregate(
        scores_of(saved["logits"], "softmax"), saved["video"], len(saved["clips"]), "mean"
    )
    assert summarise(scores, saved["targets"]).items() <= result.metrics["test"].items()
    targets = torch.from_numpy(saved["targets"][saved["video"]])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(saved["logits"]), targets).item()
    assert result.metrics["test"]["loss"] == pytest.approx(loss)
    about = runs.read_json(tmp_path / "run.json")
    assert about["fingerprint"] == cache.fingerprint
    assert about["versions"]["torch"] == torch.__version__
    assert about["seed"] == 0
    assert runs.read_json(tmp_path / "metrics.json")["metrics"] == result.metrics
    rows = (tmp_path / "confusion_test.csv").read_text().splitlines()
    assert rows[0] == "label \\ predicted,class 0,class 1,class 2"
    assert sum(int(n) for row in rows[1:] for n in row.split(",")[1:]) == 6
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_loads_as_tensors_and_plain_values_only(cache, tmp_path):
    run(recipe(epochs=1), cache, tmp_path)
    for name in ("last", "best"):
        assert torch.load(tmp_path / f"{name}.pt", weights_only=True)["about"]["classes"] == [
            "class 0",
            "class 1",
            "class 2",
        ]


def test_the_best_checkpoint_is_that_of_the_best_epoch(cache, tmp_path):
    result = run(recipe(epochs=6, lr=0.5), cache, tmp_path)
    log = [json.loads(line)["val"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    best = max(range(6), key=lambda k: (log[k]["top1"], -log[k]["loss"]))
    assert runs.load_checkpoint(tmp_path / "best.pt")["epoch"] == result.best_epoch == best + 1
    assert result.best_epoch < 6  # or this test would show nothing
    assert result.metrics["val"] == log[best]


def test_a_file_is_replaced_not_rewritten(tmp_path):
    """Whoever has the old file open keeps a whole one."""
    runs.write_text(tmp_path / "file", "old")
    with open(tmp_path / "file") as old:
        runs.write_text(tmp_path / "file", "new")
        assert old.read() == "old"
    assert (tmp_path / "file").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    runs.write_text(tmp_path / "file", "old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        runs.write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


# --- what is refused


def test_a_head_whose_fields_the_cache_lacks_is_refused_with_the_command(tmp_path):
    cache = Tiny(fields=("pooled", "flip", "grid")).write(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"strg needs nodes, boxes, valid.*`vidgraph extract .* --keep pooled,nodes,boxes`",
    ):
        run(recipe(), cache, tmp_path / "run")
    with pytest.raises(ValueError, match=r"needs res5.*--keep pooled,res5,boxes`"):
        run(recipe(options={"reduce": "conv"}), cache, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(recipe("pool", epochs=1), cache, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(cache, tmp_path):
    with pytest.raises(
        LossNotFinite, match=r"loss is (nan|inf) at mini-batch .* of epoch .*lower train.lr"
    ):
        run(recipe("pool", lr=1e38), cache, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def poison(cache: Cache, group: str, row: int, field: str) -> None:
    """Puts a NaN into a stored view, with a checksum that fits, past every check of the writer."""
    shard, local = divmod(row, cache[group].per_clip * len(cache.shards.ranges[0]))
    path = cache.shards.path(shard)
    with h5py.File(path) as file:
        dataset = file[group][field]
        place = dataset.id.get_chunk_info_by_coord((local, *[0] * (dataset.ndim - 1))).byte_offset
        size = dataset[local].nbytes
    with open(path, "r+b") as file:
        file.seek(place)
        data = (
            np.array([np.nan], cache[group].dtype(field)).tobytes()
            + file.read(size)[cache[group].dtype(field).itemsize :]
        )
        file.seek(place)
        file.write(data + fletcher32(np.frombuffer(data, np.uint8)).to_bytes(4, "little"))


@pytest.mark.parametrize("resident", ["ram", "disk"])
def test_features_that_are_not_finite_are_named_by_clip(resident, tmp_path):
    cache = Tiny().write(tmp_path)
    poison(cache, "train", 2 * 5 + 1, "nodes")
    with pytest.raises(
        ValueError, match=r"clip clip-5, view 1: nodes holds NaN or infinity; run `vidgraph verify"
    ):
        run(recipe(epochs=9), cache, tmp_path / "run", resident=resident)


def test_a_split_that_is_missing_or_empty_is_refused(tmp_path):
    for k, (splits, match) in enumerate(
        [
            (("val", "test"), "no clip in split train"),
            (("train", "train"), "no clip in split val or test"),
        ]
    ):
        cache = Tiny(splits=splits, labels=["a", "b"]).write(tmp_path / str(k))
        with pytest.raises(ValueError, match=match):
            run(recipe(), cache, tmp_path / "run")
    cache = Tiny(splits=("train", "train", "val"), labels=["a", "b", "a"], failed=(2,)).write(
        tmp_path / "failed"
    )
    with pytest.raises(ValueError, match=r"no test view of the 1 clip of split 'val' \(1 failed"):
        run(recipe(), cache, tmp_path / "run")


def test_a_cache_without_labels_or_with_one_class_is_refused(tmp_path):
    splits = ("train", "val")
    with pytest.raises(ValueError, match="no clip has a label"):
        run(
            recipe(),
            Tiny(splits=splits, labels=[[], []]).write(tmp_path / "none"),
            tmp_path / "run",
        )
    with pytest.raises(ValueError, match="at least 2 classes"):
        run(
            recipe(),
            Tiny(splits=splits, labels=["a", "a"]).write(tmp_path / "one"),
            tmp_path / "run",
        )


def test_evaluation_refuses_another_backbone_and_takes_more_views(cache, tmp_path):
    run(recipe(epochs=1), cache, tmp_path / "run")
    other = Tiny(config={"backbone": "i3d_r50"}).write(tmp_path / "other")
    with pytest.raises(ValueError, match="--backbone digit_cnn there, --backbone i3d_r50 here"):
        evaluate(tmp_path / "run", other, "test", device="cpu", say=str)
    wide = Tiny(C=5).write(tmp_path / "wide")
    with pytest.raises(
        ValueError, match="nodes and pooled features have 5 channels, the run's checkpoint 4"
    ):
        evaluate(tmp_path / "run", wide, "test", device="cpu", say=str)
    more = Tiny(
        test_views=5, config={"backbone": "digit_cnn", "sampling": {"test_clips": 5}}
    ).write(tmp_path / "more")
    lines = []
    found = evaluate(tmp_path / "run", more, "test", device="cpu", say=lines.append)
    assert found["top1"] >= 0
    assert "same features" in lines[0]
    assert np.load(tmp_path / "run" / f"predictions_test_{more.fingerprint[:8]}.npz")[
        "logits"
    ].shape == (30, 3)


def test_evaluation_repeats_the_figures_of_the_run_and_can_aggregate_otherwise(cache, tmp_path):
    result = run(recipe(epochs=2), cache, tmp_path)
    for split in ("val", "test"):
        assert evaluate(tmp_path, cache, split, device="cpu", say=str) == result.metrics[split]
    evaluate(
        tmp_path,
        cache,
        "test",
        settings={"aggregate": "max", "scores": "logits"},
        device="cpu",
        say=str,
    )
    with pytest.raises(ValueError, match=r"evaluate\.aggregate"):
        evaluate(tmp_path, cache, "test", settings={"aggregate": "median"}, device="cpu", say=str)


def test_a_damaged_or_missing_checkpoint_is_said(cache, tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run"):
        evaluate(tmp_path / "nothing", cache, "test", device="cpu")
    run(recipe(epochs=1), cache, tmp_path)
    whole = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a checkpoint of vidgraph"):
        evaluate(tmp_path, cache, "test", device="cpu")


def test_devices_and_precisions_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        device_for("cpu", "fp16")
    with pytest.raises(ValueError, match="precision 'fp8': expected one of"):
        device_for("cpu", "fp8")


# --- parts


def test_the_plateau_schedule_waits_for_its_patience():
    head = torch.nn.Linear(2, 2)
    learner = Learner(
        head, Training(epochs=9, schedule="plateau", patience=2, factor=0.1), "single", 4, 0, "fp32"
    )
    factors = []
    assert learner.lr == 0.01
    for loss in (1.0, 0.9, 0.95, 0.93, 0.92, 0.91, 0.5):
        learner.end_epoch(0.0, loss)
        factors.append(round(learner.progress.factor, 6))
    assert factors == [1, 1, 1, 1, 0.1, 0.1, 0.1]
    assert learner.lr == pytest.approx(0.01 * 0.1)


def test_of_equal_figures_the_lower_loss_is_best():
    learner = Learner(torch.nn.Linear(2, 2), Training(epochs=9), "single", 4, 0, "fp32")
    assert [
        learner.end_epoch(*pair) for pair in ((0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.4, 0.1))
    ] == [
        True,
        True,
        False,
        False,
    ]


def test_a_store_gives_rows_in_the_order_asked(cache):
    group, rows = cache["train"], a_part(cache).all_rows()[0]
    asked = rows[[3, 0, 3, 1]]
    expected = group.batch(asked.tolist(), ("nodes",))["nodes"].astype(np.float32)
    for resident in ("ram", "disk"):
        store = FeatureStore(group, ("nodes",), rows, resident, "here")
        batches = [tensors["nodes"] for tensors, _ in store.batches(asked, 3)]
        assert [len(batch) for batch in batches] == [3, 1]
        np.testing.assert_array_equal(torch.cat(batches).numpy(), expected)


def test_free_memory_is_a_number_of_bytes():
    assert 1 << 20 < free_memory() < 1 << 50
