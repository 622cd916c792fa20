"""Diving48: JSON lists [{"vid_name", "label", "start_frame", "end_frame"}, ..] and a vocabulary.

Files: Diving48_V2_train.json and Diving48_V2_test.json (version 2, cleaned), or the same names
without V2 (version 1, EAN's), and Diving48_vocab.json. The vocabulary is a list of [take-off,
somersaults, twists, position] for the 48 dives, in the order of the labels. Videos are
VID_NAME.mp4, cut to the dive. The test list is the papers' validation set.
"""

from pathlib import Path

from pipeline.manifests.datasets.annotation_files import find, read_json, text_of, whole_of
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.manifest import ManifestError
from pipeline.text.counted import agree, counted

OFFICIAL = {1: {"train": 15_943, "val": 2_096}, 2: {"train": 15_027, "val": 1_970}}
CLASSES = 48
_LISTS = {"train": "train", "val": "test"}


def read(folder: str | Path, version: int = 2, fps: float | None = None) -> Dataset:
    """Read the official files.

    Args:
        folder: their folder. A list that is missing is left out, but one must be there. Without
            a vocabulary, labels are numbers.
        version: 1 or 2.
        fps: frame rate of the videos. It turns the frames of an entry into seconds if the entry
            starts after frame 0. Videos are cut to the dive, so entries start at 0; a note says
            so if one does not.

    Raises:
        ManifestError: no list, or one has another form.
        ValueError: another version.
    """
    if version not in OFFICIAL:
        raise ValueError(f"version: expected 1 or 2, got {version!r}")
    # Releases of version 1 are called with and without its number.
    if version == 2:
        prefix, prefix_pattern = "Diving48_V2", "Diving48_V2"
    else:
        prefix, prefix_pattern = "Diving48", "Diving48(_V1)?"

    vocabulary = find(folder, r"Diving48_vocab\.json", "Diving48_vocab.json")
    classes = tuple(str(k) for k in range(CLASSES))
    if vocabulary:
        classes = _vocabulary(vocabulary)

    entries: list[DatasetClip] = []
    for split, word in _LISTS.items():
        example = f"{prefix}_{word}.json"
        path = find(folder, rf"{prefix_pattern}_{word}\.json", example)
        if path:
            for k, item in enumerate(read_json(path, list)):
                entries.append(_entry(path, k, item, split, classes, fps))
    if not entries:
        raise ManifestError(
            f"{folder}: no list such as {example} of version {version}; download it, or say "
            "another --version"
        )

    data = Dataset(
        name=f"diving48, version {version}",
        classes=classes,
        entries=entries,
        official=OFFICIAL[version],
        num_classes=CLASSES,
        layout="called VID_NAME.mp4, or a folder of frames of that name",
        fps=fps,
    )
    later = sum(entry.extra["start_frame"] != "0" for entry in entries)
    if later and not fps:
        data.notes.append(
            f"{counted(later, 'clip')} {agree(later, 'starts', 'start')} after frame 0 of the "
            "video: pass --fps if the videos are not cut to the dive"
        )
    return data


def _entry(
    path: Path, k: int, item: object, split: str, classes: tuple[str, ...], fps: float | None
) -> DatasetClip:
    """Return entry k of a list."""
    clip = text_of(item, "vid_name", path, k)
    label = whole_of(item, "label", path, k)
    first = whole_of(item, "start_frame", path, k)
    last = whole_of(item, "end_frame", path, k)
    if label >= len(classes):
        expected = f"a label from 0 to {len(classes) - 1}"
        raise ManifestError(f"{path}, entry {k + 1}: expected {expected}, got {label}")

    # A clip from frame 0 is the whole video, whatever its last frame.
    start, end = None, None
    if fps and first and last > first:
        start, end = first / fps, last / fps
    extra = {"start_frame": str(first), "end_frame": str(last)}
    return DatasetClip(clip, split, (classes[label],), (clip,), start, end, extra=extra)


def _vocabulary(path: Path) -> tuple[str, ...]:
    """Return the names of the dives, such as "Back 15som 05Twis FREE"."""
    names = []
    for k, dive in enumerate(read_json(path, list)):
        ok = isinstance(dive, list) and len(dive) > 0
        ok = ok and all(isinstance(word, str) and word for word in dive)
        if not ok:
            expected = "expected a list of words such as Back, 15som, 05Twis, FREE"
            raise ManifestError(f"{path}, entry {k + 1}: {expected}, got {str(dive)[:60]!r}")
        names.append(" ".join(dive))
    return tuple(names)
