"""Every size that the five papers report and that needs no training, beside ours: `FIGURES`.

tests/heads/evaluation/test_published.py counts each row anew. `python -m tests.support.published`
prints docs/counts.md from it.

"M" is a million parameters. "G" is a thousand million multiply-accumulates (MACs), which the papers
call FLOPs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from heads.evaluation.counting import NetworkCount, count, count_backbone, count_head
from heads.interface.clips import Dims
from heads.papers.dyreg.module import DyReg
from heads.papers.ean.sparse_objects import ObjectsAdded, new_objects
from pipeline.backbones import build_backbone

CLASSES = 174
RES5 = (2048, 7, 7)


@dataclass(frozen=True)
class Cost:
    """Parameters, MACs, and MACs with norms, activations and pools as GOS's tool counts them."""

    parameters: int
    macs: int
    tool: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters, self.macs + other.macs, self.tool + other.tool
        )


@dataclass(frozen=True)
class Figure:
    """One number of a paper. It is met where ours rounds to it at its number of digits, or is
    within 1 % of it.

    Attributes:
        system: the paper's short name.
        where: the table or section.
        what: what is counted.
        unit: "M" or "G".
        paper: the paper's number; None for a sum that the papers leave to their readers.
        ours: our parameters, or the MACs of convolutions and matrix products as `vidgraph summary`
            prints them.
        cost: counts ours anew.
        variant: of our network; "-" if it has none.
        convention: what the paper counts, if that is not the same as ours.
        counted: computes the number by that convention.
        unmet: why the figure is not met.
    """

    system: str
    where: str
    what: str
    unit: str
    paper: float | None
    ours: int
    cost: Callable[[], Cost]
    variant: str = "released"
    convention: str = ""
    counted: Callable[[Cost], float] | None = None
    unmet: str = ""

    @property
    def name(self) -> str:
        return f"{self.system} {self.where} {self.what} {self.unit} {self.variant}"

    def found(self) -> int:
        """Our number, counted now."""
        cost = self.cost()
        return cost.parameters if self.unit == "M" else cost.macs

    def as_paper(self) -> float:
        """Our number by the paper's convention, in M or G."""
        number = self.found() if self.counted is None else self.counted(self.cost())
        return number / {"M": 1e6, "G": 1e9}[self.unit]

    def met(self) -> bool | None:
        """Whether our number is the paper's; None if the paper has none."""
        if self.paper is None:
            return None
        ours, (_, _, decimals) = self.as_paper(), str(self.paper).partition(".")
        # A figure such as 0.2 stands for all that round to it, which is more than 1 %.
        return round(ours, len(decimals)) == self.paper or abs(ours / self.paper - 1) <= 0.01


# What is counted. Options are values that can be hashed, so that each network is built only once.


def cost_of(counted: NetworkCount, part: str = "") -> Cost:
    row = counted.row(part)
    return Cost(row.parameters, row.macs, counted.tool_macs)


@cache
def _backbone(name: str, frames: int, size: int, options: tuple) -> Cost:
    return cost_of(count_backbone(name, dict(options), frames=frames, size=(size, size)))


def backbone(name: str, frames: int = 32, size: int = 224, **options) -> Cost:
    return _backbone(name, frames, size, tuple(options.items()))


@cache
def _head(
    name: str, sizes: tuple, cut: str, shape: tuple, classes: int, options: tuple
) -> NetworkCount:
    return count_head(name, Dims(*sizes, maps={cut: shape}), classes, dict(options))


def head(
    name: str,
    sizes: tuple,
    at: str = "res5",
    shape: tuple = RES5,
    classes: int = CLASSES,
    part: str = "",
    **options,
) -> Cost:
    """Count a head.

    Args:
        name: the head.
        sizes: (T, N, C).
        at: the cut of its one map.
        shape: (C, h, w) of that map.
        classes: K.
        part: a module of the head; "" is the whole head.
        **options: those of the head.
    """
    return cost_of(_head(name, sizes, at, shape, classes, tuple(options.items())), part)


def linear(inputs: int, outputs: int) -> Cost:
    return Cost((inputs + 1) * outputs, inputs * outputs, inputs * outputs)


# GOS.

# Gains and offsets of the backbone's batch norms.
NORMS = 53_120
CONVOLUTIONS = ("weights of convolutions and linear layers", lambda cost: cost.parameters - NORMS)
TOOL = (
    "2 per element of a batch norm, 1 of an activation and of a pool's input",
    lambda cost: cost.tool,
)
# W (x_i - x_j) for every pair of nodes on six edges.
NAIVE = 6 * 160 * 160 * 256 * 256
WITH_NAIVE = (
    "as for the backbone, and diff_prop's linear layer on all pairs of nodes, 10.07 G, which ours "
    "avoids",
    lambda cost: cost.tool + NAIVE,
)
WITH_400 = ("with a classifier of 400 classes", lambda cost: cost.parameters + 2049 * 400)
# The network of STRG's Table 4: 3x1x1 in every other block, res5 at 14x14, five non-local blocks.
NON_LOCAL_NORMS = NORMS + 2 * (2 * 512 + 3 * 1024)
NON_LOCAL_WEIGHTS = (
    "weights of convolutions and linear layers, with a classifier of 400 classes",
    lambda cost: cost.parameters - NON_LOCAL_NORMS + 2049 * 400,
)
# Both products of two blocks on 16 x 28 x 28 cells and of three on 16 x 14 x 14, where a quarter of
# the cells is looked at.
CELLS = 16 * 28 * 28
NON_LOCAL_PRODUCTS = 2 * (2 * CELLS * CELLS // 4 * 256 + 3 * (CELLS // 4) * (CELLS // 16) * 512)
WITHOUT_PRODUCTS = (
    "as for the backbone, without products of two maps, which that tool does not see",
    lambda cost: cost.tool - NON_LOCAL_PRODUCTS,
)
NON_LOCAL = (
    "the paper does not say what its figure counts: this network has 221 G with the products of "
    "two maps, 174 G without them, and 153 G without the non-local blocks"
)
FULL_KERNELS = "full temporal kernels have 0.44 G more than depthwise ones, which the paper counts"
FULL_STRUCTURE = (
    "full temporal kernels have 2.74 M more than depthwise ones, which the paper counts"
)
DEPTHWISE = "paper, kernel=depthwise"
# The parts of the released head by their modules, with their parameters.
GOS_PARTS = {
    "cells": ("six superedges", 4_442_100),
    "stem": ("reduction", 524_544),
    "structure": ("alpha", 7_710),
    "fc": ("classifier", 178_350),
    "": ("the head", 5_152_704),
}


def gos(part: str = "", **options) -> Cost:
    return head("gos", (16, 10, 2048), part=part, **options)


def gos_rows() -> list[Figure]:
    def plain() -> Cost:
        return backbone("i3d_r50")

    def non_local() -> Cost:
        return backbone("i3d_r50_nl", res5_stride=1)

    def released() -> Cost:
        return plain() + gos(variant="released")

    def paper() -> Cost:
        return plain() + gos(variant="paper")

    def depthwise() -> Cost:
        return plain() + gos(variant="paper", kernel="depthwise")

    row = partial(Figure, "GOS", "supp. Table 2")
    rows = [
        row("NL-I3D", "M", 35.3, 34_582_336, non_local, "-", *NON_LOCAL_WEIGHTS),
        row("NL-I3D", "G", 167.5, 220_857_892_864, non_local, "-", *WITHOUT_PRODUCTS, NON_LOCAL),
        row("backbone", "M", 32.1, 32_204_608, plain, "-", *CONVOLUTIONS),
        row("backbone", "G", 127.6, 126_780_702_720, plain, "-", *TOOL),
        row("whole", "M", 37.3, 37_357_312, released, "released", *CONVOLUTIONS),
        row("whole", "G", 138.4, 128_075_090_752, released, "released", *WITH_NAIVE),
        row("whole", "M", 37.3, 39_712_750, paper, "paper", *CONVOLUTIONS, FULL_STRUCTURE),
        row("whole", "G", 138.4, 129_170_050_048, paper, "paper", *WITH_NAIVE, FULL_KERNELS),
        row("whole", "M", 37.3, 36_970_990, depthwise, DEPTHWISE),
        row("whole", "G", 138.4, 128_729_648_128, depthwise, DEPTHWISE, *WITH_NAIVE),
    ]
    for part, (what, ours) in GOS_PARTS.items():
        count_part = partial(gos, part, variant="released")
        rows.append(Figure("GOS", "supp. Table 2, a part", what, "M", None, ours, count_part))
    return rows


# STRG: 800 nodes of 512 channels, 50 boxes in each of 16 steps.

DENSE = 800 * 512 * 512 * 2 + 800 * 800 * 512 + 9 * (800 * 800 * 512 + 800 * 512 * 512)


def strg() -> Cost:
    return head("strg", (16, 50, 512), at="reduced", shape=(512, 14, 14), reduce="cached")


DENSE_GRAPHS = (
    "G^sim once, and nine dense products G X W of 800 nodes, three in each layer: 5.58 G",
    lambda cost: cost.macs - strg().macs + DENSE,
)
ALTERNATING = (
    "153 G is the figure of 3×1×1 in every other block, as in the non-local networks' code: row I3D"
)


def strg_rows() -> list[Figure]:
    def alternating() -> Cost:
        return backbone("i3d_r50", temporal="alternating", res5_stride=1)

    def every() -> Cost:
        return backbone("i3d_r50", res5_stride=1)

    def joint() -> Cost:
        return alternating() + strg()

    def reduction() -> Cost:
        sizes, shape = (16, 50, 512), (2048, 14, 14)
        return head("strg", sizes, shape=shape, reduce="conv", part="reduction")

    reported = partial(Figure, "STRG", "sec. 6.1")
    table = partial(Figure, "STRG", "Table 1")
    layers = partial(Figure, "STRG", "sec. 4.2, 5")
    half, full = "I3D, 3×1×1 in every other block", "I3D, 3×1×1 in every block"
    as_table = f"{full} as in its Table 1"
    graphs = "graph layers, w and w', norms, classifier"
    return [
        reported("I3D", "G", 153, 152_470_814_720, alternating, "-"),
        reported("I3D and joint GCN", "G", 158, 155_576_649_728, joint, "-", *DENSE_GRAPHS),
        table(half, "M", None, 27_223_872, alternating, "-", *WITH_400),
        table(full, "M", None, 32_204_608, every, "-"),
        reported(as_table, "G", 153, 170_556_653_568, every, "-", unmet=ALTERNATING),
        layers(graphs, "M", None, 3_066_030, strg, "-"),
        Figure("STRG", "text", "1×1×1 convolution", "M", None, 1_049_088, reduction, "-"),
    ]


# DyReg-GNN.

# Channels and cells a side of the three modules on TSM-R50.
PLACES = ((128, 28), (256, 14), (512, 7))
PAIRWISE = sum(3 * 16 * (81 - 9) * c * c for c in (128, 256, 256))
# Products that no layer makes: of kernels and map, of queries and keys, of weights and messages, of
# kernels and nodes. They are the same whatever the regions are.
PRODUCTS = sum(
    16 * (2 * 9 * side * side * c + 3 * 2 * 81 * c) for c, side in ((128, 28), (256, 14), (256, 7))
)
LAYERS = (
    "convolutions, linear layers and GRUs alone, the message layer on all 81 pairs of nodes, where "
    "ours is linear and acts on 9",
    lambda cost: cost.macs - PRODUCTS + PAIRWISE,
)
WITH_DETECTOR = (
    "the same, and the detector, 39.7 G",
    lambda cost: cost.macs - PRODUCTS + PAIRWISE + 39.7e9,
)
# Table 6: regions, the paper's name and figure, ours.
DIGITS = (
    ("none", "ResNet-18", 2.79, 2_790_904),
    ("fixed", "Fixed", 2.82, 2_823_864),
    ("semantic", "Semantic", 2.85, 2_853_265),
    ("lite", "Lite", 2.83, 2_832_937),
    ("dynamic", "DyReg", 3.08, 3_080_992),
)


@cache
def digits(regions: str) -> Cost:
    """Count the MultiSyncMNIST network: three stages of a grey ResNet-18 and one module."""
    with torch.device("meta"):
        network = build_backbone("resnet18", stages=3, grey=True)
    if regions != "none":
        grid = network.grid("res3", (128, 128))
        module = DyReg(
            network.channels("res3"), grid, 32, regions=regions, offset_width=32, variant="released"
        )
        network.insert("res3", module)
    return Cost(sum(p.numel() for p in network.parameters()), 0, 0) + linear(256, 56)


@cache
def _dyreg(regions: str) -> tuple[NetworkCount, ...]:
    found = []
    for channels, side in PLACES:
        module = DyReg(channels, (side, side), variant="released", regions=regions)
        # Not on the meta device, where each of a GRU's steps is Python code: this is faster.
        x = torch.zeros(1, channels, 16, side, side)
        if module.reads_boxes:
            module.boxes = torch.zeros(1, 16, 9, 4)
            module.valid = torch.ones(1, 16, 9, dtype=torch.bool)
        found.append(count(module, partial(module, x), ""))
    return tuple(found)


def dyreg(regions: str, part: str = "") -> Cost:
    """The three modules on TSM-R50 at 16 frames of 224², or a part of each."""
    return sum((cost_of(counted, part) for counted in _dyreg(regions)), Cost(0, 0, 0))


def dyreg_rows() -> list[Figure]:
    fixed, boxes = partial(dyreg, "fixed"), partial(dyreg, "detector")
    dynamic, regions_alone = partial(dyreg, "dynamic"), partial(dyreg, "dynamic", "regions")
    trunk = partial(backbone, "tsm_r50", frames=16)

    rows = []
    for regions, what, paper, ours in DIGITS:
        cost = partial(digits, regions)
        rows.append(Figure("DyReg-GNN", "Table 6", what, "M", paper, ours, cost))
    row = partial(Figure, "DyReg-GNN", "Table 1")
    extra = partial(Figure, "DyReg-GNN", "sec. 4.1")
    return [
        *rows,
        row("TSM-R50", "G", 65.8, 65_394_180_096, trunk, "-", *TOOL),
        row("+ GNN, fixed regions", "G", 1.4, 959_640_832, fixed, "released", *LAYERS),
        row("+ GNN, detector", "G", 41.1, 981_655_552, boxes, "released", *WITH_DETECTOR),
        row("+ DyReg", "G", 1.6, 1_191_813_120, dynamic, "released", *LAYERS),
        extra("regions alone", "G", 0.2, 210_157_568, regions_alone),
    ]


# RSTG.


def rstg_rows() -> list[Figure]:
    def whole() -> Cost:
        trunk = backbone("digit_cnn", frames=10, size=64)
        options = {"attention": "simple", "update": "shared", "norm": "batch", "residual": False}
        options |= {"variant": "released", "cut": "conv3"}
        return trunk + head("rstg", (10, 0, 0), "conv3", (512, 6, 6), 46, **options)

    return [Figure("RSTG", "SyncMNIST", "whole", "M", None, 10_565_168, whole)]


# EAN: 8 frames of 224², 174 classes. The papers' parameters leave out the positions E, and so do
# the rows (position=none).

NO_POSITIONS = "without the positions E"
FIVE = "stem,res2,res3,res4,res5"
FUSED = (
    "the paper counts fusions alike; ours has the product with M, 0.31 G, only where there is an M "
    "to multiply by"
)
DEEPER = (
    "the released 16-frame network has a second motion branch and two more convolutions, 1.04 G in "
    "all, that the paper has not"
)
EARLY = (
    "the release has no transformer at an earlier stage; ours has a quarter of the channels there, "
    "as at the last one"
)
PAPER_CODE = "the released trunk with the paper's Latent Motion Code"
UNGROUPED = (
    "1×1×1 convolutions without groups, two 5³ convolutions in ESP-Net, four layers of "
    "Saliency-Net; the paper counts the released layers"
)
NO_DETECTOR = "our count is without the detector"
ALL_TOKENS = "392 tokens cost 2.2 G with the transformer's own widths"
TAPS_M = "taps of 5 in place of dilated ones are 0.18 M"
TAPS_G = "and 0.66 G: the paper changed more than that"
MOTION = "between the two variants: 1.17 G released, 0.91 G with the paper's sizes"


def ean(
    regions: str = "saliency",
    segments: int = 8,
    variant: str = "released",
    position: str = "none",
    **options,
) -> Cost:
    frames = segments * (5 if options.get("lmc") else 1)
    trunk = backbone("ean_r50", frames=frames, variant=variant, segments=segments, **options)
    boxes = 8 if regions == "boxes" else 0
    return trunk + head(
        "ean", (segments, boxes, 0), variant=variant, regions=regions, position=position
    )


@cache
def ean_objects_at(points: tuple[str, ...], eab: str) -> Cost:
    """EAN with blocks at `eab`, transformers at `points` and at the end."""
    with torch.device("meta"):
        network = build_backbone("ean_r50", variant="released", eab=eab)
        for point in points:
            channels, grid = network.channels(point), network.grid(point, (224, 224))
            network.insert(
                point,
                ObjectsAdded(new_objects(channels, grid, 8, channels // 4, True, position="none")),
            )
        x = torch.empty(1, 3, 8, 224, 224)
    trunk = cost_of(count(network.to("meta"), lambda: network(x), ""))
    return trunk + head("ean", (8, 0, 0), variant="released", regions="saliency", position="none")


def motion_code(variant: str, segments: int = 8) -> Cost:
    """What Latent Motion Code adds to the trunk."""
    options = {"variant": variant, "eab": "none", "segments": segments}
    with_code = backbone("ean_r50", frames=5 * segments, lmc=True, **options)
    plain = backbone("ean_r50", frames=segments, **options)
    return Cost(
        with_code.parameters - plain.parameters,
        with_code.macs - plain.macs,
        with_code.tool - plain.tool,
    )


def ean_row(
    where: str,
    what: str,
    paper_m: float | None,
    paper_g: float,
    parameters: int,
    macs: int,
    *,
    why_m: str = "",
    why_g: str = "",
    **options,
) -> list[Figure]:
    """Make the figures of a row of a table.

    Args:
        where: the table.
        what: the row.
        paper_m: the paper's M; None if it gives none.
        paper_g: the paper's G.
        parameters: ours.
        macs: ours.
        why_m: why M is not met.
        why_g: why G is not met.
        **options: of our network.
    """
    cost, row = partial(ean, **options), partial(Figure, "EAN", where, what)
    figures = []
    if paper_m is not None:
        note = {"convention": NO_POSITIONS, "unmet": why_m}
        figures.append(row("M", paper_m, parameters, cost, **note))
    figures.append(row("G", paper_g, macs, cost, unmet=why_g))
    return figures


# What several rows share, or what does not fit on a line: the paper's M and G, ours.
BASELINE = (24.0, 33.1, 24_043_218, 32_911_906_432)
FIVE_EABS = (65.8, 36.2, 65_471_005, 35_983_133_014)
BOTH = (36.0, 36.1, 36_039_249, 35_977_768_406)
SOI_ALONE = (30.3, 33.8, 30_487_894, 33_703_061_120)
ONE_SCALE = (30.9, 36.1, 31_092_782, 35_906_602_880)
FIXED = (None, 35.8, 35_378_125, 35_719_060_950)
BOXES = (None, 71.3, 35_378_125, 35_843_612_118)
CELLS = (None, 36.4, 35_378_125, 37_352_254_934)
STATIC = (30.9, 36.0, 31_065_594, 35_812_303_360)
NO_DILATION = (37.2, 37.5, 36_216_585, 36_639_903_446)
FACTORISED = (35.7, 35.7, 35_981_328, 35_765_161_718)
IDENTITY = (30_979_322, 35_497_599_488)
LMC_16 = (None, 74, 36_931_041, 75_308_990_158)

EAN = [
    ean_row("Table 5", "baseline", *BASELINE, eab="none", regions="none"),
    ean_row("Table 5", "+ EABs", 29.5, 35.3, 29_594_573, 35_186_613_718, regions="none"),
    ean_row("Table 5", "+ SOI-Tr", *SOI_ALONE, eab="none"),
    ean_row("Table 5", "both", *BOTH),
    ean_row("Table 6", "stages 1-4", *BOTH),
    ean_row("Table 6", "stages 1-5", *FIVE_EABS, eab=FIVE, regions="none"),
    ean_row("Table 7", "no regions", None, 35.3, 29_594_573, 35_186_613_718, regions="none"),
    ean_row("Table 7", "fixed regions", *FIXED, regions="fixed"),
    ean_row("Table 7", "boxes of Faster R-CNN", *BOXES, regions="boxes", why_g=NO_DETECTOR),
    ean_row("Table 7", "all cells", *CELLS, regions="all", why_g=ALL_TOKENS),
    ean_row("Table 7", "saliency", None, *BOTH[1:]),
    ean_row("Table 8", "only SOI-Tr", *SOI_ALONE, eab="none"),
    ean_row("Table 8", "S-Block", *ONE_SCALE, scales="small", fusion="identity"),
    ean_row("Table 8", "L-Block", *ONE_SCALE, scales="large", fusion="identity"),
    ean_row("Table 8", "Incep-Block", 30.9, 36.0, *IDENTITY, fusion="identity", why_g=FUSED),
    ean_row("Table 8", "EAB", *BOTH),
    ean_row("Table 9", "identity", 30.9, 36.0, *IDENTITY, fusion="identity", why_g=FUSED),
    ean_row("Table 9", "shuffle", 30.9, 35.9, *IDENTITY, fusion="shuffle", why_g=FUSED),
    ean_row("Table 9", "static", *STATIC, fusion="static"),
    ean_row("Table 9", "dynamic", *BOTH),
    ean_row("Table 10", "no max-pool", *BOTH, pool="none"),
    ean_row("Table 10", "avg-pool", *BOTH, pool="avg"),
    ean_row("Table 10", "no inter-ReLU", *BOTH, inter_relu=False),
    ean_row("Table 10", "no dilation", *NO_DILATION, dilation=False, why_m=TAPS_M, why_g=TAPS_G),
    ean_row("Table 10", "(1+1+1)D", *FACTORISED, factorised=True),
    ean_row("Table 10", "ours", *BOTH),
    ean_row("Table 1", "8 frames", None, 36, 36_039_249, 35_977_768_406),
    ean_row("Table 1", "16 frames", None, 72, 36_039_249, 71_935_557_326, segments=16),
    ean_row("Table 1", "8 frames with LMC", None, 37, 36_786_257, 37_146_668_502, lmc=True),
    ean_row("Table 1", "16 frames with LMC", *LMC_16, segments=16, lmc=True, why_g=DEEPER),
]

# Table 6, transformers at earlier stages: stages, points, blocks, the paper's M, ours, G, ours.
EARLIER = (
    ("stages 1-2", ("res3", "res4"), "stem,res2", 35.6, 32_617_157, 35.8, 35_879_770_326),
    ("stages 1-3", ("res4",), "stem,res2,res3", 34.8, 32_880_585, 35.9, 35_935_517_270),
)


def ean_rows() -> list[Figure]:
    rows = []
    for figures in EAN:
        rows += figures

    for what, points, eab, paper_m, parameters, paper_g, macs in EARLIER:
        cost, row = partial(ean_objects_at, points, eab), partial(Figure, "EAN", "Table 6", what)
        rows.append(row("M", paper_m, parameters, cost, convention=NO_POSITIONS, unmet=EARLY))
        rows.append(row("G", paper_g, macs, cost))

    def ensemble(**options) -> Cost:
        return ean(**options) + ean(segments=16, **options)

    def with_paper_code(segments: int) -> Cost:
        return ean(segments=segments) + motion_code("paper", segments)

    def ensemble_with_paper_code() -> Cost:
        return with_paper_code(8) + with_paper_code(16)

    # The other variant than the paper counts.
    paper = partial(ean, variant="paper")
    both = partial(Figure, "EAN", "Table 5", "both", variant="paper", unmet=UNGROUPED)
    lmc = partial(Figure, "EAN", "sec. 4.1", "LMC alone", "G", 1.1, unmet=MOTION)
    row = partial(Figure, "EAN", "Table 1")
    with_lmc = partial(ensemble, lmc=True)
    code_row = partial(row, unit="G", variant="paper", convention=PAPER_CODE)
    eight, sixteen = partial(with_paper_code, 8), partial(with_paper_code, 16)
    return [
        *rows,
        row("8+16 ensemble", "G", 108, 107_913_325_732, ensemble),
        row("8+16 ensemble with LMC", "G", 111, 112_455_658_660, with_lmc, unmet=DEEPER),
        code_row("8 frames with LMC", paper=37, ours=36_886_556_118, cost=eight),
        code_row("16 frames with LMC", paper=74, ours=73_753_132_750, cost=sixteen),
        code_row(
            "8+16 ensemble with LMC",
            paper=111,
            ours=110_639_688_868,
            cost=ensemble_with_paper_code,
        ),
        both("M", 36.0, 37_309_424, paper, convention=NO_POSITIONS),
        both("G", 36.1, 38_236_962_496, paper),
        lmc(1_168_900_096, partial(motion_code, "released")),
        lmc(908_787_712, partial(motion_code, "paper"), "paper"),
    ]


# STIN and STLT: their papers print no sizes that we know of. These are the layers that the code of
# their releases lists, counted by hand in tests/heads/zoo/test_stin.py and test_stlt.py.
NEVER_READ = (
    "with two frame types and a layer of scores that it never reads; one more block is held and "
    "never run: not counted",
    lambda cost: cost.parameters + 4 * 768,
)
STIN_MODELS = (
    ("coord", 1.109, 1_109_166, {"classes": "none"}),
    ("coord_latent", 1.208, 1_208_366, {}),
    ("coord_latent_nl", 1.802, 1_801_646, {"non_local": 3}),
    (
        "global_coord_latent_nl, without the I3D",
        2.982,
        2_981_806,
        {"non_local": 3, "appearance": "pooled"},
    ),
)


def layout_rows() -> list[Figure]:
    def cost(name: str, steps: int, **options) -> Cost:
        dims = Dims(steps, 4, 2048, box_classes=2)
        return cost_of(count_head(name, dims, CLASSES, {"variant": "released", **options}))

    rows = []
    for what, size, ours, options in STIN_MODELS:
        counted = partial(cost, "stin", 8, **options)
        rows.append(Figure("STIN", "layers of the release", what, "M", size, ours, counted))
    whole = {"convention": NEVER_READ[0], "counted": NEVER_READ[1]}
    counted = partial(cost, "stlt", 16)
    where = "layers of the release"
    rows.append(Figure("STLT", where, "stlt", "M", 85.992, 85_989_294, counted, **whole))
    return rows


FIGURES = [
    *(*gos_rows(), *strg_rows(), *dyreg_rows(), *rstg_rows(), *ean_rows()),
    *layout_rows(),
]


ABOVE = """# Parameters and multiply-accumulates, ours and the papers'

M is a million parameters. G is a thousand million multiply-accumulates of one clip; the papers call
them FLOPs. The column *ours* is exact: all parameters, or the MACs of convolutions and matrix
products, as `vidgraph summary` prints them. *As the paper counts* applies the paper's convention to
it, where that differs; ✓ rounds to the paper's number at its digits, or is within 1 % of it. STIN
and STLT are compared with the layers that their released code lists. A test counts every row again.

| system | where | what | variant | paper | ours | as the paper counts | | remark |
|---|---|---|---|---|---|---|---|---|
"""


def line_of(figure: Figure) -> str:
    """Write the row of a figure."""
    paper = "" if figure.paper is None else f"{figure.paper} {figure.unit}"
    counted = f"{figure.as_paper():.4g} {figure.unit}"
    if figure.convention:
        counted += f" ({figure.convention})"
    mark = {None: "", True: "✓", False: "✗"}[figure.met()]
    cells = [
        figure.system,
        figure.where,
        figure.what,
        figure.variant,
        paper,
        f"{figure.ours:,}",
        counted,
        mark,
        figure.unmet,
    ]
    return f"| {' | '.join(cells)} |"


def markdown() -> str:
    """Write docs/counts.md."""
    lines = ABOVE.splitlines() + [line_of(figure) for figure in FIGURES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
