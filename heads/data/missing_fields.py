"""What to do where a cache lacks fields that a head needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.cache.asked import extraction_record
from pipeline.cache.fields import FIELDS, LABELS, is_cut
from pipeline.cache.joined import caches_of

if TYPE_CHECKING:
    from pipeline.backbones import Backbone
    from pipeline.cache.reader import Cache


def how_to_add(cache: "Cache", head: str, missing: Sequence[str]) -> str:
    """Return the error for a head that needs fields which the cache lacks.

    Args:
        cache: the cache.
        head: the head's name.
        missing: the fields.

    Returns:
        One line, with the command that adds them.
    """
    missing = list(missing)
    # Of several caches, the first that lacks one of the fields.
    for part in caches_of(cache):
        if not set(missing) <= set(part[part.groups[0]].fields):
            cache = part
            break
    graphs = [name for name in missing if name in FIELDS and FIELDS[name].stage == "graphs"]
    what = f"head {head} needs {', '.join(missing)}, which {cache.path} lacks"
    if len(graphs) == len(missing):
        return f"{what}: run `vidgraph graphs --cache {cache.path}`"
    if missing == ["track"]:
        return f"{what}: run `vidgraph graphs --cache {cache.path} --tracks`, which links boxes"
    unknown = _unknown_cuts(cache, missing)
    if unknown:
        return f"{what}: {_other_cut(cache, unknown)}"
    labels = [name for name in missing if name in LABELS]
    if labels:
        return (
            f"{what}: extract with a source of boxes that knows {' and '.join(labels)}, such as "
            f"--proposals torchvision-detector, or annotations whose file has them"
        )

    keep = []
    for name in cache[cache.groups[0]].fields:
        if is_cut(name) or name in ("pooled", "tokens", "nodes", "boxes"):
            keep.append(name)
    for name in missing:
        # Extraction stores scores and valid together with boxes.
        if name in ("valid", "scores"):
            keep.append("boxes")
        elif name not in graphs:
            keep.append(name)

    if cache.can_grow:
        stored = cache[cache.groups[0]].fields
        names = [name for name in dict.fromkeys(keep) if name not in stored]
        then = f", then `vidgraph graphs --cache {cache.path}`" if graphs else ""
        return f"{what}: run `{cache.how_to_add(names)}`{then}"

    place = f"--manifest {cache.manifest.path} --root {cache.manifest.root} --cache NEW"
    command = f"vidgraph extract {place} --keep {','.join(dict.fromkeys(keep))}"
    then = ", then `vidgraph graphs --cache NEW`" if graphs else ""
    return (
        f"{what}: run `{command}`, NEW being another folder, with the other options that "
        f"{cache.path}/cache.json lists{then}"
    )


def _backbone_of(cache: "Cache") -> "Backbone | None":
    """The backbone of a cache without its weights; None where it cannot be built here."""
    from pipeline.backbones import build_backbone

    record = extraction_record(cache.path)
    if record is None:
        return None
    asked = record["asked"]
    try:
        with torch.device("meta"):
            return build_backbone(asked["backbone"], **asked["backbone_options"])
    # A plug-in, a folder or a library that is not here.
    except (ValueError, OSError):
        return None


def _unknown_cuts(cache: "Cache", names: Sequence[str]) -> list[str]:
    """The cuts among names that the backbone of a cache does not have."""
    cuts = [name for name in names if is_cut(name)]
    backbone = _backbone_of(cache) if cuts else None
    if backbone is None:
        return []
    unknown = []
    for cut in cuts:
        try:
            backbone.channels(cut)
        except ValueError:
            unknown.append(cut)
    return unknown


def _other_cut(cache: "Cache", unknown: Sequence[str]) -> str:
    """What to do where a head wants cuts that no extraction of this backbone can give."""
    backbone = _backbone_of(cache)
    stored = [name for name in cache[cache.groups[0]].fields if is_cut(name)]
    cut = stored[-1] if stored else backbone.last
    has_not = f"its backbone {backbone.name} has no {', '.join(unknown)}"
    setting = f"pass --set head.cut={cut}, if the head has this option"
    if stored:
        return f"{has_not}; {setting}"
    return f"{has_not}: run `{cache.how_to_add([cut])}`, and {setting}"
