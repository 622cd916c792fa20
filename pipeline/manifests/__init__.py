"""Manifests: CSV files that list the clips of a data set, one row each.

    manifest      reading, checking and writing a manifest; which clips belong to which shard
    rows          `Clip`, and the rules of one row
    labels        class ids, and labels that stand for a missing one
    folder_scan   rows for a folder of videos
    splits        parts of the clips (splits, folds) in which every class has its share
    folds         the manifests of a cross-validation
    rewriting     a manifest from the rows of another one, or again
    datasets/     rows from the official files of published data sets

The room uses `files`, `text` and `views`, and opens no video.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Clip": "rows",
    "Manifest": "manifest",
    "ManifestError": "rows",
    "inside": "manifest",
    "is_no_label": "labels",
    "label_ids": "labels",
    "number_of": "labels",
    "read_manifest": "manifest",
    "scan_folder": "folder_scan",
    "shard_ranges": "manifest",
    "withheld": "labels",
    "write_manifest": "manifest",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
