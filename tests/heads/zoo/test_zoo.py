"""Contract tests over every file in heads/zoo: what training, evaluation and users rely on."""

import importlib
import io
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from heads.interface.clips import Clips, Dims, HeadOutput, MissingFields, clips_of
from heads.zoo import build_head, head_names, head_options
from pipeline.cache.fields import field_of

DIMS = Dims(T=8, N=3, C=8, maps={"res5": (8, 5, 5), "res4.0": (32, 5, 5)})
CLASSES = 6
B = 3

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
}
SAME_IN_BOTH_VARIANTS = {"pool", "roi_pool", "global_roi_pool", "mean_lstm", "conv_lstm", "strg"}
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
}
# Those with a weight for every node, or a kernel in time without padding: they refuse other sizes
# in words.
ONE_SIZE = {
    "gos as released",
    "gos_node_att as released",
    "gos_temp_conv as released",
    "ean as released",
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
EAN_PAPER = (*EAN_LAYERS, *(f"saliency.layers.{k}.bias" for k in (0, 3, 6)))
KEY = ("attention.key.bias",)
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
}

heads = pytest.mark.parametrize("name", head_names())
cases = pytest.mark.parametrize("case", CASES)


def fresh(case: str, seed: int = 0, dims: Dims = DIMS, **further) -> torch.nn.Module:
    torch.manual_seed(seed)
    name, options = CASES[case]
    return build_head(name, dims, CLASSES, **WIDTHS.get(name, {}), **options, **further)


def make(
    case: str, seed: int = 0, dtype: torch.dtype = torch.float64, dims: Dims = DIMS, **further
) -> torch.nn.Module:
    """The head with every weight drawn anew: a layer that starts at zero would hide what flows
    through it.

    Matrices have rows of length 1 on average, so that values keep their size at any width. float64,
    so that a tolerance can be tight and two nodes are never equally similar by rounding.
    """
    head = fresh(case, seed, dims, **further).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(torch.randn_like(parameter) * scale)
    return head.to(dtype)


def some_clips(
    size: int = B, T: int = DIMS.T, seed: int = 1, dtype: torch.dtype = torch.float64
) -> Clips:
    """Views with every field; the last box of a frame is padding in about half of the frames."""
    g = torch.Generator().manual_seed(seed)
    N, C = DIMS.N, DIMS.C
    valid = torch.ones(size, T, N, dtype=torch.bool)
    valid[..., -1] = torch.rand(size, T, generator=g) < 0.5
    corner = torch.rand(size, T, N, 2, generator=g) * 0.6
    boxes = torch.cat([corner, corner + 0.4], -1) * valid[..., None]
    return clips_of(
        {
            "boxes": boxes,
            "scores": torch.rand(size, T, N, generator=g) * valid,
            "valid": valid,
            "nodes": torch.randn(size, T, N, C, generator=g) * valid[..., None],
            "pooled": torch.randn(size, T, C, generator=g),
            **{cut: torch.randn(size, T, *shape, generator=g) for cut, shape in DIMS.maps.items()},
            "grid": torch.full((size, 2), 5),
            "nearest": torch.randint(0, N, (size, T, N, T), generator=g),
            "similar": torch.randint(0, T * N, (size, T, N, 3), generator=g),
            "similarity": torch.randn(size, T, N, 3, generator=g),
        },
        dtype,
    )


def wider(clips: Clips) -> Clips:
    """The same views with maps of one row and two columns more."""
    tensors = clips.tensors()
    for cut in clips.maps:
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :2]], -1)
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :1, :]], -2)
    return clips_of(tensors | {"grid": clips.grid + torch.tensor([1, 2])}, None)


def part_of(clips: Clips, rows: slice) -> Clips:
    return clips_of({name: tensor[rows] for name, tensor in clips.tensors().items()}, None)


def logits_or_refusal(head: torch.nn.Module, clips: Clips) -> torch.Tensor | str:
    """Finite logits, or the words of a ValueError, which say the sizes that were expected and
    came.
    """
    refusal = ""
    try:
        logits = head(clips).logits
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert re.search(r"\d", refusal)
        return refusal
    assert logits.shape == (clips.size, CLASSES)
    assert torch.isfinite(logits).all()
    return logits


@cases
def test_logits_have_one_column_per_class_and_maps_only_when_asked(case):
    out = make(case)(some_clips())
    assert isinstance(out, HeadOutput)
    assert out.logits.shape == (B, CLASSES)
    assert out.maps == {}
    assert make(case)(some_clips(), want_maps=True).logits.equal(out.logits)


@cases
def test_needs_are_fields_and_all_that_is_read(case):
    head = make(case)
    for field in (*head.needs, *head.uses):
        field_of(field)
    clips = some_clips()
    least = clips.without(*(set(clips.tensors()) - set(head.needs)))
    assert head(least).logits.shape == (B, CLASSES)
    for field in head.needs:
        with pytest.raises(ValueError, match=f"no {field}"):
            head(least.without(field))


@cases
def test_a_view_alone_gives_what_it_gives_in_a_batch(case):
    head, clips = make(case), some_clips()
    together = head(clips).logits
    for k in range(B):
        alone = head(part_of(clips, slice(k, k + 1))).logits
        torch.testing.assert_close(alone, together[k : k + 1], rtol=1e-8, atol=1e-10)


@cases
def test_padded_nodes_never_change_logits(case):
    """Whatever lies in the rows that `valid` rules out."""
    head, clips = make(case), some_clips()
    before = head(clips).logits
    padded = ~clips.valid
    clips.nodes[padded] = 1e3
    clips.boxes[padded] = clips.boxes.new_tensor([0.1, 0.1, 0.9, 0.9])
    clips.scores[padded] = 1.0
    torch.testing.assert_close(head(clips).logits, before)


@cases
def test_more_padding_never_changes_logits(case):
    head, clips = make(case), some_clips()
    before = head(clips).logits
    wide = {
        n: t for n, t in clips.tensors().items() if n not in ("nearest", "similar", "similarity")
    }
    for field in ("boxes", "scores", "valid", "nodes"):
        wide[field] = torch.cat([wide[field], torch.zeros_like(wide[field][:, :, :2])], 2)
    after = logits_or_refusal(head, clips_of(wide, None))
    if case in ONE_SIZE and isinstance(after, str):
        assert {"nodes", "boxes"} & set(head.needs)
    else:
        torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-7)


@cases
def test_a_frame_and_a_view_without_boxes_give_finite_logits_and_gradients(case):
    head, clips = make(case), some_clips()
    clips.valid[0, 1] = False
    clips.valid[1] = False
    clips.nodes[~clips.valid] = 0
    clips.boxes[~clips.valid] = 0
    logits = head(clips).logits
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@cases
def test_one_step_is_enough(case):
    found = logits_or_refusal(make(case), some_clips(T=1))
    assert case in ONE_SIZE or isinstance(found, torch.Tensor)


@cases
@pytest.mark.parametrize("change", ["steps", "grid"])
def test_another_step_count_or_grid_works_or_is_refused_in_words(case, change):
    """Views of two more steps than the head was built for, or of a wider map (a larger test
    crop).
    """
    logits_or_refusal(
        make(case), some_clips(T=DIMS.T + 2) if change == "steps" else wider(some_clips())
    )


@cases
def test_bfloat16_arithmetic_stays_close(case):
    head, clips = make(case, dtype=torch.float32), some_clips(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(clips).logits.float()
    exact = head(clips).logits
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


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
def test_saved_weights_give_the_same_logits(case):
    head, file = make(case), io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = make(case, seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other(some_clips()).logits.equal(head(some_clips()).logits)


@cases
def test_a_seed_fixes_the_initialisation_and_a_training_step(case):
    """What a head draws in training (dropout) follows torch's generator too."""
    states, gradients = [], []
    for seed in (3, 3, 4):
        head = fresh(case, seed).double().train()
        states.append({key: tensor.clone() for key, tensor in head.state_dict().items()})
        head(some_clips()).logits.square().sum().backward()
        gradients.append([p.grad for p in head.parameters() if p.grad is not None])
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    assert not all(states[0][key].equal(states[2][key]) for key in states[0])
    assert all(a.equal(b) for a, b in zip(*gradients[:2], strict=True))


@cases
def test_after_three_steps_every_parameter_has_moved_but_for_the_dead_ones(case):
    head = fresh(case).double().train()
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimiser = torch.optim.Adam(
        head.parameters(), lr=0.01, eps=1e-13
    )  # steps of 0.01, however small the gradient
    for step in range(3):
        optimiser.zero_grad()
        out = head(some_clips(4, seed=step))
        (F.cross_entropy(out.logits, torch.arange(4)) + sum(out.losses.values())).backward()
        optimiser.step()
    still = {name for name, p in head.named_parameters() if (p - before[name]).abs().max() < 1e-4}
    assert {name for name in still if not name.endswith(DEAD.get(case, ()))} == set()
    assert all(any(name.endswith(end) for name in still) for end in DEAD.get(case, ()))


@heads
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
    build_head(name, DIMS, CLASSES, **options)
    for option in options:
        # "option: ..." in the list Args, or one of several, "first, option, last: ...".
        assert re.search(rf"^ +(\w+,\s+)*{option}(,\s+\w+)*:", text, re.MULTILINE), option


@pytest.mark.parametrize("name", [*head_names(), "_single"])
def test_the_file_opens_with_its_paper_equations_shapes_and_where_it_differs(name):
    text = " ".join(importlib.import_module(f"heads.zoo.{name}").__doc__.split())
    assert re.search(r"\b(ECCV 2018|CVPR 2020|NeurIPS 2019|NeurIPS 2021|IJCV 2022)\b", text)
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
