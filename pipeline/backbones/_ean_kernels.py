"""The kernels that EAN's blocks make for a video (Figures 9 to 11): M, and the taps behind it."""

from itertools import product

import torch
from torch import Tensor

from pipeline.backbones._ean import EventAdaptiveBlock, MultiScale

REACH = 5  # the largest kernel, along each axis
MIDDLE = REACH // 2


def fusion_matrix(block: EventAdaptiveBlock, x: Tensor) -> Tensor:
    """Return the matrix M of each sample, whatever its kind.

    Args:
        block: the block.
        x: its input [B,C,T,h,w].

    Returns:
        [B,u,u].
    """
    if block.matrix is not None:
        return block.matrix(block.compress(x) if block.design.released else x)
    matrix = torch.eye(block.compress.out_channels, device=x.device, dtype=x.dtype)
    if block.design.fusion == "shuffle":
        matrix = matrix[block.order]
    return matrix.expand(x.shape[0], -1, -1)


@torch.no_grad()
def kernel_sizes(block: EventAdaptiveBlock, matrix: Tensor) -> Tensor:
    """Return how large the kernels are that a block makes of its two halves and of M.

    The halves and M are one convolution K, but for the ReLU between them, which is left out here.
    K at an offset is second M first, where the offsets of the halves add up to it.

    Args:
        block: in evaluation mode.
        matrix: M [u,u] of a sample.

    Returns:
        The norm of K over its channels [5,5,5], by offsets -2 to 2 in time, y and x.
    """
    # |Q P|² = <Q^T Q, P P^T>: one product per offset in place of one per pair of offsets.
    firsts, seconds = [], []
    for offset, p in _taps(block.first, matrix):
        mixed = matrix @ p
        firsts.append((offset, mixed @ mixed.mT))
    for offset, q in _taps(block.second, matrix):
        seconds.append((offset, q.mT @ q))

    sizes = matrix.new_zeros(REACH, REACH, REACH)
    for one, inner in firsts:
        for other, outer in seconds:
            # One half has offsets in time alone, the other in space alone.
            t, y, x = (a + b - MIDDLE for a, b in zip(one, other, strict=True))
            sizes[t, y, x] = (inner * outer).sum().clamp_min(0).sqrt()
    return sizes


def _taps(half: MultiScale, like: Tensor) -> list[tuple[tuple[int, int, int], Tensor]]:
    """The taps of a half along its axis: offset (t,y,x), 2 in the middle, and [out,in]."""
    channels = sum(half.sizes)
    shape = (channels, channels, REACH, REACH, REACH)
    impulses = torch.zeros(shape, device=like.device, dtype=like.dtype)
    diagonal = torch.arange(channels)
    impulses[diagonal, diagonal, MIDDLE, MIDDLE, MIDDLE] = 1
    # What a norm adds is no part of a kernel.
    responses = half(impulses) - half(torch.zeros_like(impulses[:1]))  # [in,out,5,5,5]

    every, middle = range(REACH), (MIDDLE,)
    axes = (every, middle, middle) if half.axis == "time" else (middle, every, every)
    found = []
    for t, y, x in product(*axes):
        # A tap that reads the step after answers an impulse one step earlier.
        last = REACH - 1
        found.append(((t, y, x), responses[:, :, last - t, last - y, last - x].mT))
    return found
