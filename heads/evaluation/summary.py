"""What `vidgraph summary NAME` counts: a backbone, a head, the head of a run folder, or that of a
recipe.

count_named("strg", {"reduce": "conv"}, nodes=50, backbone="i3d_r50").total
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads.config.recipe import (
    DataOptions,
    HeadChoice,
    Recipe,
    read_recipe,
    recipe_from,
    recipe_names,
)
from heads.data.splits import cache_dims, find_classes
from heads.evaluation.counting import NetworkCount, count_backbone, count_head, dims_on
from heads.interface.clips import Dims, dims_from
from heads.interface.run_records import REPORTED
from heads.runs import run_files as runs
from heads.zoo import head_names, head_options
from pipeline.backbones import backbone_names
from pipeline.cache.reader import Cache
from pipeline.plugins import HEAD, give_file, given_name, is_recorded, kind_of, load_build
from pipeline.text.suggestions import nearest

CLASSES = 174  # Something-Something
LOWER = "backbone_options."  # prefix of settings for the backbone that a head reads
OF_BACKBONES = {"frames", "size", "upto"}
OF_HEADS = {"frames", "size", "backbone", "nodes", "classes"}
OF_CACHES = {"classes"}


def count_named(
    name: str, settings: Mapping[str, Any], *, cache: Path | None = None, **given: Any
) -> NetworkCount:
    """Counts what `name` stands for: a backbone, else a head, else a run folder, else a recipe.

    A recipe's head is that of its last phase. `settings`: options of the backbone or head, keys of
    a recipe; "backbone_options.KEY" are those of the backbone that a head reads, and of the part of
    it that a head continues. `given`: frames (32), size ((224, 224)), upto, backbone ("i3d_r50"),
    nodes (10), classes (174, or those of the cache's manifest); not all of them belong to
    everything, and one that does not is refused. ValueError for it, and for a name that stands for
    nothing.
    """
    if name.endswith(".py"):  # not `given_name`: run folders and recipes have paths, too
        name = give_file(name)
    if given.get("backbone"):
        given["backbone"] = given_name(given["backbone"])
    if name in backbone_names() or (is_recorded(name) and not _is_head(name)):
        _refuse(name, "a backbone", given, OF_BACKBONES, cache)
        return count_backbone(name, dict(settings), **given)
    is_head = name in head_names() or is_recorded(name)
    if not is_head and Path(name).is_dir():
        _refuse(
            name,
            "a run folder, whose sizes are known",
            given | dict.fromkeys(settings),
            set(),
            cache,
        )
        about = runs.read_json(Path(name) / "run.json", REPORTED)
        head = _last_phase(recipe_from(about["recipe"], name))
        return count_head(head.name, dims_from(about["dims"]), len(about["classes"]), head.options)
    lower = {
        key.removeprefix(LOWER): value for key, value in settings.items() if key.startswith(LOWER)
    }
    own = {key: value for key, value in settings.items() if not key.startswith(LOWER)}
    if is_head:
        head, options, data = name, own, DataOptions()
    else:
        if name not in recipe_names() and not Path(name).is_file():
            known = {*backbone_names(), *head_names(), *recipe_names()}
            raise ValueError(
                f"{name!r} is no backbone, head, run folder or recipe: {nearest(name, known)}"
            )
        recipe = read_recipe(name, own)
        choice = _last_phase(recipe)
        head, options, data = choice.name, choice.options, recipe.data
    if options.get("backbone") and lower:
        options = {**options, "backbone_options": {**options.get("backbone_options", {}), **lower}}
    dims, classes = _views(head, options, lower, data, cache, given)
    return count_head(head, dims, classes, options)


def _is_head(name: str) -> bool:
    """Whether a plug-in's file is a head, as its `build` takes dims and num_classes."""
    return kind_of(load_build(HEAD, name)) == HEAD


def _last_phase(recipe: Recipe) -> HeadChoice:
    """The head that a recipe ends with."""
    return recipe.of(recipe.all_phases[-1]).head


def _views(
    head: str, options: dict, lower: dict, data: DataOptions, cache: Path | None, given: dict
) -> tuple[Dims, int]:
    """The sizes of the views that a head reads, and its classes."""
    if cache is not None:
        _refuse(
            head,
            "a head on a cache, whose sizes are known",
            given | dict.fromkeys(lower),
            OF_CACHES,
            None,
        )
        opened = Cache(cache)
        return cache_dims(opened), given.get("classes") or len(find_classes(opened.manifest, data))
    _refuse(head, "a head", given, OF_HEADS, None)
    # A head that continues a backbone reads its maps, unless asked otherwise.
    backbone = (
        given.get("backbone")
        or options.get("backbone")
        or head_options(head).get("backbone")
        or "i3d_r50"
    )
    size, frames = given.get("size", (224, 224)), given.get("frames", 32)
    lower = {**options.get("backbone_options", {}), **lower}
    dims = dims_on(backbone, lower, frames=frames, size=size, boxes=given.get("nodes", 10))
    return dims, given.get("classes") or data.num_classes or CLASSES


def _refuse(
    name: str, what: str, given: Mapping[str, Any], known: set[str], cache: Path | None
) -> None:
    """ValueError for something given that says nothing about `what`."""
    wrong = sorted(given.keys() - known) + (["cache"] if cache is not None else [])
    if wrong:
        allowed = ", ".join(f"--{key}" for key in sorted(known)) or "no options of size"
        raise ValueError(f"{name} is {what}: {wrong[0]} says nothing about it; it takes {allowed}")
