"""Strips of maps: heat over frames, cells that a box listens to, DyReg's regions, RSTG's grid.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from heads.drawing.canvas import (
    CHOSEN,
    SUPERSAMPLING,
    Canvas,
    Colour,
    FrameRect,
    colour_of,
    heat_overlay,
)
from heads.drawing.sections import LABEL_SIZE, Node, Strip, compact
from heads.drawing.source import ViewContent
from heads.interface.region_distance import RegionDistance, region_middles


def heat(
    maps: np.ndarray, title: str, note: str = "", scale: float = 1.0, even: float = 0.0
) -> Strip:
    """Draw maps as heat over their frames.

    Args:
        maps: [T,h,w], or [1,h,w] for one map that all steps share. The largest number of all
            steps is the hottest.
        title: of the strip.
        note: of the strip; the range of numbers is added.
        scale: a frame's height as a fraction of the style's.
        even: what a cell would have if all had the same; 0 for 1 over the cells of a step.

    Returns:
        The strip.
    """
    low, high = float(maps.min()), float(maps.max())
    level = (maps - low) / (high - low if high > low else 1)

    def backdrop(t: int, frame: Image.Image) -> Image.Image:
        return heat_overlay(frame, level[t if len(level) > 1 else 0])

    numbers = f"from {low:.2g} to {high:.2g}; spread evenly, {even or 1 / maps[0].size:.2g}"
    if note:
        numbers = f"{note}; {numbers}"
    return Strip(title, numbers, scale=scale, backdrop=backdrop)


def stage(maps: np.ndarray, name: str, steps: int) -> Strip:
    """Draw a stage's map over time.

    Args:
        maps: [T',h,w]; T' may be another number than the steps.
        name: of the stage.
        steps: T, frames of the strip.

    Returns:
        The strip.
    """
    nearest = [t * len(maps) // steps for t in range(steps)]
    note = "mean of the channels' absolute values"
    return heat(maps[nearest], f"{name} over time", note, 0.7)


def background(
    view: ViewContent, node: Node, weights: np.ndarray, cells: tuple[int, int], title: str
) -> Strip:
    """Draw which cells a slot listens to in every step (GOS back_incor).

    Args:
        view: the view.
        node: the chosen node; its slot is drawn.
        weights: [T,N,G] over the G = h w cells of a map.
        cells: (h, w) of that map.
        title: of the strip.

    Returns:
        The strip.
    """
    slot = node[1]
    # Maps of a cache with several sizes are padded to the largest; `grid` is the real size.
    h, w = view.fields["grid"].tolist() if "grid" in view.fields else cells
    maps = weights[:, slot].reshape(-1, *cells)[:, : min(h, cells[0]), : min(w, cells[1])]
    note = "the cells of its own step that the box listens to"
    strip = heat(maps, f"{title} of box {slot} of each step", note)

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        if view.valid[t, slot]:
            canvas.rectangle(rect.rectangle(view.boxes[t, slot]), CHOSEN, 2)

    strip.paint = paint
    return strip


def regions(
    kernels: np.ndarray,
    title: str,
    centres: np.ndarray | None = None,
    radii: np.ndarray | None = None,
    annotated: tuple[Tensor, Tensor] | None = None,
) -> Strip:
    """Draw DyReg's regions (its Figure 3), to where each kernel has half its height.

    A line joins the middle of each annotated box with that of the nearest region.

    Args:
        kernels: [T or 1,N,h,w], one per node.
        title: of the strip.
        centres: [T or 1,N,2], (y, x) in cells. With centres and radii the regions are drawn as
            boxes, else as the kernels' outlines.
        radii: [T or 1,N,2], (y, x) in cells.
        annotated: boxes [1,T,M,4] in [0,1] of the view and valid [1,T,M], drawn in white.

    Returns:
        The strip. Its note has the view's Dist, where there are annotated boxes.
    """
    size = np.array(kernels.shape[-2:], np.float32)
    note = "each node's kernel down to half its height, and its number in the middle"
    maps = {"kernels.": torch.from_numpy(kernels)[None]}
    if centres is not None:
        maps["centres."] = torch.from_numpy(centres)[None]
    places = region_middles(maps)[""][0]  # [T or 1,N,2], (x, y)
    if annotated is not None:
        distance = RegionDistance()
        distance.add(maps, *annotated)
        note += "; annotated boxes in white"
        if distance.boxes:
            note += f", the nearest region is {distance.figures()['dist']:.3f} away on average"

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        boxes = None if annotated is None else annotated[0][0, t][annotated[1][0, t]]
        if len(kernels) == 1:
            t = 0
        # Numbers are drawn last, on top of all regions.
        middles = {}
        for i, kernel in enumerate(kernels[t]):
            if not kernel.max() > 0:
                continue
            if centres is None or radii is None:
                _outline(canvas, rect, kernel, colour_of(i))
            else:
                # The middle of a cell is half a cell from its corner.
                middle, half = (centres[t, i] + 0.5) / size, radii[t, i] / 2 / size
                (y1, x1), (y2, x2) = (middle - half).clip(0, 1), (middle + half).clip(0, 1)
                canvas.rectangle(rect.rectangle((x1, y1, x2, y2)), colour_of(i), 1.6)
            middles[i] = rect.at(*places[t, i].tolist())
        if boxes is not None:
            _annotated(canvas, rect, boxes, places[t])
        taken: list = []
        for i, (x, y) in middles.items():
            canvas.tag((x - 5, y - 7), str(i), colour_of(i), LABEL_SIZE, taken, rect)

    return Strip(title, note, paint=paint)


def _annotated(canvas: Canvas, rect: FrameRect, boxes: Tensor, places: Tensor) -> None:
    """Draw boxes [M,4], and a line from each to the nearest of some places [N,2]."""
    there = places[~places.isnan().any(-1)]
    for box in boxes:
        canvas.rectangle(rect.rectangle(box.tolist()), CHOSEN, 2)
        middle = (box[:2] + box[2:]) / 2
        if len(there):
            nearest = there[(there - middle).norm(dim=-1).argmin()]
            canvas.line([rect.at(*middle.tolist()), rect.at(*nearest.tolist())], CHOSEN, 1.2)


def _outline(canvas: Canvas, rect: FrameRect, kernel: np.ndarray, colour: Colour) -> None:
    """Draw the rim of where a kernel [h,w] has half its height, and tint the inside."""
    width, height = round(SUPERSAMPLING * rect.width), round(SUPERSAMPLING * rect.height)
    relative = Image.fromarray((kernel / kernel.max()).astype(np.float32))
    relative = relative.resize((max(1, width), max(1, height)), Image.Resampling.BILINEAR)

    # Eroding the inside by three canvas pixels leaves the rim.
    inside = Image.fromarray(np.uint8(np.asarray(relative) >= 0.5) * 255)
    rim = ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(7)))
    canvas.tint(inside.point(lambda v: v // 8), colour, rect)
    canvas.tint(rim, colour, rect)


def grid(weights: np.ndarray, node: int | None, title: str) -> Strip:
    """Draw how much RSTG's 14 nodes send.

    A disc lies in each cell of the 3x3 and of the 2x2 grid, its area proportional to what the
    cell sends. The frame's rim is the 1x1 grid.

    Args:
        weights: [T,14,14]; rows receive.
        node: the receiver, 0 to 13; None for the mean over receivers.
        title: of the strip.

    Returns:
        The strip.
    """
    sent = np.abs(weights).mean(1) if node is None else np.abs(weights[:, node])
    largest = float(sent.max()) or 1.0
    colours = colour_of(1), colour_of(0), colour_of(2)

    # RSTG numbers its nodes grid by grid, row by row.
    cells = []
    for k, side in enumerate((3, 2, 1)):
        for i in range(side):
            for j in range(side):
                cells.append(((j + 0.5) / side, (i + 0.5) / side, k))

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        for colour, side in zip(colours, (3, 2), strict=False):
            for line in range(1, side):
                at = line / side
                canvas.line([rect.at(at, 0), rect.at(at, 1)], colour, 1, dashed=True)
                canvas.line([rect.at(0, at), rect.at(1, at)], colour, 1, dashed=True)
        for number, (u, v, k) in enumerate(cells):
            fraction = float(sent[t, number]) / largest
            if k == 2:
                canvas.rectangle(rect.rectangle((0, 0, 1, 1)), colours[k], 0.5 + 5 * fraction)
                continue
            # The square root makes the disc's area proportional, which is what the eye compares.
            radius = 1.5 + rect.height / 14 * fraction**0.5
            canvas.disc(rect.at(u, v), radius, colours[k], (0, 0, 0))
            if number == node:
                canvas.disc(rect.at(u, v), 4 + rect.height / 14, None, CHOSEN, 2)

    receiver = "to the others, on average" if node is None else f"to node {node}"
    note = f"how much each node of the grids sends {receiver}; largest {compact(largest)}"
    legend = tuple(zip(colours, ("3x3", "2x2", "1x1: the rim"), strict=True))
    return Strip(title, note, legend, paint=paint)
