"""What an extraction adds to a cache: what is asked for, less what is there.

A new cache gets one part with everything. An existing one gets parts for new clips and for views
that its clips lack, and a stage of its own for new fields. Nothing that is there is computed again,
except for test views whose frames move when their number changes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pipeline.backbones import backbone_names
from pipeline.cache.creation import first_record, require_same, require_same_config
from pipeline.cache.fields import FIELDS, GROUPS
from pipeline.cache.folder import CacheError, read_cache_json, read_folder
from pipeline.cache.growth import Grown, common_root, merged_clips, open_or_grow
from pipeline.cache.identity import as_json, deciding, fingerprint_of
from pipeline.cache.parts import Part, ViewKey, as_ranges, run_lengths
from pipeline.cache.shards import Shards
from pipeline.encoder_names import is_encoder
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.plugins import mentioned_in
from pipeline.proposals import proposal_names
from pipeline.stages.config import OF_BOXES, OF_FILES, OF_LABELS, OF_NETWORKS, ExtractConfig
from pipeline.text.counted import agree, counted
from pipeline.views.equal_views import same_test_views
from pipeline.views.sampling import Sampling, count_views
from pipeline.workers.waiting import PrintLine

# A column of a manifest with this name, or one that begins so, holds folds: every clip is trained
# on in some of them and tested in others.
FOLDS = "fold"

# Divides clips, given by their views, into shards: returns clips per shard.
Divide = Callable[[Sequence[Sequence[ViewKey]]], list[int]]


@dataclass(frozen=True)
class Asked:
    """What an extraction asks for.

    Attributes:
        config: the options.
        record: the config as cache.json holds it.
        manifest: the clips.
        views_for_all: whether every clip gets training and test views.
        divide: divides clips into shards.
    """

    config: ExtractConfig
    record: dict
    manifest: Manifest
    views_for_all: bool
    divide: Divide

    @property
    def views(self) -> dict[str, tuple[int, ...]]:
        """Group -> the numbers of a clip's views."""
        return _views_of(self.config)


def has_folds(manifest: Manifest) -> bool:
    """Return whether a manifest has a column of folds.

    Args:
        manifest: the manifest.
    """
    return any(column.lower().startswith(FOLDS) for column in manifest.columns)


def widened(config: ExtractConfig, cache: str | Path) -> ExtractConfig:
    """Return a config with the fields and views that a cache has already.

    Args:
        config: what is asked for.
        cache: the cache's folder; it need not be a cache.

    Returns:
        The config for everything that is there or asked for. A cache of format 1, which cannot
        grow, leaves it as it is.

    Raises:
        CacheError, Damaged: cache.json cannot be read.
    """
    folder = Path(cache)
    if not (folder / "cache.json").is_file():
        return config
    record = read_cache_json(folder)
    stored = record["config"]
    if record["format"] == 1 or "keep" not in stored or "sampling" not in stored:
        return config
    sampling = replace(
        config.sampling,
        train_views=max(config.sampling.train_views, stored["sampling"]["train_views"]),
        test_clips=max(config.sampling.test_clips, stored["sampling"]["test_clips"]),
    )
    return replace(config, keep=(*config.keep, *stored["keep"]), sampling=sampling)


def require_comparable(config: ExtractConfig, cache: str | Path) -> None:
    """Check before weights are loaded, or even downloaded, that a cache has the options asked for.

    Checksums of files, and what only the networks know, are left to `open_for`.

    Args:
        config: what is asked for, `widened`.
        cache: the cache's folder; it need not be a cache.

    Raises:
        CacheError: the cache was made with other options.
        Damaged: cache.json cannot be read.
    """
    folder = Path(cache)
    if not (folder / "cache.json").is_file():
        return
    record = read_cache_json(folder)
    stored = record["config"]
    known = is_encoder(config.backbone) or config.backbone in backbone_names()
    # A wrong name is answered with the names that exist; other caches have no such options.
    if not known or config.proposals not in proposal_names() or "sampling" not in stored:
        return
    wanted = as_json(config.computed("", ""))
    wanted["weights"] = _stored_unless_none(config.weights, stored["weights"])
    boxes = wanted.get("proposal_options", {})
    stored_boxes = stored.get("proposal_options", {})
    for key in OF_FILES:
        if key in boxes and key in stored_boxes:
            boxes[key] = _stored_unless_none(boxes[key], stored_boxes[key])
    for key in OF_NETWORKS:
        wanted.pop(key, None)
        if key in stored:
            wanted[key] = stored[key]
    if record["format"] == 1:
        require_same_config(folder, stored, wanted)
    else:
        _require_same_values(folder, stored, wanted)


def _stored_unless_none(wanted: str, stored: str) -> str:
    """The checksum of a cache's file, unless one of the two has no file."""
    return wanted if "none" in (wanted, stored) else stored


def open_for(asked: Asked, cache: str | Path, say: PrintLine | None = None) -> Shards:
    """Create a cache, or open one and let it grow by what it lacks.

    Args:
        asked: what is asked for, `widened` by what is there.
        cache: the cache's folder.
        say: prints a line, about a claim that is waited for or about views that are computed again.

    Returns:
        All shards of the cache, with the paths and labels of the manifest that was given.

    Raises:
        CacheError: the cache was made with another config, a clip has another start or end, or the
            cache has format 1 and other clips, views or fields.
        Damaged: cache.json or the manifest's copy has changed.
    """
    folder, manifest = Path(cache), asked.manifest
    if (folder / "cache.json").is_file() and read_cache_json(folder)["format"] == 1:
        require_same(folder, asked.record, manifest)
        return Shards(folder, read_cache_json(folder), manifest)

    def first() -> dict:
        views = _needed_by_split(asked.views, asked.views_for_all)
        part = _part_of_new(asked, range(len(manifest.clips)), manifest.clips, views)
        record = first_record(asked.record, manifest, [part])
        return {**record, "views_for_all": asked.views_for_all}

    def grown(record: dict, copy: Manifest) -> Grown | None:
        return _grown(asked, folder, record, copy)

    before = read_cache_json(folder) if (folder / "cache.json").is_file() else None
    record, copy = open_or_grow(folder, manifest, first, grown, say)
    if before and say:
        _say_what_moved(before, record, asked.config.sampling, folder, say)
    return Shards(folder, record, copy, _with_newer(copy, manifest))


def open_as_it_is(asked: Asked, cache: str | Path) -> Shards:
    """Open a cache to write shards of it again. It does not grow.

    Args:
        asked: what its shards were made with, and its clips.
        cache: the cache's folder.

    Returns:
        All shards of the cache, with the paths of the manifest that was given.

    Raises:
        CacheError: there is no cache, or it was made with another config.
        Damaged: cache.json or the manifest's copy has changed.
    """
    folder = Path(cache)
    record, copy = read_folder(folder)
    if record["format"] == 1:
        require_same(folder, asked.record, asked.manifest)
    else:
        _require_same_values(folder, record["config"], asked.record)
    return Shards(folder, record, copy, _with_newer(copy, asked.manifest))


def _with_newer(copy: Manifest, manifest: Manifest) -> list[Clip]:
    """The clips of a cache, each as a newer manifest has it if it does."""
    newer = {clip.clip: clip for clip in manifest.clips}
    return [newer.get(clip.clip, clip) for clip in copy.clips]


def needed_views(
    config: ExtractConfig, manifest: Manifest, views_for_all: bool = False
) -> list[tuple[ViewKey, ...]]:
    """Return the views that the clips of a manifest need.

    Args:
        config: the options.
        manifest: the clips. If it has folds, every clip needs training and test views.
        views_for_all: whether every clip needs them anyway.

    Returns:
        For each clip the (group, number) of its views.
    """
    for_all = views_for_all or has_folds(manifest)
    needed = _needed_by_split(_views_of(config), for_all)
    return [needed(clip.split) for clip in manifest.clips]


def _views_of(config: ExtractConfig) -> dict[str, tuple[int, ...]]:
    """Group -> the numbers of a clip's views."""
    counts = count_views(config.sampling)
    return {group: tuple(range(counts[group])) for group in GROUPS if counts[group]}


def _needed_by_split(
    views: Mapping[str, Sequence[int]], for_all: bool
) -> Callable[[str], tuple[ViewKey, ...]]:
    """A function: split -> the views that its clips need."""
    numbers = {group: tuple(of_group) for group, of_group in views.items()}
    part = Part(((0, 1),), ((1, 1),), "", views=numbers, by_split=not for_all)
    known = {split: part.views_of(split) for split in ("train", "val", "test")}
    return known.__getitem__


def _part_of_new(
    asked: Asked,
    positions: Sequence[int],
    clips: Sequence[Clip],
    needed: Callable[[str], tuple[ViewKey, ...]],
) -> Part:
    """A part for clips that are new."""
    return Part(
        clips=as_ranges(positions),
        lengths=run_lengths(asked.divide([needed(clip.split) for clip in clips])),
        fingerprint=fingerprint_of(asked.record),
        views=asked.views,
        by_split=not asked.views_for_all,
        keep=asked.config.keep,
        test_clips=asked.config.sampling.test_clips,
    )


def _grown(asked: Asked, folder: Path, record: dict, copy: Manifest) -> Grown | None:
    """What the cache becomes; None if it holds all that is asked for. Raises CacheError."""
    stored = record["config"]
    if "keep" not in stored or "sampling" not in stored:
        raise CacheError(
            f"{folder}: expected a cache of `vidgraph extract`, this one was filled by something "
            f"else; point --cache at another folder"
        )
    _require_same_values(folder, stored, asked.record)
    asked = replace(asked, views_for_all=asked.views_for_all or record.get("views_for_all", False))
    clips = merged_clips(copy, asked.manifest, folder)
    here = {clip.clip for clip in asked.manifest.clips}
    removed = [clip.clip for clip in clips if clip.clip not in here]

    plan = Shards(folder, record, copy)
    parts = [_renumbered(part, asked.config.sampling) for part in plan.parts]
    new_parts = [*_parts_of_missing_views(asked, plan, parts, clips)]
    if len(clips) > len(copy.clips):
        positions = range(len(copy.clips), len(clips))
        needed = _needed_by_split(asked.views, asked.views_for_all)
        new_parts.append(_part_of_new(asked, positions, clips[positions.start :], needed))

    added = list(record.get("added", ()))
    fields = [name for name in asked.config.keep if name not in stored["keep"]]
    if fields:
        added.append(_added_stage(fields, asked))

    new = {
        **record,
        "config": asked.record,
        "fingerprint": fingerprint_of(asked.record),
        "parts": [part.as_json() for part in (*parts, *new_parts)],
        "views_for_all": asked.views_for_all,
    }
    for key, value in (("added", added), ("removed", removed)):
        new.pop(key, None)
        if value:
            new[key] = value
    plugins = {**record.get("plugins", {}), **mentioned_in(asked.record)}
    if plugins:
        new["plugins"] = plugins
    if new == record:
        return None

    if asked.manifest.sha256 == copy.sha256:
        return Grown(new, None, copy.root)
    splits = {}
    for position, clip in enumerate(clips[: len(copy.clips)]):
        if plan.split_at(position) != clip.split:
            splits[clip.clip] = plan.split_at(position)
    new.pop("splits", None)
    if splits:
        new["splits"] = splits
    return Grown(new, clips, common_root(asked.manifest, clips))


def _require_same_values(folder: Path, stored: dict, wanted: dict) -> None:
    """CacheError unless two configs give the same values, as far as both have them."""
    stored, wanted = deciding(stored), deciding(wanted)
    if ("proposals" in stored) != ("proposals" in wanted):
        # One of them has no boxes, and nothing to disagree about.
        without_boxes = (*OF_BOXES, *OF_LABELS)
        stored = {key: value for key, value in stored.items() if key not in without_boxes}
        wanted = {key: value for key, value in wanted.items() if key not in without_boxes}
    require_same_config(folder, stored, wanted)


def _renumbered(part: Part, sampling: Sampling) -> Part:
    """The part with the numbers that its test views have among `sampling.test_clips`."""
    before, after = part.test_clips, sampling.test_clips
    if part.views is None or not part.views.get("test") or before == after:
        return replace(part, read_as={}) if part.read_as and before == after else part
    same = same_test_views(sampling, before, after)
    numbers = tuple(same.get(number, -1) for number in part.views["test"])
    return replace(part, read_as={"test": numbers})


def _parts_of_missing_views(
    asked: Asked, plan: Shards, parts: Sequence[Part], clips: Sequence[Clip]
) -> Iterable[Part]:
    """Yield parts with the views that clips which are there need and lack."""
    held: list[tuple[ViewKey, ...]] = [()] * len(plan.manifest.clips)
    for part in parts:
        of_split: dict[str, tuple[ViewKey, ...]] = {}
        for position in chain.from_iterable(range(*pair) for pair in part.clips):
            split = plan.split_at(position)
            if split not in of_split:
                of_split[split] = tuple(
                    (group, part.read_number(group, number))
                    for group, number in part.views_of(split) or ()
                )
            # Most clips have one part: they share a tuple.
            held[position] = held[position] + of_split[split] if held[position] else of_split[split]

    here = {clip.clip for clip in asked.manifest.clips}
    needed = _needed_by_split(asked.views, asked.views_for_all)
    missing_of: dict[tuple, tuple[ViewKey, ...]] = {}
    lacking: dict[tuple[ViewKey, ...], list[int]] = {}
    for position, there in enumerate(held):
        clip = clips[position]
        if clip.clip not in here:
            continue
        both = needed(clip.split), there
        if both not in missing_of:
            missing_of[both] = tuple(key for key in both[0] if key not in there)
        if missing_of[both]:
            lacking.setdefault(missing_of[both], []).append(position)

    for keys, positions in lacking.items():
        views: dict[str, tuple[int, ...]] = {}
        for group in GROUPS:
            numbers = tuple(number for name, number in keys if name == group)
            if numbers:
                views[group] = numbers
        yield Part(
            clips=as_ranges(positions),
            lengths=run_lengths(asked.divide([keys] * len(positions))),
            fingerprint=fingerprint_of(asked.record),
            views=views,
            keep=asked.config.keep,
            test_clips=asked.config.sampling.test_clips,
        )


def _added_stage(fields: Sequence[str], asked: Asked) -> dict:
    """The record of fields that lie beside those that are there, under the name of the first."""
    # What comes along with boxes, or with nodes, needs no name.
    named = [name for name in fields if name not in ("scores", "valid")]
    if "nodes" in named:
        named = [name for name in named if name != "boxes"]
    order = {name: number for number, name in enumerate(FIELDS)}
    named.sort(key=lambda name: (order.get(name, len(order)), name))
    return {
        "stage": f"features/{'+'.join(named)}",
        "keep": list(fields),
        "fingerprint": fingerprint_of(asked.record),
        "config": asked.record,
    }


def _say_what_moved(
    before: dict, after: dict, sampling: Sampling, folder: Path, say: PrintLine
) -> None:
    """Print a line if test views lie elsewhere since their number has changed."""
    stored = before["config"].get("sampling", {}).get("test_clips", 0)
    wanted = after["config"]["sampling"]["test_clips"]
    if not stored or stored == wanted:
        return
    same = len(same_test_views(replace(sampling, test_crops=1), stored, wanted))
    if same < stored:
        say(
            f"{folder}: with --sampling {sampling.sampling}, {same} of its "
            f"{counted(stored, 'test clip')} {agree(same, 'is', 'are')} "
            f"among the {wanted} that are asked for; the other {wanted - same} "
            f"{agree(wanted - same, 'is', 'are')} computed, and {stored - same} "
            f"{agree(stored - same, 'is', 'are')} no longer read"
        )
