"""A trained head in a notebook: load it from its run folder, and ask it about cached views."""

from pathlib import Path

from heads.data.splits import part_of
from heads.evaluation.ensemble import VideoScores
from heads.evaluation.evaluate import TrainedHead, figures, load_trained, open_store, splits_of
from heads.evaluation.evaluate import predict as predict_views
from heads.interface.loss import device_for
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Manifest


def load_run(folder: Path | str, cache: Cache | Path | str, checkpoint: str = "") -> TrainedHead:
    """Load the head of a finished run, with its weights, on the CPU.

    Args:
        folder: the run folder that `vidgraph train` made.
        cache: the cache whose views the head will read, or its path. It may be another one than
            the run's if the same backbone and options made its features.
        checkpoint: "best", "last", or "" for the one that the run's own figures come from.

    Returns:
        The trained head: `head` (an nn.Module), `recipe` and `classes`.

    Raises:
        ValueError: no run there, a cache of other features, or weights that do not fit the head.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    return load_trained(Path(folder), cache, checkpoint)


def predict(
    run: TrainedHead,
    cache: Cache | Path | str,
    split: str = "test",
    *,
    manifest: Manifest | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> VideoScores:
    """Compute one score per video and class from the cached test views of a split.

    Nothing is written. `vidgraph evaluate` computes the same scores and keeps them in the run's
    folder.

    Args:
        run: what `load_run` returned.
        cache: the cache, or its path.
        split: "train", "val" or "test"; its clips need test views in the cache.
        manifest: labels and splits; None for the cache's own copy.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "bf16" or "fp16".

    Returns:
        `scores` [V, K] of the videos `clips` [V] for `classes` [K], aggregated over a video's views
        as the run's recipe says, and `targets` where the split has labels.

    Raises:
        ValueError: the split has no test views, or its labels are none of the run's classes.
        LossNotFinite: the head's logits are NaN or infinite.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    manifest = manifest or cache.manifest
    target = device_for(device, precision)

    views = part_of(cache, "test", split, manifest, run.classes, run.recipe.data)
    if views is None:
        there = ", ".join(splits_of(manifest))
        raise ValueError(f"{manifest.path}: no clip in split {split!r}; its splits: {there}")

    head = run.head.to(target)
    store = open_store([head], cache, [views], run.recipe, "disk", target)
    predictions = predict_views(head, views, store, run.recipe, precision)
    _, scores = figures(predictions, views, run.recipe)
    return VideoScores(views.clips, run.classes, scores, views.targets)
