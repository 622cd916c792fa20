"""`vidgraph manifest KIND`: lists of clips."""

from collections import Counter
from pathlib import Path

import click


@click.group("manifest")
def command() -> None:
    """Make a manifest: the CSV file that lists the clips (clip,path,split,label)."""


@command.command("folder")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", default="manifest.csv", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option(
    "--split-by",
    default="auto",
    type=click.Choice(["auto", "folders", "hash"]),
    help="Splits from folders train, val, test, or by a hash of the clip id; auto: folders if there are any.",
)
@click.option("--val", default=0.1, help="Share of the clips that --split-by hash puts into val, 0 to 1.")
@click.option("--test", default=0.1, help="Share of the clips that --split-by hash puts into test, 0 to 1.")
@click.option("--seed", default=0, help="Seed of that hash.")
def from_folder(folder: Path, out: Path, split_by: str, val: float, test: float, seed: int) -> None:
    """Videos and folders of frames below FOLDER; class sub-folders become labels.

    FOLDER/CLASS/clip.mp4, FOLDER/SPLIT/CLASS/clip.mp4, or the same with folders of jpg or png frames for clip.mp4.
    """
    from pipeline.manifest import write_manifest
    from pipeline.scan import scan_folder

    scan = scan_folder(folder, split_by, val, test, seed)
    folder, beside = folder.resolve(), out.resolve().parent
    below = folder.is_relative_to(beside)
    start = folder.relative_to(beside) if below else Path()
    rows = ({**row, "path": (start / row["path"]).as_posix()} for row in scan.rows)
    _say(write_manifest(out, rows, root=None if below else folder))
    if scan.ignored:
        click.echo(scan.about_ignored(), err=True)
    if not below:
        click.echo(f"its paths start from {folder}: say --root {folder} wherever you use it", err=True)


def _say(manifest) -> None:
    """What is in a manifest: clips per split, classes, clips per class."""
    splits = Counter(clip.split for clip in manifest.clips)
    classes = Counter(label for clip in manifest.clips for label in clip.labels)
    shares = ", ".join(f"{split} {splits[split]:,}" for split in ("train", "val", "test"))
    click.echo(f"{manifest.path}: {len(manifest.clips):,} clips ({shares}), {len(classes):,} classes")
    if classes:
        (most, many), (least, few) = classes.most_common()[0], classes.most_common()[-1]
        click.echo(f"  clips per class: {few:,} ({least}) to {many:,} ({most})")
    if unlabelled := sum(not clip.labels for clip in manifest.clips):
        click.echo(f"  without a label: {unlabelled:,}")
