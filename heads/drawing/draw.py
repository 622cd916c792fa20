"""Draw one view of a cache: boxes, graphs, neighbours, and what a trained head made of them.

draw_view("cache", "clip-7", run="runs/strg-0").save("clip-7.png")
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from heads.data.annotated_boxes import AnnotatedBoxes, has_annotated_boxes
from heads.drawing import maps as draw_maps
from heads.drawing import nodes as draw_nodes
from heads.drawing import sections as draw_sections
from heads.drawing.backbone_output import BackboneOutput, BlockOutput, has_blocks, run_backbone
from heads.drawing.block_panels import attention_vector, block
from heads.drawing.canvas import Canvas
from heads.drawing.edges import EdgeDrawing
from heads.drawing.head_output import HeadResult, run_head
from heads.drawing.layout import MARGIN, Drawing, Style
from heads.drawing.panels import predictions, structure
from heads.drawing.queries import queries
from heads.drawing.sections import Node, Strip
from heads.drawing.source import ViewContent, group_of, load_view
from pipeline.cache.reader import Cache
from pipeline.text.suggestions import nearest

WHAT = {
    "boxes": "boxes with slot, class, track and score",
    "edges": "front and back edges of the IoU graph with their weights",
    "nearest": "the chosen node's nearest node in each step",
    "similar": "the nodes most similar to the chosen one",
    "attention": "what a head attends to: nodes, or the nodes that the chosen one listens to",
    "regions": "the regions that DyReg chose",
    "saliency": "EAN's saliency maps as heat",
    "stages": "each stage's map over time as heat",
    "blocks": "M and the kernels of EAN's blocks",
    "structure": "the structure that GOS chose",
    "predictions": "the classes with the best scores",
}

# What runs the backbone on the frames: it is drawn only where it is asked for.
FROM_FRAMES = ("stages", "blocks")

# Saliency maps of more objects than this are drawn as one mean map.
MAX_OBJECTS = 8
RSTG_NODES = 14


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
    weights: str | Path | None = None,
    annotations: Any | None = None,
    structure: str = "",
    style: Style | None = None,
) -> Drawing:
    """Draw one view of a clip.

    Args:
        cache: a cache, or its path.
        clip: the clip's id.
        group: "train" or "test"; "" for test where the cache has it, else train.
        view: the view's number in its group.
        run: the folder of a run on this cache; its head's output is drawn, too.
        what: names of `WHAT`; () for everything that the cache and the run allow, but for
            `FROM_FRAMES`.
        node: the chosen node (t,i); by default the best box of the middle step.
        root: the folder of the videos; None for that of the extraction.
        checkpoint: the run's weights, "best" or "last"; "" for what its figures use.
        weights: the file of the backbone's weights, for `FROM_FRAMES`; None for where the
            extraction found it.
        annotations: a source of annotated boxes, `build_proposals("annotations", ...)`, that are
            drawn beside a head's regions; None: the cache's boxes, where these were annotated.
        structure: of a run of `gos`, one structure in place of the view's own: "common",
            "clip:NAME", another run, or a CSV file (GOS Figure 5).
        style: sizes and limits; None for the defaults.

    Returns:
        The drawing, which `picture()`, `frames()` and `save()` turn into pixels.

    Raises:
        ValueError: no such clip, view, node or name (the message names the nearest), or a name
            that neither the cache nor the run can give.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    style = style or Style()
    for name in what:
        if name not in WHAT:
            raise ValueError(f"what to show, {name!r}: {nearest(name, WHAT)}")
    if weights is not None and set(what).isdisjoint(FROM_FRAMES):
        raise ValueError(
            f"weights {weights} are for {' and '.join(FROM_FRAMES)}: pass --what with one of these"
        )

    if not group:
        group = group_of(cache, clip)
    content = load_view(cache, clip, group, view, root)
    for t in style.steps:
        if t >= len(content.steps):
            raise ValueError(f"steps: expected 0 to {len(content.steps) - 1}, got {t}")

    result = None
    if run is not None:
        result = run_head(run, cache, content.group, content.row, checkpoint, structure)
    elif structure:
        raise ValueError("a structure is that of a trained head: pass --run too")
    annotated = None
    if annotations is not None or has_annotated_boxes(content.group):
        boxes = AnnotatedBoxes(content.group, annotations)
        annotated = boxes.of([content.row], len(content.steps))
    builder = _SectionBuilder(content, result, style, node, annotated)
    available = builder.available()
    if annotations is not None and "regions" not in available:
        raise ValueError(
            f"{cache.path}, clip {clip}: annotated boxes are drawn beside regions: "
            f"{builder.why_not('regions')}"
        )
    for name in what:
        if name not in available:
            raise ValueError(
                f"{cache.path}, clip {clip}: nothing to show for {name}: {builder.why_not(name)}"
            )

    wanted = what or [name for name in available if name not in FROM_FRAMES]
    chosen = tuple([name for name in WHAT if name in wanted])
    if not set(chosen).isdisjoint(FROM_FRAMES):
        builder.backbone = run_backbone(cache, clip, group, view, root, weights)
    return Drawing(chosen, content, result, builder.strips(chosen), builder.panels(chosen), style)


class _SectionBuilder:
    """Knows which sections a view has, and makes them.

    `asked` is the node that the caller chose, `node` the one that is drawn. `annotated` are boxes
    [1,T,N,4] and valid [1,T,N] to draw beside regions.
    """

    def __init__(
        self,
        view: ViewContent,
        result: HeadResult | None,
        style: Style,
        asked: Node | None,
        annotated: tuple[Tensor, Tensor] | None = None,
    ):
        self.view, self.result, self.style, self.asked = view, result, style, asked
        self.backbone: BackboneOutput | None = None
        self.annotated = annotated
        # RSTG's nodes are cells of its grids, so a node that is asked for is none of the boxes.
        self.grid_nodes = result is not None and result.head in ("rstg", "rstg_map")
        if asked is None or self.grid_nodes:
            self.node = self._default_node()
        else:
            self.node = self._checked_node(asked)

    def _default_node(self) -> Node | None:
        """The best box of the step with boxes that is nearest to the middle; None without boxes."""
        valid = self.view.valid
        drawn = self.style.steps or range(len(valid))
        middle = drawn[len(drawn) // 2]
        # Without scores the first box is the best.
        scores = self.view.fields.get("scores", np.zeros(valid.shape))
        for t in sorted(range(len(valid)), key=lambda t: abs(t - middle)):
            if valid[t].any():
                return t, int(np.where(valid[t], scores[t], -np.inf).argmax())
        return None

    def _checked_node(self, node: Node) -> Node:
        """The node, where there is a box for it; else ValueError."""
        valid, (t, i) = self.view.valid, node
        if not 0 <= t < len(valid):
            raise ValueError(
                f"node {t},{i}: there is no such step; the view has steps 0 to {len(valid) - 1}"
            )
        if not (0 <= i < valid.shape[1] and valid[t, i]):
            boxes = ", ".join(map(str, np.flatnonzero(valid[t]))) or "none"
            raise ValueError(f"node {t},{i}: there is no such box; boxes of step {t}: {boxes}")
        return node

    def available(self) -> tuple[str, ...]:
        """The names of WHAT that this view and its head can show."""
        fields, has_boxes = self.view.fields, self.node is not None
        several = int(self.view.valid.sum()) > 1
        kinds = set()
        if self.result is not None:
            kinds = {name.split(".")[0] for name in self.result.maps}

        has = {
            "boxes": has_boxes,
            "edges": has_boxes and len(self.view.steps) > 1,
            "nearest": has_boxes and ("nodes" in fields or "nearest" in fields),
            "similar": has_boxes and several and ("nodes" in fields or "similar" in fields),
            "attention": bool(self._attention()) or self._listens(),
            "regions": "kernels" in kinds,
            "saliency": "regions" in kinds,
            "stages": "backbone" in self.view.cache.config,
            "blocks": has_blocks(self.view.cache),
            "structure": "structure" in kinds,
            "predictions": self.result is not None,
        }
        return tuple([name for name in WHAT if has[name]])

    def why_not(self, name: str) -> str:
        """What is missing for a name of WHAT, in words."""
        if name in ("boxes", "edges", "nearest", "similar"):
            missing = "boxes"
            if name in ("nearest", "similar") and self.node is not None:
                missing = "nodes"
            return f"the view has no {missing}; extract with --keep {missing}"
        if name == "stages":
            return "the cache was not made by vidgraph extract"
        if name == "blocks":
            return "the backbone of the cache has no Event Adaptive Blocks"
        if self.result is None:
            return "it needs a trained head: pass --run"
        return f"head {self.result.head} gives {', '.join(self.result.maps) or 'no maps'}"

    def strips(self, chosen: Iterable[str]) -> list[Strip]:
        """The strips of `chosen`; the frames alone where it names none."""
        chosen, view, result, found = set(chosen), self.view, self.result, []
        # Boxes and edges share one strip.
        if "edges" in chosen:
            found.append(self.edges.strip("boxes" in chosen))
        elif "boxes" in chosen:
            found.append(draw_sections.boxes(view))
        if "nearest" in chosen:
            found.append(draw_nodes.nearest(view, self.node))
        if "similar" in chosen:
            found.append(draw_nodes.similar(view, self.node, self.style.neighbours))
        if "attention" in chosen:
            found += self._attention()
        if "regions" in chosen:
            found += self._regions()
        if "saliency" in chosen:
            found += self._saliency(result.by_point("regions")[""])
        if "stages" in chosen:
            for name, maps in self.backbone.maps.items():
                found.append(draw_maps.stage(maps, name, len(view.steps)))
        return found or [Strip("frames")]

    def panels(self, chosen: Iterable[str]) -> list[Canvas]:
        """The panels of `chosen`."""
        found = []
        if "edges" in chosen and self.edges.crowded:
            found.append(self.edges.table(self.style.width - 2 * MARGIN))
        if "blocks" in chosen:
            found += [block(output) for output in self._blocks()]
        if "attention" in chosen and self._listens():
            found.append(attention_vector(self.result.maps["attention"], len(self.view.steps)))
        if "structure" in chosen:
            found.append(structure(self.result))
        if "predictions" in chosen:
            labels, most = self.view.clip.labels, self.style.top
            found.append(predictions(self.result, labels, most))
            if self.result.own_scores is not None:
                own = replace(self.result, scores=self.result.own_scores, structure="")
                found.append(predictions(own, labels, most, of="its own structure"))
        return found

    @cached_property
    def edges(self) -> EdgeDrawing:
        """The edges of the view; those of a head that has some, else the IoU graphs."""
        graphs = None
        if self.result is not None and "front" in self.result.maps:
            graphs = (self.result.maps["front"], self.result.maps["back"])
        return EdgeDrawing(self.view, graphs, self.style.least, self.style.steps)

    def _listens(self) -> bool:
        """Whether the head is EAN's transformer, whose attention is a panel."""
        result = self.result
        return result is not None and result.head == "ean" and "attention" in result.maps

    def _blocks(self) -> list[BlockOutput]:
        """The blocks of the backbone; those that the head runs are the head's own."""
        own = {} if self.result is None else {one.stage: one for one in self.result.blocks}
        return [own.get(one.stage, one) for one in self.backbone.blocks]

    def _attention(self) -> list[Strip]:
        """The strips of a head's attention, by the head and its maps (see docs/show.md)."""
        view, result, node, most = self.view, self.result, self.node, self.style.neighbours
        if result is None:
            return []
        # These strips need no boxes.
        if self.grid_nodes:
            return self._grid_attention()
        if result.head == "attentive":
            return queries(view, result.maps)
        if node is None:
            return []
        if "node_attention" in result.maps:
            return self._gos_attention(result.maps["node_attention"])
        if "similarity" in result.maps:
            graph = result.maps["similarity"]
            return [draw_nodes.listening(view, node, graph, most, "similarity graph")]

        weights = result.maps.get("attention")
        if weights is None or not result.head.startswith("gos_"):
            return []
        if weights.ndim == 2:
            title = f"{result.head}: attention"
            return [draw_nodes.listening(view, node, weights, most, title)]
        if weights.shape[-1] == 1:
            return [draw_nodes.node_attention(view, weights[..., 0], "node attention", result.head)]
        if result.head == "gos_temp_conv":
            return [draw_nodes.nearest_of_head(view, node, weights)]
        return [draw_maps.background(view, node, weights, result.cells, "background")]

    def _grid_attention(self) -> list[Strip]:
        """RSTG's weights [T,14,14] at each point of the network."""
        receiver = None
        if self.asked is not None:
            t, receiver = self.asked
            if not 0 <= receiver < RSTG_NODES:
                raise ValueError(f"node {t},{receiver}: RSTG's grids have nodes 0 to 13")

        strips = []
        for point, weights in self.result.by_point("attention").items():
            title = f"the grid's messages at {point}" if point else "the grid's messages"
            strips.append(draw_maps.grid(weights, receiver, title))
        return strips

    def _gos_attention(self, weights: np.ndarray) -> list[Strip]:
        """Weights [cells,E,T,N]: the mean over the edges that have node attention."""
        edges = weights.reshape(-1, *weights.shape[-2:])
        attending = edges[~np.isnan(edges).all((1, 2))]
        if not len(attending):
            return []
        note = f"mean over the {len(attending)} of {len(edges)} edges whose operation ends with it"
        return [draw_nodes.node_attention(self.view, attending.mean(0), "node attention", note)]

    def _regions(self) -> list[Strip]:
        """DyReg's regions at each point of the network, beside annotated boxes."""
        found, maps = [], self.result.maps
        for point, kernels in self.result.by_point("kernels").items():
            boxes = maps.get(f"centres.{point}"), maps.get(f"radii.{point}")
            title = f"regions at {point}"
            found.append(draw_maps.regions(kernels, title, *boxes, self.annotated))
        return found

    def _saliency(self, maps: np.ndarray) -> list[Strip]:
        """EAN's maps [T,M,P], a strip per object; their mean where there are many."""
        maps = maps.reshape(*maps.shape[:2], *self.result.cells)
        count = maps.shape[1]
        if count > MAX_OBJECTS:
            return [draw_maps.heat(maps.mean(1), f"saliency, mean over {count} objects")]

        strips = []
        for k in range(count):
            title = f"saliency of object {k + 1} of {count}"
            strips.append(draw_maps.heat(maps[:, k], title, "weights of the cells", 0.7))
        return strips
