"""docs/heads.md agrees with the heads: sizes and parameters are recomputed, options compared."""

import re
from math import prod
from pathlib import Path

import pytest
import torch

from heads.interface.clips import Dims
from heads.zoo import build_head, head_names, head_options
from pipeline.backbones import build_backbone
from pipeline.cache.fields import field_of

PAGE = (Path(__file__).parents[3] / "docs" / "heads.md").read_text()
WIDTH = {
    "feature": 2,
    "float32": 4,
    "int32": 4,
    "int16": 2,
    "bool": 1,
}  # bytes, with features in float16

STH, CHARADES, SYNC = 174, 157, 46
I3D = {"res5": (2048, 7, 7)}
STRG = {"res5": (2048, 14, 14)}
DIGITS = {"conv3": (512, 6, 6)}
MAP = {"res5": (2048, 4, 4)}
TSM = {"res3.1": (512, 28, 28), "res4.3": (1024, 14, 14), "res5.0": (2048, 7, 7)}
# (head, the page's words for where) -> sizes, classes, options
SIZES: dict[tuple[str, str], tuple[Dims, int, dict]] = {
    ("pool", "STRG"): (Dims(16, 10, 512), STH, {}),
    ("roi_pool", "GOS"): (Dims(16, 10, 2048), STH, {}),
    ("global_roi_pool", "STRG, Charades"): (Dims(16, 50, 512), CHARADES, {}),
    ("mean_lstm", "RSTG, SyncMNIST"): (Dims(10, 0, 512), SYNC, {}),
    ("conv_lstm", "RSTG, SyncMNIST"): (Dims(10, maps=DIGITS), SYNC, {"cut": "conv3"}),
    ("strg", "Something-Something, 10 boxes"): (Dims(16, 10, 512), STH, {}),
    ("strg", "Charades, 50 boxes"): (Dims(16, 50, 512), CHARADES, {}),
    ("strg", "Charades, 100 boxes"): (Dims(16, 100, 512), CHARADES, {}),
    ("strg", '`reduce="conv"`, 10 boxes'): (Dims(16, 10, maps=STRG), STH, {"reduce": "conv"}),
    ("gos", "GOS"): (Dims(16, 10, maps=I3D), STH, {}),
    **{
        (name, "GOS"): (Dims(16, 10, maps=I3D), STH, {})
        for name in (
            "gos_feat_aggr",
            "gos_diff_prop",
            "gos_temp_conv",
            "gos_back_incor",
            "gos_node_att",
        )
    },
    ("gos_feat_aggr", '`regions="nodes"`'): (Dims(16, 10, 2048), STH, {"regions": "nodes"}),
    ("rstg", "Something-Something"): (Dims(16, maps=STRG), STH, {}),
    ("rstg", '`regions="nodes"`'): (Dims(16, 14, 2048), STH, {"regions": "nodes"}),
    ("rstg", "SyncMNIST"): (
        Dims(10, maps=DIGITS),
        SYNC,
        {"cut": "conv3", "residual": False, "norm": "batch"},
    ),
    ("rstg_map", "after res4.4"): (
        Dims(16, maps={"res4.4": (1024, 14, 14)}),
        STH,
        {"backbone": "i3d_r50", "at": "res4.4"},
    ),
    ("rstg_map", "after res3.2"): (
        Dims(16, maps={"res3.2": (512, 28, 28)}),
        STH,
        {"backbone": "i3d_r50", "at": "res3.2"},
    ),
    **{
        ("dyreg", f"TSM-R50, {label}"): (Dims(16, maps=TSM), STH, {"backbone": "tsm_r50", "at": at})
        for label, at in (
            ("res5.1.conv2", "res5.1.conv2"),
            ("res4.4.conv2", "res4.4.conv2"),
            ("all three", "res3.2.conv2,res4.4.conv2,res5.1.conv2"),
        )
    },
    ("ean", "8 segments"): (Dims(8, maps=I3D), STH, {}),
    ("ean", "8 segments, last EAB"): (
        Dims(8, maps={"res4.5": (1024, 14, 14)}),
        STH,
        {"backbone": "ean_r50", "cut": "res4.5"},
    ),
    ("attentive", "V-JEPA 2, ViT-L"): (Dims(8, maps={"last": (1024, 16, 16)}), STH, {}),
    ("attentive", "regions of ViT-L"): (Dims(8, 10, 1024), STH, {"reads": "nodes"}),
    ("stin", "STIN + OIE"): (Dims(8, 4, box_classes=2), STH, {}),
    ("stin", "STIN + OIE + NL, released"): (
        Dims(8, 4, box_classes=2),
        STH,
        {"variant": "released", "non_local": 3},
    ),
    ("stin", "I3D + STIN + OIE + NL, released"): (
        Dims(8, 4, 2048, box_classes=2),
        STH,
        {"variant": "released", "non_local": 3, "appearance": "pooled"},
    ),
    ("stlt", "STLT"): (Dims(16, 7, box_classes=2), STH, {}),
    **{
        ("stlt", f"{name}, released"): (
            Dims(16, 7, maps=MAP, box_classes=2),
            STH,
            {"fusion": fusion, "variant": "released"},
        )
        for name, fusion in (("LCF", "late"), ("CAF", "cross"), ("CACNF", "central"))
    },
}


def bytes_of(fields: tuple[str, ...], dims: Dims) -> int:
    """Of these fields of one view, features in float16."""
    axes, total = {"T": dims.T, "N": dims.N, "C": dims.C, "T-1": dims.T - 1, "4": 4}, 0
    for name in fields:
        field = field_of(name)
        shape = (
            (dims.T, *dims.maps[name]) if name in dims.maps else [axes[axis] for axis in field.dims]
        )
        total += prod(shape) * WIDTH[field.dtype]
    return total


def in_words(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def rows_of(section: str) -> list[list[str]]:
    """The cells of every row of the tables below the heading that begins so."""
    body = re.split(rf"^#+ {re.escape(section)}.*$", PAGE, flags=re.M)[1]
    body = re.split(r"^#", body, flags=re.M)[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in body.splitlines()
        if line.startswith("| ")
    ]


def section_of(head: str) -> str:
    """The heading of the section that describes it."""
    return next(
        line.lstrip("# ")
        for line in PAGE.splitlines()
        if line.startswith("### ") and f"`{head}`" in line
    )


@pytest.mark.parametrize("case", SIZES, ids=str)
def test_sizes_and_parameters_are_those_of_the_heads(case):
    dims, classes, options = SIZES[case]
    with torch.device("meta"):
        head = build_head(case[0], dims, classes, **options)
    expected = [
        f"`{case[0]}`",
        case[1],
        ", ".join(f"`{field}`" for field in head.needs),
        in_words(bytes_of(head.needs, dims)),
        f"{sum(p.numel() for p in head.parameters()):,}",
    ]
    assert expected in rows_of("What they read")


def test_every_row_is_recomputed_and_every_head_has_one():
    rows = [tuple(row[:2]) for row in rows_of("What they read")[1:]]
    assert sorted(rows) == sorted((f"`{name}`", where) for name, where in SIZES)
    assert {name for name, _ in SIZES} == set(head_names())


def options_of(heading: str) -> list[tuple[set[str], set[str], str]]:
    """Read (options, heads that have them or none for all, default) of each row of a section."""
    rows = []
    for row in rows_of(heading)[1:]:
        options, _, heads = row[0].partition(" of ")
        rows.append(
            (set(re.findall(r"`(\w+)`", options)), set(re.findall(r"`(\w+)`", heads)), row[1])
        )
    return rows


@pytest.mark.parametrize("name", head_names())
def test_every_option_stands_there_with_its_default(name):
    rows = options_of(section_of(name))
    for option, default in head_options(name).items():
        cells = [
            cell
            for options, heads, cell in rows
            if option in options and (not heads or name in heads)
        ]
        assert cells == [f"`{default!r}`".replace("'", '"')], f"docs/heads.md, {name}: {option}"


def test_no_option_stands_there_that_does_not_exist():
    for heading in re.findall(r"^### (.*)$", PAGE, flags=re.M):
        known = {
            option for name in re.findall(r"`(\w+)`", heading) for option in head_options(name)
        }
        assert set().union(*(options for options, _, _ in options_of(heading))) <= known, heading


def test_the_cuts_that_are_named_exist():
    backbones = {"i3d_r50": I3D, "tsm_r50": TSM, "ean_r50": {"res4.5": (), "res5": ()}}
    for name, maps in backbones.items():
        with torch.device("meta"):
            assert set(maps) <= set(build_backbone(name).cuts())
