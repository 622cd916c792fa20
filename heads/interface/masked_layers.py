"""Relational maths shared by two or more heads. Letters: B views, T steps, N boxes per step, n =
T*N nodes, C channels.

Nothing here learns: masked means, box graphs and their products with node features, each safe for
padding and for empty rows.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x [B,...,C] over the middle axes where mask [B,...] holds -> [B,C]; zeros for a view
    where it holds nowhere.
    """
    weights = mask.flatten(1).to(x.dtype)  # [B,n]
    total = torch.einsum("bn,bnc->bc", weights, x.flatten(1, -2))
    return total / weights.sum(1, keepdim=True).clamp_min(1)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the entries where mask (broadcast) holds; the others, and a
    row without any, are 0.
    """
    weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)
    return weights.masked_fill(~mask, 0)  # a row that is masked throughout came out uniform


def row_normalise(graph: Tensor) -> Tensor:
    """Rows (last axis) of a non-negative graph divided by their sum; an all-zero row stays zero
    (never 0/0).
    """
    total = graph.sum(-1, keepdim=True)
    return graph / torch.where(total > 0, total, 1)


def next_frame_iou(boxes: Tensor) -> Tensor:
    """IoU of box i at t with box j at t+1: boxes [B,T,N,4] xyxy -> [B,T-1,N,N]; continuous
    coordinates, 0 for an empty box.

    What stage two stores as `iou`, for caches without it.
    """
    a, b = boxes[:, :-1, :, None], boxes[:, 1:, None]  # [B,T-1,N,1,4], [B,T-1,1,N,4]
    sides = (
        torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    ).clamp_min(0)
    overlap = sides.prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
    union = area[:, :-1, :, None] + area[:, 1:, None] - overlap
    return overlap / torch.where(union > 0, union, 1)


def front_back(iou: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Front and back graphs (STRG eq. 3): iou [B,T-1,N,N], valid [B,T,N] -> two of [B,T-1,N,N].

    front[:,t] holds the edges from frame t to t+1, rows i at t; back[:,t] those from t+1 to t, rows
    j at t+1. Each is normalised by its own rows, so that back is the transpose of front only before
    the division. Rows of padded boxes are zero.
    """
    both = valid[:, :-1, :, None] & valid[:, 1:, None]
    edges = iou.masked_fill(~both, 0)
    return row_normalise(edges), row_normalise(edges.transpose(-1, -2))


def along_front(front: Tensor, x: Tensor) -> Tensor:
    """G^front X without the n x n matrix: x [B,T,N,C] -> [B,T,N,C]; the last frame has no successor
    and gets zeros.
    """
    return torch.cat([front @ x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


def along_back(back: Tensor, x: Tensor) -> Tensor:
    """G^back X without the n x n matrix: x [B,T,N,C] -> [B,T,N,C]; the first frame has no
    predecessor and gets zeros.
    """
    return torch.cat([torch.zeros_like(x[:, :1]), back @ x[:, :-1]], dim=1)


def dense_graph(blocks: Tensor, towards: int) -> Tensor:
    """The n x n matrix of front (`towards` = 1) or back (-1) blocks: [B,T-1,N,N] -> [B,T*N,T*N],
    nodes frame by frame.
    """
    B, steps, N, _ = blocks.shape
    dense = blocks.new_zeros(B, steps + 1, N, steps + 1, N)
    for t in range(steps):
        row, column = (t, t + 1) if towards > 0 else (t + 1, t)
        dense[:, row, :, column] = blocks[:, t]
    return dense.view(B, (steps + 1) * N, (steps + 1) * N)


def grid_mean(fmap: Tensor, grid: Tensor | None) -> Tensor:
    """Mean over the true grid of maps that are padded to the widest: fmap [B,T,C,h,w], grid [B,2]
    (h, w) or None -> [B,T,C].
    """
    if grid is None:
        return fmap.mean((-1, -2))
    h, w = fmap.shape[-2:]
    rows = torch.arange(h, device=fmap.device) < grid[:, :1]  # [B,h]
    columns = torch.arange(w, device=fmap.device) < grid[:, 1:]  # [B,w]
    inside = (rows[:, :, None] & columns[:, None])[:, None, None]  # [B,1,1,h,w]
    cells = (grid[:, 0] * grid[:, 1]).to(fmap.dtype)[:, None, None]
    return fmap.masked_fill(~inside, 0).sum((-1, -2)) / cells
