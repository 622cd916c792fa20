"""Ideal maps of digit videos: a channel per digit class, with a spot where its digit is.

    x, y = centre of a digit in cells of the map
    map[class, i, j] = exp(-((i - y)^2 + (j - x)^2) / (2 SPOT^2))

They are what a digit network should tell a graph. The network learns to compute them
(heads/reproduction/place_training.py). A graph that is trained on them shows what the graph alone
can do (benchmarks/digit_probe.py). Digits of one class add up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.digits.scenes import Task

# Standard deviation of a spot, in cells. At 0.7, the next cell has a third of the middle's value:
# a node then sees where in its cells a digit is, from how much of the spot lies beyond them.
SPOT = 0.7


@dataclass(frozen=True)
class MapGeometry:
    """Where the cells of a square map lie in a frame.

    Attributes:
        cells: cells of a side.
        first: middle of the first cell's view of the frame, in pixels.
        stride: distance of neighbouring cells, in pixels.
    """

    cells: int
    first: float
    stride: float


def digit_cnn_geometry(size: int) -> MapGeometry:
    """Return the geometry of the last map of `digit_cnn`.

    Each of its three stages is a 3×3 convolution without padding and a 2×2 maximum. A cell sees 22
    pixels; the next cell sees the same 8 pixels further on.

    Args:
        size: side of a frame, in pixels.
    """
    cells = size
    for _ in range(3):
        cells = (cells - 2) // 2
    return MapGeometry(cells, first=11.0, stride=8.0)


def centres_of(task: Task, corners: Tensor) -> Tensor:
    """Return the middles of digits in pixels of the frame: float32 [...,2], (x,y).

    Args:
        task: its canvas, tile and size matter.
        corners: [...,2], top left corners (x,y) in pixels of the canvas.
    """
    return (corners.float() + task.tile / 2) * (task.size / task.canvas)


def ideal_maps(centres: Tensor, classes: Tensor, count: int, geometry: MapGeometry) -> Tensor:
    """Draw the ideal maps of videos.

    Args:
        centres: [B,T,n,2], middles (x,y) of n digits in pixels of the frame.
        classes: int64 [B,n].
        count: K, the number of classes.
        geometry: of the map.

    Returns:
        float32 [B,T,K,h,w].
    """
    videos, steps = centres.shape[:2]
    place = (centres - geometry.first) / geometry.stride
    cell = torch.arange(geometry.cells, device=centres.device)
    along = torch.exp(-((place[..., None] - cell) ** 2) / (2 * SPOT**2))  # [B,T,n,2,cells]
    spots = along[..., 1, :, None] * along[..., 0, None, :]  # [B,T,n,h,w]

    maps = spots.new_zeros(videos, steps, count, geometry.cells, geometry.cells)
    channel = classes[:, None, :, None, None].expand_as(spots)
    return maps.scatter_add_(2, channel, spots)
