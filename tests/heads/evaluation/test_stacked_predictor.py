"""Heads that predict as one predict what each predicts by itself."""

import pytest
import torch
from torch import nn

from heads.evaluation.stacked_predictor import StackedHead
from heads.interface.clips import HeadOutput
from heads.training.stacked_learner import TOLERANCE
from tests.heads.zoo.test_zoo import CASES, fresh, some_clips

M = 3
# Rounding in float32 alone moves the logits of a mixture by more than what is allowed.
DTYPES = {"gos": torch.float64}
# Torch has no rule for a further dimension of their layers.
ALONE = (nn.LSTM, nn.GRU)


def heads_of(case: str) -> list[nn.Module]:
    return [fresh(case, seed).eval().to(DTYPES.get(case)) for seed in range(M)]


def clips_at(seed: int, dtype: torch.dtype = torch.float32):
    return some_clips(seed=seed, dtype=dtype)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_every_head_predicts_as_one_what_it_does_alone_or_says_why_not(case):
    """Also where its logits of the first batch were compared and those of the next are not."""
    heads = heads_of(case)
    stack = StackedHead(heads, TOLERANCE["fp32"]).eval()
    for seed in range(2):
        clips = clips_at(seed, DTYPES.get(case, torch.float32))
        out = stack(clips)
        for member, head in enumerate(heads):
            alone = head(clips)
            wanted = alone.logits.float()
            torch.testing.assert_close(out.logits[:, member], wanted, rtol=1e-4, atol=1e-5)
            assert out.stored.keys() == alone.stored.keys()
            for name, tensor in alone.stored.items():
                assert out.stored[name][:, member].equal(tensor)
    # One by one, the comparison above would say nothing.
    recurrent = any(isinstance(module, ALONE) for module in heads[0].modules())
    if not recurrent and case != "ean above a cut":  # its layers ask for a memory order
        assert stack.why == ""


@torch.inference_mode()
def test_a_head_whose_logits_are_not_finite_leaves_the_others_as_one():
    heads = heads_of("pool")
    nn.init.constant_(heads[1].fc.weight, torch.inf)
    stack = StackedHead(heads, TOLERANCE["fp32"]).eval()
    logits = stack(clips_at(0)).logits
    assert stack.why == ""
    assert not torch.isfinite(logits[:, 1]).any()
    assert torch.isfinite(logits[:, [0, 2]]).all()


class Odd(nn.Module):
    """Computes something else once its weights are given from outside."""

    needs = ("pooled",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 3))

    def forward(self, clips, want_maps=False):
        more = 0.0 if isinstance(self.weight, nn.Parameter) else 1.0
        return HeadOutput(clips.pooled.mean(1) @ self.weight + more)


@torch.inference_mode()
def test_heads_whose_logits_differ_predict_one_by_one():
    stack = StackedHead([Odd(), Odd()], TOLERANCE["fp32"]).eval()
    clips = clips_at(0)
    for _ in range(2):
        assert stack(clips).logits[:, 1].equal(stack.heads[1](clips).logits)
    assert stack.why.startswith("predictions differ by ")
    assert "allowed: 0.0001" in stack.why
