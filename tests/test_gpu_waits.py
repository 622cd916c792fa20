"""What waits for the GPU while heads train: counted on a pretended one (tests/support).

A GPU runs behind the process that feeds it. Whoever asks for a value ends that, so nobody asks once
per mini-batch.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.config.recipe import recipe_from
from heads.config.training_options import Training
from heads.data.feature_store import FeatureStore
from heads.interface.loss import LossNotFinite
from heads.papers.ean.transformer import RowNorm
from heads.runs import run_files
from heads.training.learner import Learner
from heads.training.stacked_learner import TOLERANCE, StackedLearner
from heads.training.train import train
from heads.training.training_run import TrainingRun
from pipeline.cache.reader import Cache
from pipeline.regions.graphs import (
    GRAPHS,
    GraphOptions,
    graphs_of_tensors,
    iou_graph,
    iou_of_tensors,
)
from pipeline.stages.graphs import build_graphs
from tests.heads.zoo.test_zoo import CASES, DIMS, fresh, some_clips
from tests.support.cuda_sites import call_sites
from tests.support.fake_cuda import CudaTensor
from tests.support.tiny_cache import Tiny

QUIET = {"say": lambda line: None}


pytestmark = pytest.mark.usefixtures("gpu")


def batch():
    clips = some_clips(dtype=torch.float32)
    # A store knows it, see `FeatureStore.one_grid`.
    size = next(iter(DIMS.maps.values()))[1:]
    assert clips.grid is None or clips.grid_sizes() == [size]
    return replace(clips, one_grid=size).to("cuda"), torch.tensor([0, 1, 5], device="cuda")


@pytest.mark.parametrize("case", CASES)
def test_no_head_waits_for_its_mini_batches(case, waits):
    training = Training(epochs=9, lr=0.01, clip_norm=1.0, ema=0.9)
    one = Learner(fresh(case).to("cuda"), training, "single", 4, 0, "fp32")
    clips, targets = batch()
    # The first step may bring constants to the device.
    losses = [one.step(clips, targets)]
    waits.clear()
    losses += [one.step(clips, targets) for _ in range(3)]
    assert waits == {}
    one.losses.read()
    assert waits.total() == 1, waits
    assert torch.isfinite(torch.stack(losses).cpu()).all()


@pytest.mark.parametrize("case", CASES)
def test_no_head_waits_for_the_batches_of_an_evaluation(case, waits):
    head = fresh(case).to("cuda").eval()
    clips, _ = batch()
    with torch.inference_mode():
        head(clips)
        waits.clear()
        head(clips)
    assert waits == {}


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_optimiser_waits(optimiser, precision, waits):
    training = Training(epochs=9, lr=0.01, optimiser=optimiser, clip_norm=1.0)
    one = Learner(fresh("pool").to("cuda"), training, "single", 4, 0, precision)
    clips, targets = batch()
    waits.clear()
    for _ in range(3):
        one.step(clips, targets)
    assert waits == {}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_members_as_one_do_not_wait(optimiser, waits):
    """The losses of all mini-batches are read at the end."""
    learners = []
    for member in range(2):
        head = fresh("strg", member).to("cuda").train()
        training = Training(epochs=9, lr=0.01, optimiser=optimiser, clip_norm=1.0, ema=0.9)
        learners.append(Learner(head, training, "single", 4, member, "fp32"))
    stack = StackedLearner(learners)
    clips, targets = batch()
    assert stack.compare(clips, targets) < TOLERANCE["fp32"]
    waits.clear()
    for _ in range(3):
        stack.step(clips, targets)
    assert waits == {}
    losses = stack.give_back()
    assert [one.clips for one in losses] == [9, 9]
    assert [one.progress.step for one in learners] == [3, 3]


def training_run(cache, folder: Path, place: str, batch_size: int, resident: str = "auto", **head):
    table = {
        "name": "tiny",
        "source": "a test",
        "head": {"name": "pool", **head},
        "train": {"epochs": 1, "batch": batch_size, "lr": 0.01},
        "data": {"swap_on_flip": [["class 0", "class 1"]]},
    }
    how = {"device": place, "resident": resident, "tensorboard": False, **QUIET}
    return train(recipe_from(table), cache, folder, **how)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    made = Tiny(T=4, N=3, C=8, fields=(*Tiny.fields, "res5")).write(
        tmp_path_factory.mktemp("cache")
    )
    build_graphs(made.path, neighbours=2)
    return Cache(made.path)


@pytest.mark.parametrize(
    ("head", "resident"),
    [("pool", "ram"), ("pool", "disk"), ("strg", "gpu"), ("gos", "gpu"), ("gos discrete", "gpu")],
)
def test_the_waits_of_an_epoch_do_not_grow_with_its_mini_batches(
    head, resident, cache, waits, tmp_path, monkeypatch
):
    """From the first draw to the result, with validation and checkpoints."""
    plain = TrainingRun.open

    def opened(self, *options):
        # What is checked before takes some views, whose number depends on the batch.
        waits.clear()
        plain(self, *options)

    monkeypatch.setattr(TrainingRun, "open", opened)
    options = {
        "pool": {},
        "strg": {"width": 16},
        "gos": {"width": 8, "supernodes": 1},  # validated in its discrete form too
        "gos discrete": {"width": 8, "supernodes": 1, "mode": "discrete"},
    }[head]
    counts = []
    for size in (12, 2):
        folder = tmp_path / str(size)
        training_run(cache, folder, "cuda", size, resident, name=head.split()[0], **options)
        counts.append(waits.copy())
    assert counts[0] == counts[1]


def diverging(place: str) -> Learner:
    head = fresh("pool").to(place)
    training = Training(epochs=9, lr=1.0, momentum=0.9)
    return Learner(head, training, "single", 4, 0, "fp32")


def _train_on(one: Learner, batches, targets) -> None:
    for clips in batches:
        one.step(clips, targets)
    one.losses.read()


def test_a_loss_that_is_not_finite_is_told_later_and_moves_no_weight():
    """The same words as on a CPU, where nothing is late."""
    messages = []
    clips, targets = batch()
    for place in ("cpu", "cuda"):
        one, mine, wanted = diverging(place), clips.to(place), targets.to(place)
        one.step(mine, wanted)
        before = {name: x.clone() for name, x in one.head.state_dict().items()}
        bad = replace(mine, pooled=mine.pooled * torch.nan)
        with pytest.raises(LossNotFinite) as error:
            _train_on(one, [bad, mine], wanted)
        messages.append(str(error.value))
        after = one.head.state_dict()
        assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert messages[0] == messages[1]
    assert "at mini-batch 2 of epoch 1" in messages[0]


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_fused_optimiser_computes_what_the_plain_one_does_and_continues_it(optimiser):
    """Weight by weight, also across a checkpoint from the other kind."""
    options = {"epochs": 9, "lr": 0.05, "optimiser": optimiser, "momentum": 0.9}
    clips, targets = batch()

    def learner(place: str) -> Learner:
        head = fresh("pool", dropout=0.0).to(place)
        return Learner(head, Training(**options), "single", 4, 0, "fp32")

    here, there = learner("cpu"), learner("cuda")
    for _ in range(2):
        here.step(clips.to("cpu"), targets.cpu())
        there.step(clips, targets)
    assert there.optimisers.first.param_groups[0]["fused"]

    # Each goes on from the other's checkpoint.
    run_file = {}
    for name, one in (("here", here), ("there", there)):
        run_file[name] = run_files._on_cpu(one.state(), {})
    assert run_file["there"]["optimiser"]["param_groups"][0]["fused"] is None
    here, there = learner("cpu"), learner("cuda")
    here.load(run_file["there"])
    there.load(run_file["here"])
    here.step(clips.to("cpu"), targets.cpu())
    there.step(clips, targets)
    assert not here.optimisers.first.param_groups[0]["fused"]
    for mine, other in zip(here.head.parameters(), there.head.parameters(), strict=True):
        assert torch.allclose(mine, other.cpu(), atol=1e-5)


def test_a_store_says_where_features_are_and_why(cache):
    store = FeatureStore(cache["train"], ("nodes",), np.arange(8), "auto", "cache", "cuda")
    assert store.describe().endswith("in the GPU's memory, of which 17.2 GB were free")
    store = FeatureStore(cache["train"], ("nodes",), np.arange(8), "disk", "cache", "cuda")
    assert "on disk; batches are copied to the GPU" in store.describe()


@pytest.mark.parametrize("resident", ["gpu", "ram", "disk"])
def test_batches_arrive_with_the_values_of_the_cache(resident, cache):
    fields = ("nodes", "valid")
    store = FeatureStore(cache["train"], fields, np.arange(8), resident, "cache", "cuda")
    rows = np.array([5, 1, 7, 0, 3])
    wanted = cache["train"].batch([int(row) for row in rows], fields)
    for tensors, part in store.batches(rows, 2):
        for name, tensor in tensors.items():
            assert isinstance(tensor, CudaTensor)
            assert np.array_equal(tensor.cpu().numpy(), wanted[name][part])


def test_graphs_are_computed_where_the_boxes_are_and_nothing_is_copied(gpu):
    clips = some_clips(dtype=torch.float32).to("cuda")
    given = {name: clips.get(name) for name in ("boxes", "valid", "nodes")}
    with call_sites(gpu) as sites:
        found = graphs_of_tensors(given, GraphOptions(tuple(GRAPHS), 2))
    assert {str(tensor.device) for tensor in found.values()} == {"cuda:0"}
    assert sites.copies == {}
    assert sites.waits == {}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_norm_of_rows_that_count_is_there_what_it_is_on_the_cpu(mode):
    """There nobody asks how many rows count; values, gradients and statistics are the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator)
    for share in (0.5, 0.0, 1.0):
        valid = torch.rand(3, 4, generator=generator) < share
        found = []
        for place in ("cpu", "cuda"):
            norm = RowNorm(5).to(place).train(mode == "train")
            mine = x.clone().to(place).requires_grad_()
            y = norm(mine, valid.to(place))
            if y.requires_grad:
                (y * y * y).sum().backward()
            grad = torch.zeros_like(x) if mine.grad is None else mine.grad
            found.append([one.detach().cpu() for one in (y, grad, norm.running_mean)])
            found[-1].append(norm.running_var.cpu())
        for here, there in zip(*found, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


def test_the_overlaps_are_those_of_stage_two_bit_for_bit():
    clips = some_clips(dtype=torch.float32)
    boxes, valid = clips.get("boxes"), clips.get("valid")
    found = iou_of_tensors(boxes, valid)
    assert found.numpy().tobytes() == iou_graph(boxes.numpy(), valid.numpy()).tobytes()
    assert found.any()
