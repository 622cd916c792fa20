"""Members that are trained as one compute what each computes alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.config.member import Member
from heads.config.recipe import recipe_from
from heads.config.training_options import Training
from heads.evaluation.stacked_predictor import StackedHead
from heads.interface.loss import LossNotFinite
from heads.runs import run_files
from heads.training import stacked_runs
from heads.training.learner import Learner
from heads.training.stacked_dropout import NotStackable
from heads.training.stacked_learner import TOLERANCE, StackedLearner, why_alone
from heads.training.stacked_optimiser import StackedOptimiser
from heads.training.study import Failure, Result
from heads.training.train import run_members
from heads.training.training_run import TrainingRun
from heads.zoo.pool import PoolHead
from pipeline.cache.reader import Cache
from pipeline.stages.graphs import build_graphs
from tests.heads.zoo.test_zoo import CASES, fresh, some_clips
from tests.support.tiny_cache import Tiny

M = 3
SIZES = [(4, 3), (4,), (2, 3, 2)]


# --- the optimisers

OPTIMISERS = {
    "sgd": (torch.optim.SGD, [{"momentum": m, "nesterov": False} for m in (0.9, 0.0, 0.5)]),
    "nesterov": (torch.optim.SGD, [{"momentum": m, "nesterov": True} for m in (0.9, 0.1, 0.5)]),
    "adam": (torch.optim.Adam, [{}] * M),
    "adamw": (torch.optim.AdamW, [{}] * M),
}


def own_optimisers(name: str) -> tuple[list[torch.optim.Optimizer], list[list[torch.Tensor]]]:
    """M optimisers with two groups each; rates, decays and momenta differ."""
    kind, options = OPTIMISERS[name]
    generator = torch.Generator().manual_seed(0)
    optimisers, weights = [], []
    for member in range(M):
        own = [torch.randn(size, generator=generator).requires_grad_() for size in SIZES]
        groups = [
            {"params": own[:1], "weight_decay": 0.1 * member, "scale": 1.0},
            {"params": own[1:], "weight_decay": 0.01, "scale": 2.0 + member},
        ]
        optimisers.append(kind(groups, 0.1, **options[member]))
        weights.append(own)
    return optimisers, weights


def gradients(step: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(100 + step)
    return [[torch.randn(size, generator=generator) for size in SIZES] for _ in range(M)]


def step_alone(optimisers, weights, step: int, lrs, absent: int | None) -> None:
    for member, found in enumerate(gradients(step)):
        for k, (weight, grad) in enumerate(zip(weights[member], found, strict=True)):
            weight.grad = None if k == absent else grad
        set_rates(optimisers, lrs)
        optimisers[member].step()


def set_rates(optimisers, lrs) -> None:
    for optimiser, lr in zip(optimisers, lrs, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = lr * group["scale"]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_member_moves_as_with_torchs_own_optimiser(name):
    """Rates change from step to step, a weight gets its first gradient late, and the state that is
    given back goes on as torch's own.
    """
    alone, weights = own_optimisers(name)
    held, held_weights = own_optimisers(name)
    lrs = [[0.1 / (1 + step), 0.02, 0.3] for step in range(6)]

    # One step each, so that the stack starts from a state.
    step_alone(alone, weights, 0, lrs[0], absent=2)
    step_alone(held, held_weights, 0, lrs[0], absent=2)
    stacked = [torch.stack([own[k].detach() for own in held_weights]) for k in range(len(SIZES))]
    optimiser = StackedOptimiser(held, [stacked[:1], stacked[1:]])
    for step in range(1, 5):
        absent = 2 if step < 3 else None
        step_alone(alone, weights, step, lrs[step], absent)
        found = gradients(step)
        grads = [torch.stack([own[k] for own in found]) for k in range(len(SIZES))]
        if absent is not None:
            grads[absent] = None
        set_rates(held, lrs[step])
        optimiser.step([grads[:1], grads[1:]])
    for k, value in enumerate(stacked):
        wanted = torch.stack([own[k] for own in weights])
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)

    optimiser.give_back()
    with torch.no_grad():
        for member, own in enumerate(held_weights):
            for k, weight in enumerate(own):
                weight.copy_(stacked[k][member])
    assert [one.state_dict()["state"].keys() for one in held] == [
        one.state_dict()["state"].keys() for one in alone
    ]
    step_alone(alone, weights, 5, lrs[5], None)
    step_alone(held, held_weights, 5, lrs[5], None)
    for own, other in zip(weights, held_weights, strict=True):
        for weight, twin in zip(own, other, strict=True):
            torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6)


def test_members_that_stay_do_not_move_even_where_the_gradient_is_not_a_number():
    for name in OPTIMISERS:
        held, weights = own_optimisers(name)
        stacked = [torch.stack([own[k].detach() for own in weights]) for k in range(len(SIZES))]
        before = [value.clone() for value in stacked]
        optimiser = StackedOptimiser(held, [stacked[:1], stacked[1:]])
        grads = [torch.ones_like(value) for value in stacked]
        for grad in grads:
            grad[1] = torch.nan
        still = torch.tensor([False, True, False])
        optimiser.step([grads[:1], grads[1:]], still)
        for value, old in zip(stacked, before, strict=True):
            assert value[1].equal(old[1])
            assert not value[0].equal(old[0])
            assert torch.isfinite(value).all()


def test_optimisers_that_differ_in_more_than_values_are_refused():
    first, second = own_optimisers("sgd")[0][0], own_optimisers("nesterov")[0][0]
    weights = [[torch.zeros(2, 4, 3)], [torch.zeros(2, 4), torch.zeros(2, 2, 3, 2)]]
    with pytest.raises(ValueError, match="optimisers of one nesterov"):
        StackedOptimiser([first, second], weights)
    with pytest.raises(ValueError, match="of one class, got Adam, SGD"):
        StackedOptimiser([first, own_optimisers("adam")[0][0]], weights)


# --- the heads

RECURRENT, STATISTICS = "it has a recurrent layer", "its batch norms gather statistics"
ALONE = {
    **dict.fromkeys(("conv_lstm", "mean_lstm", "dyreg", "rstg", "rstg_map"), RECURRENT),
    **dict.fromkeys(("ean", "stin"), STATISTICS),
    # Without the norms, whose numbers would depend on how many objects there are.
    "stin of present objects": "",
    **dict.fromkeys(("gos", "gos as released"), "its views choose structures"),
}


def learner(case: str, member: int, **training) -> Learner:
    options = {"epochs": 9, "lr": 0.01 * (1 + member), "clip_norm": 1.0, **training}
    return Learner(fresh(case, member), Training(**options), "single", 4, member, "fp32")


@pytest.mark.parametrize("case", CASES)
def test_every_head_gives_the_same_gradients_both_ways_or_says_why_not(case):
    """With dropout, whose masks are those of each member's seed."""
    learners = [learner(case, member, accumulate=2) for member in range(2)]
    why = why_alone(learners[0])
    assert why == ALONE.get(case, ALONE.get(case.split(" ")[0], ""))
    if case.split(" ")[0] == "stlt":
        # Only the kernel knows which of an attention's weights it drops.
        with pytest.raises(NotStackable, match="a dropout inside the kernel"):
            StackedLearner(learners).compare(some_clips(dtype=torch.float32), torch.zeros(3))
    elif not why:
        stack = StackedLearner(learners)
        clips, targets = some_clips(dtype=torch.float32), torch.tensor([0, 1, 5])
        assert stack.compare(clips, targets) < TOLERANCE["fp32"]


def test_the_comparison_sees_masks_of_another_seed():
    learners = [learner("pool", member) for member in range(2)]
    stack = StackedLearner(learners)
    clips, targets = some_clips(dtype=torch.float32), torch.tensor([0, 1, 5])
    drawn = stack._draw([clips])
    stack._draw = lambda parts: [[masks.flip(0) for masks in drawn[0]]]
    assert stack.compare(clips, targets) > TOLERANCE["fp32"]


# --- runs of a study


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    made = Tiny(T=4, N=3, C=8).write(tmp_path_factory.mktemp("cache"))
    build_graphs(made.path, neighbours=2)
    return Cache(made.path)


def recipe(head: str = "strg", options: dict | None = None, **training):
    options = {"width": 16, **(options or {})} if head == "strg" else options or {}
    return recipe_from(
        {
            "name": "tiny",
            "source": "a test",
            "head": {"name": head, **options},
            "train": {"epochs": 3, "batch": 5, "lr": 0.05, **training},
        }
    )


def members(folder: Path, recipes, seeds=(0, 1)) -> list[Member]:
    found = []
    for number, one in enumerate(recipes):
        found += [Member(one, folder / f"{number}-seed{seed}", seed) for seed in seeds]
    return found


def trained(cache, folder: Path, recipes, as_one: bool | None = True, seeds=(0, 1), **options):
    lines: list[str] = []
    outcomes = run_members(
        members(folder, recipes, seeds),
        cache,
        order_seed=0,
        device="cpu",
        batch_members=as_one,
        say=lambda line: None,
        announce=lines.append,
        **options,
    )
    return outcomes, lines


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def last(folder: Path) -> dict:
    return run_files.load_checkpoint(folder / "last.pt")


def assert_same_runs(one: Path, other: Path, atol: float = 1e-4) -> None:
    folders = sorted(path.name for path in one.iterdir() if path.is_dir())
    assert folders == sorted(path.name for path in other.iterdir() if path.is_dir())
    for name in folders:
        mine, twin = last(one / name), last(other / name)
        assert mine.keys() == twin.keys()
        assert mine["progress"]["step"] == twin["progress"]["step"]
        for kind in ("state", *(["raw"] if "raw" in mine else [])):
            for key, tensor in mine[kind].items():
                torch.testing.assert_close(tensor, twin[kind][key], rtol=1e-3, atol=atol)
        assert mine["optimiser"]["param_groups"] == twin["optimiser"]["param_groups"]
        assert mine["optimiser"]["state"].keys() == twin["optimiser"]["state"].keys()


VARIED = {
    "probes of one rate and decay each": [
        {"optimiser": "adamw", "lr": lr, "weight_decay": decay, "schedule": "cosine", "warm_up": 2}
        for lr in (0.01, 0.03)
        for decay in (0.0, 0.1)
    ],
    "sgd": [
        {"lr": 0.05, "momentum": 0.9, "clip_norm": 0.5},
        {"lr": 0.1, "momentum": 0.0, "schedule": "steps", "drop_at": [2]},
    ],
    "adam with an average": [
        {"optimiser": "adam", "lr": 0.01, "ema": 0.9, "accumulate": 2},
        {"optimiser": "adam", "lr": 0.02, "ema": 0.5, "accumulate": 2},
    ],
}


@pytest.mark.parametrize("varied", VARIED)
@pytest.mark.parametrize("head", ["strg", "pool"])
def test_members_as_one_end_with_the_weights_of_members_one_by_one(head, varied, cache, tmp_path):
    """Heads with dropout; seeds, rates, decays and schedules differ."""
    recipes = [recipe(head, {"dropout": 0.5}, **training) for training in VARIED[varied]]
    outcomes, lines = trained(cache, tmp_path / "one", recipes)
    alone, none = trained(cache, tmp_path / "alone", recipes, as_one=False)
    assert len(lines) == 1
    assert lines[0].startswith(f"{2 * len(recipes)} members of head {head} (0-seed0 to ")
    assert ": as one;" in lines[0]
    assert none == []
    assert_same_runs(tmp_path / "one", tmp_path / "alone")
    for mine, twin in zip(outcomes, alone, strict=True):
        assert mine.metrics["test"]["loss"] == pytest.approx(twin.metrics["test"]["loss"], rel=1e-3)


def test_nothing_is_joined_on_a_cpu_unless_asked(cache, tmp_path):
    _, lines = trained(cache, tmp_path, [recipe("pool", epochs=1)], as_one=None)
    assert lines == []


def test_members_of_other_shapes_or_batches_are_not_joined(cache, tmp_path):
    recipes = [
        recipe("pool", epochs=1),
        recipe("pool", epochs=1, batch=4),
        recipe("roi_pool", epochs=1),
        recipe("pool", {"dropout": 0.1}, epochs=1),
    ]
    _, lines = trained(cache, tmp_path, recipes)
    assert len(lines) == 4
    assert all(line.startswith("2 members") and ": as one;" in line for line in lines)


def test_a_member_that_diverges_ends_and_the_others_go_on(cache, tmp_path):
    recipes = [recipe("pool"), recipe("pool", lr=1e38), recipe("pool", lr=0.01)]
    outcomes, lines = trained(cache, tmp_path / "one", recipes, seeds=(0,))
    assert ": as one;" in lines[0]
    assert isinstance(outcomes[1].error, LossNotFinite)
    alone, _ = trained(cache, tmp_path / "alone", recipes, as_one=False, seeds=(0,))
    assert str(outcomes[1].error) == str(alone[1].error)
    assert outcomes[1].epochs == alone[1].epochs
    for number in (0, 2):
        assert isinstance(outcomes[number], Result)
        found = outcomes[number].metrics["test"]["loss"]
        assert found == pytest.approx(alone[number].metrics["test"]["loss"], rel=1e-4)


def test_a_member_that_stops_early_leaves_the_others(cache, tmp_path):
    recipes = [recipe("pool", epochs=4), recipe("pool", epochs=4, lr=1e-30, early_stop=1)]
    outcomes, _ = trained(cache, tmp_path / "one", recipes, seeds=(0,))
    alone, _ = trained(cache, tmp_path / "alone", recipes, as_one=False, seeds=(0,))
    assert [one.epochs for one in outcomes] == [one.epochs for one in alone] == [4, 2]
    assert_same_runs(tmp_path / "one", tmp_path / "alone")


def test_members_that_were_stopped_go_on_as_if_they_had_not(cache, tmp_path):
    """Either way: what one way left behind, the other one continues."""
    how = {"optimiser": "adamw", "lr": 0.01}
    recipes = [recipe("pool", {"dropout": 0.5}, weight_decay=decay, **how) for decay in (0.0, 0.1)]
    trained(cache, tmp_path / "whole", recipes, as_one=False)
    for first in (True, False):
        folder = tmp_path / str(first)

        class Stop:
            left = 4  # lines of epochs: one epoch of each member

            def __call__(self, line: str) -> None:
                if "epoch" in line:
                    self.left -= 1
                    if self.left < 0:
                        raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_members(
                members(folder, recipes),
                cache,
                order_seed=0,
                device="cpu",
                batch_members=first,
                say=Stop(),
                announce=lambda line: None,
            )
        trained(cache, folder, recipes, as_one=not first)
        assert_same_runs(folder, tmp_path / "whole")


def test_heads_that_cannot_be_joined_are_trained_one_by_one_and_one_line_says_so(cache, tmp_path):
    _, lines = trained(cache, tmp_path / "asked", [recipe("mean_lstm", epochs=2)])
    assert lines == [
        "2 members of head mean_lstm (0-seed0, 0-seed1): one by one, because it has a recurrent "
        "layer"
    ]
    trained(cache, tmp_path / "alone", [recipe("mean_lstm", epochs=2)], as_one=False)
    assert_same_runs(tmp_path / "asked", tmp_path / "alone", atol=0)


def test_members_whose_check_fails_are_trained_one_by_one_bit_for_bit(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCE, "fp32", -1.0)
    recipes = [recipe("pool", {"dropout": 0.5}, epochs=2)]
    _, lines = trained(cache, tmp_path / "asked", recipes)
    assert len(lines) == 1
    assert "one by one, because losses or gradients differ by" in lines[0]
    trained(cache, tmp_path / "alone", recipes, as_one=False)
    assert_same_runs(tmp_path / "asked", tmp_path / "alone", atol=0)


def test_members_that_part_in_the_middle_of_an_epoch_lose_nothing(cache, tmp_path, monkeypatch):
    """As where the memory of a GPU ends at a larger mini-batch."""
    plain, calls = StackedLearner.backward, []

    def backward(self, clips, targets):
        calls.append(len(targets))
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory\nand more")
        return plain(self, clips, targets)

    monkeypatch.setattr(stacked_runs.StackedLearner, "backward", backward)
    recipes = [recipe("pool", {"dropout": 0.5}, epochs=2)]
    outcomes, lines = trained(cache, tmp_path / "asked", recipes)
    assert lines[1].endswith("one by one, because out of memory")
    alone, _ = trained(cache, tmp_path / "alone", recipes, as_one=False)
    assert_same_runs(tmp_path / "asked", tmp_path / "alone")
    for mine, twin in zip(outcomes, alone, strict=True):
        one, other = (logged(Path(result.folder)) for result in (mine, twin))
        assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in other])


# --- predictions of a study


def forwards_in_evaluation(monkeypatch) -> list[int]:
    """Grows by one at every forward pass in eval mode."""
    plain, calls = PoolHead.forward, []

    def forward(self, clips, want_maps=False):
        if not self.training:
            calls.append(clips.size)
        return plain(self, clips, want_maps)

    monkeypatch.setattr(PoolHead, "forward", forward)
    return calls


def test_a_validation_takes_one_pass_through_the_head_for_all_members(cache, tmp_path, monkeypatch):
    calls, counts = forwards_in_evaluation(monkeypatch), {}
    for size in (2, 4):
        for epochs in (1, 3):
            calls.clear()
            recipes = [recipe("pool", epochs=epochs, lr=0.01 * (1 + k)) for k in range(size)]
            trained(cache, tmp_path / f"{size} {epochs}", recipes, seeds=(0,))
            counts[size, epochs] = len(calls)
    # What two more epochs cost.
    assert counts[2, 3] - counts[2, 1] == counts[4, 3] - counts[4, 1] > 0


@pytest.mark.parametrize("training", [{}, {"ema": 0.5}, {"early_stop": 1}])
def test_members_as_one_log_what_members_one_by_one_log(training, cache, tmp_path):
    """With a moving average, its weights are validated, and not those that are trained."""
    recipes = [recipe("pool", lr=lr, **training) for lr in (0.02, 0.1)]
    outcomes, _ = trained(cache, tmp_path / "one", recipes)
    trained(cache, tmp_path / "alone", recipes, as_one=False)
    for result in outcomes:
        folder = Path(result.folder)
        for mine, twin in zip(
            logged(folder), logged(tmp_path / "alone" / folder.name), strict=True
        ):
            assert mine["val"] == pytest.approx(twin["val"], rel=1e-4)
        mine, twin = (
            np.load(tmp_path / place / folder.name / "predictions_test.npz")
            for place in ("one", "alone")
        )
        assert mine.files == twin.files
        np.testing.assert_allclose(mine["logits"], twin["logits"], rtol=1e-3, atol=1e-4)
        assert (mine["clips"] == twin["clips"]).all()


def test_members_whose_predictions_differ_are_evaluated_one_by_one_and_a_line_says_so(
    cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        stacked_runs, "StackedHead", lambda heads, limit, compared: StackedHead(heads, -1.0)
    )
    _, lines = trained(cache, tmp_path, [recipe("pool", epochs=2)])
    assert len(lines) == 2
    assert lines[1].startswith("2 members of head pool (0-seed0, 0-seed1): evaluated one by one, ")


def test_a_member_that_cannot_be_evaluated_ends_and_the_others_go_on(cache, tmp_path, monkeypatch):
    plain = PoolHead.forward

    def forward(self, clips, want_maps=False):
        if not self.training and getattr(self, "bad", False):
            raise RuntimeError("no such thing")
        return plain(self, clips, want_maps)

    monkeypatch.setattr(PoolHead, "forward", forward)
    opened = TrainingRun.open

    def open_(self, *options):
        opened(self, *options)
        self.learner.head.bad = self.seed == 1

    monkeypatch.setattr(TrainingRun, "open", open_)
    outcomes, _ = trained(cache, tmp_path, [recipe("pool")], seeds=(0, 1, 2))
    assert [type(one) for one in outcomes] == [Result, Failure, Result]
    assert str(outcomes[1].error) == "no such thing"
