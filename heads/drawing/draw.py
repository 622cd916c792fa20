"""One view of a cache as a picture or a video: boxes, graphs and neighbours, and what a trained
head made of them.

draw_view("cache", "clip-7", run="runs/strg-0").save("clip-7.png")
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from heads.drawing import maps as draw_maps
from heads.drawing import nodes as draw_nodes
from heads.drawing import sections as draw_sections
from heads.drawing.canvas import Canvas
from heads.drawing.head_output import HeadResult, run_head
from heads.drawing.layout import page, screen
from heads.drawing.panels import predictions, structure
from heads.drawing.sections import Node, Strip
from heads.drawing.source import ViewContent, load_view
from heads.runs.run_files import write_atomically
from pipeline.cache.reader import Cache
from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of
from pipeline.text.suggestions import nearest
from pipeline.video.decode import write_video

WHAT = {
    "boxes": "boxes with slot and score",
    "edges": "front and back edges of the IoU graph with their weights",
    "nearest": "the chosen node's nearest node in each step",
    "similar": "the nodes most similar to the chosen one",
    "attention": "what a head attends to: nodes, or whom the chosen node listens to",
    "regions": "the regions that DyReg chose",
    "saliency": "EAN's saliency maps as heat",
    "structure": "the structure that GOS chose",
    "predictions": "the classes with the best scores",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Style:
    """How much is drawn, and how large. `height` of a frame and `width` of the page in pixels;
    `steps` to draw, () for all; `neighbours`: M of similar nodes; `least`: the smallest weight of
    an edge that is drawn; `top` classes. ValueError for sizes that leave nothing to see."""

    height: int = 180
    width: int = 1600
    steps: tuple[int, ...] = ()
    neighbours: int = 10
    least: float = 0.25
    top: int = 5

    def __post_init__(self) -> None:
        for name, low in {"height": 32, "width": 200, "neighbours": 1, "top": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")


@dataclass
class Drawing:
    """A view with what is drawn of it: the names of WHAT, and the strips and panels that they
    became, in their order.
    """

    what: tuple[str, ...]
    shown: ViewContent
    told: HeadResult | None
    sections: list[Strip]
    panels: list[Canvas]
    style: Style

    @property
    def missing(self) -> str:
        """Why frames are grey, or ""."""
        return self.shown.missing

    def picture(self) -> Image.Image:
        """Strips of frames below one another, then the panels."""
        return page(self).finished()

    def frames(self) -> np.ndarray:
        """The view as it plays, [F,H,W,3] uint8 with even H and W: a panel per section, the step's
        drawing over each frame.
        """
        return np.stack(
            [np.asarray(screen(self, k).finished()) for k in range(len(self.shown.images))]
        )

    def save(self, path: str | Path, fps: float = 0.0) -> Path:
        """Writes a picture (.png, .jpg, .webp) or a video (.mp4 at `fps`, 0: so that it lasts 4
        seconds); ValueError for another ending."""
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (*PICTURES, ".mp4"):
            raise ValueError(f"{path}: expected a name that ends in {', '.join(PICTURES)} or .mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_of(path)
        if ending == ".mp4":
            part = part_path(path, new_claim_name())
            try:
                frames = self.frames()
                write_video(part, frames, fps or max(len(frames) / 4, 1.0))
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        else:
            image = self.picture()
            kind = {".png": "PNG", ".webp": "WEBP"}.get(ending, "JPEG")
            write_atomically(path, lambda file: image.save(file, kind, quality=92))
        return path


def draw_view(
    cache: Cache | str | Path,
    clip: str,
    *,
    group: str = "",
    view: int = 0,
    run: str | Path | None = None,
    what: Sequence[str] = (),
    node: Node | None = None,
    root: str | Path | None = None,
    checkpoint: str = "",
    style: Style | None = None,
) -> Drawing:
    """Reads a view, asks the head of `run` if there is one, and lays out `what` of WHAT (default:
    all that there is).

    `group` is train or test, by default test where the cache has it. `node` (t,i): the chosen one,
    by default the box with the best score in the middle step. `root`: the videos' folder where it
    is not that of the extraction. ValueError for a clip, view, node or name that is not there (with
    the nearest), and for what neither the cache nor the run can give.
    """
    cache, style = cache if isinstance(cache, Cache) else Cache(cache), style or Style()
    for name in what:
        if name not in WHAT:
            raise ValueError(f"what to show, {name!r}: {nearest(name, WHAT)}")
    group = group or ("test" if "test" in cache.groups else "train")
    shown = load_view(cache, clip, group, view, root)
    if wrong := [t for t in style.steps if t >= len(shown.steps)]:
        raise ValueError(f"steps: expected 0 to {len(shown.steps) - 1}, got {wrong[0]}")
    told = run_head(run, cache, shown.group, shown.row, checkpoint) if run is not None else None
    made = _Sections(shown, told, style, node)
    there = made.available()
    if refused := [name for name in what if name not in there]:
        raise ValueError(
            f"{cache.path}, clip {clip}: nothing to show for {refused[0]}: "
            f"{made.why_not(refused[0])}"
        )
    chosen = tuple(name for name in WHAT if name in (what or there))
    return Drawing(chosen, shown, told, made.strips(chosen), made.panels(chosen), style)


class _Sections:
    """Which sections a view has, and making them."""

    def __init__(
        self, shown: ViewContent, told: HeadResult | None, style: Style, node: Node | None
    ):
        self.shown, self.told, self.style, self.asked = shown, told, style, node
        self.node = self._node(node)

    def _node(self, node: Node | None) -> Node | None:
        """The chosen node; None where there is no box. ValueError for one that is not there."""
        valid = self.shown.valid
        if node is None or self._grid_nodes():
            if not valid.any():
                return None
            shown = self.style.steps or range(len(valid))
            middle = shown[len(shown) // 2]
            steps = sorted(range(len(valid)), key=lambda t: abs(t - middle))
            t = next(t for t in steps if valid[t].any())
            scores = self.shown.fields.get("scores", np.zeros(valid.shape))
            return t, int(np.where(valid[t], scores[t], -np.inf).argmax())
        t, i = node
        if not (0 <= t < valid.shape[0] and 0 <= i < valid.shape[1] and valid[t, i]):
            if not 0 <= t < len(valid):
                raise ValueError(
                    f"node {t},{i}: there is no such step; the view has steps 0 to {len(valid) - 1}"
                )
            there = ", ".join(map(str, np.flatnonzero(valid[t]))) or "none"
            raise ValueError(f"node {t},{i}: there is no such box; boxes of step {t}: {there}")
        return node

    def _grid_nodes(self) -> bool:
        """Whether a chosen node is one of RSTG's grid."""
        return self.told is not None and self.told.head in ("rstg", "rstg_map")

    def available(self) -> tuple[str, ...]:
        """The names of WHAT that this view and its head can show."""
        steps, there = len(self.shown.steps), self.node is not None
        nodes = "nodes" in self.shown.fields
        maps = self.told.maps if self.told else {}
        kinds = {name.split(".")[0] for name in maps}
        has = {
            "boxes": there,
            "edges": there and steps > 1,
            "nearest": there and (nodes or "nearest" in self.shown.fields),
            "similar": there
            and (nodes or "similar" in self.shown.fields)
            and int(self.shown.valid.sum()) > 1,
            "attention": bool(self._attention()),
            "regions": "kernels" in kinds,
            "saliency": "regions" in kinds,
            "structure": "structure" in kinds,
            "predictions": self.told is not None,
        }
        return tuple(name for name in WHAT if has[name])

    def why_not(self, name: str) -> str:
        """What is lacking, in words."""
        if name in ("boxes", "edges", "nearest", "similar"):
            lacks = "nodes" if name in ("nearest", "similar") and self.node is not None else "boxes"
            return f"the view has no {lacks}; extract with --keep {lacks}"
        if self.told is None:
            return "it needs a trained head: pass --run"
        return f"head {self.told.head} gives {', '.join(self.told.maps) or 'no maps'}"

    def strips(self, chosen: Iterable[str]) -> list[Strip]:
        """The sections of `chosen` that are drawn over frames; the frames alone where there is
        none.
        """
        chosen, shown, told, found = set(chosen), self.shown, self.told, []
        if "edges" in chosen:
            graphs = (
                tuple(told.maps[name] for name in ("front", "back"))
                if told and "front" in told.maps
                else None
            )
            found.append(draw_sections.edges(shown, graphs, self.style.least, "boxes" in chosen))
        elif "boxes" in chosen:
            found.append(draw_sections.boxes(shown))
        if "nearest" in chosen:
            found.append(draw_nodes.nearest(shown, self.node))
        if "similar" in chosen:
            found.append(draw_nodes.similar(shown, self.node, self.style.neighbours))
        if "attention" in chosen:
            found += self._attention()
        if "regions" in chosen:
            for point, kernels in told.points("kernels").items():
                more = (told.maps.get(f"{name}.{point}") for name in ("centres", "radii"))
                found.append(draw_maps.regions(kernels, f"regions at {point}", *more))
        if "saliency" in chosen:
            found += self._saliency(told.points("regions")[""])
        return found or [Strip("frames")]

    def panels(self, chosen: Iterable[str]) -> list[Canvas]:
        """The panels of `chosen`."""
        found = []
        if "structure" in chosen:
            found.append(structure(self.told))
        if "predictions" in chosen:
            found.append(predictions(self.told, self.shown.clip.labels, self.style.top))
        return found

    def _attention(self) -> list[Strip]:
        """The sections of a head's attention, by the head and the shape of its maps
        (docs/show.md).
        """
        told, shown, node, most = self.told, self.shown, self.node, self.style.neighbours
        if told is None:
            return []
        if self._grid_nodes():
            receiver = None if self.asked is None else self.asked[1]
            if receiver is not None and not 0 <= receiver < 14:
                raise ValueError(
                    f"node {self.asked[0]},{receiver}: RSTG's grids have nodes 0 to 13"
                )
            return [
                draw_maps.grid(m, receiver, f"the grid's messages{f' at {point}' if point else ''}")
                for point, m in told.points("attention").items()
            ]
        if node is None:
            return []
        if "node_attention" in told.maps:
            return self._gos_attention(told.maps["node_attention"])
        if "similarity" in told.maps:
            return [
                draw_nodes.listening(shown, node, told.maps["similarity"], most, "similarity graph")
            ]
        m = told.maps.get("attention")
        if m is None or not told.head.startswith("gos_"):
            return []
        if m.ndim == 2:
            return [
                draw_nodes.listening(
                    shown, node, m, most, f"{told.head}: whom the head makes listen"
                )
            ]
        if m.shape[-1] == 1:
            return [draw_nodes.node_attention(shown, m[..., 0], "node attention", told.head)]
        if told.head == "gos_temp_conv":
            return [draw_nodes.nearest_of_head(shown, node, m)]
        return [draw_maps.background(shown, node, m, told.cells, "background")]

    def _gos_attention(self, weights: np.ndarray) -> list[Strip]:
        """weights [cells,E,T,N]: the mean over the edges that have node attention."""
        edges = weights.reshape(-1, *weights.shape[-2:])
        have = edges[~np.isnan(edges).all((1, 2))]
        if not len(have):
            return []
        note = f"mean over the {len(have)} of {len(edges)} edges whose operation ends with it"
        return [draw_nodes.node_attention(self.shown, have.mean(0), "node attention", note)]

    def _saliency(self, maps: np.ndarray) -> list[Strip]:
        """maps [T,M,P], a strip per object; the mean of them where there are many."""
        maps = maps.reshape(*maps.shape[:2], *self.told.cells)
        if maps.shape[1] > 8:
            return [draw_maps.heat(maps.mean(1), f"saliency, mean over {maps.shape[1]} objects")]
        return [
            draw_maps.heat(
                maps[:, k],
                f"saliency of object {k + 1} of {maps.shape[1]}",
                "weights of the cells",
                0.7,
            )
            for k in range(maps.shape[1])
        ]
