"""GOS on a pretended GPU: no form waits for its mini-batches, and each gives the CPU's values.

A CPU asks which operations the views chose and computes those. A GPU computes all and selects.
"""

from dataclasses import replace

import pytest
import torch

from heads.config.training_options import Training
from heads.interface.contract import CLASSES, DIMS, HeadCase, random_clips
from heads.training.learner import Learner
from heads.zoo import build_head
from heads.zoo.gos import GOS

pytestmark = pytest.mark.usefixtures("gpu")

# Every way in which GOS computes structures.
GOS_FORMS = {
    "shared": {"structures": "shared", "supernodes": 1},
    "shared at test": {"structures": "shared_test", "supernodes": 1},
    "discrete": {"mode": "discrete"},
    "discrete as released": {"mode": "discrete", "variant": "released"},
    "discrete shared": {"mode": "discrete", "structures": "shared"},
    "discrete shared at test": {"mode": "discrete", "structures": "shared_test"},
    "discrete in the original space": {"mode": "discrete", "space": "original"},
    "discrete in tied cells": {"mode": "discrete", "cells": 2, "tied": True, "supernodes": 1},
}
SMALL = replace(DIMS, T=4)


def drawn_gos(form: str) -> GOS:
    """A head whose views choose different structures, without dropout, in float64."""
    given = {"supernodes": 2, "taps": 3, "width": 8, **GOS_FORMS.get(form, {})}

    def build(dims):
        return build_head("gos", dims, CLASSES, skip_dropout=0.0, **given)

    return HeadCase(build, SMALL).drawn().train()


def mini_batch(seed: int, place: str):
    """Three views of the same sizes and other values, and their classes."""
    # A store knows that there is one grid, see `FeatureStore.one_grid`.
    clips = replace(random_clips(SMALL, seed=seed), one_grid=SMALL.maps["res5"][1:])
    return clips.to(place), torch.tensor([0, 1, 5]).to(place)


@pytest.mark.parametrize("form", GOS_FORMS)
def test_no_form_of_gos_waits_for_its_mini_batches(form, waits):
    training = Training(epochs=9, lr=0.01, momentum=0.9)
    one = Learner(drawn_gos(form).to("cuda"), training, "single", 4, 0, "fp32")
    batches = [mini_batch(seed, "cuda") for seed in range(4)]
    one.step(*batches[0])
    waits.clear()
    for clips, targets in batches[1:]:
        one.step(clips, targets)
    assert waits == {}


@pytest.mark.parametrize("form", [*GOS_FORMS, "forced"])
def test_an_evaluation_asks_once_for_a_structure_of_all_views_and_never_for_one_of_each(
    form, waits
):
    head = drawn_gos(form).to("cuda")
    batches = [mini_batch(seed, "cuda")[0] for seed in range(4)]
    head(batches[0])  # a vote
    head.eval()
    if form == "forced":
        head.force(torch.zeros(len(head.cells), len(head.edges), dtype=torch.long))
    heads = [head, *head.forms.values()]
    with torch.inference_mode():
        for one in heads:
            one(batches[0])
        waits.clear()
        for one in heads:
            for clips in batches:
                one(clips)
    assert waits == {}


@pytest.mark.parametrize("form", [*GOS_FORMS, "forced"])
def test_a_structure_gives_there_the_logits_of_the_cpu(form):
    logits = []
    for place in ("cpu", "cuda"):
        head = drawn_gos(form).to(place)
        head(mini_batch(0, place)[0])  # a vote
        head.eval()
        if form == "forced":
            head.force(torch.tensor([[1, 2, 4]]))
        clips, _ = mini_batch(1, place)
        with torch.no_grad():
            logits.append([one(clips).logits.cpu() for one in (head, *head.forms.values())])
    for here, there in zip(*logits, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("form", ["discrete", "discrete as released", "discrete shared"])
def test_weights_of_operations_that_no_view_chose_stay_there_as_on_the_cpu(form, optimiser):
    """Also where they have moved before: neither momentum nor decay moves them."""
    training = Training(
        epochs=9, lr=0.02, optimiser=optimiser, momentum=0.9, weight_decay=0.1, clip_norm=1.0
    )
    here, there = (
        Learner(drawn_gos(form).to(place), training, "single", 4, 0, "fp32")
        for place in ("cpu", "cuda")
    )
    unused, moved = set(), set()
    for step in range(4):
        before = {name: weight.clone() for name, weight in there.head.named_parameters()}
        here.step(*mini_batch(step, "cpu"))
        there.step(*mini_batch(step, "cuda"))
        for name, weight in here.head.named_parameters():
            if weight.grad is not None:
                moved.add(name)
            elif weight.requires_grad:
                unused |= {name} & moved
                assert there.head.get_parameter(name).equal(before[name])
    assert unused or form == "discrete shared"
    for name, weight in here.head.state_dict().items():
        other = there.head.state_dict()[name].cpu()
        torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)
