"""Studies on a tiny cache: members equal runs alone, failures stay alone, studies resume."""

import csv
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heads.config.member import Member
from heads.config.recipe import recipe_from
from heads.config.study_file import read_study
from heads.data.feature_store import FeatureStore
from heads.runs import run_files as runs
from heads.training import ablate as ablation
from heads.training.ablate import ablate
from heads.training.estimates import (
    AblateOptions,
    MemberEstimate,
    count_epochs,
    count_passes,
    estimate_members,
    groups_of,
)
from heads.training.learner import Learner
from heads.training.study import Result
from heads.training.study_table import FailedRow, StudyTable, TableRow
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.workers.engines import DaskEngine, LocalEngine
from tests.heads.training.test_train import poison, same, weights
from tests.support.tiny_cache import Tiny

STUDY = """name = "tiny"
seeds = [0, 1]
order_seed = 5
[head]
name = "strg"
dropout = 0.5
[train]
epochs = 2
batch = 4
lr = 0.1
[grid]
head = ["strg", "pool"]
"strg.form" = ["similarity", "joint"]
"data.train_views" = [0, 1]
[subsets.all]
[subsets.two]
labels = ["class 0", "class 2"]
"""
SMALL = STUDY[: STUDY.index('"data.train_views"')]
CPU = AblateOptions(device="cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    return Tiny(failed=(1, 14)).write(tmp_path_factory.mktemp("ablate"))


def plan_of(folder: Path, text: str = SMALL, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(text)
    return read_study(folder / "study.toml", settings)


def study(plan, cache, folder, how=CPU, **more):
    return ablate(plan, cache, folder, how, **{"say": lambda line: None, **more})


def everything(folder: Path) -> dict[str, dict]:
    return {path.parent.name: weights(path.parent) for path in sorted(folder.glob("*/last.pt"))}


def equal(one: Path, other: Path) -> bool:
    a, b = everything(one), everything(other)
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory) -> Path:
    """The folder of SMALL, trained in one go."""
    folder = tmp_path_factory.mktemp("whole")
    assert not study(plan_of(folder), cache, folder / "runs").failed
    return folder / "runs"


# --- what a member computes


def test_a_member_equals_the_same_run_alone_under_the_studys_order_bit_for_bit(cache, tmp_path):
    plan = plan_of(
        tmp_path,
        STUDY.replace('"strg.form" = ["similarity", "joint"]', "").replace(
            "[0, 1]\norder", "[0]\norder"
        ),
    )
    members = plan.members(tmp_path / "runs")
    outcome = study(plan, cache, tmp_path / "runs")
    results = {str(one.folder): one for row in outcome.table.rows for one in row.results.values()}
    assert len(results) == len(members) == 8
    for member in members[::3]:  # both heads, both subsets, both numbers of views
        how = {
            "seed": member.seed,
            "order_seed": 5,
            "say": lambda line: None,
            "tensorboard": False,
            "device": "cpu",
        }
        alone = train(member.recipe, cache, tmp_path / "alone" / member.folder.name, **how)
        assert results[str(member.folder.resolve())].metrics == alone.metrics
        assert same(weights(member.folder), weights(alone.folder))
        assert same(weights(member.folder, "best"), weights(alone.folder, "best"))


def test_members_of_one_row_differ(whole):
    found = everything(whole)
    assert len(found) == 6
    for name in found:
        if name.endswith("seed0"):
            assert not same(found[name], found[name.replace("seed0", "seed1")])


def test_members_with_the_same_views_share_every_read(cache, tmp_path, monkeypatch):
    rows, original = [], FeatureStore._read
    monkeypatch.setattr(
        FeatureStore, "_read", lambda self, some: rows.append(len(some)) or original(self, some)
    )
    counts = {}
    for seeds in ("[0]", "[0, 1, 2]"):
        rows.clear()
        plan = plan_of(tmp_path, SMALL.replace("[0, 1]", seeds))
        study(plan, cache, tmp_path / seeds, AblateOptions(device="cpu", resident="disk"))
        counts[seeds] = sum(rows)
    assert counts["[0]"] == counts["[0, 1, 2]"]


@pytest.mark.parametrize("how", [{"jobs": 3}, {"at_once": 1}, {"jobs": 2, "at_once": 2}])
def test_how_members_are_spread_changes_nothing(cache, tmp_path, whole, how):
    study(plan_of(tmp_path), cache, tmp_path / "runs", **how, engine=LocalEngine())
    assert equal(tmp_path / "runs", whole)


@pytest.mark.slow
def test_dask_workers_compute_the_same(cache, tmp_path, whole):
    study(
        plan_of(tmp_path),
        cache,
        tmp_path / "runs",
        jobs=2,
        engine=DaskEngine(2, dashboard="127.0.0.1:0"),
    )
    for name, those in everything(whole).items():  # with other numbers of threads, other last bits
        for key, tensor in everything(tmp_path / "runs")[name].items():
            torch.testing.assert_close(tensor, those[key], rtol=1e-3, atol=1e-4)


# --- what goes wrong


def fails(seed: int, step: int, error: Exception):
    """A Learner.step that raises `error` for one seed at a step."""
    original = Learner.step

    def step_(self, clips, targets):
        if self.seed == seed and self.progress.step == step:
            raise error
        return original(self, clips, targets)

    return step_


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), KeyError("odd")])
def test_a_member_that_fails_is_recorded_leaves_the_others_going_and_is_tried_again(
    cache, tmp_path, whole, monkeypatch, error
):
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", fails(1, 4, error))
        outcome = study(plan_of(tmp_path), cache, tmp_path / "runs")
    assert [one.seed for one in outcome.failed] == [1, 1, 1]
    assert all(one.epochs == 1 and type(error).__name__ in one.error for one in outcome.failed)
    assert equal(tmp_path / "runs", whole) is False
    assert "1 of 2" in outcome.table.text()
    assert outcome.table.text().count("failed after epoch 1") == 3
    record = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert [len(row["failed"]) for row in record["rows"]] == [1, 1, 1]
    again = study(plan_of(tmp_path), cache, tmp_path / "runs")
    assert (again.failed, again.before) == ((), 3)
    assert equal(tmp_path / "runs", whole)


def test_a_member_whose_head_has_no_room_in_memory_leaves_the_others_going(cache, tmp_path):
    """It cannot even be built: more than any machine can address."""
    text = (
        SMALL[: SMALL.index("[grid]")]
        + '[grid]\nhead = ["mean_lstm", "pool"]\n"mean_lstm.hidden" = [4, 100_000_000]\n'
    )
    some = estimate_members(
        plan_of(tmp_path, text), cache, tmp_path / "runs", CPU, lambda line: None
    )
    assert [bool(one.why) for one in some] == [False, False, True, True, False, False]
    assert (count_passes(some), count_passes(some[2:4])) == (1, 0)
    assert groups_of(some[2:4], 2)[0] == [one.member for one in some[2:4]]  # of nothing, no shares
    outcome = study(plan_of(tmp_path, text), cache, tmp_path / "runs")
    assert {Path(one.folder).name for one in outcome.failed} == {
        f"mean_lstm,mean_lstm.hidden=100000000-seed{k}" for k in (0, 1)
    }
    assert all("RuntimeError" in one.error and one.epochs == 0 for one in outcome.failed)
    assert [len(row.results) for row in outcome.table.rows] == [2, 0, 2]
    assert [row["macs"] == "" for row in csv.DictReader(outcome.table.csv().splitlines())] == [
        False,
        True,
        False,
    ]
    assert "| 0 of 2 |" in outcome.table.text()


class Lost:
    """An engine that loses the process of every group of several members, and of one member."""

    def __init__(self, victim: str):
        self.victim = victim
        self.groups: list[int] = []

    def open(self):
        from contextlib import nullcontext

        def run(function, jobs):
            for group in jobs:
                self.groups.append(len(group))
                if len(group) > 1:
                    function(group[:1])  # one is finished before the process ends
                lost = len(group) > 1 or group[0].folder.name == self.victim
                yield (
                    group,
                    RuntimeError("the process ended, signal 9") if lost else function(group),
                )

        return nullcontext(run)


def test_members_whose_process_is_lost_are_tried_again_alone(cache, tmp_path, whole, monkeypatch):
    engine, written, original = Lost("pool-seed1"), [], runs.append_log
    monkeypatch.setattr(
        runs, "append_log", lambda path, line: written.append(path) or original(path, line)
    )
    how = AblateOptions(device="cpu", resume=False)  # starts over, but not a second time
    outcome = study(plan_of(tmp_path), cache, tmp_path / "runs", how, engine=engine, jobs=2)
    assert {written.count(path) for path in written} == {2}
    assert engine.groups[2:] == [1] * 6
    assert [(Path(one.folder).name, one.error) for one in outcome.failed] == [
        ("pool-seed1", "RuntimeError: the process ended, signal 9")
    ]
    found, expected = everything(tmp_path / "runs"), everything(whole)
    assert expected.keys() - found.keys() == {"pool-seed1"}
    assert all(same(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace('"pool"]', '"gos"]'), "member gos-seed0: head gos needs res5"),
        (
            SMALL + '[subsets.none]\nlabels = ["class 0", "class 9"]\n',
            "'class 9' is no class; did you mean",
        ),
        (
            SMALL + '[subsets.none]\nlabels = ["class 0", "class 9"]\n',
            "(3 more of 4 members cannot be trained)",
        ),
        (SMALL.replace("dropout = 0.5", 'form = "al"'), "option form: expected one of similarity"),
    ],
)
def test_what_is_wrong_with_a_member_is_said_before_any_is_trained(cache, tmp_path, text, message):
    plan = plan_of(tmp_path, text.replace('"strg.form" = ["similarity", "joint"]', ""))
    with pytest.raises(ValueError, match=re.escape(message)):
        study(plan, cache, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("how", [{}, {"at_once": 1}, {"jobs": 2}])
def test_features_that_are_not_finite_are_said_before_any_member_is_trained(tmp_path, how):
    """Also where a group that reads other features would be trained before, or at the same time."""
    poisoned = Tiny().write(tmp_path / "poisoned")
    poison(poisoned, "train", 2 * 5, "nodes")
    before = []
    with pytest.raises(ValueError, match="nodes holds NaN or infinity"):
        study(
            plan_of(tmp_path),
            poisoned,
            tmp_path / "runs",
            engine=LocalEngine(),
            before=before.append,
            **how,
        )
    assert not list(tmp_path.glob("runs/*/log.jsonl"))
    assert len(before) == (not how)


def test_what_is_wrong_with_a_group_comes_back_as_it_is(cache, tmp_path):
    """A Dask worker prints the traceback of an error that is raised in it."""
    members = plan_of(tmp_path).members(tmp_path / "runs")[:1]
    wrong = ablation._TrainGroup(cache.path, 5, replace(CPU, resident="ra"))(members)
    assert isinstance(wrong, ValueError)
    with pytest.raises(ValueError, match="resident: expected one of"):
        ablation._by_folder(members, wrong)


def test_a_folder_of_another_study_is_refused(cache, tmp_path, whole):
    with pytest.raises(
        ValueError, match=r"holds another run \(recipe.train.lr is 0.1 there, 0.3 here"
    ):
        study(plan_of(tmp_path, SMALL.replace("lr = 0.1", "lr = 0.3")), cache, whole)
    with pytest.raises(ValueError, match=r"order_seed is 5 there, 6 here"):
        study(plan_of(tmp_path, SMALL.replace("order_seed = 5", "order_seed = 6")), cache, whole)


# --- stopping and going on


@pytest.mark.parametrize("line", [5, 9])
def test_a_study_that_was_stopped_anywhere_goes_on_as_if_it_was_not(
    cache, tmp_path, whole, monkeypatch, line
):
    original, written = runs.append_log, []

    def append(path, record):
        written.append(path)
        if len(written) == line:
            raise KeyboardInterrupt
        original(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "append_log", append)
        with pytest.raises(KeyboardInterrupt):
            study(plan_of(tmp_path), cache, tmp_path / "runs")
    outcome = study(plan_of(tmp_path), cache, tmp_path / "runs")
    assert equal(tmp_path / "runs", whole)
    for folder in sorted(whole.glob("*-seed*")):
        metrics = [
            runs.read_json(place / folder.name / "metrics.json")["metrics"]
            for place in (whole, tmp_path / "runs")
        ]
        assert metrics[0] == metrics[1]
    assert not outcome.failed


def test_a_finished_study_is_read_back_and_one_that_grew_trains_what_is_new(
    cache, tmp_path, monkeypatch
):
    study(plan_of(tmp_path), cache, tmp_path / "runs")
    trained, original = [], ablation.run_members

    def counted(members, *rest, **more):
        trained.extend(member.folder.name for member in members)
        return original(members, *rest, **more)

    monkeypatch.setattr(ablation, "run_members", counted)
    before = (tmp_path / "runs" / "results.csv").read_text()
    outcome = study(plan_of(tmp_path), cache, tmp_path / "runs")
    assert (outcome.before, trained) == (6, [])
    assert (tmp_path / "runs" / "results.csv").read_text() == before
    study(
        plan_of(tmp_path, SMALL.replace("seeds = [0, 1]", "seeds = [0, 2, 1]")),
        cache,
        tmp_path / "runs",
    )
    assert sorted(trained) == sorted(f"{row.name}-seed2" for row in plan_of(tmp_path).rows)


@pytest.mark.parametrize("finished", [1, 3])
def test_a_study_killed_between_members_has_the_same_results_but_for_times(
    cache, tmp_path, whole, monkeypatch, finished
):
    original, written = runs.write_json, []

    def write(path, record):
        if path.name == "metrics.json":
            written.append(path)
            if len(written) > finished:
                # its claim, checkpoints and predictions are there, its done marker is not
                raise KeyboardInterrupt
        original(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            study(plan_of(tmp_path), cache, tmp_path / "runs", at_once=1)
    study(plan_of(tmp_path), cache, tmp_path / "runs", at_once=1)
    assert without_times(tmp_path / "runs") == without_times(whole)


def without_times(folder: Path) -> str:
    """results.json without what no two runs share."""

    def without(value):
        if isinstance(value, list):
            return [without(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: without(one)
            for key, one in value.items()
            if key not in ("seconds", "waiting", "source")
        }

    return json.dumps(without(json.loads((folder / "results.json").read_text())))


# --- passes, groups, progress


def test_members_with_other_views_have_a_pass_of_their_own(cache, tmp_path):
    def count(text: str) -> int:
        return count_passes(
            estimate_members(
                plan_of(tmp_path, text), cache, tmp_path / "runs", CPU, lambda line: None
            )
        )

    assert count(SMALL) == 1
    assert count(SMALL + '"train.batch" = [2, 3]\n"train.epochs" = [1, 5]\n') == 1
    assert count(STUDY) == 2


def prospect(name: str, cost: int, order: str = "a", reads=("nodes",)) -> MemberEstimate:
    member = Member(
        recipe_from({"name": name, "source": "", "head": {"name": "pool"}, "train": {"epochs": 1}}),
        Path(name),
    )
    return MemberEstimate(member, int(cost * 1e9), None, 1, 1, order, reads)


def test_groups_cost_about_the_same_and_readers_of_the_same_stay_together():
    some = [
        prospect(f"{reads}{k}", 4 if reads == "res5" else 1, reads=(reads,))
        for k in range(4)
        for reads in ("pooled", "res5")
    ]
    groups = [[member.folder.name for member in group] for group in groups_of(some, 2)]
    assert groups == [
        ["pooled0", "pooled1", "pooled2", "pooled3", "res50"],
        ["res51", "res52", "res53"],
    ]
    assert [len(group) for group in groups_of(some, 2, at_once=3)] == [3, 2, 3]
    assert [len(group) for group in groups_of(some[:1], 4)] == [1]
    assert groups_of([], 3) == []
    assert sum(len(group) for group in groups_of(some, 5)) == 8


def test_progress_counts_the_epochs_of_all_members(cache, tmp_path):
    plan = plan_of(tmp_path, SMALL.replace("epochs = 2", "epochs = 6\nearly_stop = 1"))
    seen = []
    study(
        plan, cache, tmp_path / "runs", before=lambda some: seen.append((some, count_epochs(some)))
    )
    ((some, before),) = seen
    assert (before, count_epochs(some), len(some)) == (0, 36, 6)


def test_what_goes_to_a_worker_can_be_sent(cache, tmp_path):
    function = ablation._TrainGroup(cache.path, 5, replace(CPU, manifest=cache.manifest))
    members = plan_of(tmp_path).members(tmp_path / "runs")[:1]
    sent, job = pickle.loads(pickle.dumps((function, members)))
    assert len(pickle.loads(pickle.dumps(sent(job)))) == 1


# --- the table


def result(seed: int, top1: float, seconds: float = 2.0) -> Result:
    metrics = {"val": {"top1": top1 / 2, "loss": 1.0}, "test": {"top1": top1, "loss": 2.0}}
    return Result(Path(f"row-seed{seed}"), metrics, 5, 3 + seed, 1234, seconds, 0.5)


def test_the_table_has_means_and_spreads_over_seeds_as_text_csv_and_json(tmp_path):
    failed = (FailedRow("row-seed2", 2, "LossNotFinite: the loss is nan", 1),)
    rows = (
        TableRow(
            "row",
            {"head": "strg", "train.lr": 0.1},
            {0: result(0, 0.5), 1: result(1, 0.7)},
            failed,
            56_700_000,
        ),
        TableRow("one", {"head": "pool", "train.lr": ""}, {0: result(0, 0.25)}, (), 640),
        TableRow("none", {"head": "gos", "train.lr": 0.2}, {}, failed, 1),
    )
    StudyTable("t", ("head", "train.lr"), rows, {"study": "t"}).write(tmp_path)
    lines = (tmp_path / "results.txt").read_text().splitlines()
    cells = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    assert cells[0] == [
        "head",
        "train.lr",
        "seeds",
        "val top1 %",
        "test top1 %",
        "parameters",
        "MACs",
        "seconds",
        "best epoch",
    ]
    assert cells[2] == [
        "strg",
        "0.1",
        "2 of 3",
        "30.0 ± 7.1",
        "60.0 ± 14.1",
        "1,234",
        "56.7 M",
        "2.0 ± 0.0",
        "3.5 ± 0.7",
    ]
    assert cells[3] == ["pool", "", "1", "12.5", "25.0", "1,234", "640", "2.0", "3.0"]
    assert cells[4] == ["gos", "0.2", "0 of 1", "-", "-", "-", "1", "-", "-"]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1
    assert lines[-2] == "row-seed2 failed after epoch 1: LossNotFinite: the loss is nan"
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["member"] for row in table] == ["row", "one", "none"]
    assert float(table[0]["test_top1_mean"]) == pytest.approx(0.6)
    assert float(table[0]["test_top1_std"]) == pytest.approx(0.1 * 2**0.5)
    assert (table[0]["seeds"], table[0]["failed"], table[0]["macs"], table[0]["parameters"]) == (
        "2",
        "1",
        "56700000",
        "1234",
    )
    assert (table[1]["test_top1_std"], table[2]["test_top1_mean"]) == ("", "")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["rows"][0]["metrics"]["val"]["top1"]["mean"] == pytest.approx(0.3)
    assert [one["seed"] for one in record["rows"][0]["members"]] == [0, 1]
    assert record["rows"][2]["seconds"] is None


def test_the_table_counts_parameters_and_macs_of_each_head(cache, tmp_path, whole):
    record = json.loads((whole / "results.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["pool"]["macs"] == 4 * 3
    assert rows["pool"]["parameters"] == {"mean": 4 * 3 + 3, "std": 0.0}
    assert rows["strg,strg.form=joint"]["macs"] > rows["strg,strg.form=similarity"]["macs"] > 100
    assert (record["order_seed"], record["passes"], record["fingerprint"]) == (
        5,
        1,
        cache.fingerprint,
    )
