"""Panels of what EAN makes of a video (its Figures 9 to 11): M, its kernels, and its attention."""

import numpy as np
from PIL import Image

from heads.drawing.backbone_output import BlockOutput
from heads.drawing.canvas import FAINT, INK, Canvas, FrameRect, heat_colours, text_width
from heads.drawing.panels import TEXT
from heads.drawing.sections import compact

# Pixels of the picture of M, of a slice of the kernels, and between them.
MATRIX, SLICE, SPACE = 150, 62, 10
# Pixels of a token: as large as fits, within these.
TOKEN, LEAST_TOKEN, TOKENS_HEIGHT = 22, 5, 240


def block(output: BlockOutput) -> Canvas:
    """Draw the matrix M of a block, and the kernels that come of it, one slice per step of time.

    Args:
        output: what the block made of the view.

    Returns:
        The panel.
    """
    u, last = len(output.matrix), output.kernels.shape[0] // 2
    title = f"block of {output.stage}: |M| of {u}x{u}, and the size of its kernels by offset"
    width = max(MATRIX + 5 * (SLICE + SPACE) + SPACE, text_width(title, 14))
    canvas = Canvas(width, 24 + MATRIX + 20)
    canvas.text((0, 0), title, 14)

    values = np.abs(output.matrix)
    _heat(canvas, values, FrameRect(0, 24, MATRIX, MATRIX))
    canvas.text((0, 28 + MATRIX), f"0 to {compact(float(values.max()))}", TEXT, FAINT)

    largest = float(output.kernels.max())
    for k, slice_ in enumerate(output.kernels):
        x = MATRIX + 2 * SPACE + k * (SLICE + SPACE)
        rect = FrameRect(x, 24 + (MATRIX - SLICE) / 2, SLICE, SLICE)
        _heat(canvas, slice_, rect, largest)
        canvas.text((x, rect.y + SLICE + 4), f"t{k - last:+d}" if k != last else "t", TEXT, INK)
    where = (MATRIX + 2 * SPACE, 28 + MATRIX)
    canvas.text(where, f"0 to {compact(largest)}; 5x5 offsets in space", TEXT, FAINT)
    return canvas


def attention_vector(weights: np.ndarray, steps: int) -> Canvas:
    """Draw how much every object of every step is listened to, one picture per layer.

    Args:
        weights: [layers,heads,m,m] among the m = T M tokens, step by step; rows listen.
        steps: T.

    Returns:
        The panel; columns are steps, rows are objects.
    """
    tokens, heard = weights.shape[-1], heard_of(weights, steps)
    objects, largest = heard.shape[-1], float(heard.max())
    side = min(TOKEN, max(LEAST_TOKEN, TOKENS_HEIGHT // objects))
    width, height = side * steps, side * objects

    title = "attention: how much each object (row) of each step (column) is listened to"
    note = f"mean over heads and listeners, 0 to {compact(largest)}; even, {compact(1 / tokens)}"
    every = len(heard) * (width + 2 * SPACE)
    canvas = Canvas(max(every, text_width(title, 14), text_width(note, TEXT)), 62 + height)
    canvas.text((0, 0), title, 14)
    canvas.text((0, 20), note, TEXT, FAINT)
    for k, layer in enumerate(heard):
        x = k * (width + 2 * SPACE)
        canvas.text((x, 40), f"layer {k + 1}", TEXT)
        _heat(canvas, layer.T, FrameRect(x, 58, width, height), largest)
    return canvas


def heard_of(weights: np.ndarray, steps: int) -> np.ndarray:
    """Return how much each token is listened to: the mean over heads and over who listens.

    Args:
        weights: [layers,heads,m,m], rows listen.
        steps: T.

    Returns:
        [layers,T,M].
    """
    return weights.mean((1, 2)).reshape(len(weights), steps, -1)


def _heat(canvas: Canvas, values: np.ndarray, rect: FrameRect, largest: float = 0.0) -> None:
    """Draw numbers from 0 to the largest as squares of heat."""
    picture = Image.fromarray(heat_colours(values / (largest or float(values.max()) or 1.0)))
    # Squares with sharp rims: a number per square, nothing between them. Large matrices are
    # averaged.
    if picture.width < rect.width:
        times = -(-int(rect.width) // picture.width)
        size = (picture.width * times, picture.height * times)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    canvas.image(picture, rect)
