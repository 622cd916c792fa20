"""Heads that are computed as one: nothing loops over them, and attention is what torch computes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from heads.config.training_options import Training
from heads.evaluation.stacked_predictor import StackedHead
from heads.interface import members
from heads.interface.members import as_members
from heads.training.learner import Learner
from heads.training.stacked_learner import TOLERANCE, StackedLearner
from tests.heads.zoo.test_zoo import CASES, fresh, some_clips

M, B, H, Q, N, D = 3, 2, 2, 3, 5, 4


@pytest.fixture
def loops(monkeypatch):
    """What torch says of loops over the members, which is not kept from it here."""
    monkeypatch.setattr(members.warnings, "filterwarnings", lambda *args, **options: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield lambda: [str(one.message) for one in seen if "performance drop" in str(one.message)]


@pytest.mark.parametrize("shared", ["", "q", "kv", "mask"])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_members_is_each_members_own_with_its_gradients(shared, masked, loops):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(M, B, H, n, D, generator=generator).requires_grad_() for n in (Q, N, N))
    mask = torch.rand(M, B, 1, 1, N, generator=generator) < 0.6
    mask[..., 0] = True
    given = {"q": q, "k": k, "v": v, "mask": mask if masked else None}
    dims = {}
    for name, tensor in given.items():
        is_shared = name in shared if len(name) == 1 else name == shared
        dims[name] = None if is_shared or tensor is None else 0
        if is_shared and tensor is not None:
            given[name] = tensor[0].detach()

    def own(name: str, member: int):
        tensor = given[name]
        return tensor if tensor is None or dims[name] is None else tensor[member]

    with as_members():
        y = vmap(F.scaled_dot_product_attention, in_dims=tuple(dims.values()))(*given.values())
    alone = []
    for member in range(M):
        scores = own("q", member) @ own("k", member).mT / D**0.5
        if masked:
            scores = scores.masked_fill(~own("mask", member), -torch.inf)
        alone.append(scores.softmax(-1) @ own("v", member))
    alone = torch.stack(alone)
    torch.testing.assert_close(y, alone, rtol=1e-5, atol=1e-6)

    learned = [given[name] for name in "qkv" if given[name].requires_grad]
    weights = torch.randn(y.shape, generator=generator)
    for mine, wanted in zip(
        torch.autograd.grad((y * weights).sum(), learned),
        torch.autograd.grad((alone * weights).sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert loops() == []


def test_torch_would_loop_over_the_members():
    """Otherwise this file's code is not needed any more."""
    q, k, v = (torch.randn(M, B, H, n, D) for n in (Q, N, N))
    with pytest.warns(UserWarning, match="There is a performance drop"):
        vmap(F.scaled_dot_product_attention)(q, k, v)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("attentive")])
def test_no_probe_loops_over_the_members(case, loops):
    """In training, and in evaluation."""
    clips, targets = some_clips(dtype=torch.float32), torch.tensor([0, 1, 5])
    training = Training(epochs=9, lr=0.01, optimiser="adamw", clip_norm=1.0)
    learners = []
    for member in range(M):
        head = fresh(case, member).train()
        learners.append(Learner(head, training, "single", 4, member, "fp32"))
    assert StackedLearner(learners).compare(clips, targets) < TOLERANCE["fp32"]

    stack = StackedHead([fresh(case, member) for member in range(M)], TOLERANCE["fp32"]).eval()
    with torch.inference_mode():
        stack(clips)
    assert stack.why == ""
    assert loops() == []
