"""`extract --add`: the options of a cache, with what is given on the command line in their place.

An option that decides values must be the cache's own. Nothing here checks that: `extract` compares
the whole configuration with the cache's and refuses another one.
"""

from dataclasses import replace

import click

from cli._shared.extraction import given_names, with_known_names, with_named

# Adds no field, but the views that the options or the manifest's splits ask for.
VIEWS = "views"

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
    from pipeline.stages.config import with_settings
    from pipeline.stages.repair import MovedFiles, as_extracted

    explicit = given_names(given)
    if "keep" in explicit:
        raise click.UsageError("--keep and --add: expected one of them, got both")
    cache = Cache(given["cache"])
    if not cache.can_grow:
        raise CacheError(
            f"{cache.path}: format {cache.record['format']}, which cannot grow; extract to a new "
            f"folder with --cache"
        )

    files = {name: given[name] for name in MOVABLE if name in explicit}
    # Files of another source of boxes are its own, and were never elsewhere.
    if "proposals" in explicit:
        for name in ("annotations", "proposal_weights"):
            files.pop(name, None)
    if given["manifest"] is None:
        files["root"] = given["root"]
    moved = MovedFiles(**files)
    config, _, own = as_extracted(cache.path, options, moved)
    manifest = cache.manifest
    if given["manifest"] is not None:
        manifest = read_manifest(given["manifest"], given["root"])
    elif given["root"] is not None:
        manifest = replace(read_manifest(manifest.path, given["root"]), clips=_kept(cache, given))

    fields = tuple(name for name in given["add"] if name != VIEWS)
    config = replace(
        with_named(config, given, explicit),
        keep=(*config.keep, *fields),
        resize=given["frame_resize"] or config.resize,
    )
    config = with_known_names(with_settings(config, given["settings"]))
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
