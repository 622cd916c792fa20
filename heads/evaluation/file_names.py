"""The labels and splits of an evaluation, and the names of its files, which follow from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from heads.evaluation.saved_heads import TrainedHead
from heads.runs.manifest_record import (
    TAG,
    differences,
    manifest_record,
    own_manifest,
    seen_in_training,
    split_sha256,
)
from pipeline.text.counted import agree, counted

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest


def manifest_and_tag(
    folder: Path,
    trained: TrainedHead,
    cache: "Cache",
    given: "Manifest | None",
    split: str,
    phase: str,
    say: Callable[[str], None],
) -> "tuple[Manifest, str]":
    """Choose the labels and splits, and what the files of an evaluation are named after.

    Args:
        folder: the run folder, for messages.
        trained: the run's head.
        cache, split, phase, say: as for `evaluate`.
        given: the manifest that was asked for, if any.

    Returns:
        The manifest, and the split with the phase and the checksums of what is not the run's own.

    Raises:
        ValueError: the run's own manifest cannot be found, and none was given.
    """
    tag = f"{split}_{phase}" if phase else split
    if not trained.own_cache:
        say(
            f"{cache.path} is not the cache of this run; it has the same features, of other views "
            f"or clips"
        )
        tag += f"_{_views_tag(trained, cache)}"
    manifest, checksum = _manifest_for(folder, trained.manifest, cache, given, split, say)
    if checksum:
        tag += f"_{checksum}"
    return manifest, tag


def _views_tag(trained: TrainedHead, cache: "Cache") -> str:
    """What tells the views of another cache from the run's own, or those of a cache that grew."""
    if cache.fingerprint != trained.fingerprint:
        return cache.fingerprint[:TAG]
    sampling = cache.config.get("sampling") or {}
    return f"{sampling.get('test_clips', 0)}x{sampling.get('test_crops', 0)}-views"


def _manifest_for(
    folder: Path,
    record: Mapping | None,
    cache: "Cache",
    given: "Manifest | None",
    split: str,
    say: Callable[[str], None],
) -> "tuple[Manifest, str]":
    """Choose the labels and splits for evaluating a run.

    Args:
        folder: the run folder, for messages.
        record: of the run's manifest; None, for a run of an earlier version, fits any manifest.
        cache: the cache.
        given: the manifest that was asked for, if any.
        split: the split's name.
        say: prints one line for a person.

    Returns:
        The manifest, and the checksum that the files are named after: "" for the run's own split.
    """
    if record is None:
        return given or cache.manifest, ""

    trained_with = own_manifest(record, given or cache.manifest)
    if given is None:
        if trained_with is None:
            what = differences(record, manifest_record(cache.manifest))
            raise ValueError(
                f"{folder} was trained with the labels and splits of {record['path']}, "
                f"which is gone or has changed; those of {cache.path} are others ({what}): pass "
                f"--manifest with the file to use"
            )
        cached = set(cache["test"].clips) if "test" in cache.groups else set()
        if any(clip.clip in cached for clip in trained_with.clips if clip.split == split):
            return trained_with, ""
        # A cache of other clips, with its own splits.
        given = cache.manifest

    current = manifest_record(given)
    what = differences(record, current)
    if what:
        say(
            f"{given.path} has other labels or splits than {record['path']}, which {folder} was "
            f"trained with: {what}"
        )
        count = seen_in_training(trained_with, given, split)
        if count:
            say(
                f"{counted(count, 'clip')} of split {split} {agree(count, 'is', 'are')} among "
                "those that the run was trained on: its figures will be too high"
            )
    checksum = split_sha256(current, split)
    if checksum == split_sha256(record, split):
        return given, ""
    return given, checksum[:TAG]
