"""What run.json and metrics.json hold of any run, from a cache or from frames."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from heads.config.recipe import Recipe
from heads.data.splits import SplitViews
from heads.runs import run_files
from heads.runs.head_versions import versions_of
from heads.training.study import Result
from pipeline.cache.joined import JoinedCache, paths_of
from pipeline.cache.reader import Cache


def describe_run(
    recipe: Recipe,
    seed: int,
    order_seed: int,
    precision: str,
    classes: Sequence[str],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe a run; a folder whose run was described otherwise is not continued.

    Args:
        recipe: the whole recipe.
        seed: of the weights.
        order_seed: of the order of the views.
        precision: of the arithmetic.
        classes: the K class names.
        more: what else tells this run from others.

    Returns:
        The entries of run.json that a checkpoint holds as "about".
    """
    about = {
        "recipe": recipe.as_dict(),
        "seed": seed,
        "order_seed": order_seed,
        "precision": precision,
        "classes": list(classes),
        "head_versions": versions_of(recipe),
        **more,
    }
    return run_files.with_plugins(about)


def cache_record(cache: Cache | JoinedCache) -> dict[str, Any]:
    """Say which cache a run reads.

    Args:
        cache: one cache, or several as one.

    Returns:
        `cache`, the absolute path of the (first) cache; with several, `caches` has all of them.
    """
    paths = [str(path) for path in paths_of(cache)]
    record: dict[str, Any] = {"cache": paths[0]}
    if len(paths) > 1:
        record["caches"] = paths
    return record


def excluded_clips(
    parts: Mapping[str, SplitViews], undecoded: Mapping[str, Collection[str]] | None = None
) -> dict[str, dict[str, int]]:
    """Count the clips that were left out, by split and reason (see `study.Result`).

    Args:
        parts: split -> its views.
        undecoded: split -> the clips that could not be decoded; None for a run from a cache.
    """
    excluded = {}
    for split, part in parts.items():
        excluded[split] = {
            "failed": len(part.failed),
            "absent": len(part.absent),
            "other": len(part.others),
        }
        if undecoded is not None:
            excluded[split]["undecoded"] = len(undecoded[split])
    return excluded


def write_result(result: Result) -> None:
    """Write metrics.json, which marks a finished run: it comes last."""
    record = {**asdict(result), "folder": result.folder.name}
    run_files.write_json(result.folder / "metrics.json", record)
