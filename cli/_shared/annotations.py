"""A file of annotated boxes, as `--annotations` and `--set proposal_options.KEY=VALUE` name it."""

from pathlib import Path
from typing import Any

import click

from cli._shared.options import settings, together

PREFIX = "proposal_options."
# More boxes than anybody annotated in a frame.
MOST_BOXES = 100


def annotations_option(help: str):
    """Make the options --annotations and --set; their values are `annotations` and `settings`."""
    return together(
        [
            click.option("--annotations", type=click.Path(path_type=Path), help=help),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                callback=settings,
                help="Option of --annotations as in extract, such as "
                "proposal_options.annotated_height=240; may be repeated.",
            ),
        ]
    )


def annotations_of(annotations: Path | None, settings: dict[str, Any], **defaults):
    """Build the source of boxes that --annotations and --set name; None without a file.

    Args:
        annotations: the file.
        settings: "proposal_options.KEY" -> value.
        **defaults: options of the source that `settings` does not give.

    Raises:
        BadParameter: another key, or a setting without a file.
    """
    for key in settings:
        if annotations is None or not key.startswith(PREFIX):
            raise click.BadParameter(
                f"expected {PREFIX}KEY=VALUE beside --annotations, got {key}", param_hint="--set"
            )
    if annotations is None:
        return None

    from pipeline.proposals import build_proposals

    options = {key.removeprefix(PREFIX): value for key, value in settings.items()}
    return build_proposals("annotations", file=str(annotations), **{**defaults, **options})


def annotated_boxes_of(annotations: Path | None, settings: dict[str, Any]):
    """Build the source for comparing regions with: all boxes of a frame, clips may lack them."""
    return annotations_of(annotations, settings, num_boxes=MOST_BOXES, allow_missing=True)
