"""`vidgraph manifest something-something-v1`, …: the papers' datasets from their official files."""

from collections import Counter
from pathlib import Path

import click

from cli._shared.options import together
from cli._shared.real_numbers import RealNumber
from cli._shared.say import say
from pipeline.text.counted import counted


def print_counts(manifest, details: bool = True) -> None:
    """Print clips per split, the number of classes, and clips per class.

    Args:
        manifest: the manifest.
        details: whether to print more than the first line.
    """
    splits = Counter(clip.split for clip in manifest.clips)
    classes = Counter()
    for clip in manifest.clips:
        classes.update(clip.labels)

    shares = ", ".join(f"{split} {splits[split]:,}" for split in ("train", "val", "test"))
    say(
        f"{manifest.path}: {counted(len(manifest.clips), 'clip')} ({shares}), "
        f"{counted(len(classes), 'class', 'classes')}"
    )
    if not details:
        return
    if classes:
        (most, many), (least, few) = classes.most_common()[0], classes.most_common()[-1]
        if len(classes) == 1:
            say(f"  clips per class: {few:,} ({least})")
        elif few == many:
            say(f"  clips per class: {few:,}")
        else:
            say(f"  clips per class: {few:,} ({least}) to {many:,} ({most})")
    unlabelled = sum(not clip.labels for clip in manifest.clips)
    if unlabelled:
        say(f"  without a label: {unlabelled:,}")


def _common(name: str, order: bool = False, fps: float | None = None):
    """Make the decorator that adds the options of every dataset."""
    options = [
        click.argument("annotations", type=click.Path(exists=True, path_type=Path)),
        click.option(
            "--videos",
            required=True,
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder of the videos, or of the folders of frames.",
        ),
        click.option(
            "--out",
            default=f"{name}.csv",
            type=click.Path(dir_okay=False, path_type=Path),
            help="File to write.",
        ),
        click.option(
            "--allow-missing",
            is_flag=True,
            help="Leave out clips that have no video (exit code 3).",
        ),
        click.option(
            "--subset",
            is_flag=True,
            help="The lists are a part on purpose: compare no counts with the official ones.",
        ),
        click.option(
            "--fps",
            default=fps,
            type=RealNumber(min=0, min_open=True),
            help="Frame rate of folders of frames, per second.",
        ),
    ]
    if order:
        choice = click.Choice(["official", "alphabetical"])
        options.append(
            click.option(
                "--order",
                default="official",
                type=choice,
                help="Order of the class list, hence the ids.",
            )
        )
    return together(options)


@click.command("something-something-v1")
@_common("something-something-v1", order=True, fps=12.0)
def something_v1(annotations: Path, **given) -> int:
    """Something-Something V1, from the folder ANNOTATIONS.

    It holds something-something-v1-labels.csv, -train.csv, -validation.csv and, if wanted,
    -test.csv. --videos is 20bn-something-something-v1, a folder of frames per clip.
    """
    from pipeline.manifests.datasets.something_v1 import read

    return _write(read(annotations), annotations, given)


@click.command("something-something-v2")
@_common("something-something-v2", order=True, fps=12.0)
@click.option(
    "--protocol",
    default="official",
    type=click.Choice(
        [
            "official",
            "compositional",
            "compositional-shuffled",
            "one-object",
            "few-shot-base",
            "few-shot-5",
            "few-shot-10",
        ]
    ),
    help="The official splits, or one of Something-Else's; ANNOTATIONS is then its dataset_splits.",
)
@click.option(
    "--test-answers",
    is_flag=True,
    help="Label the test clips, from test-answers.csv in ANNOTATIONS.",
)
@click.option(
    "--boxes",
    type=click.Path(exists=True, path_type=Path),
    help="Something-Else's boxes, a JSON file or a folder of them.",
)
def something_v2(
    annotations: Path, protocol: str, test_answers: bool, boxes: Path | None, **given
) -> int:
    """Something-Something V2 and Something-Else, from the folder ANNOTATIONS.

    It holds labels.json, train.json, validation.json and, if wanted, test.json (older downloads
    put something-something-v2- in front). --videos is the folder of ID.webm. With --boxes,
    clips that have no boxes there count as missing.
    """
    from pipeline.manifests.datasets.something_v2 import read

    return _write(read(annotations, protocol, test_answers), annotations, given, boxes)


@click.command("charades")
@_common("charades", fps=24.0)
@click.option(
    "--window",
    default=0.0,
    type=RealNumber(min=0),
    help="Cut training videos into pieces of so many seconds, each with its own labels; 0: "
    "whole videos.",
)
def charades(annotations: Path, window: float, **given) -> int:
    """Charades, from the folder ANNOTATIONS that holds Charades_v1_train.csv and
    Charades_v1_test.csv.

    A clip has the set of its classes (c000 to c156); train with data.target = "multi". The test
    list is split val, as in the papers.
    """
    from pipeline.manifests.datasets.charades import read

    return _write(read(annotations, window), annotations, given)


@click.command("kinetics")
@_common("kinetics")
@click.option(
    "--trimmed",
    is_flag=True,
    help="Files called ID alone, without the seconds, are the clips, not whole videos.",
)
def kinetics(annotations: Path, trimmed: bool, **given) -> int:
    """Kinetics-400, -600 or -700, from ANNOTATIONS: the folder of train.csv, validate.csv,
    test.csv, or one CSV file.

    Videos are ID_000010_000020.mp4, or ID.mp4, in --videos or in folders of classes or splits
    below it. No copy is complete: pass --allow-missing.
    """
    from pipeline.manifests.datasets.kinetics import read

    return _write(read(annotations, trimmed), annotations, given)


@click.command("diving48")
@_common("diving48", order=True)
@click.option(
    "--version",
    default="2",
    type=click.Choice(["1", "2"]),
    help="Version of the lists (EAN reports on 1).",
)
def diving48(annotations: Path, version: str, **given) -> int:
    """Diving48, from the folder ANNOTATIONS of Diving48_V2_train.json, Diving48_V2_test.json,
    Diving48_vocab.json.

    --videos is its rgb, the folder of VID_NAME.mp4. The test list is split val, as in the
    papers.
    """
    from pipeline.manifests.datasets.diving48 import read

    return _write(read(annotations, int(version), given["fps"]), annotations, given)


COMMANDS = (something_v1, something_v2, charades, kinetics, diving48)


def _write(data, annotations: Path, given: dict, boxes: Path | None = None) -> int:
    """Write the manifest and the files beside it, print what is missing, return the exit code."""
    from pipeline.manifests.datasets.manifest_writer import about_missing, write_dataset

    # Before clips are dropped, because both are about the lists as they are.
    total, differences = len(data.entries), [] if given["subset"] else data.differences()
    unboxed = _drop_unboxed(data, boxes, given["allow_missing"]) if boxes else ""
    data.fps = given["fps"]
    done = write_dataset(
        data, given["videos"], given["out"], given.get("order", "official"), given["allow_missing"]
    )
    print_counts(done.manifest)
    say(f"  class list (data.class_list): {done.classes}")
    if done.protect:
        say(
            f'  never to be mirrored: --flip-protect "$(cat {done.protect})", or for EAN\'s way '
            f"{done.swap}"
        )
    found = [f"{data.name}: {line}" for line in differences]
    if unboxed:
        found.append(unboxed)
    if done.missing:
        found.append(f"{about_missing(done.missing, total, given['videos'])}; left out")
    absent = [
        f"no {split} list in {annotations}: the manifest has no such split"
        for split in data.absent()
    ]
    for line in [*absent, *data.notes, *found]:
        say(line, err=True)
    return 3 if found else 0


def _drop_unboxed(data, boxes: Path, allow: bool) -> str:
    """Leave the clips without boxes out of `data`.

    Returns:
        One line about them, or "" if there are none.

    Raises:
        ValueError: there are some and `allow` is false, or no clip has boxes.
    """
    from pipeline.manifests.datasets.manifest_writer import about_missing
    from pipeline.proposals.annotations import build

    listed = build(str(boxes)).clips
    missing = [entry.clip for entry in data.entries if entry.clip not in listed]
    if not missing:
        return ""
    about = about_missing(missing, len(data.entries), boxes, "boxes")
    if not allow:
        raise ValueError(f"{about}; pass --allow-missing to leave them out")
    if len(missing) == len(data.entries):
        raise ValueError(f"{about}: are these the boxes of another dataset?")
    data.entries = [entry for entry in data.entries if entry.clip in listed]
    return f"{about}; left out"
