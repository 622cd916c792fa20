"""What a head learns from: the cached views of a split, their classes, and their features.

This room may import from `heads.interface` and `heads.config`.

    classes        the classes that a recipe trains
    splits         which cached views a split has, and their order in an epoch
    missing_fields what to do where a cache lacks what a head reads: commands that work
    feature_store  the features in memory, or read on demand; one pass for many readers
    device_lane    batches on their way to a GPU, while it computes
    view_dataset   the views of a split as a torch Dataset
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "FeatureStore": "feature_store",
    "ReadRequest": "feature_store",
    "SplitViews": "splits",
    "ViewDataset": "view_dataset",
    "cache_dims": "splits",
    "dataset": "view_dataset",
    "fields_for": "splits",
    "find_classes": "classes",
    "shared_pass": "feature_store",
    "split_views": "splits",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
