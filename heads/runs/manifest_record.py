"""What a run records of the manifest that its labels and splits came from, and how two such records
differ.

    record = manifest_record(read_manifest("fold1.csv"))
    record["splits"]["test"]["clips"]                       # how many
    differences(record, manifest_record(other))             # "" where labels and splits are the
    same

Folds of one dataset are manifests that differ in the column `split` alone: without the record,
figures of one fold would pass for those of another.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.manifests.manifest import Clip, Manifest, ManifestError, read_manifest

TAG = 8  # characters of a checksum in a file's name


def manifest_record(manifest: Manifest) -> dict[str, Any]:
    """What tells the labels and splits of a manifest from those of another one.

    Args:
        manifest: as read; videos, times and further columns do not count.

    Returns:
        path, root: where the file and its videos were, absolute.
        sha256: of (clip, split, labels) of every row, in the file's order, which the order of
        training views follows. splits: by name, `clips`, `classes` (label -> clips that have it)
        and `sha256` of the clips and labels in any order.
    """
    by_split: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        by_split.setdefault(clip.split, []).append(clip)
    splits = {}
    for name, clips in sorted(by_split.items()):
        classes = Counter(label for clip in clips for label in clip.labels)
        sha256 = sha256_of_split((clip.clip, clip.labels) for clip in clips)
        splits[name] = {
            "clips": len(clips),
            "sha256": sha256,
            "classes": dict(sorted(classes.items())),
        }
    return {
        "path": os.path.abspath(manifest.path),
        "root": os.path.abspath(manifest.root),
        "sha256": _sha256((clip.clip, clip.split, list(clip.labels)) for clip in manifest.clips),
        "splits": splits,
    }


def sha256_of_split(labelled: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The checksum of clips with their labels, in any order."""
    return _sha256(sorted((clip, sorted(labels)) for clip, labels in labelled))


def _sha256(rows: Iterable[Sequence]) -> str:
    """Of rows as lines of JSON."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        )
    return digest.hexdigest()


def split_sha256(record: Mapping[str, Any] | None, split: str) -> str:
    """The checksum of a split's clips and labels; "" where the record has no such split, or there
    is no record.
    """
    return ((record or {}).get("splits", {}).get(split) or {}).get("sha256", "")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In which splits the clips or labels of two records differ, in words; "" if in none."""
    said = []
    for split in sorted({*there["splits"], *here["splits"]}):
        if split_sha256(there, split) == split_sha256(here, split):
            continue
        old, new = (record["splits"].get(split, {}).get("clips", 0) for record in (there, here))
        what = (
            f"{old:,} clips there, {new:,} here"
            if old != new
            else f"{old:,} clips each, other ones or other labels"
        )
        said.append(f"{split}: {what}")
    return "; ".join(said)


def refuse_other_labels(folder: object, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """ValueError where the run in `folder`, whose record is `there`, would go on with other labels,
    splits or order.
    """
    if there["sha256"] == here["sha256"]:
        return
    what = differences(there, here) or "the same clips in another order"
    if there["path"] == here["path"]:
        raise ValueError(
            f"{folder} holds a run on the labels and splits of {there['path']} as it was then; it "
            f"has changed since ({what}): "
            "pass --manifest with a copy of what it was, choose another folder, or start over "
            "with --no-resume"
        )
    raise ValueError(
        f"{folder} holds a run on the labels and splits of {there['path']}, this command gives "
        f"those of {here['path']} "
        f"({what}): pass --manifest {there['path']}, choose another folder, or start over with "
        f"--no-resume"
    )


def own_manifest(record: Mapping[str, Any], at_hand: Manifest) -> Manifest | None:
    """The manifest with the labels and splits of a record: `at_hand`, or the file that the record
    names; None if neither.
    """
    if not differences(record, manifest_record(at_hand)):
        return at_hand
    try:
        there = read_manifest(record["path"], record["root"])
    except (ManifestError, OSError):
        return None
    return None if differences(record, manifest_record(there)) else there


def seen_in_training(trained_with: Manifest | None, at_hand: Manifest, split: str) -> int:
    """How many clips of a split of the manifest at hand a run was trained on, whose own manifest is
    `trained_with`.
    """
    if trained_with is None:
        return 0
    seen = {clip.clip for clip in trained_with.clips if clip.split == "train"}
    return sum(clip.clip in seen for clip in at_hand.clips if clip.split == split)


def warn_if_seen(
    weights: object, record: Mapping[str, Any] | None, at_hand: Manifest, say: Callable[[str], None]
) -> None:
    """Says of weights that a run takes from another one, or is taught by, that they know clips
    which it is evaluated on.

    Args:
        weights: where they are.
        record: of the manifest that they were trained with; None from an earlier version, of which
        nothing can be said. at_hand: the manifest of the run that takes them.
    """
    if record is None:
        return
    own = own_manifest(record, at_hand)
    if own is None:
        say(
            f"{weights} was trained with the labels and splits of {record['path']}, which is gone "
            f"or has changed: whether it "
            "knows clips of val or test is not known"
        )
    for split in ("val", "test"):
        if seen := seen_in_training(own, at_hand, split):
            say(
                f"{seen:,} clips of split {split} are among those that {weights} was trained on: "
                f"the figures will flatter"
            )
