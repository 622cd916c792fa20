"""STLT: transformers over boxes and classes, alone or fused with appearance.

Radevski, Moens and Tuytelaars, Revisiting Spatio-Temporal Layouts for Compositional Action
Recognition, BMVC 2021.

    L = STLT(boxes, classes), l = its last step                 [B,T+1,D], [B,D]
    A = transformer over a map, a = its token                   [B,1+n,D], [B,D]
    STLT      y = C_l(l)                                        [B,K]
    LCF       y = C_f [l, a]
    CAF       y = C_f [l', a'], of L' and A', which have read each other
    CACNF     y = (C_l(l) + C_a(a) + C_f [l', a']) / 3
    C(x) = W2 LN(gelu(W1 x))

The layout branch is in heads/papers/stlt/layout.py, the appearance branch in appearance.py, the
blocks in which they read each other in fusion.py. CACNF's loss is the mean of the losses of y and
of its three parts, as in the release.

The release differs (variant="released"): in the blocks of CAF and CACNF, appearance has a second
attention where layout has its feed-forward layers.

Differs from the paper: the network that makes the map is fixed. Not stated in the paper, and as in
the release: norms behind sums, GELU in the layout branch and ReLU in the appearance branch, one
cross-attention for both directions. The release starts all blocks of a transformer from the same
numbers; ours are drawn one by one. Its frame types "pad" and "start" never occur, and are left out.
"""

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.stlt.appearance import Appearance
from heads.papers.stlt.fusion import Classifier, CrossModal
from heads.papers.stlt.layout import Layout, causal

VARIANTS = {"paper": {"after": "feedforward"}, "released": {"after": "attention"}}
FUSIONS = ("none", "late", "cross", "central")
CLASSES = ("boxes", "none")
READS = ("map", "pooled")


class STLT(nn.Module):
    """The branches, what fuses them, and the classifiers.

    Args:
        layout: the layout branch.
        appearance: the appearance branch; None: layout alone.
        between: the blocks in which the two read each other.
        classifiers: by what they read: "layout", "appearance", "both".
        known: whether boxes have classes.
        seen: the map that appearance reads, "pooled", or "".
    """

    def __init__(
        self,
        layout: Layout,
        appearance: Appearance | None,
        between: list[CrossModal],
        classifiers: dict[str, Classifier],
        known: bool,
        seen: str,
    ):
        super().__init__()
        self.layout, self.appearance = layout, appearance
        self.between = nn.ModuleList(between)
        self.classifiers = nn.ModuleDict(classifiers)
        self.known, self.seen = known, seen

        self.needs: tuple[str, ...] = ("boxes", "valid")
        if known:
            self.needs += ("box_class",)
        if layout.boxes.score is not None:
            self.needs += ("scores",)
        if seen:
            self.needs += (seen,)
        self.uses = ("grid",) if seen not in ("", "pooled") else ()

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`, and grid [B,2] where a map is read and the cache has it.
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K]; of CACNF also the logits of its parts, as `branches`.
        """
        valid = clips.get("valid")
        kinds = clips.get("box_class") + 1 if self.known else valid.long()
        scores = clips.get("scores") if "scores" in self.needs else None
        layout = self.layout(clips.get("boxes"), valid, kinds, scores)  # [B,T+1,D]
        features = {"layout": layout[:, -1]}
        if self.appearance is not None:
            seen, inside = self.appearance(*self._cells(clips))  # [B,1+n,D]
            features["appearance"] = seen[:, 0]
            earlier = causal(layout.shape[1], layout.device)
            for block in self.between:
                layout, seen = block(layout, seen, earlier, inside)
            features["both"] = torch.cat([layout[:, -1], seen[:, 0]], -1)

        parts = []
        for name, classifier in self.classifiers.items():
            parts.append(classifier(features[name]))
        if len(parts) == 1:
            return HeadOutput(parts[0])
        return HeadOutput(sum(parts) / len(parts), branches=tuple(parts))

    def _cells(self, clips: Clips) -> tuple[Tensor, Tensor | None]:
        """Features [B,T,h,w,C], and which cells of the grid are no padding [B,h,w]."""
        x = clips.get(self.seen)
        if self.seen == "pooled":
            return x[:, :, None, None], None
        x = x.movedim(2, -1)  # [B,T,h,w,C]
        if clips.grid is None:
            return x, None
        h, w = x.shape[2:4]
        rows = torch.arange(h, device=x.device) < clips.grid[:, :1]  # [B,h]
        columns = torch.arange(w, device=x.device) < clips.grid[:, 1:]  # [B,w]
        return x, rows[:, :, None] & columns[:, None]


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    fusion: str = "none",
    classes: str = "boxes",
    scores: bool = False,
    reads: str = "map",
    cut: str = "",
    width: int = 768,
    heads: int = 12,
    spatial_layers: int = 4,
    temporal_layers: int = 8,
    appearance_layers: int = 4,
    fusion_layers: int = 4,
    after: str = "",
    frames: int = 256,
    class_start: float = 1.0,
    dropout: float = 0.1,
) -> STLT:
    """Build STLT and its fusions: Radevski et al., BMVC 2021.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; decides what is "".
        fusion: "none" (STLT), "late" (LCF), "cross" (CAF) or "central" (CACNF).
        classes: "boxes" reads `box_class`, "none" gives all boxes one class.
        scores: whether tokens of boxes know `scores` (the release: on Action Genome alone).
        reads: what appearance reads in a fusion: the cells of a "map", or "pooled".
        cut: the map; "" is the deepest that the cache holds.
        width: D.
        heads: of every attention, a divisor of D.
        spatial_layers: blocks over the boxes of a step.
        temporal_layers: blocks over steps.
        appearance_layers: blocks over cells.
        fusion_layers: blocks of "cross" and "central".
        after: what follows appearance's attention in these: "feedforward" or "attention".
        frames: positions of steps, one more than the most steps.
        class_start: a factor of the first embeddings of classes. At 1, as in the release, they
            outweigh places at the start; few videos need about 0.1.
        dropout: in every block, and on the tokens of boxes and steps.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: an unknown value, a size that is too small, or heads that do not divide D.
        MissingFields: the cache lacks what the head reads.
    """
    after = resolve("stlt", VARIANTS, variant, {"after": after})["after"]
    one_of("stlt", "fusion", fusion, FUSIONS)
    one_of("stlt", "classes", classes, CLASSES)
    one_of("stlt", "reads", reads, READS)
    at_least("stlt", 1, width=width, heads=heads)
    at_least("stlt", 2, frames=frames)
    at_least("stlt", 0, class_start=class_start)
    depths = {"spatial_layers": spatial_layers, "temporal_layers": temporal_layers}
    at_least("stlt", 1, **depths, appearance_layers=appearance_layers, fusion_layers=fusion_layers)
    if width % heads:
        raise ValueError(
            f"head stlt, option heads: expected a divisor of width = {width}, got {heads}"
        )

    seen = _seen(dims, fusion, reads, cut)
    needs = ["boxes", "valid"]
    needs += ["box_class"] if classes == "boxes" else []
    needs += ["scores"] if scores else []
    needs += [seen] if seen else []
    dims.require("stlt", *needs)

    kinds = dims.box_classes if classes == "boxes" else 1
    layout = Layout(
        kinds,
        scores,
        frames,
        width,
        heads,
        (spatial_layers, temporal_layers),
        dropout,
        class_start,
    )
    appearance = None
    if seen:
        channels, shape = dims.C, (dims.T, 1, 1)
        if seen != "pooled":
            channels, h, w = dims.maps[seen]
            shape = (dims.T, h, w)
        appearance = Appearance(channels, shape, width, heads, appearance_layers, dropout)
    between = []
    if fusion in ("cross", "central"):
        between = [CrossModal(width, heads, dropout, after) for _ in range(fusion_layers)]
    return STLT(
        layout,
        appearance,
        between,
        _classifiers(fusion, width, num_classes),
        classes == "boxes",
        seen,
    )


def _seen(dims: Dims, fusion: str, reads: str, cut: str) -> str:
    """Return the field or the cut that appearance reads; "" for layout alone."""
    if fusion == "none":
        return ""
    return "pooled" if reads == "pooled" else cut or dims.last_cut


def _classifiers(fusion: str, width: int, num_classes: int) -> dict[str, Classifier]:
    """Return the classifiers of a fusion, by what they read."""
    alone, both = (width, width, num_classes), (2 * width, width, num_classes)
    if fusion == "none":
        return {"layout": Classifier(*alone)}
    if fusion == "central":
        return {
            "layout": Classifier(*alone),
            "appearance": Classifier(*alone),
            "both": Classifier(*both),
        }
    return {"both": Classifier(*both)}
