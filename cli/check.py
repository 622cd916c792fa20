"""`vidgraph check`: decodes a few frames of every clip of a manifest before a run."""

from pathlib import Path

import click

from cli._shared.annotations import annotations_of, annotations_option
from cli._shared.interrupt import stoppable
from cli._shared.options import (
    FOLDER,
    decoder_option,
    frame_pattern_option,
    require_writable,
    time_limit_option,
)
from cli._shared.progress import progress
from cli._shared.say import say
from pipeline.text.counted import counted

SHOWN = 10  # findings printed; all of them are in the file


@click.command("check")
@click.option(
    "--manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="The clips (see `vidgraph manifest`).",
)
@click.option("--root", type=FOLDER, help="Folder that its paths start from.  [default: its own]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of findings, .csv or .json.  [default: the manifest's name with .check.csv]",
)
@click.option(
    "--class-list",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Classes, one per line.",
)
@click.option(
    "--num-classes", type=click.IntRange(min=1), help="Labels are whole numbers below this one."
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Decode processes; 0: this one.  [default: one per core]",
)
@time_limit_option(60.0)
@decoder_option
@click.option(
    "--allow-truncated", is_flag=True, help="Take videos that end before their container says."
)
@frame_pattern_option
@annotations_option("File of boxes to compare with the clips' sizes and frames.  [default: none]")
def command(
    manifest,
    root,
    out,
    class_list,
    num_classes,
    workers,
    time_limit,
    decoder,
    allow_truncated,
    frame_pattern,
    annotations,
    settings,
) -> int:
    """Decode five frames of every clip, and list what is wrong or looks wrong.

    unreadable: cut short, damaged, missing, too slow, without a frame. blank, still: all frames of
    one colour, or all the same. duplicate: shows the same as another clip; both splits and labels
    are named. end: beyond the end of the video (milliseconds?). boxes: outside the frame (of
    another resolution?), or none at the decoded frames. label: not one of the classes, none at all,
    never in train, or one that stands for none (-1).

    Exit code 0: all is well; 3: there are findings.
    """
    from contextlib import ExitStack

    from pipeline.manifests.manifest import read_manifest
    from pipeline.stages.check import check_clips, write_findings
    from pipeline.video.view_pixels import ClipOpener
    from pipeline.workers.cores import cores_here

    classes = _classes(class_list, num_classes)
    out = out or manifest.with_suffix(".check.csv")
    if out.suffix.lower() not in (".csv", ".json"):
        raise click.BadParameter(
            f"expected a name that ends in .csv or .json, got {out}", param_hint="--out"
        )
    require_writable(out)
    boxes = annotations_of(annotations, settings)
    clips = read_manifest(manifest, root)
    workers = cores_here() if workers is None else workers
    with (
        stoppable("stopped; nothing was written, the same command starts over"),
        ExitStack() as stack,
    ):

        def announce(total: int):
            return stack.enter_context(progress("check", total, "clips", "found"))

        opening = ClipOpener(clips.root, decoder, allow_truncated, frame_pattern=frame_pattern)
        checked = check_clips(clips, opening, workers, time_limit, classes, announce, boxes)
    write_findings(out, checked)
    return _say(checked, out)


def _classes(class_list: Path | None, num_classes: int | None) -> list[str] | None:
    """The labels that clips may have; None for any."""
    from pipeline.text.text_files import read_names

    if class_list and num_classes:
        raise click.UsageError("--class-list and --num-classes: expected one of them, got both")
    if num_classes:
        return [str(k) for k in range(num_classes)]
    return list(read_names(class_list, "one class per line")) if class_list else None


def _say(checked, out: Path) -> int:
    """Print the first findings and their counts, and return the exit code."""
    from collections import Counter

    for finding in checked.findings[:SHOWN]:
        say(f"{finding.clip or finding.path}: {finding.kind}: {finding.message}")
    if len(checked.findings) > SHOWN:
        say(f"… and {len(checked.findings) - SHOWN:,} more")
    kinds = Counter(finding.kind for finding in checked.findings)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing wrong"
    rate = checked.clips / max(checked.seconds, 1e-9)
    say(
        f"{counted(checked.clips, 'clip')} in {checked.seconds:,.1f} s ({rate:,.1f} clips/s): "
        f"{counts}; listed in {out}"
    )
    return 3 if checked.findings else 0
