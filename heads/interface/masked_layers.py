"""Relational maths shared by two or more heads: masked means, box graphs and their products.

Nothing here learns. Every function is safe for padded boxes and for empty rows.

Letters: B views, T steps, N boxes per step, n = T N nodes of a view, C channels, h w grid.
"""

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average the rows of each view that count.

    Args:
        x: [B,...,C].
        mask: [B,...] bool, which rows count.

    Returns:
        [B,C]; zeros for a view in which no row counts.
    """
    weights = mask.flatten(1).to(x.dtype)  # [B,n]
    total = torch.einsum("bn,bnc->bc", weights, x.flatten(1, -2))
    return total / weights.sum(1, keepdim=True).clamp_min(1)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis, among the entries that count.

    Args:
        logits: [...,n].
        mask: bool, broadcast to `logits`: which entries count.

    Returns:
        [...,n]; the other entries are 0, and so is a row in which none counts.
    """
    # Not -inf: a row without an entry would be NaN, and so would its gradient.
    weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1)
    # A row that is masked throughout came out uniform, not zero.
    return weights.masked_fill(~mask, 0)


def row_normalise(graph: Tensor) -> Tensor:
    """Divide the rows of a graph by their sums.

    Args:
        graph: [...,n,m], no entry below 0.

    Returns:
        The same shape; a row of zeros stays zero.
    """
    total = graph.sum(-1, keepdim=True)
    return graph / torch.where(total > 0, total, 1)


def next_frame_iou(boxes: Tensor) -> Tensor:
    """Compute the IoU of every box with the boxes of the next step.

    Stage two stores the same as `iou`; this is for caches without it.

    Args:
        boxes: [B,T,N,4], xyxy in continuous coordinates.

    Returns:
        [B,T-1,N,N]: box i at t with box j at t+1; 0 for an empty box.
    """
    a, b = boxes[:, :-1, :, None], boxes[:, 1:, None]  # [B,T-1,N,1,4], [B,T-1,1,N,4]
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp_min(0).prod(-1)

    area = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(-1)
    union = area[:, :-1, :, None] + area[:, 1:, None] - overlap
    return overlap / torch.where(union > 0, union, 1)


def front_back(iou: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Build the front and back graphs (STRG, ECCV 2018, eq. 3).

    Args:
        iou: [B,T-1,N,N], box i at t with box j at t+1.
        valid: [B,T,N] bool.

    Returns:
        (front, back), both [B,T-1,N,N]. front[:,t] holds the edges from t to t+1, rows i at t;
        back[:,t] those from t+1 to t, rows j at t+1. Rows of padded boxes are zero.
    """
    both = valid[:, :-1, :, None] & valid[:, 1:, None]
    edges = iou.masked_fill(~both, 0)
    # Each has its own row sums: back is the transpose of front only before the division.
    return row_normalise(edges), row_normalise(edges.transpose(-1, -2))


def along_front(front: Tensor, x: Tensor) -> Tensor:
    """Multiply by G^front, without the n x n matrix.

    Args:
        front: [B,T-1,N,N], see `front_back`.
        x: [B,T,N,C].

    Returns:
        G^front X [B,T,N,C]; zeros in the last step, which has no successor.
    """
    return torch.cat([front @ x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)


def along_back(back: Tensor, x: Tensor) -> Tensor:
    """Multiply by G^back, without the n x n matrix.

    Args:
        back: [B,T-1,N,N], see `front_back`.
        x: [B,T,N,C].

    Returns:
        G^back X [B,T,N,C]; zeros in the first step, which has no predecessor.
    """
    return torch.cat([torch.zeros_like(x[:, :1]), back @ x[:, :-1]], dim=1)


def dense_graph(blocks: Tensor, towards: int) -> Tensor:
    """Write out the n x n matrix of a front or back graph.

    Args:
        blocks: [B,T-1,N,N], see `front_back`.
        towards: 1 for front, -1 for back.

    Returns:
        [B,n,n], nodes step by step.
    """
    B, steps, N, _ = blocks.shape
    dense = blocks.new_zeros(B, steps + 1, N, steps + 1, N)
    for t in range(steps):
        row, column = (t, t + 1) if towards > 0 else (t + 1, t)
        dense[:, row, :, column] = blocks[:, t]
    return dense.view(B, (steps + 1) * N, (steps + 1) * N)


def grid_mean(fmap: Tensor, grid: Tensor | None) -> Tensor:
    """Average maps over their true grid.

    Args:
        fmap: [B,T,C,h,w], padded to the widest view of the batch.
        grid: [B,2], true (h, w) in cells; None if nothing is padding.

    Returns:
        [B,T,C].
    """
    if grid is None:
        return fmap.mean((-1, -2))

    h, w = fmap.shape[-2:]
    rows = torch.arange(h, device=fmap.device) < grid[:, :1]  # [B,h]
    columns = torch.arange(w, device=fmap.device) < grid[:, 1:]  # [B,w]
    inside = (rows[:, :, None] & columns[:, None])[:, None, None]  # [B,1,1,h,w]
    cells = (grid[:, 0] * grid[:, 1]).to(fmap.dtype)[:, None, None]
    # Not a product with the mask: the padding may hold NaN.
    return fmap.masked_fill(~inside, 0).sum((-1, -2)) / cells
