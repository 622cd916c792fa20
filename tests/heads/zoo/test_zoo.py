"""Every file in heads/zoo keeps the contract of heads/interface/contract.py, and what else this
project asks of its own heads.
"""

import importlib
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from heads.interface.clips import Clips, Dims, MissingFields
from heads.interface.contract import (
    CHECKS,
    CLASSES,
    DIMS,
    HeadCase,
    options_have_defaults,
    random_clips,
)
from heads.zoo import build_head, head_names, head_options
from pipeline.plugins import HEAD, load_build

B = 3

FEW = {"appearance_layers": 1, "fusion_layers": 1}
INSIDE = {"backbone": "resnet18", "backbone_options": {"width": 8}, "at": "res4.0"}
# Narrower than the papers' for the sake of time alone.
WIDTHS = {
    **{name: {"width": 32} for name in head_names() if name.startswith("gos")},
    "rstg": {"width": 16},
    "rstg_map": {"width": 16},
    "conv_lstm": {"width": 32, "hidden": 32},
    "dyreg": {"width": 16, "offset_width": 8},
    "ean": {"width": 64},
    "strg": {"width": 32},
    "attentive": {"depth": 2, "width": 8, "heads": 2},
    "stin": {"width": 16},
    "stlt": {"width": 16, "heads": 2, "spatial_layers": 2, "temporal_layers": 2, "frames": 16},
}
SAME_IN_BOTH_VARIANTS = {
    "pool",
    "roi_pool",
    "global_roi_pool",
    "mean_lstm",
    "conv_lstm",
    "strg",
    "attentive",
}
# What is tested: every head by its name, its released variant where that differs, and what reads
# other fields or lives inside a backbone.
CASES: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in head_names()},
    **{
        f"{name} as released": (name, {"variant": "released"})
        for name in head_names()
        if name not in SAME_IN_BOTH_VARIANTS
    },
    **{f"{name} inside a backbone": (name, INSIDE) for name in ("rstg_map", "dyreg")},
    "strg from the map": ("strg", {"reduce": "conv"}),
    "gos_feat_aggr from nodes": ("gos_feat_aggr", {"regions": "nodes"}),
    "ean above a cut": (
        "ean",
        {"backbone": "ean_r50", "backbone_options": {"width": 2}, "cut": "res4.0"},
    ),
    "dyreg at boxes": ("dyreg", {"regions": "detector"}),
    "ean at boxes": ("ean", {"regions": "boxes"}),
    "attentive at boxes": ("attentive", {"reads": "nodes"}),
    "attentive at both": ("attentive", {"reads": "both", "cut": "res5", "queries": 2}),
    "stin without classes": ("stin", {"classes": "none", "slots": "row", "absent": "left_out"}),
    "stin with appearance": ("stin", {"appearance": "pooled", "non_local": 2}),
    "stin of present objects": ("stin", {"absent": "left_out", "non_local": 1, "norm": "none"}),
    "stlt without classes": ("stlt", {"classes": "none", "scores": True}),
    "stlt late": ("stlt", {"fusion": "late", "appearance_layers": 1}),
    "stlt cross": ("stlt", {"fusion": "cross", "reads": "pooled", **FEW}),
    "stlt central": ("stlt", {"fusion": "central", **FEW}),
    "stlt central as released": ("stlt", {"fusion": "central", "variant": "released", **FEW}),
}
# Those with a weight for every node, or a kernel in time without padding: they refuse other sizes
# in words.
ONE_SIZE = {
    "gos as released",
    "gos_node_att as released",
    "gos_temp_conv as released",
    "ean as released",
    "stin",
    "stin as released",
    "stin without classes",
    "stin with appearance",
    "stin of present objects",
}
# What never learns, by the end of its name: GOS's U where only an argmax reads it; biases before a
# batch norm or a softmax.
EAN_LAYERS = (
    "norm2.bias",
    "attention.out.bias",
    "linears.0.bias",
    "linears.1.bias",
    "linears.2.bias",
)
EAN_PAPER = (*EAN_LAYERS, *(f"saliency.layers.{k}.bias" for k in (0, 3, 6, 9)))
KEY = ("attention.key.bias",)
K_BIAS = ("attention.k.bias",)
DEAD = {
    "gos as released": (".comb2.operations.0.affinity.U",),
    "gos_temp_conv as released": ("operation.affinity.U",),
    "ean": EAN_PAPER,
    "ean above a cut": EAN_PAPER,
    "ean as released": (*EAN_LAYERS, "saliency.layers.9.bias"),
    "ean at boxes": EAN_LAYERS,
    "dyreg": KEY,
    "dyreg as released": KEY,
    "dyreg inside a backbone": KEY,
    "dyreg at boxes": KEY,
    **{case: K_BIAS for case in CASES if case.startswith(("attentive", "stlt"))},
    "stin with appearance": ("non_local.0.k.bias", "non_local.1.k.bias"),
    "stin of present objects": ("non_local.0.k.bias",),
}

heads = pytest.mark.parametrize("name", head_names())
cases = pytest.mark.parametrize("case", CASES)


def head_case(case: str, dims: Dims = DIMS, **further) -> HeadCase:
    """A case for the contract of heads/interface/contract.py."""
    name, options = CASES[case]

    def build(dims: Dims) -> torch.nn.Module:
        return build_head(name, dims, CLASSES, **WIDTHS.get(name, {}), **options, **further)

    return HeadCase(build, dims, one_size=case in ONE_SIZE)


def fresh(case: str, seed: int = 0, dims: Dims = DIMS, **further) -> torch.nn.Module:
    return head_case(case, dims, **further).fresh(seed)


def make(
    case: str, seed: int = 0, dtype: torch.dtype = torch.float64, dims: Dims = DIMS, **further
) -> torch.nn.Module:
    """The head with every weight drawn anew."""
    return head_case(case, dims, **further).drawn(seed, dtype)


def some_clips(
    size: int = B, T: int = DIMS.T, seed: int = 1, dtype: torch.dtype = torch.float64
) -> Clips:
    """Views with every field; the last box of a frame is padding in about half of the frames."""
    return random_clips(DIMS, size, T, seed, dtype)


@pytest.mark.parametrize("check", CHECKS)
@cases
def test_the_contract(case, check):
    CHECKS[check](head_case(case))


@pytest.mark.slow
@heads
def test_compiled_gives_the_same_logits_and_gradients(name):
    """With breaks of the graph where a head has some. Two steps: recurrent layers are compiled step
    by step.
    """
    torch._dynamo.reset()
    fewer = {"supernodes": 1} if name == "gos" else {}
    head = make(name, dtype=torch.float32, dims=replace(DIMS, T=2), **fewer)
    clips = some_clips(T=2, dtype=torch.float32)

    def outcome(run) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        head.zero_grad()
        logits = run(clips).logits
        logits.square().sum().backward()
        return logits.detach(), [
            None if p.grad is None else p.grad.clone() for p in head.parameters()
        ]

    expected, found = outcome(head), outcome(torch.compile(head))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert (mine - theirs).norm() <= 1e-3 * theirs.norm() + 1e-4


@cases
def test_after_three_steps_every_parameter_has_moved_but_for_the_dead_ones(case):
    head = fresh(case).double().train()
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    # Steps of 0.01, however small the gradient.
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01, eps=1e-13)
    for step in range(3):
        optimiser.zero_grad()
        out = head(some_clips(4, seed=step))
        (F.cross_entropy(out.logits, torch.arange(4)) + sum(out.losses.values())).backward()
        optimiser.step()
    still = {name for name, p in head.named_parameters() if (p - before[name]).abs().max() < 1e-4}
    assert {name for name in still if not name.endswith(DEAD.get(case, ()))} == set()
    assert all(any(name.endswith(end) for name in still) for end in DEAD.get(case, ()))


@pytest.mark.parametrize("name", [n for n in head_names() if "variant" in head_options(n)])
def test_both_variants_are_there_and_no_third(name):
    assert head_options(name)["variant"] == "paper"
    for variant in ("paper", "released"):
        build_head(name, DIMS, CLASSES, variant=variant)
    with pytest.raises(
        ValueError, match="option variant: expected one of paper, released, got 'relaesed'"
    ):
        build_head(name, DIMS, CLASSES, variant="relaesed")


@heads
def test_every_option_has_a_default_that_builds_and_the_docstring_names_it(name):
    text = importlib.import_module(f"heads.zoo.{name}").build.__doc__
    options = head_options(name)
    options_have_defaults(load_build(HEAD, name))
    build_head(name, DIMS, CLASSES, **options)
    for option in options:
        # "option: ..." in the list Args, or one of several, "first, option, last: ...".
        assert re.search(rf"^ +(\w+,\s+)*{option}(,\s+\w+)*:", text, re.MULTILINE), option


@pytest.mark.parametrize("name", [*head_names(), "_single"])
def test_the_file_opens_with_its_paper_equations_shapes_and_where_it_differs(name):
    text = " ".join(importlib.import_module(f"heads.zoo.{name}").__doc__.split())
    venues = "ECCV 2018|CVPR 2020|NeurIPS 2019|NeurIPS 2021|BMVC 2021|IJCV 2022|TMLR 2024"
    assert re.search(rf"\b({venues})\b", text)
    assert re.search(r"\w = \S", text)
    assert re.search(r"\[B,[^]]*\]", text)
    assert "Differs from the paper" in text


@heads
def test_wrong_names_and_types_are_refused_with_the_nearest(name):
    with pytest.raises(ValueError, match=f"did you mean {name}"):
        build_head(name + "x", DIMS, CLASSES)
    with pytest.raises(ValueError, match="has no option 'dropuot': did you mean dropout"):
        build_head(name, DIMS, CLASSES, dropuot=0.1)
    with pytest.raises(ValueError, match="option dropout: expected float"):
        build_head(name, DIMS, CLASSES, dropout="much")
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_head(name, DIMS, 1)


@heads
def test_dims_without_what_it_needs_are_refused(name):
    with pytest.raises(MissingFields, match=f"head {name} needs"):
        build_head(name, Dims(T=4), CLASSES)
