"""`extract --add`: the options of a cache, with what is given on the command line in their place.

An option that decides values must be the cache's own. Nothing here checks that: `extract` compares
the whole configuration with the cache's and refuses another one.
"""

from dataclasses import replace

import click
from click.core import ParameterSource

from cli._shared.extraction import CONFIG, SAMPLING

# Adds no field, but the views that the options or the manifest's splits ask for.
VIEWS = "views"

# Options of the source of boxes -> their names in `proposal_options`.
OF_SOURCE = {
    "proposal_weights": "weights",
    "proposal_size": "size",
    "boxes": "num_boxes",
    "annotations": "file",
}


# Files that may be elsewhere than where the first run found them.
MOVABLE = ("weights", "annotations", "proposal_weights")


def added_to(given: dict, options) -> tuple:
    """Collect what an extraction with `--add` asks for.

    Args:
        given: the options of the command, by name.
        options: how to work, from the command line.

    Returns:
        The config, the manifest, and the options with the cache's own batch size and compression
        where none are given.

    Raises:
        click.UsageError: --keep is given, too.
        ValueError: the cache cannot grow, or lacks what tells its options.
    """
    from pipeline.cache.reader import Cache, CacheError
    from pipeline.manifests.manifest import read_manifest
    from pipeline.plugins import given_name
    from pipeline.stages.config import with_settings
    from pipeline.stages.repair import MovedFiles, as_extracted

    explicit = _given_by_hand()
    if "keep" in explicit:
        raise click.UsageError("--keep and --add: expected one of them, got both")
    cache = Cache(given["cache"])
    if not cache.can_grow:
        raise CacheError(
            f"{cache.path}: format {cache.record['format']}, which cannot grow; extract to a new "
            f"folder with --cache"
        )

    files = {name: given[name] for name in MOVABLE if name in explicit}
    if given["manifest"] is None:
        files["root"] = given["root"]
    moved = MovedFiles(**files)
    config, _, own = as_extracted(cache.path, options, moved)
    manifest = cache.manifest
    if given["manifest"] is not None:
        manifest = read_manifest(given["manifest"], given["root"])
    elif given["root"] is not None:
        manifest = replace(read_manifest(manifest.path, given["root"]), clips=_kept(cache, given))

    sampling = {name: given[name] for name in SAMPLING if name in explicit}
    if "test_crops" in explicit:
        crops = given["test_crops"]
        sampling["test_crops"] = crops if crops == "full" else int(crops)
    source = dict(config.proposal_options)
    for name, key in OF_SOURCE.items():
        if name in explicit:
            source[key] = str(given[name]) if name == "annotations" else given[name]
    others = {name: given[name] for name in CONFIG if name in explicit}
    fields = tuple(name for name in given["add"] if name != VIEWS)
    config = replace(
        config,
        **others,
        keep=(*config.keep, *fields),
        sampling=replace(config.sampling, **sampling),
        proposal_options=source,
        resize=given["frame_resize"] or config.resize,
    )
    config = with_settings(config, given["settings"])
    config = replace(
        config, backbone=given_name(config.backbone), proposals=given_name(config.proposals)
    )
    for name in ("batch", "compression"):
        if name not in explicit:
            options = replace(options, **{name: getattr(own, name)})
    return config, manifest, options


def _kept(cache, given: dict) -> tuple:
    """The clips of a cache that were not removed, with their videos at --root."""
    from pipeline.manifests.manifest import read_manifest

    here = {clip.clip for clip in cache.manifest.clips}
    moved = read_manifest(cache.manifest.path, given["root"])
    return tuple(clip for clip in moved.clips if clip.clip in here)


def _given_by_hand() -> set[str]:
    """The names of the options that stand on the command line."""
    context = click.get_current_context()
    by_hand = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    names = set()
    for name in context.params:
        if context.get_parameter_source(name) in by_hand:
            names.add(name)
    return names
