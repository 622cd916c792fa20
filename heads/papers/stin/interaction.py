"""The layers of STIN, on slots [B,S,T,D]: S objects, T steps.

    box           x = MLP(cx, cy, w, h), or F [MLP(cx, cy, w, h), E kind]                [B,S,T,D]
    space         f(x_i) = ReLU(W_f [x_i, 1/(S-1) sum of x_j over j != i])               [B,S,T,D]
    time          g(f_i^1 .. f_i^T) = MLP of the T features of an object, side by side   [B,S,D]
    non-local     x + LN(W_o (softmax(q k^T / sqrt(D/2)) v)), then ReLU(norm(W x))       [B,S,D]

Every linear layer of an MLP has no bias, a norm and a ReLU behind it.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from heads.papers.stin.objects import Objects

NORMS = ("batch", "none")
LAYER_NORM_EPS = 1e-5  # torch's default


class RowNorm(nn.BatchNorm1d):
    """A batch norm over all axes but the last."""

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return super().forward(x.flatten(0, -2)).view(x.shape)


def norm_of(kind: str, width: int) -> nn.Module:
    """Build a norm of NORMS.

    Args:
        kind: its name; "none" leaves values as they are.
        width: D.
    """
    return RowNorm(width) if kind == "batch" else nn.Identity()


def layers(norm: str, *widths: int) -> nn.Sequential:
    """Build an MLP: linear layer, norm and ReLU, once or more.

    Args:
        norm: of NORMS.
        *widths: of its input and of the outputs of its layers.
    """
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after, bias=False), norm_of(norm, after), nn.ReLU()]
    return nn.Sequential(*parts)


class BoxFeatures(nn.Module):
    """A feature for each box, from its place and, if it has one, its class.

    Args:
        width: D.
        kinds: how many classes there are; 0: boxes have none.
        norm: of NORMS.
    """

    def __init__(self, width: int, kinds: int, norm: str):
        super().__init__()
        self.place = layers(norm, 4, width // 2, width)
        self.kind = self.fuse = None
        if kinds:
            # Row 0, which stays 0, is for boxes that are absent or have no class.
            self.kind = nn.Embedding(kinds + 1, width // 2, padding_idx=0, scale_grad_by_freq=True)
            self.fuse = layers(norm, width + width // 2, width)

    def forward(self, objects: Objects) -> Tensor:
        """Return [B,S,T,D]."""
        x = self.place(objects.boxes)
        if self.kind is None:
            return x
        return self.fuse(torch.cat([x, self.kind(objects.kinds)], -1))


def messages(x: Tensor, present: Tensor | None) -> Tensor:
    """Average what the other objects of a step say.

    Args:
        x: [B,S,T,D].
        present: bool [B,S,T], which objects speak; None: all.

    Returns:
        [B,S,T,D]; 0 for an object that is alone.
    """
    if present is None:
        return (x.sum(1, keepdim=True) - x) / max(x.shape[1] - 1, 1)
    x = x.masked_fill(~present[..., None], 0)
    here = present.to(x.dtype)[..., None]
    others = here.sum(1, keepdim=True) - here
    return (x.sum(1, keepdim=True) - x) / others.clamp_min(1)


class NonLocal(nn.Module):
    """A non-local block between the objects of a view, and the layer behind it.

    Args:
        width: D.
        norm: of NORMS, for the layer behind the block.
    """

    def __init__(self, width: int, norm: str):
        super().__init__()
        inner = width // 2
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.after = layers(norm, width, width)

    def forward(self, x: Tensor, present: Tensor | None) -> Tensor:
        """Relate objects.

        Args:
            x: [B,S,D].
            present: bool [B,S], which objects are read and make the layer norm; None: all.

        Returns:
            [B,S,D].
        """
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.mT / q.shape[-1] ** 0.5  # [B,S,S]
        if present is not None:
            # Not -inf: a view without an object would be NaN.
            scores = scores.masked_fill(~present[:, None], torch.finfo(scores.dtype).min)
        y = self.out(scores.softmax(-1) @ v)
        return self.after(x + _norm_of_objects(y, present))


def _norm_of_objects(y: Tensor, present: Tensor | None) -> Tensor:
    """The release's layer norm: over objects and channels at once, without scale and shift.

    Args:
        y: [B,S,D].
        present: bool [B,S], whose values make mean and variance; None: all, as released.
    """
    if present is None:
        return nn.functional.layer_norm(y, y.shape[1:])
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    counts = present[..., None].to(y.dtype)  # [B,S,1]
    values = (counts.sum((1, 2), keepdim=True) * y.shape[2]).clamp_min(1)
    centred = y - (y * counts).sum((1, 2), keepdim=True) / values
    variance = (centred.square() * counts).sum((1, 2), keepdim=True) / values
    return centred * (variance + LAYER_NORM_EPS).rsqrt()
