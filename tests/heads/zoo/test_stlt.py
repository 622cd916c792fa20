"""STLT against plain loops in numpy and torch's own transformer layers, and its sizes."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heads.interface.clips import Clips, Dims, clips_of
from heads.papers.stlt.blocks import Block
from heads.papers.stlt.layout import causal
from heads.zoo import build_head

T, N, C, K, B, D = 3, 3, 5, 4, 2, 8
DIMS = Dims(T, N, C, {"res5": (C, 2, 3)}, box_classes=2)
SMALL = {
    "width": D,
    "heads": 2,
    "spatial_layers": 1,
    "temporal_layers": 2,
    "appearance_layers": 1,
    "fusion_layers": 2,
    "frames": 6,
}


def views(seed: int = 0) -> Clips:
    """Views with steps of 0 to N boxes."""
    rng = np.random.default_rng(seed)
    valid = rng.random((B, T, N)) < 0.6
    valid[0, 1] = False
    corner = rng.random((B, T, N, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.4], -1)
    fields = {
        "boxes": boxes,
        "valid": valid,
        "scores": rng.random((B, T, N)),
        "box_class": np.where(valid, rng.integers(-1, 2, (B, T, N)), -1),
        "pooled": rng.standard_normal((B, T, C)),
        "res5": rng.standard_normal((B, T, C, 2, 3)),
        "grid": np.array([[2, 3], [2, 2]]),
    }
    return clips_of(fields, dtype=None)


def stlt(seed: int = 0, **options) -> nn.Module:
    """Every weight drawn anew."""
    torch.manual_seed(seed)
    head = build_head("stlt", DIMS, K, **SMALL, **options).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        head.layout.boxes.kind.weight[0] = 0
    return head


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


class Weights:
    """The weights of a head as numpy arrays, and the layers that its equations are made of."""

    def __init__(self, head: nn.Module):
        self.of = {name: tensor.numpy() for name, tensor in head.state_dict().items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.of[f"{name}.weight"].T + self.of[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
        return x * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]

    def attend(self, name: str, q: np.ndarray, x: np.ndarray, read: list[list[int]]):
        """Query i [m,D] reads the tokens read[i] of x [n,D]; two heads."""
        q, k, v = (
            self.linear(f"{name}.{part}", y) for part, y in zip("qkv", (q, x, x), strict=True)
        )
        out = np.zeros_like(q)
        for head in range(2):
            part = slice(head * D // 2, (head + 1) * D // 2)
            for i in range(len(q)):
                scores = np.array([q[i, part] @ k[j, part] / np.sqrt(D / 2) for j in read[i]])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                for weight, j in zip(weights, read[i], strict=True):
                    out[i, part] += weight * v[j, part]
        return self.linear(f"{name}.out", out)

    def block(self, name: str, x: np.ndarray, read: list[list[int]], relu: bool = False):
        x = self.norm(f"{name}.norm1", x + self.attend(f"{name}.attention", x, x, read), 1e-5)
        y = self.linear(f"{name}.fc1", x)
        y = np.maximum(y, 0) if relu else gelu(y)
        return self.norm(f"{name}.norm2", x + self.linear(f"{name}.fc2", y), 1e-5)

    def added(self, name: str, q: np.ndarray, x: np.ndarray, read: list[list[int]]):
        return self.norm(f"{name}.norm", q + self.attend(f"{name}.attention", q, x, read), 1e-12)

    def layers(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", x)))
        return self.norm(f"{name}.norm", x + y, 1e-12)

    def classify(self, name: str, x: np.ndarray) -> np.ndarray:
        name = f"classifiers.{name}"
        x = self.norm(f"{name}.norm", gelu(self.linear(f"{name}.fc1", x)), 1e-12)
        return self.linear(f"{name}.fc2", x)


def earlier(steps: int) -> list[list[int]]:
    return [list(range(i + 1)) for i in range(steps)]


def layout_by_hand(w: Weights, clips: Clips, b: int, known: bool, scores: bool) -> np.ndarray:
    """[T+1,D]."""
    steps = []
    for t in range(T + 1):
        boxes, kinds, sure = [np.array([0.0, 0, 1, 1])], [-1], [1.0]  # the whole frame
        for n in range(N) if t < T else ():
            if clips.valid[b, t, n]:
                boxes.append(clips.boxes[b, t, n].numpy())
                kinds.append(int(clips.box_class[b, t, n]) + 1 if known else 1)
                sure.append(float(clips.scores[b, t, n]))
        tokens = []
        for box, kind, score in zip(boxes, kinds, sure, strict=True):
            token = w.of["layout.boxes.kind.weight"][kind] + w.linear("layout.boxes.place", box)
            if scores:
                token = token + w.linear("layout.boxes.score", np.array([score]))
            tokens.append(w.norm("layout.boxes.norm", token, 1e-12))
        x = np.stack(tokens)
        x = w.block("layout.spatial.0", x, [list(range(len(x)))] * len(x))[0]
        kind = 2 if t == T else int(len(boxes) == 1)
        x = x + w.of["layout.position.weight"][t] + w.of["layout.kind.weight"][kind]
        steps.append(w.norm("layout.norm", x, 1e-12))
    x = np.stack(steps)
    for k in range(2):
        x = w.block(f"layout.temporal.{k}", x, earlier(T + 1))
    return x


def appearance_by_hand(w: Weights, clips: Clips, b: int, pooled: bool) -> np.ndarray:
    """[1+n,D], of the cells within the true grid alone."""
    tokens = [w.of["appearance.first"].sum(0)]
    h, w_ = (1, 1) if pooled else (2, int(clips.grid[b, 1]))
    for t in range(T):
        for y in range(h):
            for x in range(w_):
                cell = clips.pooled[b, t] if pooled else clips.maps["res5"][b, t, :, y, x]
                place = w.of["appearance.position"][t, y, x]
                tokens.append(w.linear("appearance.enter", cell.numpy()) + place)
    x = np.stack(tokens)
    return w.block("appearance.blocks.0", x, [list(range(len(x)))] * len(x), relu=True)


def by_hand(head: nn.Module, clips: Clips, fusion: str = "none", **options) -> np.ndarray:
    """Logits by the equations of heads/zoo/stlt.py, token by token; nothing is padded."""
    w, rows = Weights(head), []
    known, scores = options.get("classes") != "none", options.get("scores", False)
    attends = options.get("variant") == "released"
    for b in range(B):
        l = layout_by_hand(w, clips, b, known, scores)
        parts = [("layout", l[-1])]
        if fusion != "none":
            a = appearance_by_hand(w, clips, b, options.get("reads") == "pooled")
            parts.append(("appearance", a[0]))
            for k in range(2 if fusion in ("cross", "central") else 0):
                name, n = f"between.{k}", len(a)
                every = [list(range(n))] * max(n, T + 1)
                steps = [list(range(T + 1))] * n
                l2 = w.added(f"{name}.cross", l, a, every)
                a2 = w.added(f"{name}.cross", a, l, steps)
                l = w.layers(
                    f"{name}.layout_after", w.added(f"{name}.layout", l2, l2, earlier(T + 1))
                )
                a = w.added(f"{name}.appearance", a2, a2, every)
                if attends:
                    a = w.added(f"{name}.appearance_after", a, a, every)
                else:
                    a = w.layers(f"{name}.appearance_after", a)
            parts.append(("both", np.concatenate([l[-1], a[0]])))
        used = {"none": parts[:1], "central": parts}.get(fusion, parts[-1:])
        rows.append(np.mean([w.classify(name, x) for name, x in used], 0))
    return np.stack(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": "none", "scores": True},
        {"fusion": "late"},
        {"fusion": "cross", "reads": "pooled"},
        {"fusion": "central"},
        {"fusion": "central", "variant": "released"},
    ],
    ids=str,
)
def test_logits_follow_the_equations(options):
    head, clips = stlt(**options), views()
    expected = by_hand(head, clips, **options)
    np.testing.assert_allclose(head(clips).logits.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_logits_of_central_fusion_are_the_mean_of_its_branches():
    out = stlt(fusion="central")(views())
    torch.testing.assert_close(out.logits, torch.stack(out.branches).mean(0))
    assert len(out.branches) == 3
    assert stlt(fusion="cross")(views()).branches == ()


@pytest.mark.parametrize("activation", [F.gelu, F.relu])
def test_a_block_is_torch_s_transformer_layer(activation):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        D, 2, 4 * D, dropout=0.0, activation=activation, batch_first=True, dtype=torch.float64
    )
    mine = Block(D, 2, 0.0, activation=activation).double()
    for layer, weight, bias in zip(
        (mine.attention.q, mine.attention.k, mine.attention.v),
        theirs.self_attn.in_proj_weight.chunk(3),
        theirs.self_attn.in_proj_bias.chunk(3),
        strict=True,
    ):
        layer.load_state_dict({"weight": weight, "bias": bias})
    mine.attention.out.load_state_dict(theirs.self_attn.out_proj.state_dict())
    mine.fc1.load_state_dict(theirs.linear1.state_dict())
    mine.fc2.load_state_dict(theirs.linear2.state_dict())
    mine.norm1.load_state_dict(theirs.norm1.state_dict())
    mine.norm2.load_state_dict(theirs.norm2.state_dict())
    x = torch.randn(B, 5, D, dtype=torch.float64)
    mask = causal(5, x.device)
    torch.testing.assert_close(mine(x, mask), theirs(x, src_mask=~mask))


def test_attention_starts_as_torch_s_does():
    torch.manual_seed(0)
    mine = Block(96, 4, 0.0).attention.q.weight.std()
    theirs = nn.MultiheadAttention(96, 4).in_proj_weight.std()
    assert abs(mine / theirs - 1) < 0.05


def test_more_steps_than_positions_are_refused_in_words():
    clips = views()
    long = {name: tensor.repeat_interleave(2, 1) for name, tensor in clips.tensors().items()}
    long["grid"] = clips.grid
    with pytest.raises(ValueError, match="at most 5 steps, got 6; raise the option frames"):
        stlt()(clips_of(long, None))


def released_stlt(width: int, kinds: int, types: int) -> tuple[int, int]:
    """(the layout branch, its classifier) of the release, layer by layer as its code lists them."""
    block = 4 * (width * width + width) + 8 * width * width + 5 * width + 2 * 2 * width
    boxes = kinds * width + 4 * width + width + width + width + 2 * width  # the scores' layer, too
    steps = 256 * width + types * width + 2 * width
    # The release also holds a 13th block, which it copies and never calls: that is not counted.
    return boxes + steps + (4 + 8) * block, (width * width + width) + 2 * width


def test_it_has_as_many_parameters_as_the_release_s_layers():
    """But for two rows of frame types, and a layer of scores that it has without reading it."""
    with torch.device("meta"):
        head = build_head("stlt", Dims(16, 4, box_classes=2), 174)
    branch, classifier = released_stlt(768, kinds=4, types=5)
    unused = 2 * 768 + 2 * 768
    found = sum(parameter.numel() for parameter in head.parameters())
    assert found == branch - unused + classifier + 768 * 174 + 174
