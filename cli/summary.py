"""`vidgraph summary`: parameters and multiply-accumulates of a network, module by module."""

from pathlib import Path

import click

from cli._shared.options import plugin_option, set_option


@click.command("summary")
@click.argument("name")
@click.option("--frames", type=click.IntRange(min=1), help="Frames of a clip.  [default: 32]")
@click.option(
    "--size", metavar="PIXELS", help="Of a frame: its side, or HEIGHTxWIDTH.  [default: 224]"
)
@click.option(
    "--upto", metavar="CUT", help="A backbone runs as far as this cut.  [default: its last]"
)
@click.option(
    "--backbone",
    help="A head reads the maps of this backbone at --frames and --size.  [default: i3d_r50]",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=0),
    help="Boxes per step that a head reads, of two classes.  [default: 10]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="A head reads this cache: in place of the sizes above.",
)
@click.option(
    "--classes", type=click.IntRange(min=2), help="Of a head.  [default: 174, or the cache's]"
)
@click.option(
    "--depth", default=1, type=click.IntRange(min=0), help="Levels of modules below the whole."
)
@click.option("--json", "as_json", is_flag=True, help="Every module and exact numbers, as JSON.")
@set_option
@plugin_option
def command(
    name, frames, size, upto, backbone, nodes, cache, classes, depth, as_json, settings
) -> int:
    """Parameters and MACs (multiply-accumulates) of NAME, one clip or view at a time.

    NAME is a backbone, a head, the folder of a run, or a recipe. If several have this name, the
    first of these is taken. MACs are those of convolutions and matrix products, as
    torch.utils.flop_counter counts them. What it leaves out is listed below.

    \b
    vidgraph summary i3d_r50 --set temporal=alternating --set res5_stride=1
    vidgraph summary gos --nodes 50 --set variant=released
    vidgraph summary ean --backbone ean_r50 --frames 8 --set backbone_options.eab=none

    --set takes the options of the named backbone or head. For a head, backbone_options.KEY are
    options of --backbone.
    """
    from cli._shared.counts import print_counts, to_json
    from heads.evaluation.summary import count_named

    about = {
        "frames": frames,
        "size": _size(size),
        "upto": upto,
        "backbone": backbone,
        "nodes": nodes,
        "classes": classes,
    }
    given = {key: value for key, value in about.items() if value is not None}
    found = count_named(name, settings, cache=cache, **given)
    if as_json:
        click.echo(to_json(name, found))
    else:
        print_counts(name, found, depth)
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    """224 or 256x340 -> (height, width)."""
    if text is None:
        return None
    height, x, width = text.lower().replace("×", "x").partition("x")
    if (
        not height.isdecimal()
        or (x and not width.isdecimal())
        or min(int(height), int(width or height)) < 1
    ):
        raise click.BadParameter(
            f"expected a side such as 224, or HEIGHTxWIDTH such as 256x340, got {text!r}",
            param_hint="--size",
        )
    return int(height), int(width or height)
