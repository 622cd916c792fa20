"""Whether a cache can serve a study: a study may name options of the extraction, and phases that
read frames.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heads.config.study_file import StudyPlan
from heads.config.study_keys import EXTRACT
from pipeline.backbones import backbone_options
from pipeline.plugins import without_file_name

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache

# Options that a cache records only where they differ from these.
UNRECORDED = {"pixel_aspect": "displayed", "frame_pattern": ""}
FROM_FRAMES = "finetune --study"


def require_cached_phases(plan: StudyPlan) -> None:
    """Raise ValueError if a member of the study has no phase that reads a cache."""
    for row in plan.rows:
        if all(phase.reads == "frames" for phase in row.recipe.all_phases):
            raise ValueError(
                f"member {row.name}: all phases of recipe {row.recipe.name} read frames: run "
                f"`{plan.command(FROM_FRAMES)}`"
            )


def require_same_extraction(plan: StudyPlan, cache: "Cache") -> None:
    """Raise ValueError if the study names options of the extraction that are not the cache's.

    The files of `extract.weights` are not compared: a cache records checksums, a study names.

    Args:
        plan: the study.
        cache: the cache that its members would read.
    """
    varied = plan.varied_extraction()
    if varied:
        raise ValueError(
            f"study {plan.name} varies {EXTRACT}.{varied[0]}, which a cache fixes: run "
            f"`{plan.command(FROM_FRAMES)}` with --manifest in place of --cache"
        )
    for key, wanted in plan.rows[0].extract.items():
        if key == "weights":
            continue
        found = _recorded(cache.config, key)
        if key == "backbone":
            # Records call files and folders by their content.
            wanted = without_file_name(wanted)
        if found != wanted:
            raise ValueError(
                f"{EXTRACT}.{key}: {cache.path} was made with {found!r}, the study asks for "
                f"{wanted!r}: extract a cache as the study says, or set what the cache has"
            )


def _recorded(config: Mapping[str, Any], key: str) -> Any:
    """The value of an option in the configuration of a cache; None where it has none."""
    option, _, rest = key.partition(".")
    if not rest:
        return config.get(option, UNRECORDED.get(option))
    value: Any = config.get(option, {})
    if option == "backbone_options":
        value = {**backbone_options(config["backbone"]), **value}
    for name in rest.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
