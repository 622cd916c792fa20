"""Count what `vidgraph summary NAME` names: a backbone, a head, a run's head, or a recipe's head.

count_named("strg", {"reduce": "conv"}, nodes=50, backbone="i3d_r50").total
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads.config.recipe import HeadChoice, Recipe, read_recipe, recipe_from, recipe_names
from heads.config.recipe_tables import DataOptions
from heads.data.classes import find_classes
from heads.data.splits import cache_dims
from heads.evaluation.counting import NetworkCount, count_backbone, count_head, dims_on
from heads.interface.clips import Dims, dims_from
from heads.interface.run_records import REPORTED
from heads.runs import run_files
from heads.zoo import head_names, head_options
from pipeline.backbones import backbone_names
from pipeline.cache.reader import Cache
from pipeline.encoder_names import is_encoder
from pipeline.plugins import HEAD, give_file, given_name, is_recorded, kind_of, load_build
from pipeline.text.suggestions import nearest

# The classes of Something-Something, where nothing says how many there are.
CLASSES = 174
# Prefix of settings for the backbone that a head reads.
LOWER = "backbone_options."
# The options that apply to each kind of thing that can be counted.
OF_BACKBONES = {"frames", "size", "upto"}
OF_HEADS = {"frames", "size", "backbone", "nodes", "classes"}
OF_CACHES = {"classes"}


def count_named(
    name: str, settings: Mapping[str, Any], *, cache: Path | None = None, **given: Any
) -> NetworkCount:
    """Count what a name stands for: a backbone, else a head, a run folder, or a recipe.

    Of a recipe, the head of its last phase is counted.

    Args:
        name: the name of a backbone, head or recipe, or the path of a run, recipe or plug-in.
        settings: options of the backbone or head, or keys of the recipe. Keys
            "backbone_options.KEY" are options of the backbone that a head reads, and of the part
            of it that a head continues.
        cache: take the sizes of views and the classes from this cache.
        **given: frames (32), size ((224, 224)), upto, backbone ("i3d_r50"), nodes (10), classes
            (174, or those of the cache's manifest). Not every option applies to everything.

    Raises:
        ValueError: the name stands for nothing, or an option does not apply to it.
    """
    # Not `given_name`: run folders and recipes have paths, too.
    if name.endswith(".py"):
        name = give_file(name)
    if given.get("backbone"):
        given["backbone"] = given_name(given["backbone"])
    is_backbone = name in backbone_names() or is_encoder(name)
    if is_backbone or (is_recorded(name) and not _is_head(name)):
        _refuse(name, "backbone", given, OF_BACKBONES, cache)
        return count_backbone(name, dict(settings), **given)
    is_head = name in head_names() or is_recorded(name)
    if not is_head and Path(name).is_dir():
        options = given | dict.fromkeys(settings)
        _refuse(name, "run folder, whose sizes are known", options, set(), cache)
        about = run_files.read_json(Path(name) / "run.json", REPORTED)
        head = _last_head(recipe_from(about["recipe"], name))
        return count_head(head.name, dims_from(about["dims"]), len(about["classes"]), head.options)

    lower: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith(LOWER):
            lower[key.removeprefix(LOWER)] = value
        else:
            own[key] = value

    if is_head:
        head_name, options, data = name, own, DataOptions()
    else:
        if name not in recipe_names() and not Path(name).is_file():
            known = {*backbone_names(), *head_names(), *recipe_names()}
            raise ValueError(
                f"{name!r} is no backbone, head, run folder or recipe: {nearest(name, known)}"
            )
        recipe = read_recipe(name, own)
        head = _last_head(recipe)
        head_name, options, data = head.name, head.options, recipe.data
    if options.get("backbone") and lower:
        continued = {**options.get("backbone_options", {}), **lower}
        options = {**options, "backbone_options": continued}
    dims, classes = _views(head_name, options, lower, data, cache, given)
    return count_head(head_name, dims, classes, options)


def _is_head(name: str) -> bool:
    """Return whether a plug-in's file is a head: its `build` takes dims and num_classes."""
    return kind_of(load_build(HEAD, name)) == HEAD


def _last_head(recipe: Recipe) -> HeadChoice:
    """Return the head that a recipe ends with."""
    return recipe.of(recipe.all_phases[-1]).head


def _views(
    head: str, options: dict, lower: dict, data: DataOptions, cache: Path | None, given: dict
) -> tuple[Dims, int]:
    """Return the sizes of the views that a head reads, and the number of its classes."""
    if cache is not None:
        refused = given | dict.fromkeys(lower)
        _refuse(head, "head on a cache, whose sizes are known", refused, OF_CACHES, None)
        opened = Cache(cache)
        classes = given.get("classes") or len(find_classes(opened.manifest, data))
        return cache_dims(opened), classes

    _refuse(head, "head", given, OF_HEADS, None)
    # A head that continues a backbone reads the maps of that one, unless another is given.
    backbone = given.get("backbone") or options.get("backbone")
    backbone = backbone or head_options(head).get("backbone") or "i3d_r50"
    dims = dims_on(
        backbone,
        {**options.get("backbone_options", {}), **lower},
        frames=given.get("frames", 32),
        size=given.get("size", (224, 224)),
        boxes=given.get("nodes", 10),
    )
    return dims, given.get("classes") or data.num_classes or CLASSES


def _refuse(
    name: str, kind: str, given: Mapping[str, Any], known: set[str], cache: Path | None
) -> None:
    """Raise ValueError for an option that does not apply to what is counted."""
    wrong = sorted(given.keys() - known)
    if cache is not None:
        wrong.append("cache")
    if wrong:
        allowed = ", ".join(f"--{key}" for key in sorted(known))
        options = f"its options are {allowed}" if known else "it takes no options"
        raise ValueError(f"{name} is a {kind}: {wrong[0]} does not apply to it; {options}")
