"""Whether a cache has enough training views for a long training.

A cache fixes crops, mirroring and the frames of every view. A training that reads each of a few
views many times learns these views, where the papers draw new ones in every epoch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from heads.training.training_run import TrainingRun
from pipeline.text.counted import counted
from pipeline.workers.waiting import PrintLine

# How often each view may be read. `benchmarks/views_per_clip.py` measures what more costs.
MOST_READS = 16


def print_few_views(runs: Sequence[TrainingRun], say: PrintLine) -> None:
    """Print a line where training reads each cached view too often; one for all equal runs.

    Args:
        runs: prepared runs.
        say: prints one line for a person.
    """
    printed = set()
    for run in runs:
        line = few_views(run)
        if line and line not in printed:
            printed.add(line)
            say(line)


def few_views(run: TrainingRun) -> str:
    """Return a line if a phase of a run reads each training view more than MOST_READS times.

    Args:
        run: a prepared run.

    Returns:
        The line; "" if there are enough views, or if more would show the same.
    """
    if not _are_drawn(run.study.cache.config):
        return ""
    part = run.parts["train"]
    views, most = int(part.counts.max()), 0
    for phase in run.phases:
        steps_per_epoch = math.ceil(len(part) / phase.train.batch)
        most = max(most, phase.train.total_epochs(steps_per_epoch))
    if most <= MOST_READS * views:
        return ""

    count = counted(views, "training view")
    enough = math.ceil(most / MOST_READS)
    advice = f"extract with --train-views {enough} or more"
    if run.recipe.data.train_views:
        advice = f"raise data.train_views to {enough} or more"
    return (
        f"{most} epochs read each view {most / views:.0f} times, since the cache has {count} a "
        f"clip for them, and accuracy suffers above {MOST_READS}: {advice}"
    )


def _are_drawn(config: Mapping[str, Any]) -> bool:
    """Whether a cache's training views are random, so that further ones would differ."""
    sampling = config.get("sampling")
    # Caches of generated digits record no sampling: one view is all of a video.
    if not isinstance(sampling, Mapping):
        return False
    fixed = {"train_crop": "centre", "sampling": "linspace", "flip": 0}
    return any(sampling.get(key) != value for key, value in fixed.items())
