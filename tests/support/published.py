"""Every size that the five papers report and that needs no training, beside ours: one table,
`FIGURES`.

test_published.py counts each row anew; `PYTHONPATH=.:tests python tests/support/published.py`
prints docs/counts.md from it.

"M" is a million parameters, "G" a thousand million multiply-accumulates (MACs; the papers call them
FLOPs). `ours` are the parameters, or the MACs of convolutions and matrix products as `vidgraph
summary` gives them. `counted` is what of it the paper counts, where that is not the same:
`convention` says what is in. A figure is met within 1 %; `unmet` says why another is not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

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
    """One number of a paper; see the top of this file. `paper` None: a sum that the papers leave to
    their readers.
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
        return (self.found() if self.counted is None else self.counted(self.cost())) / {
            "M": 1e6,
            "G": 1e9,
        }[self.unit]

    def met(self) -> bool | None:
        """Whether we have the paper's number; None where it has none."""
        return None if self.paper is None else abs(self.as_paper() / self.paper - 1) <= 0.01


# What is counted. Options are values, so that each network is built once however many rows it is
# in.


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
    """sizes: T, N, C; at and shape: the cut and size of the one map; part: the module of it that is
    asked for.
    """
    return cost_of(_head(name, sizes, at, shape, classes, tuple(options.items())), part)


def linear(inputs: int, outputs: int) -> Cost:
    return Cost((inputs + 1) * outputs, inputs * outputs, inputs * outputs)


# GOS.

NORMS = 53_120  # gains and offsets of the backbone's batch norms
CONVOLUTIONS = ("weights of convolutions and linear layers", lambda cost: cost.parameters - NORMS)
TOOL = (
    "2 per element of a batch norm, 1 of an activation and of a pool's input",
    lambda cost: cost.tool,
)
NAIVE = 6 * 160 * 160 * 256 * 256  # W (x_i - x_j) for every pair of nodes on six edges
WITH_NAIVE = (
    "as for the backbone, and diff_prop's linear layer on all pairs of nodes, 10.07 G, which ours "
    "avoids",
    lambda cost: cost.tool + NAIVE,
)
NON_LOCAL = "the five blocks alone are more on 16 steps of 28×28 and 14×14: their convolutions and products are 68.4 G"


def gos(part: str = "", **options) -> Cost:
    return head("gos", (16, 10, 2048), part=part, **options)


def gos_rows() -> list[Figure]:
    whole = lambda variant: lambda: backbone("i3d_r50") + gos(variant=variant)  # noqa: E731
    non_local = lambda: backbone("i3d_r50_nl")  # noqa: E731
    with_400 = ("with a classifier of 400 classes", lambda cost: cost.parameters + 2049 * 400)
    plain, table = lambda: backbone("i3d_r50"), "supp. Table 2"
    rows = [
        Figure("GOS", table, "NL-I3D", "M", 35.3, 34_582_336, non_local, "-", *with_400),
        Figure(
            "GOS", table, "NL-I3D", "G", 167.5, 182_014_443_520, non_local, "-", unmet=NON_LOCAL
        ),
        Figure("GOS", table, "backbone", "M", 32.1, 32_204_608, plain, "-", *CONVOLUTIONS),
        Figure("GOS", table, "backbone", "G", 127.6, 126_780_702_720, plain, "-", *TOOL),
        Figure(
            "GOS",
            table,
            "whole",
            "M",
            37.3,
            37_357_312,
            whole("released"),
            "released",
            *CONVOLUTIONS,
        ),
        Figure(
            "GOS",
            table,
            "whole",
            "G",
            138.4,
            128_075_090_752,
            whole("released"),
            "released",
            *WITH_NAIVE,
        ),
        Figure(
            *("GOS", table, "whole", "M", 37.3, 39_712_750, whole("paper"), "paper", *CONVOLUTIONS),
            unmet="full temporal kernels and a structure from 2048 features; the paper counts the "
            "released layers",
        ),
        Figure(
            *(
                "GOS",
                table,
                "whole",
                "G",
                138.4,
                129_170_050_048,
                whole("paper"),
                "paper",
                *WITH_NAIVE,
            ),
            unmet="full temporal kernels",
        ),
    ]
    parts = {"cells": 4_442_100, "stem": 524_544, "structure": 7_710, "fc": 178_350, "": 5_152_704}
    names = {
        "cells": "six superedges",
        "stem": "reduction",
        "structure": "alpha",
        "fc": "classifier",
        "": "the head",
    }
    for part, ours in parts.items():
        count_part = lambda part=part: gos(part, variant="released")  # noqa: E731
        rows.append(
            Figure("GOS", "supp. Table 2, a part", names[part], "M", None, ours, count_part)
        )
    return rows


# STRG: 800 nodes of 512 channels, 50 boxes in each of 16 steps.

DENSE = 800 * 512 * 512 * 2 + 800 * 800 * 512 + 9 * (800 * 800 * 512 + 800 * 512 * 512)


def strg() -> Cost:
    return head("strg", (16, 50, 512), at="reduced", shape=(512, 14, 14), reduce="cached")


def strg_rows() -> list[Figure]:
    def alternating(**options):
        return lambda: backbone("i3d_r50", temporal="alternating", res5_stride=1, **options)

    def every():
        return backbone("i3d_r50", res5_stride=1)

    dense = (
        "graphs as dense 800×800 products in all nine layers, 5.58 G",
        lambda cost: cost.macs - strg().macs + DENSE,
    )
    with_400 = ("with a classifier of 400 classes", lambda cost: cost.parameters + 2049 * 400)
    where = "sec. 6.1"
    return [
        Figure("STRG", where, "I3D", "G", 153, 152_470_814_720, alternating(), "-"),
        Figure(
            "STRG",
            where,
            "I3D and joint GCN",
            "G",
            158,
            155_576_649_728,
            lambda: alternating()() + strg(),
            "-",
            *dense,
        ),
        Figure(
            "STRG",
            "Table 1",
            "I3D, 3×1×1 in every other block",
            "M",
            None,
            27_223_872,
            alternating(),
            "-",
            *with_400,
        ),
        Figure("STRG", "Table 1", "I3D, 3×1×1 in every block", "M", None, 32_204_608, every, "-"),
        Figure(
            *(
                "STRG",
                where,
                "I3D, 3×1×1 in every block as in its Table 1",
                "G",
                153,
                170_556_653_568,
                every,
                "-",
            ),
            unmet="the reported figure is that of temporal convolutions in every other block",
        ),
        Figure(
            "STRG",
            "sec. 4",
            "graph layers, w and w', norms, classifier",
            "M",
            None,
            3_066_030,
            strg,
            "-",
        ),
        Figure(
            *("STRG", "sec. 4", "1×1×1 convolution", "M", None, 1_049_088),
            lambda: head(
                "strg", (16, 50, 512), shape=(2048, 14, 14), reduce="conv", part="reduction"
            ),
            "-",
        ),
    ]


# DyReg-GNN.

PLACES = (
    (128, 28),
    (256, 14),
    (512, 7),
)  # channels and cells a side of the three modules on TSM-R50
PAIRWISE = sum(3 * 16 * (81 - 9) * c * c for c in (128, 256, 256))
PAIRS = (
    "the message layer on all 81 pairs of nodes, where ours is linear and acts on 9",
    lambda cost: cost.macs + PAIRWISE,
)


@cache
def digits(regions: str) -> Cost:
    """The network for MultiSyncMNIST: three stages of a grey ResNet-18 with one module, 56
    classes.
    """
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
        x = torch.zeros(
            1, channels, 16, side, side
        )  # faster than on meta, where each of a GRU's steps is Python code
        if module.reads_boxes:
            module.boxes, module.valid = (
                torch.zeros(1, 16, 9, 4),
                torch.ones(1, 16, 9, dtype=torch.bool),
            )
        found.append(count(module, lambda module=module, x=x: module(x), ""))
    return tuple(found)


def dyreg(regions: str, part: str = "") -> Cost:
    """The three modules on TSM-R50 at 16 frames of 224², or a part of each."""
    return sum((cost_of(counted, part) for counted in _dyreg(regions)), Cost(0, 0, 0))


def dyreg_rows() -> list[Figure]:
    table = {"none": 2.79, "fixed": 2.82, "semantic": 2.85, "lite": 2.83, "dynamic": 3.08}
    ours = dict(zip(table, (2_790_904, 2_823_864, 2_853_265, 2_832_937, 3_080_992), strict=True))
    names = {"none": "ResNet-18", "dynamic": "DyReg"}
    rows = [
        Figure(
            *(
                "DyReg-GNN",
                "Table 6",
                names.get(regions, regions.capitalize()),
                "M",
                paper,
                ours[regions],
            ),
            lambda regions=regions: digits(regions),
        )
        for regions, paper in table.items()
    ]
    more = "given to two digits; ours is 1.47 for fixed regions, 1.49 and 0.21 for DyReg"
    detector = (
        "with that message layer, and the detector, 39.7 G",
        lambda cost: cost.macs + PAIRWISE + 39.7e9,
    )
    trunk = lambda: backbone("tsm_r50", frames=16)  # noqa: E731
    fixed, boxes, dynamic = (
        lambda regions=regions: dyreg(regions) for regions in ("fixed", "detector", "dynamic")
    )
    return [
        *rows,
        Figure("DyReg-GNN", "Table 1", "TSM-R50", "G", 65.8, 65_394_180_096, trunk, "-", *TOOL),
        Figure(
            *("DyReg-GNN", "Table 1", "+ GNN, fixed regions", "G", 1.4, 959_640_832),
            fixed,
            "released",
            *PAIRS,
            more,
        ),
        Figure(
            *("DyReg-GNN", "Table 1", "+ GNN, detector", "G", 41.1, 981_655_552),
            boxes,
            "released",
            *detector,
        ),
        Figure(
            *("DyReg-GNN", "Table 1", "+ DyReg", "G", 1.6, 1_191_813_120),
            dynamic,
            "released",
            *PAIRS,
            more,
        ),
        Figure(
            *(
                "DyReg-GNN",
                "sec. 4.1",
                "regions alone",
                "G",
                0.2,
                210_157_568,
                lambda: dyreg("dynamic", "regions"),
            ),
            unmet="given to one digit",
        ),
    ]


# RSTG.


def rstg_rows() -> list[Figure]:
    options = {"attention": "simple", "update": "shared", "norm": "batch", "residual": False}
    whole = lambda: (  # noqa: E731
        backbone("digit_cnn", frames=10, size=64)
        + head(
            "rstg", (10, 0, 0), "conv3", (512, 6, 6), 46, variant="released", cut="conv3", **options
        )
    )
    return [Figure("RSTG", "SyncMNIST", "whole", "M", None, 10_565_168, whole)]


# EAN: 8 frames of 224², 174 classes. The papers' parameters leave the positions E out, so the rows
# are without (position=none).

NO_POSITIONS = "without the positions E"
FIVE = "stem,res2,res3,res4,res5"
FUSED = "the paper counts fusions alike; ours has the product with M, 0.31 G, only where there is an M to multiply by"
DEEPER = "the released 16-frame network has a second motion branch, 0.62 G, that the paper has not"
EARLY = "the paper does not say how its transformers at earlier stages are made"
UNGROUPED = "1×1×1 convolutions without groups, two 5³ convolutions in ESP-Net; the paper counts the released layers"


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


def motion_code(variant: str) -> Cost:
    """What Latent Motion Code adds to the trunk."""
    with_code = backbone("ean_r50", frames=40, variant=variant, eab="none", lmc=True)
    plain = backbone("ean_r50", frames=8, variant=variant, eab="none")
    return Cost(
        with_code.parameters - plain.parameters,
        with_code.macs - plain.macs,
        with_code.tool - plain.tool,
    )


# table, what, options, M and G of the paper (None: not given), ours, why M or G is not met
EAN = [
    (
        "Table 5",
        "baseline",
        {"eab": "none", "regions": "none"},
        24.0,
        33.1,
        24_043_218,
        32_911_906_432,
        "",
        "",
    ),
    ("Table 5", "+ EABs", {"regions": "none"}, 29.5, 35.3, 29_594_573, 35_186_613_718, "", ""),
    ("Table 5", "+ SOI-Tr", {"eab": "none"}, 30.3, 33.8, 30_487_894, 33_703_061_120, "", ""),
    ("Table 5", "both", {}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    ("Table 6", "stages 1-4", {}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    (
        "Table 6",
        "stages 1-5",
        {"eab": FIVE, "regions": "none"},
        65.8,
        36.2,
        65_471_005,
        35_983_133_014,
        "",
        "",
    ),
    ("Table 7", "no regions", {"regions": "none"}, None, 35.3, 29_594_573, 35_186_613_718, "", ""),
    (
        "Table 7",
        "fixed regions",
        {"regions": "fixed"},
        None,
        35.8,
        35_378_125,
        35_719_060_950,
        "",
        "",
    ),
    (
        "Table 7",
        "boxes of Faster R-CNN",
        {"regions": "boxes"},
        None,
        71.3,
        35_378_125,
        35_843_612_118,
        "",
        "our count is without the detector",
    ),
    (
        *("Table 7", "all cells", {"regions": "all"}, None, 36.4, 35_378_125, 37_352_254_934),
        *("", "392 tokens cost 2.2 G with the transformer's own widths"),
    ),
    ("Table 7", "saliency", {}, None, 36.1, 36_039_249, 35_977_768_406, "", ""),
    ("Table 8", "only SOI-Tr", {"eab": "none"}, 30.3, 33.8, 30_487_894, 33_703_061_120, "", ""),
    (
        "Table 8",
        "S-Block",
        {"scales": "small", "fusion": "identity"},
        30.9,
        36.1,
        31_092_782,
        35_906_602_880,
        "",
        "",
    ),
    (
        "Table 8",
        "L-Block",
        {"scales": "large", "fusion": "identity"},
        30.9,
        36.1,
        31_092_782,
        35_906_602_880,
        "",
        "",
    ),
    (
        "Table 8",
        "Incep-Block",
        {"fusion": "identity"},
        30.9,
        36.0,
        30_979_322,
        35_497_599_488,
        "",
        FUSED,
    ),
    ("Table 8", "EAB", {}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    (
        "Table 9",
        "identity",
        {"fusion": "identity"},
        30.9,
        36.0,
        30_979_322,
        35_497_599_488,
        "",
        FUSED,
    ),
    (
        "Table 9",
        "shuffle",
        {"fusion": "shuffle"},
        30.9,
        35.9,
        30_979_322,
        35_497_599_488,
        "",
        FUSED,
    ),
    ("Table 9", "static", {"fusion": "static"}, 30.9, 36.0, 31_065_594, 35_812_303_360, "", ""),
    ("Table 9", "dynamic", {}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    (
        *("Table 10", "no max-pool", {"pool": "none"}, 36.0, 36.1, 35_952_977, 35_663_064_534),
        *("", "the paper has the branch's 1×1×1 convolution still"),
    ),
    ("Table 10", "avg-pool", {"pool": "avg"}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    (
        "Table 10",
        "no inter-ReLU",
        {"inter_relu": False},
        36.0,
        36.1,
        36_039_249,
        35_977_768_406,
        "",
        "",
    ),
    (
        *("Table 10", "no dilation", {"dilation": False}, 37.2, 37.5, 36_216_585, 36_639_903_446),
        *(
            "taps of 5 in place of dilated ones are 0.18 M",
            "and 0.66 G: the paper changed more than that",
        ),
    ),
    ("Table 10", "(1+1+1)D", {"factorised": True}, 35.7, 35.7, 35_981_328, 35_765_161_718, "", ""),
    ("Table 10", "ours", {}, 36.0, 36.1, 36_039_249, 35_977_768_406, "", ""),
    ("Table 1", "8 frames", {}, None, 36, 36_039_249, 35_977_768_406, "", ""),
    ("Table 1", "16 frames", {"segments": 16}, None, 72, 36_039_249, 71_935_557_326, "", ""),
    ("Table 1", "8 frames with LMC", {"lmc": True}, None, 37, 36_786_257, 37_146_668_502, "", ""),
    (
        "Table 1",
        "16 frames with LMC",
        {"segments": 16, "lmc": True},
        None,
        74,
        37_033_429,
        74_897_948_366,
        "",
        DEEPER,
    ),
]


def ean_rows() -> list[Figure]:
    rows = []
    for where, what, options, paper_m, paper_g, parameters, macs, why_m, why_g in EAN:
        cost = lambda options=options: ean(**options)  # noqa: E731
        if paper_m is not None:
            rows.append(
                Figure(
                    "EAN",
                    where,
                    what,
                    "M",
                    paper_m,
                    parameters,
                    cost,
                    "released",
                    NO_POSITIONS,
                    None,
                    why_m,
                )
            )
        rows.append(
            Figure("EAN", where, what, "G", paper_g, macs, cost, "released", "", None, why_g)
        )
    both = lambda **options: lambda: ean(**options) + ean(segments=16, **options)  # noqa: E731
    paper = lambda: ean(variant="paper")  # noqa: E731
    early = [
        ("stages 1-2", ("res3", "res4"), "stem,res2", 35.6, 33_534_661, 35.8, 35_911_751_894),
        ("stages 1-3", ("res4",), "stem,res2,res3", 34.8, 33_404_873, 35.9, 35_953_343_062),
    ]
    for what, points, eab, paper_m, parameters, paper_g, macs in early:
        cost = lambda points=points, eab=eab: ean_objects_at(points, eab)  # noqa: E731
        rows.append(
            Figure(
                "EAN",
                "Table 6",
                what,
                "M",
                paper_m,
                parameters,
                cost,
                "released",
                NO_POSITIONS,
                None,
                EARLY,
            )
        )
        rows.append(Figure("EAN", "Table 6", what, "G", paper_g, macs, cost))
    between = "between the two variants: 1.17 G released, 0.91 G with the paper's sizes"
    return [
        *rows,
        Figure("EAN", "Table 1", "8+16 ensemble", "G", 108, 107_913_325_732, both()),
        Figure(
            "EAN", "Table 1", "8+16 ensemble with LMC", "G", 111, 112_044_616_868, both(lmc=True)
        ),
        Figure(
            "EAN",
            "Table 5",
            "both",
            "M",
            36.0,
            37_212_976,
            paper,
            "paper",
            NO_POSITIONS,
            None,
            UNGROUPED,
        ),
        Figure(
            "EAN", "Table 5", "both", "G", 36.1, 38_199_230_144, paper, "paper", "", None, UNGROUPED
        ),
        Figure(
            "EAN",
            "sec. 4.1",
            "LMC alone",
            "G",
            1.1,
            1_168_900_096,
            lambda: motion_code("released"),
            unmet=between,
        ),
        Figure(
            "EAN",
            "sec. 4.1",
            "LMC alone",
            "G",
            1.1,
            908_787_712,
            lambda: motion_code("paper"),
            "paper",
            unmet=between,
        ),
    ]


FIGURES = [*gos_rows(), *strg_rows(), *dyreg_rows(), *rstg_rows(), *ean_rows()]


def markdown() -> str:
    """docs/counts.md."""
    lines = [
        "# Parameters and multiply-accumulates, ours and the papers'",
        "",
        "M: a million parameters. G: a thousand million multiply-accumulates (the papers call "
        "them FLOPs) of one clip. The",
        "column *ours* is exact: all parameters, or the MACs of convolutions and matrix products, "
        "as `vidgraph summary`",
        "prints them. *As the paper counts* applies the paper's convention to it, where that "
        "differs; ✓ is within 1 % of the",
        "paper. A test counts every row anew.",
        "",
        "| system | where | what | variant | paper | ours | as the paper counts | | remark |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for figure in FIGURES:
        paper = "" if figure.paper is None else f"{figure.paper} {figure.unit}"
        counted = f"{figure.as_paper():.4g} {figure.unit}" + (
            f" ({figure.convention})" if figure.convention else ""
        )
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
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
