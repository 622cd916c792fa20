"""Many heads in one pass over a cache, and one head in several phases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.config.member import Member
from heads.config.recipe import read_recipe, recipe_from
from heads.data.feature_store import FeatureStore, ReadRequest, shared_pass
from heads.evaluation.evaluate import evaluate
from heads.interface.loss import LossNotFinite
from heads.runs import run_files as runs
from heads.training.learner import Learner
from heads.training.study import Failure, Result
from heads.training.train import run_members
from heads.training.training_run import TrainingRun
from pipeline.cache.reader import Cache
from tests.heads.training.test_train import Stop, run, same, stop_after, weights
from tests.support.tiny_cache import Tiny


def recipe(
    head="strg", name="tiny", data=None, evaluate=None, phases=None, options=None, **training
):
    table = {
        "name": name,
        "source": "a test",
        "head": {"name": head, **(options or {})},
        "data": data or {},
    }
    table["evaluate"] = evaluate or {}
    if phases:
        table["phases"] = phases
    else:
        training = {"epochs": 2, "batch": 4, "lr": 0.1, **training}
        table["train"] = training
    return recipe_from(table)


def phase(name, epochs=2, head=None, start="fresh", take=(), reads="cache", **training):
    training = {"epochs": epochs, "batch": 4, "lr": 0.1, **training}
    return {
        "name": name,
        "train": training,
        "head": head or {},
        "start": start,
        "take": list(take),
        "reads": reads,
    }


def study(members, cache, **how):
    return run_members(
        members, cache, **{"say": lambda line: None, "order_seed": 5, "device": "cpu", **how}
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Tiny(failed=(1, 14)).write(tmp_path_factory.mktemp("members"))


TWO = [phase("one", 1), phase("two", 2, {"dropout": 0.0}, "previous", lr=0.01)]
RECIPES = {
    "strg": recipe("strg", options={"dropout": 0.5}),
    "pool": recipe("pool", batch=3, epochs=3),
    "lstm": recipe("mean_lstm", batch=7, optimiser="adam", ema=0.9),
    "subset": recipe("roi_pool", data={"labels": ["class 2", "class 0"]}, batch=3),
    "one_view": recipe("roi_pool", data={"train_views": 1}),
    "balanced": recipe("roi_pool", data={"balance": "sampling"}),
    "phases": recipe("strg", phases=TWO),
}


# --- many members


def test_a_member_equals_the_same_run_alone_bit_for_bit(cache, tmp_path):
    members = [
        Member(one, tmp_path / name, seed) for seed, (name, one) in enumerate(RECIPES.items())
    ]
    together = study(members, cache)
    for member, outcome in zip(members, together, strict=True):
        alone = run(
            member.recipe,
            cache,
            tmp_path / "alone" / member.folder.name,
            seed=member.seed,
            order_seed=5,
        )
        assert outcome.metrics == alone.metrics, member.folder.name
        for name in ("last", "best"):
            assert same(weights(member.folder, name), weights(alone.folder, name)), (
                member.folder.name
            )


def test_views_that_several_members_want_are_read_once(cache, tmp_path, monkeypatch):
    read = []
    original = FeatureStore._read

    def counted(self, rows):
        read.append((self.fields, len(rows)))
        return original(self, rows)

    monkeypatch.setattr(FeatureStore, "_read", counted)
    rows = {}
    for count in (1, 4):
        read.clear()
        members = [
            Member(recipe("pool", epochs=2), tmp_path / f"{count}-{k}", k) for k in range(count)
        ]
        members += [Member(recipe("strg", epochs=2, batch=8), tmp_path / f"{count}-strg")]
        study(members, cache, resident="disk")
        rows[count] = [n for _, n in read]
        assert {frozenset(fields) for fields, _ in read} == {
            frozenset(("pooled", "nodes", "valid", "boxes"))
        }
    assert rows[1] == rows[4]


def test_a_member_that_fails_leaves_the_others_going(cache, tmp_path):
    good = recipe("strg", options={"dropout": 0.5})
    members = [
        Member(recipe("pool", lr=1e38, epochs=4), tmp_path / "diverges"),
        Member(good, tmp_path / "good"),
        Member(recipe("gos"), tmp_path / "lacks"),
        Member(recipe("pool", epochs=4), tmp_path / "dies", 9),
    ]
    original = Learner.step

    def step(self, clips, targets):
        if self.seed == 9 and self.progress.step == 4:
            raise torch.OutOfMemoryError("no memory for this one")
        return original(self, clips, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        outcomes = study(members, cache)
    assert [type(one) for one in outcomes] == [Failure, Result, Failure, Failure]
    assert isinstance(outcomes[0].error, LossNotFinite)
    assert "head gos needs res5" in str(outcomes[2].error)
    assert (str(outcomes[3].error), outcomes[3].epochs) == ("no memory for this one", 1)
    assert not (tmp_path / "lacks").exists()
    run(good, cache, tmp_path / "alone", order_seed=5)
    assert same(weights(tmp_path / "good"), weights(tmp_path / "alone"))
    again = study(members[3:], cache)[0]  # and what failed for want of memory can go on
    assert again.epochs == 4


class Broken(torch.nn.Module):
    needs, uses = ("nodes",), ()

    def forward(self, clips):
        raise RuntimeError("no")


def test_a_member_whose_validation_fails_leaves_the_others_going(cache, tmp_path, monkeypatch):
    good, original = recipe("roi_pool"), TrainingRun.predictor

    def predictor(self, split):
        found = original(self, split)
        return replace(found, head=Broken()) if self.seed == 9 and self.epochs == 1 else found

    monkeypatch.setattr(TrainingRun, "predictor", predictor)
    outcomes = study([Member(good, tmp_path / "bad", 9), Member(good, tmp_path / "good")], cache)
    assert [type(one) for one in outcomes] == [Failure, Result]
    assert outcomes[0].epochs == 1
    assert outcomes[1].metrics == run(good, cache, tmp_path / "alone", order_seed=5).metrics


def test_a_study_that_was_stopped_goes_on_as_if_it_was_not(cache, tmp_path):
    def members(where):
        return [
            Member(RECIPES[name], tmp_path / where / name, k)
            for k, name in enumerate(("pool", "lstm", "phases"))
        ]

    def stop(line):
        if line.startswith("lstm: epoch 2/"):  # some members are an epoch ahead of the others now
            raise KeyboardInterrupt

    whole = study(members("whole"), cache)
    with pytest.raises(KeyboardInterrupt):
        study(members("parts"), cache, say=stop)
    parts = study(members("parts"), cache)
    assert [one.metrics for one in parts] == [one.metrics for one in whole]
    for one, other in zip(members("parts"), members("whole"), strict=True):
        assert same(weights(one.folder), weights(other.folder))
    lines = []
    assert study(members("parts"), cache, say=lines.append) == parts
    assert all("finished before" in line for line in lines)


def test_two_members_in_one_folder_are_refused(cache, tmp_path):
    with pytest.raises(ValueError, match="two members would write to"):
        study([Member(recipe("pool"), tmp_path), Member(recipe("strg"), tmp_path)], cache)


def test_a_shared_pass_gives_everybody_the_batches_of_a_pass_of_their_own(cache):
    group = cache["train"]
    rows = np.flatnonzero(group.ok)[::-1].copy()
    store = FeatureStore(group, ("pooled", "nodes"), rows, "ram", "here")
    some = np.arange(0, len(rows), 3)
    shares = [
        ReadRequest(rows, np.arange(len(rows)), ("pooled",), 5),
        ReadRequest(rows[some], some, ("nodes",), 4),
        ReadRequest(rows[2:9], np.arange(2, 9), ("nodes", "pooled"), 20),
    ]
    found = [[], [], []]
    for k, clips, place in shared_pass(store, shares):
        found[k].append((clips, place))
    for share, batches in zip(shares, found, strict=True):
        assert [place.stop for _, place in batches] == [
            *range(share.batch, len(share.rows), share.batch),
            len(share.rows),
        ]
        for clips, place in batches:
            assert set(clips.tensors()) == set(share.fields)
            for name in share.fields:
                expected = torch.from_numpy(group.batch(share.rows[place], (name,))[name]).float()
                assert clips.get(name).equal(expected)
                assert clips.get(name).data_ptr() % 64 == 0


# --- phases


def test_a_run_of_phases_stops_anywhere_and_goes_on_the_same(cache, tmp_path):
    chosen = recipe("strg", phases=[*TWO, phase("three", 1, {"dropout": 0.5}, "previous", ["fc."])])
    whole = run(chosen, cache, tmp_path / "whole")
    for stop in ("one epoch 1/", "two epoch 1/", "two epoch 2/", "three epoch 1/"):

        def say(line, stop=stop):
            if line.startswith(stop):
                raise Stop

        with pytest.raises(Stop):
            run(chosen, cache, tmp_path / "parts", say=say)
    parts = run(chosen, cache, tmp_path / "parts")
    assert parts.metrics == whole.metrics
    assert parts.epochs == 4
    for name in ("one", "two", "three", "last", "best"):
        assert same(weights(tmp_path / "parts", name), weights(tmp_path / "whole", name))
    lines = [
        json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    ]
    assert [(line["phase"], line["epoch"], line["step"]) for line in lines] == [
        ("one", 1, 3),
        ("two", 2, 6),
        ("two", 3, 9),
        ("three", 4, 12),
    ]
    assert (
        evaluate(tmp_path / "parts", cache, "test", device="cpu", say=str) == whole.metrics["test"]
    )
    assert (
        "finished before" in _said(lambda say: run(chosen, cache, tmp_path / "parts", say=say))[0]
    )


def test_a_run_that_dies_between_the_checkpoints_of_a_phases_first_epoch_keeps_the_phase_before(
    cache, tmp_path, monkeypatch
):
    chosen = recipe("strg", phases=TWO)
    run(chosen, cache, tmp_path / "whole")
    save = runs.save_checkpoint

    def dies(path, payload):
        if path.name == "last.pt" and payload["phase"] == "two":
            raise Stop  # best.pt is that of phase two already, last.pt that of phase one
        save(path, payload)

    monkeypatch.setattr(runs, "save_checkpoint", dies)
    with pytest.raises(Stop):
        run(chosen, cache, tmp_path / "parts")
    monkeypatch.setattr(runs, "save_checkpoint", save)
    run(chosen, cache, tmp_path / "parts")
    for name in ("one", "two", "last", "best"):
        assert same(weights(tmp_path / "parts", name), weights(tmp_path / "whole", name))


def _said(work) -> list[str]:
    lines: list[str] = []
    work(lines.append)
    return lines


def test_phases_run_one_by_one_are_those_of_one_call(cache, tmp_path):
    chosen = recipe("strg", phases=TWO)
    run(chosen, cache, tmp_path / "whole")
    with pytest.raises(
        ValueError, match=r"phase two starts from phase one, which .* does not hold: run it first"
    ):
        run(chosen, cache, tmp_path / "none", phase="two")
    assert not (tmp_path / "none").exists()
    first = run(chosen, cache, tmp_path / "parts", phase="one")
    assert (first.phase, first.epochs) == ("one", 1)
    lines = _said(lambda say: run(chosen, cache, tmp_path / "parts", phase="one", say=say))
    assert lines[-1] == "next phase: two; run `vidgraph train RECIPE --phase two`"
    run(chosen, cache, tmp_path / "parts", phase="two")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    with pytest.raises(ValueError, match="has trained phase two, which comes after one"):
        run(chosen, cache, tmp_path / "parts", phase="one")
    with pytest.raises(ValueError, match=r"no phase 'tow': did you mean two\?"):
        run(chosen, cache, tmp_path / "parts", phase="tow")
    lines = _said(
        lambda say: run(
            chosen,
            cache,
            tmp_path / "other",
            phase="two",
            start=tmp_path / "whole" / "one.pt",
            say=say,
        )
    )
    assert "phase two: starts from one.pt" in lines
    assert evaluate(tmp_path / "other", cache, "val", device="cpu", say=str) != {}


def test_a_phase_starts_from_what_the_one_before_ended_with(cache, tmp_path):
    """With a learning rate of nearly nothing, what is taken stays, and what is not is the head's
    own start.
    """
    still = {"lr": 1e-30, "weight_decay": 0.0}
    chosen = recipe(
        "roi_pool",
        evaluate={"checkpoint": "last"},
        phases=[
            phase("one", 3),
            phase("all", 1, None, "previous", **still),
            phase("bias", 1, None, "previous", ["fc.bias"], **still),
            phase("none", 1, **still),
        ],
    )
    lines = _said(lambda say: run(chosen, cache, tmp_path, say=say))
    assert "phase bias: starts from all.pt; fresh: fc.weight" in lines
    one, everything, bias, fresh = (
        weights(tmp_path, name) for name in ("one", "all", "bias", "none")
    )
    assert same(one, everything)
    assert bias["fc.bias"].equal(one["fc.bias"])
    assert bias["fc.weight"].equal(fresh["fc.weight"])
    assert not fresh["fc.bias"].equal(one["fc.bias"])


def test_a_phase_that_reads_frames_is_named_with_its_command(cache, tmp_path):
    phases = [
        phase("backbone", reads="frames", head={"name": "pool"}),
        *TWO,
        phase("joint", reads="frames", start="previous"),
    ]
    chosen = recipe("strg", phases=phases)
    lines = _said(lambda say: run(chosen, cache, tmp_path, say=say))
    # RECIPE and not a path: the recipe's file may lie anywhere.
    assert lines[-1] == "next phase: joint; run `vidgraph finetune RECIPE --phase joint`"
    assert not (tmp_path / "backbone.pt").exists()
    with pytest.raises(
        ValueError,
        match="joint of recipe tiny reads frames: run `vidgraph finetune RECIPE --phase joint`",
    ):
        run(chosen, cache, tmp_path, phase="joint")


def test_weights_of_another_shape_are_refused(cache, tmp_path):
    phases = [phase("one", 1, {"name": "roi_pool"}), phase("two", 1, None, "previous")]
    with pytest.raises(ValueError, match=r"fc.weight has the shape \[3, 8\], in .*one.pt \[3, 4\]"):
        run(recipe("strg", phases=phases), cache, tmp_path)


def test_the_structures_that_gos_searched_are_what_it_ends_with(tmp_path):
    """The recipe of its Table 1, smaller: the discrete phase trains the operations and leaves the
    structure alone.
    """
    cache = Tiny(fields=("res5", "boxes", "scores", "valid", "grid")).write(tmp_path)
    small = {
        "phases.search.train.epochs": 2,
        "phases.discrete.train.epochs": 2,
        "head.width": 8,
        "head.roi_size": 2,
    }
    small |= {"head.supernodes": 2, "head.taps": 3}
    rates = {f"phases.{name}.train.batch": 3 for name in ("search", "discrete")}
    chosen = read_recipe("gos_table1", {**small, **rates, "phases.search.train.alternate.lr": 0.1})
    result = run(chosen, cache, tmp_path / "runs")
    assert (result.phase, result.epochs) == ("discrete", 4)
    search, discrete = (weights(tmp_path / "runs", name) for name in ("search", "discrete"))
    assert {name for name in search if search[name].equal(discrete[name])} >= {
        "structure.alpha.weight",
        "structure.alpha.bias",
    }
    assert search["structure.alpha.weight"].abs().max() > 0  # at first they are 0
    assert not search["fc.weight"].equal(discrete["fc.weight"])
    transfer = read_recipe(
        "gos_supp_table6_transfer",
        {k: v for k, v in {**small, **rates}.items() if "search" not in k},
    )
    with pytest.raises(
        ValueError, match=r"starts from phase backbone, .*vidgraph finetune .*--start"
    ):
        run(transfer, cache, tmp_path / "none")
    run(transfer, cache, tmp_path / "other", start=tmp_path / "runs" / "search.pt")
    other = weights(tmp_path / "other", "discrete")
    assert other["structure.alpha.weight"].equal(search["structure.alpha.weight"])
    assert not other["fc.weight"].equal(discrete["fc.weight"])


def test_phases_teach_a_later_one_and_a_run_in_another_folder_can(tmp_path):
    cache = Tiny(fields=("pooled", "res5"), side=7).write(tmp_path)
    small = {"width": 4, "offset_width": 4}
    teach = {"teachers": ["teacher"], "weight": 10.0, "until": 0.5}
    phases = [phase("teacher", 1), phase("student", 2, distil=teach)]
    chosen = recipe("dyreg", options=small, phases=phases)
    with pytest.raises(Stop):
        run(
            chosen,
            cache,
            tmp_path / "runs",
            say=lambda line: stop_after(1)(line.removeprefix("student ")),
        )
    run(chosen, cache, tmp_path / "runs")
    phases[1]["train"]["distil"] = {**teach, "teachers": [str(tmp_path / "runs" / "teacher.pt")]}
    run(recipe("dyreg", options=small, phases=phases), cache, tmp_path / "file")
    assert same(weights(tmp_path / "file"), weights(tmp_path / "runs"))
    phases[1]["train"]["distil"] = {}
    run(recipe("dyreg", options=small, phases=phases), cache, tmp_path / "alone")
    assert not same(weights(tmp_path / "alone"), weights(tmp_path / "runs"))
    with pytest.raises(ValueError, match="its teacher 'student' is not an earlier phase"):
        recipe(
            "dyreg",
            options=small,
            phases=[phases[0], phase("student", 2, distil={"teachers": ["student"]})],
        )


def test_a_run_folder_says_which_option_of_which_phase_differs(cache, tmp_path):
    chosen = recipe("pool", phases=[phase("one"), phase("two")])
    with pytest.raises(Stop):
        run(chosen, cache, tmp_path, say=lambda line: stop_after(1)(line.removeprefix("one ")))
    other = recipe("pool", phases=[phase("one"), phase("two", lr=0.5)])
    with pytest.raises(ValueError, match=r"recipe.phases.two.train.lr is 0.1 there, 0.5 here"):
        run(other, cache, tmp_path)
    assert Path(tmp_path / "last.pt").exists()
    assert runs.load_checkpoint(tmp_path / "last.pt")["phase"] == "one"
