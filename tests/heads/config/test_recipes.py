"""Recipes: every one that ships is valid and builds; what is wrong in one is said in one line."""

import json
import math
import re
import shlex
from dataclasses import replace
from functools import cache

import pytest
import torch

from heads.config.recipe import (
    FOLDER,
    OWN_VIDEOS,
    read_recipe,
    recipe_from,
    recipe_names,
    to_toml,
)
from heads.config.training_options import Training
from heads.interface.clips import Dims, dims_from
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.cache.fields import is_cut

MINIMAL = '[head]\nname = "pool"\n[train]\nepochs = 3\n'
# Channels of a ResNet-50 at its cuts, and sides of its maps for frames of 224 x 224.
MAPS = {"res2.1": 256, "res3": 512, "res3.2": 512, "res4.4": 1024, "res5": 2048}
GRIDS = {"res2": 56, "res3": 28, "res4": 14, "res5": 7}
DIMS = Dims(
    T=16,
    N=10,
    C=2048,
    maps={cut: (C, GRIDS[cut[:4]], GRIDS[cut[:4]]) for cut, C in MAPS.items()},
    box_classes=2,
)


@cache
def network_of(name: str, options: str):
    """A backbone without its memory."""
    with torch.device("meta"):
        return build_backbone(name, "none", **json.loads(options))


@cache
def built(name: str, options: str, dims: str = ""):
    """A head in the sizes of the papers' networks, without its memory; once for all recipes that
    have the same.
    """
    chosen, sizes = json.loads(options), dims_from(json.loads(dims)) if dims else DIMS
    if not dims and "backbone" in chosen:
        network = network_of(chosen["backbone"], json.dumps(chosen.get("backbone_options", {})))
        sizes = replace(DIMS, maps={"res3": (network.channels("res3"), 16, 16)})
    with torch.device("meta"):
        return build_head(name, sizes, 174, **chosen)


def cached_phases(name: str):
    """The phases of a recipe that read a cache."""
    return [phase for phase in read_recipe(name).all_phases if phase.reads == "cache"]


EXTRACTED = [
    name
    for name in recipe_names()
    if name.split("_")[0] in ("gos", "dyreg", "rstg") and cached_phases(name)
]


def table(**train):
    return {
        "name": "x",
        "source": "a test",
        "head": {"name": "pool"},
        "train": train or {"epochs": 1},
    }


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_ships_builds_its_head_and_says_where_it_comes_from(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert len(recipe.source) > 10
    assert recipe.ours
    # These heads have a test of their own below.
    there = [recipe.of(phase).head for phase in cached_phases(name)] if name in EXTRACTED else []
    for head in (recipe.of(phase).head for phase in recipe.all_phases):
        assert head in there or built(head.name, json.dumps(head.options))
    assert (FOLDER / f"{name}.toml").read_text().startswith("#")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_written_out_reads_back_the_same(name, tmp_path):
    recipe = read_recipe(name)
    (tmp_path / "copy.toml").write_text(to_toml(recipe))
    assert read_recipe(tmp_path / "copy.toml") == recipe
    assert recipe_from(recipe.as_dict()) == recipe


@pytest.mark.parametrize("name", EXTRACTED)
def test_the_command_in_a_recipe_makes_the_cache_that_its_heads_read(name):
    """Steps, channels and grids of every map that is kept are those of the backbone in the command;
    nothing that a phase reads is missing."""
    from cli._shared.extraction import config_of
    from cli.extract import command

    comment = " ".join(
        line.lstrip("# ")
        for line in (FOLDER / f"{name}.toml").read_text().splitlines()
        if line.startswith("#")
    )
    words = re.search(r"vidgraph extract (.*?)(?: +\((?:[A-Z]|digit)| +vidgraph|$)", comment).group(
        1
    )
    words = words.replace("(the six classes of left and right)", "x")
    config = config_of(command.make_context("extract", shlex.split(words)).params)
    network = network_of(config.backbone, json.dumps(config.backbone_options))
    size, boxes = (config.sampling.size,) * 2, "boxes" in config.keep
    maps = {
        cut: (network.channels(cut), *network.grid(cut, size)) for cut in config.keep if is_cut(cut)
    }
    steps = {network.steps(config.sampling.frames, cut) for cut in (*maps, network.last)}
    assert steps == {10 if "table1" in name and "rstg" in name else 16}  # SyncMNIST's frames
    pooled = network.channels(network.last) if "pooled" in config.keep else 0
    dims = Dims(*steps, config.proposal_options["num_boxes"] if boxes else 0, pooled, maps)
    recipe = read_recipe(name)
    for phase in cached_phases(name):
        chosen = recipe.of(phase).head
        if backbone := chosen.options.get("backbone"):
            assert (backbone, chosen.options.get("backbone_options", {})) == (
                config.backbone,
                config.backbone_options,
            )
        head = built(chosen.name, json.dumps(chosen.options), json.dumps(dims.as_dict()))
        assert set(head.needs) <= {*config.keep, *(("valid", "scores") if boxes else ())}


PHASED = [
    name
    for name in recipe_names()
    if re.match("gos_|strg_", name) and not re.match("gos_backbone|strg_backbone", name)
]


@pytest.mark.parametrize("name", PHASED)
def test_the_phases_are_the_papers(name):
    """GOS: the backbone, then what is on it above its fixed features, then both; STRG likewise, but
    for the rows that are a backbone alone, which end with a head anew on the cache. Only a
    backbone's phase and the joint one read frames.
    """
    recipe = read_recipe(name)
    first, *middle, last = recipe.phases
    assert (first.name, first.reads, first.frames.train_from) == ("backbone", "frames", "stem")
    assert recipe.of(first).head.name == "pool"
    if recipe.head.name == "pool":
        assert (middle, last.name, last.reads, last.start) == ([], "classifier", "cache", "fresh")
        return
    assert (last.name, last.reads, last.start) == ("joint", "frames", "previous")
    assert all(phase.reads == "cache" for phase in middle)
    if name.startswith("strg"):
        assert first.frames.frozen_bn
        assert last.frames.frozen_bn
        assert [phase.train.iterations for phase in recipe.phases] == [100_000, 100_000, 30_000]
        assert [phase.train.lr for phase in recipe.phases] == [0.00125, 0.00125, 0.000125]
        return
    assert last.train.lr == 1e-4
    discrete = [phase for phase in middle if phase.name == "discrete"]
    assert bool(discrete) == (recipe.head.name == "gos")
    for phase in discrete:
        assert (
            phase.train.lr,
            phase.train.factor,
            phase.train.patience,
            phase.train.stop_below,
        ) == (1e-3, 0.1, 5, 1e-4)
    # The discrete structures are those at the end of the search, not of its best validation.
    for phase in middle:
        if phase.name == "search":
            assert (phase.checkpoint, phase.train.patience) == ("last", 10)


STRG_TABLES = [name for name in recipe_names() if name.startswith("strg_table")]


@pytest.mark.parametrize("name", STRG_TABLES)
def test_the_backbone_phase_of_a_row_is_that_of_the_recipe_that_makes_the_backbone(name):
    """Nobody puts it together by hand; a row that is a backbone alone is that recipe."""
    recipe = read_recipe(name)
    maker = read_recipe("strg_backbone_sth" if "sth" in name else "strg_backbone_charades")
    (made,) = maker.phases
    phase = recipe.phase("backbone")
    assert (phase.train, phase.frames) == (made.train, made.frames)
    assert recipe.of(phase).head == maker.of(made).head
    assert (recipe.data, recipe.evaluate) == (maker.data, maker.evaluate)


@pytest.mark.parametrize("name", [n for n in recipe_names() if re.match("strg_(table|backb)", n)])
def test_strg_is_trained_as_the_code_of_the_non_local_networks_trains(name):
    """Its configurations have NESTEROV, a momentum of 0.9 and a weight decay of 0.0001."""
    for phase in read_recipe(name).phases:
        train = phase.train
        assert (train.optimiser, train.momentum, train.weight_decay) == ("sgd", 0.9, 1e-4)
        assert train.nesterov


def test_the_demo_has_its_four_recipes():
    assert {"demo_pool", "demo_roi_pool", "demo_mean_lstm", "demo_strg"} <= set(recipe_names())


def test_settings_replace_keys_and_are_checked_like_the_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('source = "a test"\n' + MINIMAL)
    changed = read_recipe(path, {"train.lr": 0.5, "head.dropout": 0.1, "name": "other"})
    assert (changed.train.lr, changed.head.options, changed.name) == (
        0.5,
        {"dropout": 0.1},
        "other",
    )
    assert read_recipe(path).name == "r"
    assert read_recipe(path, {"train.lr": 1}).train.lr == 1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"train.lrr": 1}, r"no key train\.lrr; did you mean lr\?"),
        ({"trian.lr": 1}, r"no key trian; did you mean train\?"),
        ({"train.lr": "fast"}, r"train\.lr: input should be a valid number"),
        ({"train.lr": math.inf}, r"train\.lr"),
        ({"train.batch": 2.5}, r"train\.batch"),
        ({"train.batch": True}, r"train\.batch"),
        ({"train.momentum": 1.5}, r"train\.momentum: input should be less than 1"),
        ({"train.optimiser": "sdg"}, r"'sgd', 'adam' or 'adamw'"),
        ({"train.iterations": 5}, "either epochs or iterations"),
        ({"train.schedule": "steps"}, "drop_at belongs to schedule 'steps'"),
        ({"train.nesterov": True, "train.momentum": 0.0}, "nesterov needs"),
        ({"head.name": "strgg"}, r"no head 'strgg': did you mean strg or rstg\?"),
        ({"head.dropuot": 0.1}, r"no option 'dropuot': did you mean dropout\?"),
        ({"train": 3}, "train is a table"),
        ({"train.lr.x": 3}, "lr is a value, expected a table"),
        ({"name": "../up"}, "since it names a folder"),
        ({"evaluate.aggregate": "median"}, r"evaluate\.aggregate: input should be 'mean' or 'max'"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(settings, match, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 3\nlr = 0.1\n')
    with pytest.raises(ValueError, match=match) as error:
        read_recipe(path, settings)
    assert "\n" not in str(error.value)
    assert "r.toml" in str(error.value) or "--set" in str(error.value)


def test_a_recipe_may_be_written_by_any_editor(tmp_path):
    path = tmp_path / "r.toml"
    text = 'source = "a test"\n[head]\nname = "pool"\n[train]\nepochs = 3\nlr = 0.1\n'
    path.write_bytes(("\ufeff" + text).replace("\n", "\r\n").encode())
    assert read_recipe(path).head.name == "pool"
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"r\.toml: UTF-16 text; save the file as UTF-8"):
        read_recipe(path)
    path.write_bytes(text.encode() + b"# caf\xe9")
    with pytest.raises(ValueError, match=r"r\.toml: byte \d+ \(0xe9\) is not UTF-8"):
        read_recipe(path)


def test_a_missing_key_file_or_name_is_named(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(MINIMAL)
    with pytest.raises(ValueError, match="source is missing"):
        read_recipe(path)
    path.write_text("[head\n")
    with pytest.raises(ValueError, match="not TOML"):
        read_recipe(path)
    path.write_text("a = " + "[" * 20_000)
    with pytest.raises(ValueError, match="lists without end"):
        read_recipe(path)
    with pytest.raises(ValueError, match=r"did you mean .*demo_strg"):
        read_recipe("demo_strgg")
    with pytest.raises(ValueError, match="no such file"):
        read_recipe(tmp_path / "demo_strg.toml")


def test_schedules():
    steps = recipe_from(
        table(epochs=30, schedule="steps", drop_at=[10, 20], lr=1.0, factor=0.1)
    ).train
    assert [round(steps.lr_at(e * 7, 7), 6) for e in (0, 9, 10, 19, 20, 29)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    assert steps.lr_at(10 * 7 - 1, 7) == 1
    cosine = Training(epochs=10, schedule="cosine", lr=2.0)
    assert cosine.lr_at(0, 5) == 2
    assert cosine.lr_at(25, 5) == pytest.approx(1)
    assert 0 < cosine.lr_at(49, 5) < 0.01
    linear = Training(epochs=10, schedule="linear", lr=2.0)
    assert [linear.lr_at(step, 5) for step in (0, 25)] == [2, 1]
    assert linear.lr_at(49, 5) == pytest.approx(2 / 50)


def test_the_linear_schedule_falls_from_the_end_of_the_warm_up():
    """A straight line up, one down to 0, as STLT's release has them."""
    training = Training(iterations=10, schedule="linear", lr=1.0, warm_up=2)
    wanted = [1 / 3, 2 / 3, *(left / 8 for left in range(8, 0, -1))]
    assert [training.lr_at(step, 5) for step in range(10)] == pytest.approx(wanted)


def test_the_rate_rises_linearly_to_the_schedules_in_the_warm_up():
    plain = Training(epochs=10, schedule="cosine", lr=2.0)
    warm = Training(epochs=10, schedule="cosine", lr=2.0, warm_up=3)
    factors = [warm.lr_at(step, 5) / plain.lr_at(step, 5) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    steps = Training(epochs=2, schedule="steps", drop_at=(1,), lr=1.0, warm_up=1)
    assert [steps.lr_at(step, 2) for step in range(3)] == [0.5, 1, pytest.approx(0.1)]


def test_a_length_in_iterations_may_end_inside_an_epoch():
    training = Training(iterations=100, schedule="steps", drop_at=(90,), lr=1.0)
    assert (training.total_steps(30), training.total_epochs(30)) == (100, 4)
    assert (training.lr_at(89, 30), training.lr_at(90, 30)) == (1, 0.1)


@pytest.mark.parametrize("name", ["best", "last"])
def test_no_phase_is_called_as_a_checkpoint_of_every_run(name):
    """What it ended with would be written over them, or not at all."""
    phases = [{"name": name, "train": {"epochs": 1}}]
    with pytest.raises(ValueError, match=rf"phase {name}: .* choose another name"):
        recipe_from({"name": "r", "source": "a test", "head": {"name": "pool"}, "phases": phases})


# Recipes for one's own videos.


@pytest.mark.parametrize("name", OWN_VIDEOS)
@pytest.mark.parametrize("cut", ["res5", "conv3", "res4.3"])
def test_the_recipe_of_a_head_fits_any_cache_that_has_its_fields(name, cut):
    recipe = read_recipe(name)
    dims = Dims(T=8, N=4, C=64, maps={cut: (64, 7, 7)}, box_classes=3)
    allowed = {"pooled", "nodes", "boxes", "valid", cut}
    if name in ("stin", "stlt"):
        allowed = {"boxes", "valid", "box_class", "track"}
    for phase in cached_phases(name):
        head = built(name, json.dumps(recipe.of(phase).head.options), json.dumps(dims.as_dict()))
        assert set(head.needs) <= allowed
    assert [phase.reads for phase in recipe.all_phases] == ["cache"] * len(recipe.all_phases)


def test_a_wrong_name_lists_the_recipes_that_fit_any_videos():
    with pytest.raises(ValueError, match="did you mean pool") as error:
        read_recipe("pol")
    assert all(name in str(error.value) for name in OWN_VIDEOS)


@pytest.mark.parametrize(
    ("maps", "last"),
    [
        (["res3", "res5", "res4"], "res5"),
        (["res4.3", "res4", "res3.3"], "res4"),
        (["res4.3", "res4.5"], "res4.5"),
        (["stem", "res2"], "res2"),
        (["reduced", "res5"], "reduced"),
        (["conv1", "conv3", "conv2"], "conv3"),
        ([], "res5"),
    ],
)
def test_the_last_cut_is_the_deepest_one(maps, last):
    assert Dims(T=1, maps=dict.fromkeys(maps, (1, 1, 1))).last_cut == last


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.labels", "cat,dog", ("cat", "dog")),
        ("data.labels", "cat", ("cat",)),
        ("data.labels", ["a,b", "c"], ("a,b", "c")),
        ("data.labels", 7, ("7",)),
        ("data.no_label", "-1, ?", ("-1", "?")),
    ],
)
def test_a_list_may_be_written_with_commas(tmp_path, key, value, expected):
    path = tmp_path / "r.toml"
    path.write_text('source = "a test"\n' + MINIMAL)
    table, name = key.split(".")
    assert getattr(getattr(read_recipe(path, {key: value}), table), name) == expected


def test_a_list_of_numbers_may_be_written_with_commas(tmp_path):
    path = tmp_path / "r.toml"
    phases = '[[phases]]\nname = "one"\n[phases.train]\nepochs = 9\n'
    path.write_text('source = "a test"\n[head]\nname = "pool"\n' + phases)
    steps = {"phases.one.train.schedule": "steps", "phases.one.train.drop_at": "3,5"}
    assert read_recipe(path, steps).phases[0].train.drop_at == (3, 5)
    steps["phases.one.train.drop_at"] = 4
    assert read_recipe(path, steps).phases[0].train.drop_at == (4,)
    steps["phases.one.train.drop_at"] = "3,soon"
    with pytest.raises(ValueError, match=r"--set phases\.one\.train\.drop_at: .*'soon'"):
        read_recipe(path, steps)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", "fast"),
        ("train.lrr", 1),
        ("trian.lr", 1),
        ("head.name", "strgg"),
        ("head.dropuot", 0.1),
        ("evaluate.aggregate", "median"),
        ("data.target", "double"),
    ],
)
def test_an_error_about_a_setting_names_it(tmp_path, key, value):
    folder = tmp_path / "data, train 8"  # holds the value and the table of the other setting
    folder.mkdir()
    path = folder / "r.toml"
    path.write_text('source = "a test"\n' + MINIMAL)
    with pytest.raises(ValueError, match=rf"--set {re.escape(key)}: ") as error:
        read_recipe(path, {"train.batch": 8, key: value})
    assert "\n" not in str(error.value)
