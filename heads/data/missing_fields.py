"""What to do where a cache lacks fields that a head reads: commands that work."""

from collections.abc import Collection, Sequence
from shlex import quote
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
    stored = cache[cache.groups[0]].fields
    if len(graphs) == len(missing):
        return f"{what}: run `vidgraph graphs --cache {cache.path}`"
    if missing == ["track"]:
        return f"{what}: run `{_link(str(cache.path), stored)}`, which links boxes"
    backbone = None
    if "tokens" in missing or any(map(is_cut, missing)):
        backbone = _backbone_of(cache)
    unknown = [] if backbone is None else _unknown_cuts(backbone, missing)
    if unknown:
        return f"{what}: {_other_cut(cache, backbone, unknown)}"
    if backbone is not None and "tokens" in missing and not _has_tokens(backbone):
        return (
            f"{what}: its backbone {backbone.name} has no class or register tokens; pass "
            f"--set head.class_tokens=false, if the head has this option"
        )
    if any(name in LABELS for name in missing):
        return f"{what}: {_how_to_add_labels(cache, missing)}"

    keep = []
    for name in stored:
        if is_cut(name) or name in ("pooled", "tokens", "nodes", "boxes"):
            keep.append(name)
    for name in missing:
        # Extraction stores scores and valid together with boxes.
        if name in ("valid", "scores"):
            keep.append("boxes")
        elif name not in graphs:
            keep.append(name)

    if cache.can_grow:
        names = [name for name in dict.fromkeys(keep) if name not in stored]
        then = f", then `vidgraph graphs --cache {cache.path}`" if graphs else ""
        return f"{what}: run `{cache.how_to_add(names)}`{then}"

    place = f"{_place_of(cache)} --cache NEW"
    command = f"vidgraph extract {place} --keep {','.join(dict.fromkeys(keep))}"
    then = ", then `vidgraph graphs --cache NEW`" if graphs else ""
    return (
        f"{what}: run `{command}`, NEW being another folder, with the other options that "
        f"{cache.path}/cache.json lists{then}"
    )


def _how_to_add_labels(cache: "Cache", missing: Sequence[str]) -> str:
    """The commands that give a cache classes and tracks of boxes.

    Boxes have the names that their source gave them. So a cache that has boxes needs another one
    beside it; to a cache without boxes they are added.
    """
    fields = set(cache[cache.groups[0]].fields)
    if cache.can_grow and "boxes" not in fields:
        # Nodes bring boxes along. Linked boxes are compared by them.
        where, linked = f"--cache {quote(str(cache.path))} --add nodes", str(cache.path)
        fields.add("nodes")
    else:
        like = f" --like {quote(str(cache.path))}" if cache.can_grow else ""
        where, linked = f"{_place_of(cache)} --cache NEW{like}", "NEW"
    commands = f"run `vidgraph extract {where} --proposals torchvision-detector`"
    if "track" not in fields:
        commands += f", then `{_link(linked, fields)}`"
    # Linking boxes needs no classes.
    if "box_class" in missing:
        commands += (
            "; a file of boxes with classes does, too (--proposals annotations --annotations "
            "FILE); without classes: --set head.classes=none"
        )
    return commands


def _link(cache: str, fields: Collection[str]) -> str:
    """The command that links the boxes of a cache with these fields."""
    # Graphs of neighbours compare nodes.
    which = "" if "nodes" in fields else " --which iou"
    return f"vidgraph graphs --cache {quote(cache)} --tracks{which}"


def _place_of(cache: "Cache") -> str:
    """The options of a command that extracts the clips of a cache again."""
    manifest = quote(str(cache.manifest.path))
    return f"--manifest {manifest} --root {quote(str(cache.manifest.root))}"


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


def _has_tokens(backbone: "Backbone") -> bool:
    """Whether a backbone has class or register tokens."""
    # One that never has any lacks the method.
    if not hasattr(backbone, "token_shape"):
        return False
    try:
        backbone.token_shape(1)
    except ValueError:
        return False
    return True


def _unknown_cuts(backbone: "Backbone", names: Sequence[str]) -> list[str]:
    """The cuts among names that a backbone does not have."""
    unknown = []
    for cut in filter(is_cut, names):
        try:
            backbone.channels(cut)
        except ValueError:
            unknown.append(cut)
    return unknown


def _other_cut(cache: "Cache", backbone: "Backbone", unknown: Sequence[str]) -> str:
    """What to do where a head wants cuts that no extraction of this backbone can give."""
    stored = [name for name in cache[cache.groups[0]].fields if is_cut(name)]
    cut = stored[-1] if stored else backbone.last
    has_not = f"its backbone {backbone.name} has no {', '.join(unknown)}"
    setting = f"pass --set head.cut={cut}, if the head has this option"
    if stored:
        return f"{has_not}; {setting}"
    return f"{has_not}: run `{cache.how_to_add([cut])}`, and {setting}"
