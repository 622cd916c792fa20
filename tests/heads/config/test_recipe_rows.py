"""Every row of the papers' tables that is a training run: its recipe, with the options that the
recipe's comment names, is valid and builds the networks of all its phases, in the sizes of the
commands in the comment.
"""

import json
import re
import shlex
from dataclasses import replace
from functools import cache

import pytest
import torch

from cli._shared.options import toml_value
from heads.config.recipe import FOLDER, OWN_VIDEOS, Recipe, read_recipe, recipe_from, recipe_names
from heads.finetuning.frame_training import new_network
from heads.finetuning.joint_network import joint_dims
from heads.interface.clips import Dims, dims_from
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.cache.fields import LABELS, is_cut

EAB = "--set backbone_options.eab="
LMC = "--set sampling.consecutive=5 --set backbone_options.lmc=true"
LMC16 = f"--frames 80 {LMC} --set backbone_options.segments=16"
SOI = "--set head.backbone=ean_r50 --set head.backbone_options.eab="
FUSION = "--set backbone_options.fusion="
ONE_CROP = "--test-clips 1 --test-crops 1"

# paper and table, row, recipe, what is added to its commands
ROWS = [
    ("GOS 1", "adaptive; test server (supplement, Table 1)", "gos_table1", ""),
    ("GOS 1", "non-adaptive", "gos_table1", "--set head.structures=shared"),
    ("GOS 1", "non-adaptive, only test", "gos_table1", "--set head.structures=shared_test"),
    ("GOS 2", "global pooling", "gos_table2_global_pool", ""),
    ("GOS 2", "pooling over RoIs", "gos_table2_roi_pool", ""),
    *(
        ("GOS 2", one, f"gos_table2_{one}", "")
        for one in ("feat_aggr", "diff_prop", "temp_conv", "back_incor", "node_att")
    ),
    ("GOS 4", "original operations", "gos_supp_table4_original_ops", ""),
    ("GOS 4", "fixed substructures", "gos_supp_table4_original_ops", "--set head.space=fixed"),
    ("GOS 5", "with L_var", "gos_supp_table5_diversity", ""),
    ("GOS 5", "without L_var", "gos_supp_table5_diversity", "--set head.diversity=0.0"),
    ("GOS 6", "V2 to V1, V1 to V2", "gos_supp_table6_transfer", ""),
    *(
        ("GOS 7", f"{n} supernodes", "gos_supp_table7_supernodes", f"--set head.supernodes={n}")
        for n in (2, 3, 4)
    ),
    ("GOS 8", "1 cell", "gos_supp_table8_cells", "--set head.cells=1"),
    ("GOS 8", "2 cells", "gos_supp_table8_cells", ""),
    ("STRG 2", "I3D", "strg_table2a_charades_i3d", ""),
    ("STRG 2", "Proposal + AvgPool", "strg_table2a_charades_avgpool", ""),
    ("STRG 2", "joint", "strg_table2a_charades_joint", ""),
    ("STRG 2", "Sim-GCN", "strg_table2a_charades_joint", "--set head.form=similarity"),
    ("STRG 2", "ST-GCN", "strg_table2a_charades_joint", "--set head.form=spatial_temporal"),
    *(
        ("STRG 2", f"{n} proposals", "strg_table2a_charades_joint", f"--boxes {n}")
        for n in (25, 50, 100)
    ),
    ("STRG 2", "NL", "strg_table2b_charades_nl", ""),
    ("STRG 2", "NL + joint", "strg_table2b_charades_nl_joint", ""),
    ("STRG 3", "I3D", "strg_table3_charades_r101", ""),
    ("STRG 3", "NL I3D", "strg_table3_charades_r101_nl", ""),
    ("STRG 3", "I3D + GCN", "strg_table3_charades_r101_gcn", ""),
    ("STRG 3", "NL I3D + GCN", "strg_table3_charades_r101_nl_gcn", ""),
    ("STRG 4", "I3D", "strg_table4_sth_i3d", ""),
    ("STRG 4", "I3D + GCN", "strg_table4_sth_gcn", ""),
    ("STRG 4", "I3D + GCN, a convolution anew", "strg_table4_sth_gcn_res5", ""),
    ("STRG 4", "NL I3D", "strg_table4_sth_nl", ""),
    ("STRG 4", "NL I3D + GCN", "strg_table4_sth_nl_gcn", ""),
    ("DyReg 1", "TSM-R50", "dyreg_table1_sth_tsm", ""),
    ("DyReg 1", "GNN + Fixed Regions", "dyreg_table1_sth_v2_fixed", ""),
    (
        "DyReg 1",
        "GNN + Detector",
        "dyreg_table1_sth_v2_fixed",
        "--set head.regions=detector --boxes 9 --keep res3.1,boxes",
    ),
    ("DyReg 1", "DyReg", "dyreg_table1_sth_v2", ""),
    ("DyReg 2", "TSM-R18", "dyreg_table1_sth_tsm", f"{ONE_CROP} --backbone tsm_r18"),
    ("DyReg 2", "I3D-R50", "dyreg_table1_sth_tsm", f"{ONE_CROP} --backbone i3d_r50 --frames 32"),
    ("DyReg 2", "TSM-R50", "dyreg_table1_sth_tsm", ONE_CROP),
    *(
        ("DyReg 2", f"{one} + DyReg", f"dyreg_table2_sth_v1_{one}", "")
        for one in ("tsm_r18", "i3d_r50", "tsm_r50")
    ),
    ("DyReg 3", "TSM", "dyreg_table1_sth_tsm", ""),
    ("DyReg 3", "TSM + DyReg", "dyreg_table3_sth_v1", ""),
    ("DyReg 4", "r4", "dyreg_table4_sth_v2_r4", ""),
    ("DyReg 4", "r3-4-5", "dyreg_table4_sth_v2_r345", ""),
    ("DyReg 5", "DyReg", "dyreg_table5_multisync", ""),
    *(
        ("DyReg 5", one, "dyreg_table5_multisync", f"--set head.regions={one}")
        for one in ("fixed", "static", "constant_time", "position_only")
    ),
    ("DyReg 6", "ResNet-18", "dyreg_table6_multisync_r18", ""),
    ("DyReg 6", "Lite", "dyreg_table6_multisync", ""),
    ("DyReg 6", "Semantic", "dyreg_table6_multisync", "--set head.regions=semantic"),
    ("RSTG 1", "Mean + LSTM", "rstg_table1_mean_lstm", ""),
    ("RSTG 1", "Conv + LSTM", "rstg_table1_conv_lstm", ""),
    ("RSTG 1", "I3D", "rstg_table1_i3d", ""),
    ("RSTG 1", "Non-Local", "rstg_table1_nl", ""),
    ("RSTG 1", "Positional All-temp", "rstg_table1_rstg", ""),
    ("RSTG 1", "All-temp", "rstg_table1_rstg", "--set head.positions=none"),
    *(
        ("RSTG 1", one, "rstg_table1_rstg", f"--set head.positions=none --set head.scheduler={one}")
        for one in ("one_temporal", "homogeneous", "time_only", "space_only")
    ),
    *(
        ("RSTG 2", one, f"rstg_table2_sth_{one}", "")
        for one in ("c2d", "c2d_rstg", "i3d", "i3d_rstg")
    ),
    ("RSTG 3", "to-vec", "rstg_table3_sth_vec", ""),
    ("RSTG 3", "res4", "rstg_table3_sth_map", ""),
    *(
        ("RSTG 3", at, "rstg_table3_sth_map", f"--set head.at={at} --keep {at[:6]}")
        for at in ("res2.1", "res3.2", "res3.2,res4.4")
    ),
    ("EAN 1", "8 frames", "ean_table1_sth", ""),
    ("EAN 1", "16 frames", "ean_table1_sth", "--frames 16"),
    ("EAN 1", "8 frames, LMC", "ean_table1_sth", f"--frames 40 {LMC}"),
    ("EAN 1", "16 frames, LMC", "ean_table1_sth", LMC16),
    ("EAN 2", "8 frames", "ean_table2_kinetics", ""),
    ("EAN 2", "16 frames", "ean_table2_kinetics", "--frames 80 --set backbone_options.segments=16"),
    ("EAN 4", "1 clip", "ean_table4_diving48", ""),
    ("EAN 4", "2 clips", "ean_table4_diving48", "--test-clips 2"),
    ("EAN 5", "baseline", "ean_table1_sth", f"--set head.regions=none {EAB}none"),
    ("EAN 5", "+ EABs", "ean_table1_sth", "--set head.regions=none"),
    ("EAN 5", "+ SOI", "ean_table1_sth", f"{EAB}none"),
    *(
        ("EAN 5", f"{one}, from a cache", f"ean_table5_{one}", "")
        for one in ("baseline", "eabs", "soi", "both")
    ),
    (
        "EAN 6",
        "1-2",
        "ean_table1_sth",
        f"{EAB}stem,res2 {SOI}stem,res2 --set head.cut=res3 --set head.soi_at=res3,res4",
    ),
    (
        "EAN 6",
        "1-3",
        "ean_table1_sth",
        f"{EAB}stem,res2,res3 {SOI}stem,res2,res3 --set head.cut=res4 --set head.soi_at=res4",
    ),
    ("EAN 6", "1-5", "ean_table1_sth", f"{EAB}stem,res2,res3,res4,res5 --set head.regions=none"),
    *(
        ("EAN 7", one, "ean_table1_sth", f"--set head.regions={one}")
        for one in ("none", "fixed", "all")
    ),
    ("EAN 7", "Faster R-CNN", "ean_table1_sth", "--set head.regions=boxes --boxes 4"),
    *(
        ("EAN 7", f"{one}, from a cache", f"ean_table7_{one}", "")
        for one in ("fixed", "boxes", "all")
    ),
    *(
        ("EAN 8", one, "ean_table1_sth", f"{FUSION}identity --set backbone_options.scales={one}")
        for one in ("small", "large", "multi")
    ),
    *(
        ("EAN 9", one, "ean_table1_sth", f"{FUSION}{one}")
        for one in ("identity", "shuffle", "static")
    ),
    *(
        ("EAN 10", one, "ean_table1_sth", f"--set backbone_options.{one}")
        for one in (
            "pool=none",
            "pool=avg",
            "inter_relu=false",
            "dilation=false",
            "factorised=true",
        )
    ),
]
OF_RECIPE = ("head", "train", "phases", "data", "evaluate")


@pytest.fixture(scope="module", autouse=True)
def no_numbers():
    """Weights without memory are not drawn, which takes most of the time to build them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor)
        yield


def comment(name: str) -> str:
    """The comment that a recipe opens with, as one line."""
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def split(more: str) -> tuple[dict, list[str]]:
    """(settings of the recipe, words for the command) of what a row adds."""
    words, settings, left = shlex.split(more), {}, []
    for option, value in zip(words[::2], words[1::2], strict=True):
        key, _, text = value.partition("=")
        if option == "--set" and key.partition(".")[0] in OF_RECIPE:
            settings[key] = toml_value(text)
        else:
            left += [option, value]
    return settings, left


@cache
def config_of_command(name: str, more: tuple[str, ...]):
    """What the command in a recipe's comment that names an extraction's options extracts, or trains
    from.
    """
    from cli import extract, finetune
    from cli._shared.extraction import config_of

    text = comment(name).replace("(the six classes of left and right)", "x")
    verb = "extract" if "vidgraph extract" in text else "finetune"
    words = re.search(
        rf"vidgraph {verb} (.*?)(?: +\((?:[A-Z]|digit|eight|16|row)| +vidgraph| +Tables? | "
        rf"+both:|$)",
        text,
    ).group(1)
    command = {"extract": extract, "finetune": finetune}[verb].command
    given = command.make_context(verb, [*shlex.split(words), *more]).params
    if verb == "finetune":
        assert given.pop("recipe") == name
        given |= {"keep": ("nodes",), "precision": "fp32", "dtype": "float32"}
    return config_of(given)


@cache
def network_of(name: str, options: str):
    """A backbone without its memory."""
    with torch.device("meta"):
        return build_backbone(name, "none", **json.loads(options))


@cache
def dims_of(backbone: tuple[str, str], frames: int, size: int, cut: str, boxes: int) -> Dims:
    """The sizes of what a backbone gives of frames."""
    with torch.device("meta"):
        return joint_dims(network_of(*backbone), frames, size, cut, boxes)


@cache
def live_of(recipe: str, frames, backbone: tuple[str, str], size: tuple) -> int:
    """The parameters of what a phase trains from frames, which is built without its memory; the
    same for rows with the same.
    """
    chosen, dims = recipe_from(json.loads(recipe)), dims_of(backbone, *size)
    with torch.device("meta"):
        return new_network(chosen, network_of(*backbone), dims, 174, 0, frames, cut=size[2]).size


@cache
def head_of(name: str, options: str, dims: str) -> tuple[str, ...]:
    """The needs of a head that is built without its memory."""
    with torch.device("meta"):
        return build_head(name, dims_from(json.loads(dims)), 174, **json.loads(options)).needs


def built(recipe: Recipe, config) -> None:
    """Builds what every phase trains."""
    backbone = config.backbone, json.dumps(config.backbone_options)
    sampling, boxes = config.sampling, config.proposal_options.get("num_boxes", 10)
    size = sampling.frames, sampling.size, config.cut, boxes
    whole = dims_of(backbone, *size)
    kept = {cut: whole.maps[cut] for cut in config.keep if is_cut(cut)}
    for phase in recipe.all_phases:
        chosen = recipe.of(phase)
        if phase.reads == "frames":
            # The same network whatever the phase before and after it, and however it is trained.
            plain = {
                "name": "x",
                "source": "x",
                "head": chosen.as_dict()["head"],
                "train": {"epochs": 1},
            }
            assert live_of(json.dumps(plain), phase.frames, backbone, size) > 1e5
        else:
            dims = Dims(
                whole.T,
                boxes if "boxes" in config.keep else 0,
                whole.C if "pooled" in config.keep else 0,
                kept,
                # Something-Else's annotations say hand or object, and keep objects apart.
                2 if config.proposals == "annotations" else 0,
            )
            needs = head_of(
                chosen.head.name, json.dumps(chosen.head.options), json.dumps(dims.as_dict())
            )
            known = LABELS if config.proposals == "annotations" else ()
            stored = {*config.keep, "valid", "scores", "iou", "nearest", "similar", *known}
            assert set(needs) <= stored


def tables_of(source: str) -> set[int]:
    """The numbers of the tables that a recipe's source names."""
    found: set[int] = set()
    for first, last, more in re.findall(
        r"Tables? (\d+)(?:[ab]|\b)(?: to (\d+))?((?:, \d+)*)", source
    ):
        found |= set(range(int(first), int(last or first) + 1)) | {
            int(one) for one in re.findall(r"\d+", more)
        }
    return found


@pytest.mark.parametrize(
    ("table", "row", "name", "more"), [pytest.param(*one, id=f"{one[0]}, {one[1]}") for one in ROWS]
)
def test_a_row_of_a_table_is_a_recipe_that_builds(table, row, name, more):
    settings, words = split(more)
    recipe, text = read_recipe(name, settings), comment(name)
    paper, number = table.split()
    assert name.startswith(paper.lower())
    assert int(number) in tables_of(recipe.source)
    for value in shlex.split(more):  # the reader of the recipe is told
        for part in (
            value.removeprefix("head.").removeprefix("backbone_options.").partition("=")[::2]
        ):
            assert part in text.replace("(", "").replace(")", ""), part
    config = config_of_command(name, tuple(words))
    built(
        recipe,
        replace(
            config,
            backbone_options={k: v for k, v in config.backbone_options.items() if k != "fresh"},
        ),
    )


STRG = [name for name in recipe_names() if name.startswith("strg_")]


@pytest.mark.parametrize("name", [name for name in STRG if "_backbone_" in name])
def test_a_recipe_of_a_backbone_names_all_options_and_builds(name):
    config = config_of_command(name, ())
    options = {k: v for k, v in config.backbone_options.items() if k != "fresh"}
    built(read_recipe(name), replace(config, backbone_options=options))
    assert (config.sampling.sampling, config.sampling.fps) == ("stride", 6)
    assert config.sampling.train_crop == "short_side"


@pytest.mark.parametrize("name", [name for name in STRG if "_table" in name])
def test_the_cache_of_a_row_has_the_views_of_its_table_and_of_its_backbone(name):
    """One number of training views within a table; frames, crops and mirroring as its backbone's
    recipe trains on. Table 3 has more and larger frames.
    """
    maker = "strg_backbone_sth" if "_sth_" in name else "strg_backbone_charades"
    cache, frames = config_of_command(name, ()).sampling, config_of_command(maker, ()).sampling
    assert cache.train_views == 8
    for key in ("sampling", "train_crop", "flip", "flip_protect", "test_clips", "test_crops"):
        assert getattr(cache, key) == getattr(frames, key), key
    assert bool(cache.flip_protect) == ("_sth_" in name)
    if "_table3_" not in name:
        assert cache == replace(frames, train_views=8)


GOS = [name for name in recipe_names() if name.startswith("gos_")]


@pytest.mark.parametrize("name", [name for name in GOS if "_backbone_" in name])
def test_a_recipe_of_gos_backbone_names_all_options_and_builds(name):
    config = config_of_command(name, ())
    built(read_recipe(name), config)
    assert (config.sampling.sampling, config.sampling.train_crop) == ("segments", "gos_floor")
    assert config.sampling.flip_protect
    own, there = read_recipe(name).of("backbone"), read_recipe("gos_table1").of("backbone")
    assert (own.train, own.head, own.evaluate) == (there.train, there.head, there.evaluate)


@pytest.mark.parametrize("name", [name for name in GOS if "_table" in name])
def test_the_cache_of_a_row_of_gos_has_the_views_of_its_backbone_and_four_a_clip(name):
    cache = config_of_command(name, ()).sampling
    frames = config_of_command("gos_backbone_sth_v1", ()).sampling
    assert cache == replace(frames, train_views=4)


# Their recipes name no table of their paper, or not all.
NO_TABLE = ("demo", "strg", "attentive", "stin", "stlt")


def test_every_recipe_of_a_paper_is_a_row():
    papers = {
        name
        for name in recipe_names()
        if name.split("_")[0] not in NO_TABLE or "table" in name
        if name not in OWN_VIDEOS
        if "_backbone_" not in name
    }
    assert papers == {name for _, _, name, _ in ROWS}


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith(("stin_", "stlt_"))])
def test_a_recipe_of_something_else_builds_in_the_sizes_of_its_command(name):
    config = config_of_command(name, ())
    assert config.proposals == "annotations"
    built(read_recipe(name), config)
