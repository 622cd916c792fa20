"""`vidgraph export`: fields of a cache as npy, safetensors, Parquet, for localisation, FiftyOne."""

from pathlib import Path

import click

from cli._shared.caches import refuse_no_cache
from cli._shared.options import commas
from cli._shared.real_numbers import RealNumber
from cli._shared.say import say, warn


@click.command("export")
@click.argument("caches", nargs=-1, metavar="CACHE...", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    "more_caches",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The same as CACHE.",
)
@click.option(
    "--to",
    required=True,
    type=click.Choice(["npy", "safetensors", "parquet", "tad", "fiftyone"]),
    help="The format, see above.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@click.option(
    "--fields",
    callback=commas,
    help="Fields, comma-separated.  [default: all; pooled for tad]",
)
@click.option(
    "--split",
    "splits",
    callback=commas,
    help="Splits, comma-separated.  [default: all]",
)
@click.option(
    "--views",
    type=click.Choice(["train", "test"]),
    help="Which views.  [default: training views of train, test views of the others; test views "
    "for tad and fiftyone]",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Labels and splits.  [default: the cache's copy]",
)
@click.option(
    "--fps",
    default=0.0,
    type=RealNumber(min=0),
    help="For tad, frames per second of all videos; 0: each file's own.",
)
def command(caches, more_caches, to, out, fields, splits, views, manifest, fps) -> int:
    """Write fields of CACHE to a folder, in a format of other programs.

    \b
    npy          SPLIT/FIELD.npy, a row per view, and SPLIT/rows.csv: which view a row is
    safetensors  SPLIT-00000.safetensors with every field, and SPLIT-00000.csv
    parquet      SPLIT.parquet, a row per view, fields as lists, labels beside them
    tad          VIDEO.npy [steps, C] and annotations.json for temporal localisation
                 (ActionFormer, OpenTAD); windows of one video are joined in order
    fiftyone     videos with boxes, classes, tracks and labels (FiftyOneVideoLabelsDataset)

    Several caches of the same options are exported as one. safetensors and parquet need
    `pip install 'vidgraph[export]'`. docs/export.md says more.
    """
    from pipeline.cache.joined import open_caches
    from pipeline.export.export import export
    from pipeline.manifests.manifest import read_manifest

    paths = (*caches, *more_caches)
    refuse_no_cache(paths)
    written = export(
        open_caches(paths),
        to,
        out,
        fields=fields,
        splits=splits or (),
        views=views or "",
        manifest=read_manifest(manifest) if manifest else None,
        fps=fps,
        say=warn,
    )
    what = "videos" if to in ("tad", "fiftyone") else "views"
    say(f"{written.folder}: {written.views:,} {what}, {to}")
    return 0
