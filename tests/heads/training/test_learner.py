"""The learner and its optimisers: alternating mini-batches, schedules, auxiliary losses."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heads.config.training_options import (
    AlternatingOptimiser,
    Distillation,
    LossShare,
    ParameterGroups,
    Training,
)
from heads.interface.clips import Dims, HeadOutput, clips_of
from heads.interface.loss import loss_of
from heads.papers.dyreg.distillation import Teachers
from heads.training.learner import Learner
from heads.training.optimisers import Optimisers
from heads.training.stacked_learner import StackedLearner
from heads.zoo import build_head

STEPS = 4  # mini-batches per epoch


class Small(nn.Module):
    """A head with a norm, a part that is searched, and an auxiliary loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lower, self.norm, self.structure = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(4, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, clips):
        x = clips.pooled.mean(1)
        y = self.norm(self.lower(x)) * self.structure(x).sigmoid()
        return HeadOutput(self.fc(y), {"size": y.square().mean()})


def learner(head=None, precision="fp32", **training) -> Learner:
    training = {"epochs": 10, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **training}
    return Learner(head or Small(), Training(**training), "single", STEPS, 0, precision)


def batch(number=0, size=6):
    rng = np.random.default_rng(number)
    clips = clips_of({"pooled": rng.normal(size=(size, 2, 4)).astype(np.float32)})
    return clips, torch.from_numpy(rng.integers(0, 3, size))


def weights(one: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in one.head.named_parameters()}


def moved(before, after) -> set[str]:
    return {name for name in before if not before[name].equal(after[name])}


# --- optimisers


def test_two_optimisers_take_turns_and_neither_moves_the_others_weights():
    one = learner(
        alternate=AlternatingOptimiser("structure", lr=0.01, weight_decay=0.1), clip_norm=1.0
    )
    theirs = {"structure.weight", "structure.bias"}
    for number in range(2 * STEPS):
        before = weights(one)
        one.step(*batch(number))
        assert moved(before, weights(one)) == (theirs if number % 2 else before.keys() - theirs)
    adam = one.optimisers.second
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.01, 0.1)


def test_an_alternating_step_is_the_step_of_its_optimiser():
    """The second mini-batch moves the structure as Adam alone would, from the gradient of the same
    loss.
    """
    one = learner(alternate=AlternatingOptimiser("structure", lr=0.01, weight_decay=0.0))
    one.step(*batch(0))
    head = Small()
    head.load_state_dict(one.head.state_dict())
    adam = torch.optim.Adam(head.structure.parameters(), 0.01)
    clips, targets = batch(1)
    out = head(clips)
    (F.cross_entropy(out.logits, targets) + out.losses["size"]).backward()
    adam.step()
    one.step(clips, targets)
    torch.testing.assert_close(weights(one)["structure.weight"], head.structure.weight.detach())


def test_the_papers_factors_reach_the_right_parameters():
    """The groups of TSM's release, which DyReg's and EAN's take over: biases at twice the rate and
    without decay, both parameters of a norm at the rate itself and without decay, the classifier
    at 5 and 10 times.
    """
    how = ParameterGroups(
        bias_lr=2, bias_decay=0, norm_bias_lr=1, norm_decay=0, last_lr=5, last_bias_lr=10
    )
    head = Small()
    names = {id(p): name for name, p in head.named_parameters()}
    optimisers = Optimisers(head, Training(epochs=1, lr=0.01, weight_decay=0.5, groups=how))
    optimisers.set_lr(0.01)
    found = {
        names[id(p)]: (g["lr"], g["weight_decay"])
        for g in optimisers.first.param_groups
        for p in g["params"]
    }
    assert found == {
        "lower.weight": (0.01, 0.5),
        "lower.bias": (0.02, 0),
        "structure.weight": (0.01, 0.5),
        "structure.bias": (0.02, 0),
        "norm.weight": (0.01, 0),
        "norm.bias": (0.01, 0),
        "fc.weight": (0.05, 0.5),
        "fc.bias": (0.1, 0),
    }


def test_norm_biases_follow_the_biases_unless_they_have_a_rate_of_their_own():
    head = Small()
    rates = {}
    for norm_bias_lr in (None, 0.5):
        how = ParameterGroups(bias_lr=3, norm_bias_lr=norm_bias_lr)
        optimisers = Optimisers(head, Training(epochs=1, lr=1.0, groups=how))
        optimisers.set_lr(1.0)
        for group in optimisers.first.param_groups:
            if any(p is head.norm.bias for p in group["params"]):
                rates[norm_bias_lr] = group["lr"]
    assert rates == {None: 3, 0.5: 0.5}


def test_the_parameters_first_have_a_further_factor():
    head = Small()
    slow = Optimisers(
        head, Training(epochs=1, lr=1.0, groups=ParameterGroups(first="lower", first_lr=0.1))
    )
    slow.set_lr(1.0)
    assert {g["lr"]: len(g["params"]) for g in slow.first.param_groups} == {0.1: 2, 1.0: 6}


@pytest.mark.parametrize(
    ("training", "match"),
    [
        (
            {"alternate": AlternatingOptimiser("strcuture")},
            "train.alternate.parameters: no trained parameter of Small starts with",
        ),
        (
            {"groups": ParameterGroups(last="classifier", last_lr=5)},
            "train.groups.last: .*its modules: lower, norm, structure, fc",
        ),
        ({"groups": ParameterGroups(first="backbone", first_lr=0.1)}, "train.groups.first"),
    ],
)
def test_a_name_that_no_parameter_has_is_refused(training, match):
    with pytest.raises(ValueError, match=match):
        learner(**training)


def test_a_batch_in_parts_is_the_step_of_the_whole_batch():
    for accumulate in (2, 4, 6):
        whole, parts = learner(), learner(accumulate=accumulate)
        for number in range(3):
            assert parts.step(*batch(number)) == pytest.approx(whole.step(*batch(number)), rel=1e-5)
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(parts)[name], tensor)


def test_the_moving_average_is_what_is_validated_and_kept():
    one = learner(ema=0.9)
    average = weights(one)
    for number in range(5):
        one.step(*batch(number))
        average = {name: 0.9 * mean + 0.1 * weights(one)[name] for name, mean in average.items()}
    raw = weights(one)
    with one.averaged() as head:
        for name, p in head.named_parameters():
            torch.testing.assert_close(p.detach(), average[name])
    assert not moved(raw, weights(one))
    for name, mean in average.items():
        torch.testing.assert_close(one.state()["state"][name], mean)
    other = learner(ema=0.9)
    other.load(one.state())
    other.step(*batch(9))
    one.step(*batch(9))
    assert not moved(weights(one), weights(other))
    assert not moved(one.weights(), other.weights())


# --- schedules and stop rules


def test_the_rate_falls_on_a_plateau_and_training_ends_where_it_would_fall_too_low():
    """GOS, stage 3: 0.001, a tenth where the loss stays up, and the end where it does so again."""
    one = learner(epochs=100, lr=0.001, schedule="plateau", patience=5, stop_below=1e-4)
    rates = []
    for loss in [1.0, 0.9, *[0.95] * 6, 0.8, *[0.85] * 6]:
        assert not one.done
        rates.append(one.lr)
        one.end_epoch(0.0, loss)
    assert one.done
    assert rates == pytest.approx([0.001] * 8 + [0.0001] * 7)
    again = learner(epochs=100, lr=0.001, schedule="plateau", patience=5, stop_below=1e-4)
    again.load(one.state())
    assert again.done


@pytest.mark.parametrize("patience", [1, 5, 10])
def test_the_plateau_schedule_is_torchs(patience):
    one = learner(epochs=1000, lr=0.01, schedule="plateau", patience=patience, factor=0.5)
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, "min", factor=0.5, patience=patience
    )
    g = torch.Generator().manual_seed(patience)
    losses = torch.rand(60, generator=g).add(1).cummin(0).values
    # Declines of half the threshold are none.
    losses = torch.cat([losses, losses[-1] * (1 - 5e-5) ** torch.arange(20)])
    for loss in losses.double().tolist():
        one.end_epoch(0.0, loss)
        plateau.step(loss)
        assert one.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    assert one.lr < 0.01


def test_a_plateau_that_counted_otherwise_is_not_continued():
    one = learner(epochs=9, schedule="plateau")
    old = one.state()
    del old["plateau"]
    with pytest.raises(ValueError, match="start over with --no-resume"):
        learner(epochs=9, schedule="plateau").load(old)
    learner(epochs=9).load(learner(epochs=9).state())


def test_training_ends_when_nothing_gets_better():
    one = learner(epochs=100, early_stop=3)
    ends = []
    for figure in (0.1, 0.3, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3):
        one.end_epoch(figure, 1.0)
        ends.append(one.done)
    assert ends == [False] * 7 + [True]
    blind = learner(epochs=100, early_stop=1)
    for _ in range(9):  # without validation nothing is known to get worse
        blind.end_epoch(math.nan, math.nan)
    assert not blind.done


def test_an_auxiliary_loss_counts_in_its_share_of_the_training():
    """10 epochs of 4 mini-batches, a tenth of them: the first four."""
    one = learner(losses={"size": LossShare(weight=100.0, until=0.1)}, lr=1e-20)
    plain = learner(lr=1e-20)
    clips, targets = batch()
    size, loss = plain.head(clips).losses["size"].item(), plain.step(clips, targets)
    found = [one.step(clips, targets) for _ in range(6)]
    assert found == pytest.approx([loss + 99 * size] * 4 + [loss - size] * 2, rel=1e-5)


def test_a_loss_that_the_head_does_not_have_is_refused():
    with pytest.raises(
        ValueError, match=r"train.losses.szie: head Small has no such loss; it has size"
    ):
        learner(losses={"szie": LossShare()}).step(*batch())


def test_class_weights_weigh_each_clip():
    logits, targets, by_class = (
        torch.randn(5, 3),
        torch.tensor([0, 0, 1, 2, 2]),
        torch.tensor([0.5, 2.0, 1.0]),
    )
    each = F.cross_entropy(logits, targets, reduction="none")
    assert loss_of("single", by_class)(logits, targets) == pytest.approx(
        (by_class[targets] * each).mean().item()
    )


# --- distillation


def dyreg(**options) -> nn.Module:
    return build_head(
        "dyreg",
        Dims(T=2, maps={"res5": (4, 7, 7)}),
        3,
        width=4,
        offset_width=4,
        dropout=0.0,
        **options,
    )


def test_teachers_are_followed_in_the_first_share_of_the_training_and_stay_as_they_are():
    torch.manual_seed(0)
    teacher, student = dyreg(), dyreg()
    with torch.no_grad():
        for p in teacher.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    training = Training(
        epochs=2, lr=1e-9, distil=Distillation(("teacher",), weight=1000.0, until=0.5)
    )
    one = Learner(student, training, "single", STEPS, 0, "fp32", None, Teachers(student, [teacher]))
    clips = clips_of(
        {"res5": np.random.default_rng(0).normal(size=(2, 2, 4, 7, 7)).astype(np.float32)}
    )
    targets = torch.tensor([0, 2])
    losses = [one.step(clips, targets) for _ in range(2 * STEPS)]
    assert min(losses[:STEPS]) > 2 * max(losses[STEPS:])
    assert all(before[name].equal(tensor) for name, tensor in teacher.state_dict().items())
    assert Teachers(student, [teacher]).needs == ("res5",)


def test_distillation_moves_the_regions_towards_the_teachers():
    torch.manual_seed(1)
    teacher, student = dyreg(), dyreg()
    with torch.no_grad():
        for p in (*teacher.parameters(), *student.parameters()):
            p.copy_(torch.randn_like(p) * 0.3)
    teachers = Teachers(student, [teacher])
    clips = clips_of(
        {"res5": np.random.default_rng(0).normal(size=(2, 2, 4, 7, 7)).astype(np.float32)}
    )
    training = Training(
        epochs=100,
        optimiser="adam",
        lr=0.01,
        distil=Distillation(("teacher",), weight=100.0, until=1.0),
    )
    one = Learner(student, training, "single", STEPS, 0, "fp32", None, teachers)
    first = teachers.teach(student, clips, 1.0).losses["distillation"].item()
    for _ in range(40):
        one.step(clips, torch.tensor([0, 2]))
    assert teachers.teach(student, clips, 1.0).losses["distillation"].item() < 0.3 * first


def test_teachers_that_do_not_match_the_student_are_refused():
    with pytest.raises(ValueError, match="expected one for each of res5"):
        Teachers(dyreg(), [dyreg(), dyreg()])
    with pytest.raises(ValueError, match="expected heads dyreg as student and teachers, got Small"):
        Teachers(dyreg(), [Small()])


# --- logits of branches


class Branches(nn.Module):
    """A head whose logits are the mean of two parts', which learn the labels, too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, clips):
        x = clips.pooled.mean(1)
        parts = (self.one(x), self.two(x))
        return HeadOutput(sum(parts) / 2, branches=parts)


@pytest.mark.parametrize("together", [False, True])
def test_the_loss_is_the_mean_over_logits_and_branches(together):
    one, (clips, targets) = learner(Branches()), batch()
    out = one.head(clips)
    losses = [F.cross_entropy(logits, targets) for logits in (out.logits, *out.branches)]
    wanted = sum(losses) / 3
    if together:
        stacked = StackedLearner([one, learner(Branches())])
        found = stacked.backward(clips, targets)[0][0]
        torch.testing.assert_close(found, wanted.detach().double().expand(2))
    else:
        torch.testing.assert_close(one.loss_in(out, targets)[0], wanted)
