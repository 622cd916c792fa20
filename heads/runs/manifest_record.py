"""What a run records of its manifest (labels and splits), and how two such records differ.

    record = manifest_record(read_manifest("fold1.csv"))
    record["splits"]["test"]["clips"]           # how many clips
    differences(record, manifest_record(other)) # "" if labels and splits are the same

Folds of one dataset are manifests that differ in the column `split` alone. Without the record,
figures of one fold would pass for figures of another.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cache.folder import earlier_manifests
from pipeline.manifests.folds import FOLD
from pipeline.manifests.manifest import Clip, Manifest, ManifestError, read_manifest
from pipeline.text.counted import agree, counted

# Characters of a checksum in a file's name.
TAG = 8


def manifest_record(manifest: Manifest) -> dict[str, Any]:
    """Describe the labels and splits of a manifest.

    Args:
        manifest: the manifest. Its videos, times and further columns do not count.

    Returns:
        path, root: where the file and its videos were, absolute.
        sha256: of (clip, split, labels) of every row, in the file's order, because the order of
            training views follows it.
        splits: by name, `clips`, `classes` (label -> clips that have it) and `sha256` of the clips
            and labels in any order.
        times: checksum of (clip, start, end) of every row, where clips are parts of videos.
        fold: of a manifest that `vidgraph manifest folds` wrote: `number` of this fold, how many
            there are (`of`), and `sha256` of (clip, fold), the same for all folds of one division.
    """
    by_split: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        by_split.setdefault(clip.split, []).append(clip)

    splits = {}
    for name, clips in sorted(by_split.items()):
        classes: Counter[str] = Counter()
        for clip in clips:
            classes.update(clip.labels)
        splits[name] = {
            "clips": len(clips),
            "sha256": sha256_of_split((clip.clip, clip.labels) for clip in clips),
            "classes": dict(sorted(classes.items())),
        }
    more: dict[str, Any] = {}
    fold = _fold_of(manifest)
    if fold:
        more["fold"] = fold
    if any(clip.start is not None or clip.end is not None for clip in manifest.clips):
        more["times"] = _sha256((clip.clip, clip.start, clip.end) for clip in manifest.clips)
    return {
        **more,
        "path": os.path.abspath(manifest.path),
        "root": os.path.abspath(manifest.root),
        "sha256": _sha256((clip.clip, clip.split, list(clip.labels)) for clip in manifest.clips),
        "splits": splits,
    }


def _fold_of(manifest: Manifest) -> dict[str, Any]:
    """Return which fold of a cross-validation a manifest is; {} if it is none."""
    if FOLD not in manifest.columns:
        return {}
    rows = [(clip.clip, clip.extra[FOLD]) for clip in manifest.clips]
    folds = {fold for _, fold in rows if fold}
    # The fold is the test split, or val where all folds share one test split.
    for split in ("test", "val"):
        own = {clip.extra[FOLD] for clip in manifest.clips if clip.split == split}
        if len(own) == 1 and own <= folds:
            return {"number": own.pop(), "of": len(folds), "sha256": _sha256(sorted(rows))}
    return {}


def sha256_of_split(labelled: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return the checksum of clips with their labels, whatever their order.

    Args:
        labelled: (clip id, its labels) of every clip.
    """
    return _sha256(sorted((clip, sorted(labels)) for clip, labels in labelled))


def _sha256(rows: Iterable[Sequence]) -> str:
    """Return the checksum of rows, each written as a line of JSON."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, ensure_ascii=False)
        # Labels may hold bytes that are not UTF-8.
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def split_sha256(record: Mapping[str, Any] | None, split: str) -> str:
    """Return the checksum of a split's clips and labels.

    Args:
        record: what `manifest_record` returned; None for a run without one.
        split: the split's name.

    Returns:
        The checksum; "" if there is no record, or no such split in it.
    """
    if record is None:
        return ""
    return (record.get("splits", {}).get(split) or {}).get("sha256", "")


def differences(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe in which splits the clips or labels of two records differ.

    Args:
        recorded: the record of an earlier run.
        current: the record of the manifest in use now.

    Returns:
        The differences in words; "" if there is none.
    """
    found = []
    for split in sorted({*recorded["splits"], *current["splits"]}):
        if split_sha256(recorded, split) == split_sha256(current, split):
            continue
        old = recorded["splits"].get(split, {}).get("clips", 0)
        new = current["splits"].get(split, {}).get("clips", 0)
        if old != new:
            found.append(f"{split}: {counted(old, 'clip')} there, {new:,} here")
        else:
            found.append(f"{split}: {counted(old, 'clip')} each, but other clips or other labels")
    return "; ".join(found)


def refuse_other_labels(
    folder: object, recorded: Mapping[str, Any], current: Mapping[str, Any]
) -> None:
    """Refuse to continue a run with other labels, splits or order of clips.

    Args:
        folder: the run folder, for the message.
        recorded: the record of the run in it.
        current: the record of the manifest in use now.

    Raises:
        ValueError: they differ.
    """
    if recorded["sha256"] == current["sha256"]:
        # Caches of other windows may have the same fingerprint, clip ids and labels. Runs of
        # earlier versions recorded no times.
        if recorded.get("times", current.get("times")) != current.get("times"):
            raise ValueError(
                f"{folder} holds a run on the clips of {recorded['path']}, whose start and end "
                f"differ from those of {current['path']}: choose another folder (--name), or "
                f"start over with --no-resume"
            )
        return
    what = differences(recorded, current) or "the same clips in another order"
    # The same path: the file was changed. Another path: another file was given, e.g. a fold.
    if recorded["path"] == current["path"]:
        raise ValueError(
            f"{folder} holds a run on the labels and splits of {recorded['path']}, which has "
            f"changed since ({what}): pass --manifest {_old_file(recorded)}, choose another "
            f"folder (--name), or start over with --no-resume"
        )
    raise ValueError(
        f"{folder} holds a run on the labels and splits of {recorded['path']}, this command gives "
        f"those of {current['path']} ({what}): pass --manifest {recorded['path']}, choose another "
        f"folder, or start over with --no-resume"
    )


def _old_file(recorded: Mapping[str, Any]) -> str:
    """Where a run's own labels and splits are, if a cache kept them when it grew."""
    for path in earlier_manifests(Path(recorded["path"]).parent):
        with suppress(ManifestError, OSError):
            found = manifest_record(read_manifest(path, recorded["root"]))
            if found["sha256"] == recorded["sha256"]:
                return str(path)
    return "with a copy of the old file"


def own_manifest(record: Mapping[str, Any], at_hand: Manifest) -> Manifest | None:
    """Return the manifest that a record describes.

    Args:
        record: the record of a run.
        at_hand: the manifest in use now, which is tried first.

    Returns:
        `at_hand`, or the file that the record names, or a copy that a cache kept of it when it
        grew; None if none of them has these labels and splits.
    """
    if not differences(record, manifest_record(at_hand)):
        return at_hand
    recorded = Path(record["path"])
    folders = dict.fromkeys([recorded.parent, Path(at_hand.path).absolute().parent])
    for path in [recorded, *[path for folder in folders for path in earlier_manifests(folder)]]:
        try:
            found = read_manifest(path, record["root"])
        except (ManifestError, OSError):
            continue
        if not differences(record, manifest_record(found)):
            return found
    return None


def seen_in_training(trained_with: Manifest | None, at_hand: Manifest, split: str) -> int:
    """Count the clips of a split that a run was trained on.

    Args:
        trained_with: the run's own manifest; None counts as no clip.
        at_hand: the manifest in use now.
        split: a split of `at_hand`.
    """
    if trained_with is None:
        return 0
    trained = {clip.clip for clip in trained_with.clips if clip.split == "train"}
    return sum(clip.clip in trained for clip in at_hand.clips if clip.split == split)


def warn_if_seen(
    weights: object, record: Mapping[str, Any] | None, at_hand: Manifest, say: Callable[[str], None]
) -> None:
    """Warn if weights of another run were trained on clips that this run is evaluated on.

    Args:
        weights: where the weights are, for the message.
        record: of the manifest that they were trained with. None, for a run of an earlier version,
            gives no warning: nothing is known.
        at_hand: the manifest of the run that takes the weights.
        say: prints one line for a person.
    """
    if record is None:
        return
    trained_with = own_manifest(record, at_hand)
    if trained_with is None:
        say(
            f"{weights} was trained with the labels and splits of {record['path']}, "
            f"which is gone or has changed: it may have been trained on clips of val or test"
        )
    for split in ("val", "test"):
        count = seen_in_training(trained_with, at_hand, split)
        if count:
            say(
                f"{counted(count, 'clip')} of split {split} {agree(count, 'is', 'are')} among "
                f"those that {weights} was trained on: the figures will be too high"
            )
