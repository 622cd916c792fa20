"""Contract tests over every file in heads/zoo: what training, evaluation and a person rely on in any head."""

import importlib
import io
import re

import pytest
import torch

from heads.batch import Clips, Dims, HeadOutput, MissingFields, clips_of
from heads.zoo import build_head, head_names, head_options
from pipeline.tensors import field_of

DIMS = Dims(T=4, N=3, C=8, maps={"res5": (8, 5, 5), "res4.0": (32, 5, 5)})
CLASSES = 6
B = 3

# Heads whose own channels do not follow the input's are narrow here: weights of 0.3 in 512 channels make any rounding large.
NARROW = {
    "rstg": {"width": 8},
    "rstg_map": {"width": 8},
    "conv_lstm": {"width": 8, "hidden": 8},
    "dyreg": {"width": 6, "offset_width": 5},
    "ean": {"width": 16},
}
INSIDE = {"backbone": "resnet18", "backbone_options": {"width": 8}, "at": "res4.0"}
# What is tested: every head by its name, and heads that live inside a backbone there too.
CASES = {name: (name, NARROW.get(name, {})) for name in head_names()} | {
    f"{name} inside a backbone": (name, NARROW.get(name, {}) | INSIDE) for name in ("rstg_map", "dyreg")
}
# EAN's map at res4.0 continued by a trunk: the weights that `make` draws anew are too lively for more than a narrow one.
CASES["ean above a cut"] = (
    "ean",
    NARROW["ean"] | {"backbone": "ean_r50", "backbone_options": {"width": 2}, "cut": "res4.0"},
)

heads = pytest.mark.parametrize("name", head_names())
cases = pytest.mark.parametrize("case", CASES)


def make(case: str, seed: int = 0):
    """The head with every weight drawn anew: a layer that starts at zero would hide what flows through it."""
    torch.manual_seed(seed)
    name, options = CASES[case]
    head = build_head(name, DIMS, CLASSES, **options).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return head


def some_clips(size: int = B, T: int = DIMS.T, seed: int = 1) -> Clips:
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
        }
    )


def wider(clips: Clips) -> Clips:
    """The same views with maps of one row and two columns more."""
    tensors = clips.tensors()
    for cut in clips.maps:
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :2]], -1)
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :1, :]], -2)
    return clips_of(tensors | {"grid": clips.grid + torch.tensor([1, 2])})


def part_of(clips: Clips, rows: slice) -> Clips:
    return clips_of({name: tensor[rows] for name, tensor in clips.tensors().items()})


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
        torch.testing.assert_close(head(part_of(clips, slice(k, k + 1))).logits, together[k : k + 1], rtol=1e-4, atol=1e-5)


@cases
def test_padded_nodes_never_change_logits(case):
    """Whatever lies in the rows that `valid` rules out."""
    head, clips = make(case), some_clips()
    before = head(clips).logits
    padded = ~clips.valid
    clips.nodes[padded] = 1e3
    clips.boxes[padded] = torch.tensor([0.1, 0.1, 0.9, 0.9])
    clips.scores[padded] = 1.0
    torch.testing.assert_close(head(clips).logits, before)


@cases
def test_more_padding_never_changes_logits(case):
    head, clips = make(case), some_clips()
    before = head(clips).logits
    wide = {n: t for n, t in clips.tensors().items() if n not in ("nearest", "similar", "similarity")}
    for field in ("boxes", "scores", "valid", "nodes"):
        wide[field] = torch.cat([wide[field], torch.zeros_like(wide[field][:, :, :2])], 2)
    torch.testing.assert_close(head(clips_of(wide)).logits, before, rtol=1e-4, atol=1e-5)


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
    assert torch.isfinite(make(case)(some_clips(T=1)).logits).all()


@cases
@pytest.mark.parametrize("change", ["steps", "grid"])
def test_another_step_count_or_grid_works_or_is_refused_in_words(case, change):
    """Views of two more steps than the head was built for, or of a wider map (a larger test crop)."""
    head = make(case)
    clips = some_clips(T=DIMS.T + 2) if change == "steps" else wider(some_clips())
    refusal = None
    try:
        logits = head(clips).logits
    except ValueError as error:
        refusal = str(error)
    if refusal is None:
        assert logits.shape == (B, CLASSES)
        assert torch.isfinite(logits).all()
    else:
        assert re.search(r"\d", refusal), "it says which sizes were expected and came"


@cases
def test_bfloat16_arithmetic_stays_close(case):
    head, clips = make(case), some_clips()
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(clips).logits.float()
    exact = head(clips).logits
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


@cases
def test_saved_weights_give_the_same_logits(case):
    head, file = make(case), io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = make(case, seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other(some_clips()).logits.equal(head(some_clips()).logits)


@heads
def test_a_seed_fixes_the_initialisation(name):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_head(name, DIMS, CLASSES).state_dict())
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    assert not all(states[0][key].equal(states[2][key]) for key in states[0])


@heads
def test_every_option_has_a_default_that_builds_and_the_docstring_names_it(name):
    text = importlib.import_module(f"heads.zoo.{name}").build.__doc__
    options = head_options(name)
    build_head(name, DIMS, CLASSES, **options)
    for option in options:
        assert f"`{option}`" in text


@heads
def test_the_file_names_its_paper_and_where_it_differs(name):
    text = " ".join(importlib.import_module(f"heads.zoo.{name}").__doc__.split())
    assert re.search(r"\b20[12]\d\b", text)
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
