"""k-fold cross-validation: k manifests of the same clips, each with another part as its test split.

The folds are stratified by class. Clips that share a video stay in one fold, and so do clips with
the same text in a column, such as the person who is filmed. Otherwise a head would be tested on
what it has seen.
"""

from collections.abc import Sequence

from pipeline.manifests.manifest import Clip, Manifest, ManifestError
from pipeline.manifests.rewriting import read_cells
from pipeline.manifests.splits import draw_parts
from pipeline.text.counted import counted
from pipeline.text.suggestions import nearest

# The column that says in which fold a clip is tested, from 1.
FOLD = "fold"


def fold_rows(
    manifest: Manifest,
    k: int = 5,
    group: str = "",
    val: float = 0.1,
    seed: int = 0,
    keep_test: bool = False,
) -> list[list[dict[str, str]]]:
    """Return the rows of k manifests.

    In manifest i, the clips of fold i are the test split, a share of the others is val, and the
    rest is train. The column `fold` is the same in all of them.

    Args:
        manifest: the clips; their own splits do not count.
        k: the number of folds, from 2.
        group: a column; clips with the same text in it stay together. "" is none.
        val: share of all clips that is val, below 1 - 1/k. 0: no clip.
        seed: another seed gives other folds.
        keep_test: the test split stays as it is in all manifests. Fold i is then val.

    Returns:
        For each fold, the cells of all clips by column, in the order of the manifest.

    Raises:
        ManifestError: there is no such column, or there are fewer groups than folds.
        ValueError: a number is out of range.
    """
    if k < 2:
        raise ValueError(f"k: expected at least 2 folds, got {k}")
    if not 0 <= val < 1 - 1 / k:
        raise ValueError(f"val: expected a share from 0, below {1 - 1 / k:.3g}, got {val}")

    clips = manifest.clips
    divided = list(clips)
    if keep_test:
        divided = [clip for clip in clips if clip.split != "test"]
    groups = groups_of(manifest, divided, group)
    if len(set(groups)) < k:
        raise ManifestError(
            f"{manifest.path}: {counted(len(set(groups)), 'group')} of clips, expected at "
            f"least {k} for "
            f"{k} folds; clips of one video count as one"
        )
    numbers = list(map(str, range(1, k + 1)))
    labels = [clip.labels for clip in divided]
    folds = draw_parts(labels, groups, dict.fromkeys(numbers, 1 / k), seed)
    fold_of = dict(zip([clip.clip for clip in divided], folds, strict=True))

    cells = read_cells(manifest)
    manifests = []
    for number in numbers:
        splits = {}
        if keep_test:
            for clip in divided:
                splits[clip.clip] = "val" if fold_of[clip.clip] == number else "train"
        else:
            splits = _splits(divided, groups, folds, number, val * k / (k - 1), seed)
        rows = []
        for clip, row in zip(clips, cells, strict=True):
            split = splits.get(clip.clip, "test")
            rows.append({**row, "split": split, FOLD: fold_of.get(clip.clip, "")})
        manifests.append(rows)
    return manifests


def _splits(
    clips: Sequence[Clip],
    groups: Sequence[str],
    folds: Sequence[str],
    number: str,
    val: float,
    seed: int,
) -> dict[str, str]:
    """Return clip -> split of one fold; `val` is a share of the clips that are not tested."""
    splits = {}
    rest = []
    for k, clip in enumerate(clips):
        if folds[k] == number:
            splits[clip.clip] = "test"
        else:
            rest.append(k)
    shares = {"train": 1 - val, "val": val} if val else {"train": 1.0}
    labels = [clips[k].labels for k in rest]
    # Another seed for each fold: otherwise the same clips would be val in nearly all of them.
    parts = draw_parts(labels, [groups[k] for k in rest], shares, seed * 1000 + int(number))
    for k, part in zip(rest, parts, strict=True):
        splits[clips[k].clip] = part
    return splits


def groups_of(manifest: Manifest, clips: Sequence[Clip], column: str = "") -> list[str]:
    """Return which clips stay together: those of one video, and those that a column joins.

    Args:
        manifest: where the clips are from.
        clips: some of its clips.
        column: a further column of it. "" is none. Clips with an empty cell are joined by their
            video alone.

    Returns:
        The name of each clip's group.

    Raises:
        ManifestError: there is no such column.
    """
    own = ("clip", "path", "split", "label", "start", "end", "root", FOLD)
    further = [name for name in manifest.columns if name not in own]
    if column and column not in further:
        raise ManifestError(f"{manifest.path}: no column {column!r}; {nearest(column, further)}")

    # A video may lie in several groups of the column: its groups become one.
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    for clip in clips:
        text = clip.extra.get(column, "").strip() if column else ""
        if text:
            above[top(f"video {clip.place}")] = top(f"group {text}")
    return [top(f"video {clip.place}") for clip in clips]
