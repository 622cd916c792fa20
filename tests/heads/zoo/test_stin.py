"""STIN against plain loops in numpy: slots, messages, non-local blocks, and its sizes."""

import numpy as np
import pytest
import torch
from torch import nn

from heads.interface.clips import Clips, Dims, clips_of
from heads.papers.stin.objects import objects_of
from heads.zoo import build_head

T, N, C, K, B = 3, 4, 5, 6, 2
DIMS = Dims(T, N, C, box_classes=2)


def views(seed: int = 0) -> Clips:
    """Views whose rows are shuffled at every step, some without a box."""
    rng = np.random.default_rng(seed)
    valid = rng.random((B, T, N)) < 0.7
    corner = rng.random((B, T, N, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.1 + 0.3 * rng.random((B, T, N, 2))], -1)
    track = np.stack([[rng.permutation([3, 7, 8, 20]) for _ in range(T)] for _ in range(B)])
    kinds = np.where(track == 8, 1, 0)  # the class of an object does not change
    fields = {
        "boxes": boxes * valid[..., None],
        "valid": valid,
        "track": np.where(valid, track, -1),
        "box_class": np.where(valid, kinds, -1),
        "pooled": rng.standard_normal((B, T, C)),
    }
    return clips_of(fields, dtype=None)


def stin(seed: int = 0, **options) -> nn.Module:
    """Every weight, and every statistic of a norm, drawn anew."""
    torch.manual_seed(seed)
    head = build_head("stin", DIMS, K, width=8, image_width=6, **options).double().eval()
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * 0.5)
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return head


class Weights:
    """The weights of a head as numpy arrays, and the layers that its equations are made of."""

    def __init__(self, head: nn.Module):
        self.of = {name: tensor.numpy() for name, tensor in head.state_dict().items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.of[f"{name}.weight"] @ x + self.of.get(f"{name}.bias", 0)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if f"{name}.running_mean" not in self.of:
            return x
        scale = np.sqrt(self.of[f"{name}.running_var"] + 1e-5)
        x = (x - self.of[f"{name}.running_mean"]) / scale
        return x * self.of[f"{name}.weight"] + self.of[f"{name}.bias"]

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        k = 0
        while f"{name}.{k}.weight" in self.of:
            x = np.maximum(self.norm(f"{name}.{k + 1}", self.linear(f"{name}.{k}", x)), 0)
            k += 3
        return x

    def attend(self, name: str, x: np.ndarray, read: list[int]) -> np.ndarray:
        """A non-local block on x [S,D], which reads the objects `read`."""
        q, k, v = (np.stack([self.linear(f"{name}.{p}", row) for row in x]) for p in "qkv")
        y = np.zeros_like(x)
        for i in range(len(x)):
            scores = np.array([q[i] @ k[j] / np.sqrt(len(q[i])) for j in read])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            said = sum(weight * v[j] for weight, j in zip(weights, read, strict=True))
            y[i] = self.linear(f"{name}.out", said)
        y = (y - y[read].mean()) / np.sqrt(y[read].var() + 1e-5)
        return np.stack([self.mlp(f"{name}.after", row) for row in x + y])


def by_hand(head: nn.Module, clips: Clips, left_out: bool = False) -> np.ndarray:
    """Logits by the equations of heads/zoo/stin.py: view by view, object by object."""
    w, rows = Weights(head), []
    for b in range(B):
        numbers = sorted({int(n) for n in clips.track[b].flatten() if n >= 0})
        slot = {number: s for s, number in enumerate(numbers)}
        boxes, kinds = np.zeros((N, T, 4)), np.zeros((N, T), int)
        present = np.zeros((N, T), bool)
        for t in range(T):
            for n in range(N):
                if not clips.valid[b, t, n]:
                    continue
                x1, y1, x2, y2 = clips.boxes[b, t, n].numpy()
                s = slot[int(clips.track[b, t, n])]
                boxes[s, t] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
                kinds[s, t] = int(clips.box_class[b, t, n]) + 1
                present[s, t] = True

        speaks = present if left_out else np.ones_like(present)
        x = np.zeros((N, T, 8))
        for s in range(N):
            for t in range(T):
                x[s, t] = w.mlp("box.place", boxes[s, t])
                if "box.kind.weight" in w.of:
                    kind = w.of["box.kind.weight"][kinds[s, t]]
                    x[s, t] = w.mlp("box.fuse", np.concatenate([x[s, t], kind]))
        f = np.zeros_like(x)
        for s in range(N):
            for t in range(T):
                others = [x[j, t] for j in range(N) if j != s and speaks[j, t]]
                said = np.mean(others, 0) if others else np.zeros(8)
                if speaks[s, t]:
                    f[s, t] = w.mlp("space", np.concatenate([x[s, t], said]))
        g = np.stack([w.mlp("time", f[s].flatten()) for s in range(N)])
        read = [s for s in range(N) if speaks[s].any()]
        for k in range(len(head.non_local)):
            g = w.attend(f"non_local.{k}", g, read)
        h = np.mean([g[s] for s in read], 0)
        if head.seen is not None:
            seen = w.linear("seen", clips.pooled[b].numpy().mean(0))
            h = np.concatenate([seen, h])
        if isinstance(head.fc, nn.Linear):
            rows.append(w.linear("fc", h))
        else:
            h = np.maximum(w.linear("fc.0", h), 0)
            h = np.maximum(w.linear("fc.2", h), 0)
            rows.append(w.linear("fc.4", h))
    return np.stack(rows)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "released"},
        {"classes": "none"},
        {"variant": "released", "non_local": 2},
        {"appearance": "pooled"},
        {"absent": "left_out", "norm": "none"},
        {"absent": "left_out", "non_local": 1},
    ],
    ids=str,
)
def test_logits_follow_the_equations(options):
    head, clips = stin(**options), views()
    expected = by_hand(head, clips, options.get("absent") == "left_out")
    np.testing.assert_allclose(head(clips).logits.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_order_of_rows_is_nothing_where_slots_are_tracks_and_something_where_they_are_rows():
    clips, other = views(), views()
    order = torch.tensor([2, 0, 3, 1])
    for name in ("boxes", "valid", "track", "box_class"):
        # Of the last step alone: an object then changes its row.
        tensor = other.get(name)
        tensor[:, -1] = tensor[:, -1][:, order]
    by_track, by_row = stin(), stin(slots="row")
    torch.testing.assert_close(by_track(other).logits, by_track(clips).logits)
    assert (by_row(other).logits - by_row(clips).logits).abs().max() > 1e-3


def test_boxes_without_a_number_are_objects_by_their_row_and_come_last():
    track = torch.tensor([[[-1, 9, 4, -1], [9, -1, -1, -1]]])
    valid = torch.tensor([[[True, True, True, False], [True, True, False, True]]])
    boxes = torch.arange(8.0).view(1, 2, 4, 1).expand(1, 2, 4, 4)
    found = objects_of(boxes, valid, track, None, slots=5)
    # Slots: tracks 4 and 9, then rows 0, 1 and 3. A box of equal corners has its value as centre.
    expected = torch.tensor([[2, 0], [1, 4], [0, 0], [0, 5], [0, 7]])
    assert found.boxes[0, ..., 0].long().tolist() == expected.tolist()
    here = [[True, False], [True, True], [True, False], [False, True], [False, True]]
    assert found.present[0].tolist() == here


@pytest.mark.parametrize("classes", ["boxes", "none"])
def test_slots_that_stay_empty_change_nothing_where_the_absent_are_left_out(classes):
    """The same weights with six more slots: as many objects as before, and none in those."""
    options = {"absent": "left_out", "non_local": 2, "classes": classes}
    few, many = stin(**options), stin(objects=N + 6, **options)
    many.load_state_dict(few.state_dict())
    clips = views()
    torch.testing.assert_close(many(clips).logits, few(clips).logits, rtol=1e-9, atol=1e-9)
    # In the paper, empty slots count.
    few, many = (stin(objects=n, absent="null", non_local=2) for n in (N, N + 6))
    assert not torch.allclose(many(clips).logits, few(clips).logits, rtol=1e-3)


def test_a_view_without_any_object_has_finite_logits_and_gradients():
    head = stin(absent="left_out", non_local=2).train()
    clips = views()
    clips.valid[0] = False
    head(clips).logits.sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_objects_beyond_the_last_slot_are_left_out():
    clips = views()
    fewer = {name: tensor.clone() for name, tensor in clips.tensors().items()}
    fewer["valid"] &= fewer["track"] != 20  # the highest number
    head = stin(objects=3)
    four = {len({int(n) for n in track.flatten() if n >= 0}) for track in clips.track}
    assert four == {4}
    expected = head(clips_of(fewer, None)).logits
    torch.testing.assert_close(head(clips).logits, expected)


def test_views_of_another_length_are_refused_in_words():
    clips = clips_of({name: tensor[:, :2] for name, tensor in views().tensors().items()}, None)
    with pytest.raises(ValueError, match="views of 3 steps, got 2"):
        stin()(clips)


def released(width: int, steps: int, non_local: int, seen: int = 0, classes: bool = True) -> int:
    """Count a model of the release, layer by layer as its code lists them."""
    half, count = width // 2, 0

    def dense(inputs: int, outputs: int) -> int:
        return inputs * outputs + 2 * outputs  # without a bias, with a batch norm

    if classes:
        count += 3 * half + dense(width + half, width)
    count += dense(4, half) + dense(half, width)
    count += dense(2 * width, width) + dense(width, width)
    count += dense(steps * width, width) + dense(width, width)
    block = 3 * (width * half + half) + half * width + width
    count += non_local * (block + dense(width, width))
    if seen:
        count += seen * 512 + 512
    total = width + (512 if seen else 0)
    return count + total * width + width + width * 512 + 512 + 512 * 174 + 174


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"classes": "none"}, {"non_local": 0, "classes": False}),
        ({}, {"non_local": 0}),
        ({"non_local": 3}, {"non_local": 3}),
        ({"non_local": 3, "appearance": "pooled"}, {"non_local": 3, "seen": 2048}),
    ],
    ids=str,
)
def test_it_has_as_many_parameters_as_the_release_s_layers(options, sizes):
    with torch.device("meta"):
        head = build_head(
            "stin", Dims(8, 4, 2048, box_classes=2), 174, variant="released", **options
        )
    found = sum(parameter.numel() for parameter in head.parameters())
    assert found == released(256, 8, **sizes)
