"""`vidgraph manifest folder`, `windows` and `folds`: manifests of one's own videos."""

from pathlib import Path

import click

from cli._shared.datasets import print_counts
from cli._shared.options import FOLDER, time_limit_option, together
from cli._shared.progress import progress
from cli._shared.real_numbers import AnyNumber, RealNumber
from cli._shared.say import say
from pipeline.text.counted import counted

MOST_SHOWN = 10  # videos that cannot be opened, by name

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
    return together(
        [
            click.option(
                "--split-by", default=splits[0], type=click.Choice(splits), help=f"{words}."
            ),
            click.option(
                "--val",
                default=0.1,
                type=AnyNumber(),
                help="Share of the clips that is drawn for val, 0 to 1.",
            ),
            click.option(
                "--test",
                default=0.1,
                type=AnyNumber(),
                help="Share of the clips that is drawn for test, 0 to 1.",
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
    type=RealNumber(0, 1, max_open=True),
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


@click.command("windows")
@click.argument("videos", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--length",
    default=2.0,
    type=RealNumber(min=0, min_open=True),
    help="Of a window, in --unit.",
)
@click.option(
    "--stride",
    default=1.0,
    type=RealNumber(min=0, min_open=True),
    help="From the start of one window to that of the next, in --unit.",
)
@click.option(
    "--unit",
    default="seconds",
    type=click.Choice(["seconds", "frames"]),
    help="What --length and --stride count.",
)
@click.option("--out", default="windows.csv", type=OUT, help="File to write.")
@_split_options(
    ("auto", "folders", "class", "hash"), "Splits of a folder's videos, as for `folder`"
)
@click.option("--root", type=FOLDER, help="Folder that paths of a manifest start from.")
@click.option(
    "--source-fps",
    type=RealNumber(min=0, min_open=True),
    help="Frame rate of folders of frames, per second.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that read the videos; 0: this one.  [default: one per core]",
)
@time_limit_option(120.0)
@force_option
def windows(
    videos: Path,
    length: float,
    stride: float,
    unit: str,
    out: Path,
    split_by: str,
    val: float,
    test: float,
    seed: int,
    root: Path | None,
    source_fps: float | None,
    workers: int | None,
    time_limit: float,
    force: bool,
) -> int:
    """Divide long videos into windows: a row each, with start and end.

    VIDEOS is a folder, as for `folder`; a manifest, whose splits, labels and times are kept; or one
    video. All windows of a video are in one split. The last window of a video may be shorter, down
    to half the length.
    """
    from pipeline.manifests.manifest import read_manifest
    from pipeline.manifests.rewriting import clips_of, read_cells, spelled_root
    from pipeline.stages.windows import WindowGrid, make_windows
    from pipeline.video.view_pixels import ClipOpener
    from pipeline.workers.cores import cores_here

    grid = WindowGrid(length, stride, unit)
    if videos.suffix.lower() == ".csv":
        manifest = read_manifest(videos, root)
        cells, clips = read_cells(manifest), manifest.clips
        base = Path(spelled_root(manifest))
    else:
        base = videos if videos.is_dir() else videos.parent
        cells = _rows_of(videos, split_by, val, test, seed)
        clips = clips_of(cells, base)

    opener = ClipOpener(base.resolve(), source_fps=source_fps)
    workers = min(len(clips), cores_here()) if workers is None else workers
    with progress("windows", len(clips), "videos") as advance:
        found = make_windows(clips, opener, grid, workers, time_limit, advance)
    for name, reason in found.failures[:MOST_SHOWN]:
        say(f"{name}: {reason}", err=True)
    if found.failures:
        say(f"{len(found.failures):,} of {counted(len(clips), 'video')} cannot be opened", err=True)

    rows = []
    for clip, name, start, end in found.rows:
        rows.append({**cells[clip.position], "clip": name, "start": start, "end": end})
    if not rows:
        raise ValueError(f"{videos}: no video can be opened, so there is no window to write")
    write_rows(rows, base, out, add=False, force=force)
    return 3 if found.failures else 0


def _rows_of(videos: Path, split_by: str, val: float, test: float, seed: int) -> list[dict]:
    """The rows of a folder of videos, or of one video."""
    from pipeline.manifests.folder_scan import id_of, scan_folder

    if videos.is_dir():
        return scan_folder(videos, split_by, val, test, seed).rows
    row = {"clip": id_of(videos.name), "path": videos.name, "split": "test", "label": ""}
    return [row]


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
        say(f"{out}: {counted(len(rows) - len(there.clips), 'new clip')}")

    made = write_unless_edited(out, rows, force, may_add=True)
    print_counts(made)
    for line in absent_classes(made):
        say(f"  {line}", err=True)


COMMANDS = (from_folder, windows, folds)
