"""Strips of maps and regions: heat over the frames, the cells that a box hears, DyReg's regions,
RSTG's grid.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from heads.drawing.canvas import CHOSEN, OVER, Canvas, Colour, Place, colour_of, heated
from heads.drawing.sections import SMALL, Node, Strip, compact
from heads.drawing.source import ViewContent


def heat(maps: np.ndarray, title: str, note: str = "", scale: float = 1.0) -> Strip:
    """Maps [T,h,w] as heat over their frames, the largest number of all steps the hottest; one map
    [1,h,w] is for all steps.
    """
    low, high = float(maps.min()), float(maps.max())
    level = (maps - low) / (high - low if high > low else 1)

    def backdrop(t: int, frame: Image.Image) -> Image.Image:
        return heated(frame, level[t if len(level) > 1 else 0])

    numbers = f"from {low:.2g} to {high:.2g}; spread evenly, {1 / maps[0].size:.2g}"
    return Strip(title, f"{note}{'; ' if note else ''}{numbers}", scale=scale, backdrop=backdrop)


def background(
    shown: ViewContent, node: Node, weights: np.ndarray, cells: tuple[int, int], title: str
) -> Strip:
    """Which cells the chosen slot hears in every step (GOS back_incor): weights [T,N,G] over the h
    w cells of a map.
    """
    h, w = shown.fields["grid"].tolist() if "grid" in shown.fields else cells
    maps = weights[:, node[1]].reshape(-1, *cells)[:, : min(h, cells[0]), : min(w, cells[1])]
    section = heat(
        maps,
        f"{title} of box {node[1]} of each step",
        "the cells of its own step that the box hears",
    )

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        if shown.valid[t, node[1]]:
            canvas.rectangle(place.rectangle(shown.boxes[t, node[1]]), CHOSEN, 2)

    section.paint = paint
    return section


def regions(
    kernels: np.ndarray,
    title: str,
    centres: np.ndarray | None = None,
    radii: np.ndarray | None = None,
) -> Strip:
    """DyReg's regions (its Figure 3): kernels [T or 1,N,h,w] of each node, drawn to where they have
    half their height.

    With centres and radii [T or 1,N,2] (y, x) in cells these are boxes, else outlines of whatever
    shape the kernels have.
    """
    size = np.array(kernels.shape[-2:], np.float32)

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        t = t if len(kernels) > 1 else 0
        there = [i for i, kernel in enumerate(kernels[t]) if kernel.max() > 0]
        middles = {}
        for i in there:
            if centres is None or radii is None:
                _outline(canvas, place, kernels[t, i], colour_of(i))
                middles[i] = place.at(*_mean_place(kernels[t, i]))
            else:
                middle, half = (
                    (centres[t, i] + 0.5) / size,
                    radii[t, i] / 2 / size,
                )  # a cell's middle is half a cell in
                (y1, x1), (y2, x2) = (middle - half).clip(0, 1), (middle + half).clip(0, 1)
                canvas.rectangle(place.rectangle((x1, y1, x2, y2)), colour_of(i), 1.6)
                middles[i] = place.at(*middle[::-1])
        taken: list = []
        for i, (x, y) in middles.items():
            canvas.tag((x - 5, y - 7), str(i), colour_of(i), SMALL, taken, place)

    note = "each node's kernel down to half its height, and its number in the middle"
    return Strip(title, note, paint=paint)


def _outline(canvas: Canvas, place: Place, kernel: np.ndarray, colour: Colour) -> None:
    """The rim of where a kernel [h,w] has at least half its height, and a breath of colour
    inside.
    """
    size = max(1, round(OVER * place.width)), max(1, round(OVER * place.height))
    high = Image.fromarray((kernel / kernel.max()).astype(np.float32)).resize(
        size, Image.Resampling.BILINEAR
    )
    inside = Image.fromarray(np.uint8(np.asarray(high) >= 0.5) * 255)
    canvas.tint(inside.point(lambda v: v // 8), colour, place)
    canvas.tint(ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(7))), colour, place)


def _mean_place(kernel: np.ndarray) -> tuple[float, float]:
    """(x, y) in [0,1] of a kernel's centre of mass; what is negative counts for nothing."""
    mass = np.maximum(kernel, 0) / np.maximum(kernel, 0).sum()
    y, x = (
        (mass.sum(1 - axis) * (np.arange(n) + 0.5)).sum() / n for axis, n in enumerate(mass.shape)
    )
    return float(x), float(y)


def grid(weights: np.ndarray, node: int | None, title: str) -> Strip:
    """RSTG's 14 nodes with how much they send: weights [T,14,14], rows receive; to node `node`, or
    on average over receivers.

    A disc lies in each cell of the 3x3 and of the 2x2 grid, as large as its share of the largest;
    the frame's rim is the 1x1.
    """
    sent = np.abs(weights).mean(1) if node is None else np.abs(weights[:, node])
    top = float(sent.max()) or 1.0
    colours = colour_of(1), colour_of(0), colour_of(2)
    places = [
        ((j + 0.5) / s, (i + 0.5) / s, k)
        for k, s in enumerate((3, 2, 1))
        for i in range(s)
        for j in range(s)
    ]

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        for k, s in ((0, 3), (1, 2)):
            for cut in range(1, s):
                canvas.line(
                    [place.at(cut / s, 0), place.at(cut / s, 1)], colours[k], 1, dashed=True
                )
                canvas.line(
                    [place.at(0, cut / s), place.at(1, cut / s)], colours[k], 1, dashed=True
                )
        for number, (u, v, k) in enumerate(places):
            share = float(sent[t, number]) / top
            if k == 2:
                canvas.rectangle(place.rectangle((0, 0, 1, 1)), colours[k], 0.5 + 5 * share)
                continue
            canvas.disc(place.at(u, v), 1.5 + place.height / 14 * share**0.5, colours[k], (0, 0, 0))
            if number == node:
                canvas.disc(place.at(u, v), 4 + place.height / 14, None, CHOSEN, 2)

    to = "to the others, on average" if node is None else f"to node {node}"
    legend = tuple(zip(colours, ("3x3", "2x2", "1x1: the rim"), strict=True))
    return Strip(
        title,
        f"how much each node of the grids sends {to}; largest {compact(top)}",
        legend,
        paint=paint,
    )
