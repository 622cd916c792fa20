"""`vidgraph manifest folder`, `windows` and `folds`: manifests of one's own videos."""

from pathlib import Path

import click

from cli._shared.datasets import print_counts
from cli._shared.options import FOLDER, together
from cli._shared.say import say

OUT = click.Path(dir_okay=False, path_type=Path)
force_option = click.option(
    "--force", is_flag=True, help="Replace a file that is there, even if it was edited."
)
add_option = click.option(
    "--add",
    is_flag=True,
    help="Keep the rows that the file has as they are, and add those of new clips.",
)


def _split_options(splits: tuple[str, ...], words: str):
    """Make the options that say how splits are chosen."""
    share = click.FloatRange(0, 1)
    return together(
        [
            click.option(
                "--split-by", default=splits[0], type=click.Choice(splits), help=f"{words}."
            ),
            click.option(
                "--val", default=0.1, type=share, help="Share of the clips that is drawn for val."
            ),
            click.option(
                "--test", default=0.1, type=share, help="Share of the clips that is drawn for test."
            ),
            click.option("--seed", default=0, help="Seed of that drawing."),
        ]
    )


@click.command("folder")
@click.argument("folder", type=FOLDER)
@click.option("--out", default="manifest.csv", type=OUT, help="File to write.")
@_split_options(
    ("auto", "folders", "class", "hash"),
    "Splits from folders train, val, test; drawn so that every class has its shares; or by a hash "
    "of the path, which clips that are added later never move. auto: folders if there are any, "
    "else class",
)
@add_option
@force_option
def from_folder(
    folder: Path,
    out: Path,
    split_by: str,
    val: float,
    test: float,
    seed: int,
    add: bool,
    force: bool,
) -> None:
    """Videos and folders of frames below FOLDER; class sub-folders become labels.

    FOLDER/CLASS/clip.mp4, FOLDER/SPLIT/CLASS/clip.mp4, or the same with folders of jpg or png
    frames for clip.mp4. A manifest outside FOLDER records the folder in its column `root`.
    """
    from pipeline.manifests.folder_scan import scan_folder

    scan = scan_folder(folder, split_by, val, test, seed)
    write_rows(scan.rows, folder, out, add, force)
    if scan.ignored or scan.links:
        say(scan.about_ignored(), err=True)


@click.command("folds")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--k", default=5, type=click.IntRange(min=2), help="Number of folds.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for fold1.csv, fold2.csv, …  [default: NAME-folds beside NAME.csv]",
)
@click.option(
    "--group",
    default="",
    show_default=False,
    metavar="COLUMN",
    help="Clips with the same text in this column stay together, such as one person's. Those of "
    "one video always do.",
)
@click.option(
    "--val",
    default=0.1,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of all clips that is val in each fold, drawn from those that are not tested.",
)
@click.option(
    "--keep-test",
    is_flag=True,
    help="Leave the test split as it is in all folds; each fold is then val.",
)
@click.option("--seed", default=0, help="Another seed, other folds.")
@force_option
def folds(
    manifest: Path,
    k: int,
    out: Path | None,
    group: str,
    val: float,
    keep_test: bool,
    seed: int,
    force: bool,
) -> None:
    """Divide the clips of MANIFEST into k folds, stratified by class.

    Writes one manifest per fold: its clips are the test split, the others train and val. `vidgraph
    ablate STUDY --folds FOLDER` trains a study on all of them.
    """
    from pipeline.manifests.folds import fold_rows
    from pipeline.manifests.manifest import read_manifest
    from pipeline.manifests.rewriting import spelled_root, with_root, write_unless_edited
    from pipeline.manifests.splits import absent_classes

    clips = read_manifest(manifest)
    out = out or manifest.with_name(f"{manifest.stem}-folds")
    for number, rows in enumerate(fold_rows(clips, k, group, val, seed, keep_test), 1):
        file = out / f"fold{number}.csv"
        made = write_unless_edited(file, with_root(rows, spelled_root(clips), file), force)
        print_counts(made, details=number == 1)
        for line in absent_classes(made):
            say(f"  {line}", err=True)


def write_rows(rows: list[dict], videos: Path, out: Path, add: bool, force: bool) -> None:
    """Write the rows of a manifest, and print what it holds.

    Args:
        rows: cells by column, with paths that start from `videos`.
        videos: the folder.
        out: the manifest's file.
        add: keep the rows that it has.
        force: replace it, whatever it holds.
    """
    from pipeline.manifests.manifest import read_manifest
    from pipeline.manifests.rewriting import added_rows, with_root, write_unless_edited
    from pipeline.manifests.splits import absent_classes

    videos, beside = videos.resolve(), out.resolve().parent
    # Paths are relative to the manifest's folder, if the clips lie below it.
    if videos.is_relative_to(beside):
        start = videos.relative_to(beside)
        rows = [{**row, "path": (start / row["path"]).as_posix()} for row in rows]
        videos = beside
    rows = with_root(rows, videos, out)
    if add and out.exists():
        there = read_manifest(out)
        rows, force = added_rows(there, rows, out), True
        say(f"{out}: {len(rows) - len(there.clips):,} new clips")

    made = write_unless_edited(out, rows, force)
    print_counts(made)
    for line in absent_classes(made):
        say(f"  {line}", err=True)


COMMANDS = (from_folder, folds)
