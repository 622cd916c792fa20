"""`vidgraph manifest KIND`: lists of clips."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from cli._shared import datasets, own_videos
from cli._shared.datasets import print_counts
from cli._shared.options import set_option
from cli._shared.say import say

if TYPE_CHECKING:
    from pipeline.digits.scenes import Task


@click.group("manifest")
def command() -> None:
    """Make a manifest: the CSV file that lists the clips (clip,path,split,label)."""


@command.command("digits")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the videos and manifest.csv.",
)
@click.option("--task", default="meet", help="What the digits do: meet, sync3, sync5 or multisync.")
@click.option("--train", default=2000, type=click.IntRange(min=0), help="Videos in train.")
@click.option("--val", default=300, type=click.IntRange(min=0), help="Videos in val.")
@click.option("--test", default=500, type=click.IntRange(min=0), help="Videos in test.")
@click.option("--seed", default=0, help="Another seed, other videos.")
@click.option(
    "--images",
    default="sklearn",
    type=click.Choice(["sklearn", "mnist"]),
    help="Handwritten digits; mnist is downloaded once.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that write; 0: this one.  [default: one per core]",
)
@set_option
def digits(
    out: Path,
    task: str,
    train: int,
    val: int,
    test: int,
    seed: int,
    images: str,
    workers: int | None,
    settings: dict,
) -> None:
    """Generated videos of moving handwritten digits, with their boxes in OUT/boxes.csv.

    meet: two of four digits touch. sync3, sync5: two of 3 or 5 take the same steps (SyncMNIST).
    multisync: two or more of 5 do (MultiSyncMNIST). The label says which, by their classes. `--set
    canvas=96` changes an option of the task. The same command run again finds its videos and does
    nothing.
    """
    from dataclasses import fields

    from pipeline.digits import TASKS, load_images, write_dataset
    from pipeline.manifests.manifest import read_manifest

    if task not in TASKS:
        raise click.BadParameter(
            f"expected one of {', '.join(TASKS)}, got {task!r}", param_hint="--task"
        )
    known = [option.name for option in fields(TASKS[task])]
    for key in settings:
        if key not in known:
            raise click.BadParameter(
                f"task {task} has no option {key}; its options are {', '.join(known)}",
                param_hint="--set",
            )

    asked = {"train": train, "val": val, "test": test}
    splits = {split: count for split, count in asked.items() if count}
    if not splits:
        raise click.UsageError("--train, --val, --test: expected at least one video, got none")
    shown = TASKS[task](**settings)
    made = write_dataset(out, shown, splits, seed, workers, load_images(images))
    print_counts(read_manifest(made))
    say(f"to extract features with untrained weights: {_extract_command(out, shown)}", err=True)


def _extract_command(out: Path, task: "Task") -> str:
    """The `extract` command that fits the videos of a task, with its boxes and without a network
    connection.
    """
    return (
        f"vidgraph extract --manifest {quote(str(out / 'manifest.csv'))} --cache CACHE "
        f"--backbone digit_cnn --weights none --proposals annotations "
        f"--annotations {quote(str(out / 'boxes.csv'))} --size {task.size} "
        f"--frames {task.frames} --boxes {task.digits} "
        f"--set backbone_options.width=64"
    )


for _kind in (*own_videos.COMMANDS, *datasets.COMMANDS):
    command.add_command(_kind)
