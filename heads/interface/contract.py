"""What training, evaluation and a person rely on in any head, as checks that run on one.

    case = HeadCase(lambda dims: build_head("strg", dims, CLASSES))
    for name, check in CHECKS.items():
        check(case)                     # ContractBroken says what is wrong

The tests run them over every head of ours, and `vidgraph check-plugin` over a plug-in. Weights are
drawn anew and computed with in float64, so that a tolerance can be tight and two nodes are never
equally similar by rounding. A head must therefore work in any floating dtype: cast a mask with
`mask.to(x.dtype)`, not with `mask.float()`.
"""

import inspect
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput, MissingFields, clips_of
from pipeline.cache.fields import LABELS, field_of, is_cut
from pipeline.plugins import ContractBroken, require

DIMS = Dims(T=8, N=3, C=8, maps={"res5": (8, 5, 5), "res4.0": (32, 5, 5)}, box_classes=4)
CLASSES = 6
VIEWS = 3
FEATURES = ("nodes", "pooled")  # and maps: what gradients must reach


@dataclass(frozen=True)
class HeadCase:
    """A head under test.

    Attributes:
        build: builds it for `Dims` and CLASSES classes, its weights drawn from torch's generator.
        dims: the sizes that it is built for.
        one_size: it may refuse views of another size, in words.
    """

    build: Callable[[Dims], nn.Module]
    dims: Dims = field(default=DIMS)
    one_size: bool = False

    def fresh(self, seed: int = 0) -> nn.Module:
        """Build the head, as it is initialised.

        Args:
            seed: for torch's generator.
        """
        torch.manual_seed(seed)
        return self.build(self.dims)

    def drawn(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The head in eval mode with every weight drawn anew: a layer that starts at zero would
        hide what flows through it.

        Matrices have rows of length 1 on average, so that values keep their size at any width.

        Args:
            seed: for torch's generator.
            dtype: of the weights.
        """
        head = self.fresh(seed).eval()
        with torch.no_grad():
            for parameter in head.parameters():
                scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
                parameter.copy_(torch.randn_like(parameter) * scale)
        return head.to(dtype)

    def clips(self, dtype: torch.dtype = torch.float64) -> Clips:
        """Make views with every field that the sizes allow.

        Args:
            dtype: of floating fields.
        """
        return random_clips(self.dims, dtype=dtype)


def random_clips(
    dims: Dims,
    size: int = VIEWS,
    T: int | None = None,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Clips:
    """Views with every field; the last box of a step is padding in about half of the steps.

    Args:
        dims: their sizes; all maps have one grid.
        size: B.
        T: steps, in place of those of `dims`.
        seed: of the values.
        dtype: of features and boxes.
    """
    g = torch.Generator().manual_seed(seed)
    T, N, C = T or dims.T, dims.N, dims.C
    valid = torch.ones(size, T, N, dtype=torch.bool)
    valid[..., -1] = torch.rand(size, T, generator=g) < 0.5
    corner = torch.rand(size, T, N, 2, generator=g) * 0.6
    boxes = torch.cat([corner, corner + 0.4], -1) * valid[..., None]
    scores = torch.rand(size, T, N, generator=g) * valid
    nodes = torch.randn(size, T, N, C, generator=g) * valid[..., None]
    pooled = torch.randn(size, T, C, generator=g)
    maps = {cut: torch.randn(size, T, *shape, generator=g) for cut, shape in dims.maps.items()}
    grid = [next(iter(dims.maps.values()))[-1] if dims.maps else 1] * 2
    return clips_of(
        {
            "boxes": boxes,
            "scores": scores,
            "valid": valid,
            **_random_labels(valid, dims, seed),
            "nodes": nodes,
            "pooled": pooled,
            **maps,
            "grid": torch.tensor([grid] * size),
            "nearest": torch.randint(0, N, (size, T, N, T), generator=g),
            "similar": torch.randint(0, T * N, (size, T, N, 3), generator=g),
            "similarity": torch.randn(size, T, N, 3, generator=g),
            "iou": torch.rand(size, max(T - 1, 0), N, N, generator=g),
        },
        dtype,
    )


def _random_labels(valid: Tensor, dims: Dims, seed: int) -> dict[str, Tensor]:
    """A class for every box, and its row as its object; -1 in padded rows."""
    # A generator of its own: the other fields' values do not depend on labels.
    g = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, max(dims.box_classes, 1), valid.shape, generator=g)
    rows = torch.arange(valid.shape[-1]).expand(valid.shape)
    return {"box_class": classes.where(valid, -1), "track": rows.where(valid, -1)}


def wider(clips: Clips) -> Clips:
    """The same views with maps of one row and two columns more."""
    tensors = clips.tensors()
    for cut in clips.maps:
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :2]], -1)
        tensors[cut] = torch.cat([tensors[cut], tensors[cut][..., :1, :]], -2)
    return clips_of(tensors | {"grid": clips.grid + torch.tensor([1, 2])}, None)


def part_of(clips: Clips, rows: slice) -> Clips:
    """Some of the views."""
    return clips_of({name: tensor[rows] for name, tensor in clips.tensors().items()}, None)


def logits_or_refusal(head: nn.Module, clips: Clips) -> Tensor | str:
    """Finite logits, or the words of a ValueError, which say the sizes that were expected and
    came."""
    try:
        logits = head(clips).logits
    except ValueError as error:
        refusal = str(error)
        require(
            re.search(r"\d", refusal) is not None,
            f"it refuses a size with {refusal!r}; expected the sizes that it takes and that came",
        )
        return refusal
    _require_logits(logits, clips.size)
    return logits


def _require_logits(logits: Tensor, size: int) -> None:
    require(
        tuple(logits.shape) == (size, CLASSES),
        f"logits have the shape {list(logits.shape)}, expected [B,K] = {[size, CLASSES]}",
    )
    require(bool(torch.isfinite(logits).all()), "logits are not finite")


def _require_close(found: Tensor, wanted: Tensor, what: str, rtol: float, atol: float) -> None:
    try:
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    except AssertionError:
        largest = float((found - wanted).abs().max())
        raise ContractBroken(f"{what}: logits differ by up to {largest:.2g}") from None


# The checks


def logits_per_class(case: HeadCase) -> None:
    """Logits have one column per class; maps come only when asked for, and change no logits."""
    clips = case.clips()
    out = case.drawn()(clips)
    require(
        isinstance(out, HeadOutput),
        f"forward returns {type(out).__name__}, expected a heads.interface.clips.HeadOutput",
    )
    _require_logits(out.logits, clips.size)
    require(out.maps == {}, "HeadOutput.maps is filled although want_maps is False")
    mapped = case.drawn()(clips, want_maps=True)
    require(mapped.logits.equal(out.logits), "want_maps=True changes the logits")


def needs_are_all_it_reads(case: HeadCase) -> None:
    """`needs` and `uses` are fields; `needs` are enough, and none of them can be left out."""
    head = case.drawn()
    require(hasattr(head, "needs"), "it has no `needs`: expected the names of the fields it reads")
    for name in (*head.needs, *getattr(head, "uses", ())):
        field_of(name)
    clips = case.clips()
    least = clips.without(*(set(clips.tensors()) - set(head.needs)))
    _require_logits(head(least).logits, clips.size)
    for name in head.needs:
        try:
            head(least.without(name))
        except ValueError as error:
            require(f"no {name}" in str(error), f"without {name} it says: {error}")
        else:
            raise ContractBroken(f"it needs {name}, but gives logits without it")


def view_alone_equals_batch(case: HeadCase) -> None:
    """A view alone gives what it gives in a batch."""
    head, clips = case.drawn(), case.clips()
    together = head(clips).logits
    for k in range(clips.size):
        alone = head(part_of(clips, slice(k, k + 1))).logits
        _require_close(alone, together[k : k + 1], f"view {k} alone and in a batch", 1e-8, 1e-10)


def padded_nodes_never_matter(case: HeadCase) -> None:
    """Whatever lies in the rows that `valid` rules out changes no logits."""
    head, clips = case.drawn(), case.clips()
    before = head(clips).logits
    padded = ~clips.valid
    clips.nodes[padded] = 1e3
    clips.boxes[padded] = clips.boxes.new_tensor([0.1, 0.1, 0.9, 0.9])
    clips.scores[padded] = 1.0
    clips.box_class[padded] = 0
    clips.track[padded] = 0
    _require_close(head(clips).logits, before, "other values in padded rows", 1e-7, 1e-7)


def more_padding_never_matters(case: HeadCase) -> None:
    """More padded rows change no logits."""
    head = case.drawn()
    # Stored graphs number the nodes; a head that can does without them.
    graphs = ("nearest", "similar", "similarity", "iou")
    clips = case.clips().without(*(name for name in graphs if name not in head.needs))
    before = head(clips).logits
    wide = clips.tensors()
    for name in ("boxes", "scores", "valid", "nodes"):
        wide[name] = torch.cat([wide[name], torch.zeros_like(wide[name][:, :, :2])], 2)
    for name in LABELS:
        wide[name] = torch.cat([wide[name], torch.full_like(wide[name][:, :, :2], -1)], 2)
    if set(graphs) & set(head.needs):
        return  # graphs of more nodes are other graphs
    after = logits_or_refusal(head, clips_of(wide, None))
    if isinstance(after, str):
        require(case.one_size and bool({"nodes", "boxes"} & set(head.needs)), f"refused: {after}")
    else:
        _require_close(after, before, "two more padded rows", 1e-6, 1e-7)


def views_without_boxes(case: HeadCase) -> None:
    """A step, and a whole view, without boxes give finite logits and gradients."""
    head, clips = case.drawn(), case.clips()
    clips.valid[0, 1] = False
    clips.valid[1] = False
    clips.nodes[~clips.valid] = 0
    clips.boxes[~clips.valid] = 0
    for name in LABELS:
        clips.get(name)[~clips.valid] = -1
    logits = head(clips).logits
    logits.square().sum().backward()
    _require_logits(logits, clips.size)
    for name, parameter in head.named_parameters():
        finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        require(finite, f"the gradient of {name} is not finite")


def one_step_is_enough(case: HeadCase) -> None:
    """A view of one step gives logits."""
    found = logits_or_refusal(case.drawn(), random_clips(case.dims, T=1))
    require(case.one_size or isinstance(found, Tensor), f"it refuses a view of one step: {found}")


def other_steps_work_or_are_refused(case: HeadCase) -> None:
    """Views of two more steps work, or are refused in words."""
    logits_or_refusal(case.drawn(), random_clips(case.dims, T=case.dims.T + 2))


def other_grids_work_or_are_refused(case: HeadCase) -> None:
    """Views of a wider map (a larger test crop) work, or are refused in words."""
    logits_or_refusal(case.drawn(), wider(case.clips()))


def bfloat16_stays_close(case: HeadCase) -> None:
    """Under autocast in bfloat16 the logits stay close."""
    head, clips = case.drawn(dtype=torch.float32), case.clips(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(clips).logits.float()
    exact = head(clips).logits
    off = ((rough - exact).abs().max() / exact.abs().max()).item()
    require(off < 0.1, f"in bfloat16 logits are off by {100 * off:.0f} % of the largest one")


def saved_weights_give_the_same(case: HeadCase) -> None:
    """Weights that are saved and loaded into another head give the same logits."""
    head, file = case.drawn(), io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    other = case.drawn(seed=5)
    other.load_state_dict(torch.load(file, weights_only=True))
    clips = case.clips()
    require(other(clips).logits.equal(head(clips).logits), "loaded weights give other logits")


def seed_fixes_training(case: HeadCase) -> None:
    """A seed fixes the initialisation and a training step: what a head draws (dropout) follows
    torch's generator, too."""
    states, gradients = [], []
    # The same seed twice, then another one.
    for seed in (3, 3, 4):
        head = case.fresh(seed).double().train()
        states.append({key: tensor.clone() for key, tensor in head.state_dict().items()})
        head(case.clips()).logits.square().sum().backward()
        gradients.append([p.grad for p in head.parameters() if p.grad is not None])
    first, again, other = states
    same = all(first[key].equal(again[key]) for key in first)
    require(same, "the same seed gives other initial weights")
    differs = not all(first[key].equal(other[key]) for key in first)
    require(differs, "another seed gives the same initial weights")
    same = all(a.equal(b) for a, b in zip(*gradients[:2], strict=True))
    require(same, "the same seed gives other gradients in a training step")


def gradients_reach_features(case: HeadCase) -> None:
    """Gradients are finite, and reach every feature that the head needs."""
    head, clips = case.drawn(), case.clips()
    names = []
    for name in head.needs:
        if name in FEATURES or is_cut(name):
            names.append(name)
            clips.get(name).requires_grad_()
    head(clips).logits.square().sum().backward()
    for name in names:
        gradient = clips.get(name).grad
        reached = gradient is not None and bool((gradient != 0).any())
        require(reached, f"it needs {name}, but the logits have no gradient with respect to it")
        require(bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite")


def dims_without_needs_are_refused(case: HeadCase) -> None:
    """Sizes that lack all that the head needs are refused by `dims.require`; where only boxes or
    maps are missing it may also be built, and training refuses the cache."""
    needs = case.fresh().needs
    nothing = Dims(T=4)
    no_boxes = replace(case.dims, N=0)
    no_maps = replace(case.dims, maps={})
    no_classes = replace(case.dims, box_classes=0)
    for dims in (nothing, no_boxes, no_maps, no_classes):
        try:
            dims.require("it", *needs)
        except MissingFields as error:
            missing = ", ".join(error.names)
        else:
            # These sizes hold all that the head needs: nothing to refuse.
            continue

        try:
            case.build(dims)
            outcome = "is built" if dims is nothing else ""
        except MissingFields:
            outcome = ""
        except Exception as error:
            outcome = f"raises {type(error).__name__}: {error}"
        advice = "expected dims.require(NAME, *needs) at the start of build"
        require(not outcome, f"for views without {missing} it {outcome}; {advice}")


CHECKS: dict[str, Callable[[HeadCase], None]] = {
    check.__name__: check
    for check in (
        logits_per_class,
        needs_are_all_it_reads,
        view_alone_equals_batch,
        padded_nodes_never_matter,
        more_padding_never_matters,
        views_without_boxes,
        one_step_is_enough,
        other_steps_work_or_are_refused,
        other_grids_work_or_are_refused,
        bfloat16_stays_close,
        saved_weights_give_the_same,
        seed_fixes_training,
        gradients_reach_features,
        dims_without_needs_are_refused,
    )
}


def options_have_defaults(build: Callable[..., nn.Module]) -> None:
    """Options of `build` are keyword-only, each with a default of a type that TOML has."""
    kinds = inspect.Parameter
    # The first two are dims and num_classes.
    for parameter in list(inspect.signature(build).parameters.values())[2:]:
        require(
            parameter.kind is kinds.KEYWORD_ONLY,
            f"option {parameter.name}: expected options after a *, by name only",
        )
        require(parameter.default is not kinds.empty, f"option {parameter.name} has no default")
        require(
            isinstance(parameter.default, (bool, int, float, str, list, tuple, dict)),
            f"option {parameter.name}: expected a default that TOML has, got {parameter.default!r}",
        )
