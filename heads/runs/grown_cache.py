"""A run's description and a cache that has got more fields since the run began."""

from collections.abc import Mapping
from typing import Any

from heads.config.recipe import Recipe
from heads.interface.clips import dims_from
from heads.zoo import LAST, head_options
from pipeline.plugins import is_recorded


def as_if_added_before(
    stored: Mapping[str, Any], asked: Mapping[str, Any], recipe: Recipe
) -> Mapping[str, Any]:
    """Give a run's description the fields that its cache has got since, if no head reads them.

    Args:
        stored: the description of the run in a folder.
        asked: the description of the run that is asked for.
        recipe: the run's recipe.

    Returns:
        `stored` with the kept fields and the maps of `asked`. It is `stored` itself if the cache
        lacks a map of that time, or if a head takes its map by what the cache has.
    """
    old, new = stored.get("dims"), asked.get("dims")
    if not (old and new and "config" in stored and "config" in asked):
        return stored
    maps, more = old["maps"], new["maps"]
    if any(more.get(cut) != size for cut, size in maps.items()):
        return stored
    if maps != more and not _same_choice(recipe, old, new):
        return stored
    config = {**stored["config"]}
    if "keep" in config and "keep" in asked["config"]:
        config["keep"] = asked["config"]["keep"]
    return {**stored, "dims": {**old, "maps": more}, "config": config}


def _same_choice(recipe: Recipe, old: Mapping, new: Mapping) -> bool:
    """Whether every head of a recipe reads the same map with the sizes `old` and `new`."""
    before, after = dims_from(old), dims_from(new)
    same = before.last_cut == after.last_cut and (LAST in before.maps) == (LAST in after.maps)
    for phase in recipe.all_phases:
        head = recipe.of(phase.name).head
        # A plug-in may choose by rules of its own.
        if is_recorded(head.name):
            return False
        cut = {**head_options(head.name), **head.options}.get("cut")
        if cut in ("", LAST) and not same:
            return False
    return True
