"""`vidgraph show`: one view of a cache as a picture or a video."""

import re
from pathlib import Path

import click

from cli._shared.annotations import annotated_boxes_of, annotations_option
from cli._shared.options import commas, plugin_option, shard_numbers
from cli._shared.real_numbers import RealNumber
from cli._shared.say import say


def node(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Click callback: parse `t,i`, two whole numbers from 0."""
    if value is None:
        return None
    step, comma, box = value.partition(",")
    if not (comma and step.strip().isdecimal() and box.strip().isdecimal()):
        raise click.BadParameter(
            f"expected a step and a box, such as 3,0, got {value!r}", ctx, param
        )
    return int(step), int(box)


@click.command("show")
@click.argument("clip")
@click.option(
    "--cache", required=True, type=click.Path(path_type=Path), help="The cache that holds the clip."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A .png, .jpg, .webp or .mp4 file.  [default: CLIP.png]",
)
@click.option(
    "--group",
    type=click.Choice(["train", "test"]),
    help="Which views.  [default: test, where the cache has it]",
)
@click.option(
    "--view", default=0, type=click.IntRange(min=0), help="The view's number in its group."
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="A trained head: the folder of a run on this cache.",
)
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="Its weights.  [default: what its figures use]",
)
@annotations_option(
    "File of annotated boxes, drawn beside the regions of a head.  "
    "[default: the cache's boxes, where these are annotations]"
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Where the backbone's weights are now, for stages and blocks.  "
    "[default: where the extraction found them]",
)
@click.option(
    "--structure",
    default="",
    show_default=False,
    metavar="NAME",
    help="Of gos: common, clip:CLIP, a run or a CSV file, in place of the view's own structure.",
)
@click.option(
    "--what",
    callback=commas,
    help="Some of what is listed above, comma-separated.  [default: what cache and run allow]",
)
@click.option(
    "--node",
    callback=node,
    metavar="T,I",
    help="The chosen node.  [default: the best box of the middle step]",
)
@click.option(
    "--steps",
    callback=shard_numbers,
    help="Steps to draw: 3, 0-7, or a list of these.  [default: all]",
)
@click.option(
    "--neighbours",
    default=10,
    type=click.IntRange(min=1),
    help="M, nodes that are most similar or heard most.",
)
@click.option(
    "--least",
    default=0.25,
    type=RealNumber(0, 1),
    help="Smallest weight of an edge that is drawn.",
)
@click.option("--top", default=5, type=click.IntRange(min=1), help="Classes among the predictions.")
@click.option(
    "--height", default=180, type=click.IntRange(min=32), help="Least of a frame, pixels."
)
@click.option(
    "--width",
    default=1600,
    type=click.IntRange(min=200),
    help="Of the page, pixels; frames wrap to further rows.",
)
@click.option(
    "--fps",
    default=0.0,
    type=RealNumber(min=0),
    help="Frame rate of a video; 0: it lasts four seconds.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of the videos.  [default: that of the extraction]",
)
@plugin_option
def command(
    clip,
    cache,
    out,
    group,
    view,
    run,
    checkpoint,
    weights,
    annotations,
    settings,
    structure,
    what,
    node,
    steps,
    neighbours,
    least,
    top,
    height,
    width,
    fps,
    root,
):
    """Draw one view of CLIP, as it is in the cache, over the frames of its video.

    \b
    boxes        boxes with slot, class, track and score
    edges        front and back edges of the IoU graph with their weights
    nearest      the chosen node's nearest node in each step
    similar      the nodes most similar to the chosen one
    attention    of a head: GOS's nodes, STRG's similarity graph, RSTG's grid, EAN's objects
    regions      of a head: the regions that DyReg chose, beside annotated boxes
    saliency     of a head: EAN's saliency maps as heat
    stages       each stage's map over time as heat; asked for alone
    blocks       M and the kernels of EAN's blocks; asked for alone
    structure    of a head: the structure that GOS chose
    predictions  of a head: the classes with the best scores

    Stages and blocks run the backbone on the frames; without --what they are left out. Without the
    source video the boxes are drawn on grey. docs/show.md says what each drawing means.
    """
    from heads.drawing.draw import Style, draw_view

    style = Style(height, width, tuple(steps or ()), neighbours, least, top)
    drawing = draw_view(
        cache,
        clip,
        group=group or "",
        view=view,
        run=run,
        what=what or (),
        node=node,
        root=root,
        checkpoint=checkpoint or "",
        weights=weights,
        annotations=annotated_boxes_of(annotations, settings),
        structure=structure,
        style=style,
    )
    # An id may hold characters of a path, such as a slash.
    path = drawing.save(out or Path(re.sub(r"[^\w.-]+", "_", clip) + ".png"), fps)
    if drawing.missing:
        say(f"no frames, drawn on grey: {drawing.missing}", err=True)
    say(path)
    return 0
