"""Diving48: JSON lists [{"vid_name", "label", "start_frame", "end_frame"}, ..] and a vocabulary of
48 dives.

Files: Diving48_V2_train.json, Diving48_V2_test.json (version 2, cleaned), or without the V2
(version 1, EAN's), and Diving48_vocab.json: a list of [take-off, somersaults, twists, position], in
the order of the labels. Videos are VID_NAME.mp4, cut to the dive. The test list is the papers'
validation set.
"""

from pathlib import Path

from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.datasets.annotation_files import find, read_json, text_of, whole_of
from pipeline.manifests.manifest import ManifestError

OFFICIAL = {1: {"train": 15_943, "val": 2_096}, 2: {"train": 15_027, "val": 1_970}}
CLASSES = 48
_LISTS = {"train": "train", "val": "test"}


def read(folder: str | Path, version: int = 2, fps: float | None = None) -> Dataset:
    """The dataset of the official files in `folder`; a list that is not there is left out, but one
    must be.

    Without a vocabulary the labels are their numbers. The frames of an entry are numbers of its
    video, which is cut to them already (start_frame is 0); where one starts later, `fps` turns them
    into the manifest's seconds, else a note says so.
    """
    if version not in OFFICIAL:
        raise ValueError(f"version: expected 1 or 2, got {version!r}")
    tag = "Diving48_V2" if version == 2 else "Diving48(_V1)?"
    vocab = find(folder, r"Diving48_vocab\.json", "Diving48_vocab.json")
    classes = _vocabulary(vocab) if vocab else tuple(str(k) for k in range(CLASSES))
    entries: list[DatasetClip] = []
    for split, word in _LISTS.items():
        example = f"Diving48{'_V2' if version == 2 else ''}_{word}.json"
        if path := find(folder, rf"{tag}_{word}\.json", example):
            entries += [
                _entry(path, k, item, split, classes, fps)
                for k, item in enumerate(read_json(path, list))
            ]
    if not entries:
        raise ManifestError(
            f"{folder}: no list such as {example} of version {version}; download it, or say "
            f"another --version"
        )
    layout = "called VID_NAME.mp4, or a folder of frames of that name"
    data = Dataset(
        f"diving48, version {version}",
        classes,
        entries,
        OFFICIAL[version],
        CLASSES,
        layout,
        fps=fps,
    )
    later = sum(entry.extra["start_frame"] != "0" for entry in entries)
    if later and not fps:
        data.notes.append(
            f"{later:,} clips start after frame 0 of their video: pass --fps if the videos are "
            f"not cut to the dive"
        )
    return data


def _entry(
    path: Path, k: int, item: object, split: str, classes: tuple[str, ...], fps: float | None
) -> DatasetClip:
    clip, label = text_of(item, "vid_name", path, k), whole_of(item, "label", path, k)
    first, last = whole_of(item, "start_frame", path, k), whole_of(item, "end_frame", path, k)
    if label >= len(classes):
        raise ManifestError(
            f"{path}, entry {k + 1}: expected a label from 0 to {len(classes) - 1}, got {label}"
        )
    times = (first / fps, last / fps) if fps and first and last > first else (None, None)
    extra = {"start_frame": str(first), "end_frame": str(last)}
    return DatasetClip(clip, split, (classes[label],), (clip,), *times, extra=extra)


def _vocabulary(path: Path) -> tuple[str, ...]:
    """The names of the dives, "Back 15som 05Twis FREE"."""
    dives = read_json(path, list)
    for k, dive in enumerate(dives):
        if not (
            isinstance(dive, list) and dive and all(isinstance(word, str) and word for word in dive)
        ):
            raise ManifestError(
                f"{path}, entry {k + 1}: expected a list of words such as Back, 15som, 05Twis, "
                f"FREE, got {str(dive)[:60]!r}"
            )
    return tuple(" ".join(dive) for dive in dives)
