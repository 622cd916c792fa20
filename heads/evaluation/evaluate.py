"""Evaluate a trained run on a split of a cache.

    evaluate("runs/strg-0", Cache("cache"), "test")["top1"]

Every test view is predicted, and the scores of a video's views become one score. The predictions
and figures are written to the run folder.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.data.annotated_boxes import AnnotatedBoxes, has_annotated_boxes
from heads.data.splits import SplitViews, print_excluded, require_split_views
from heads.evaluation.evaluation_files import (
    Evaluation,
    EvaluationGuard,
    watch_run,
    write_evaluation,
    write_rows,
    write_submission,
)
from heads.evaluation.file_names import manifest_and_tag
from heads.evaluation.head_predictor import (
    open_store,
    predict,
)
from heads.evaluation.one_structure import (
    Exchanged,
    exchange,
    structure_named,
)
from heads.evaluation.region_figures import has_regions, region_figures
from heads.evaluation.saved_heads import TrainedHead, load_trained
from heads.evaluation.submission import Submission
from heads.interface.loss import device_for
from heads.runs.folder_lock import refuse_if_busy
from heads.runs.start_weights import phase_checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest


def evaluate(folder: Path | str, cache: "Cache", split: str, **options: Any) -> dict[str, float]:
    """Evaluate a run as `evaluate_run` does, and return the figures alone.

    Args:
        folder, cache, split: as for `evaluate_run`.
        **options: its further arguments.
    """
    return evaluate_run(folder, cache, split, **options).figures


def evaluate_run(
    folder: Path | str,
    cache: "Cache",
    split: str,
    *,
    checkpoint: str = "",
    phase: str = "",
    structure: str = "",
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    manifest: "Manifest | None" = None,
    annotations: Any | None = None,
    submission: Submission | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluate a run's checkpoint on a split of a cache, and write predictions and figures.

    The files are named after the split, and after the phase if one is given. Where the cache or the
    split is not the run's own, its checksum is part of the name: predictions of other clips are
    never overwritten.

    Args:
        folder: the run folder.
        cache: the run's cache, or another one with the same features, e.g. more test views.
        split: the split's name.
        checkpoint: "best", "last", or "" for the one that the run's own figures come from.
        phase: evaluate what this phase of the recipe ended with, in place of `checkpoint`.
        structure: one structure of GOS for all videos (see `one_structure.structure_named`); it is
            part of the files' names, and written beside them. "": each video has its own.
        settings: values that replace those of the recipe's table `evaluate` (aggregate, scores,
            batch).
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" or "fp16".
        manifest: labels and splits; None: the run's own, which are the cache's copy or the file
            that the run recorded.
        annotations: a source of annotated boxes, `build_proposals("annotations", ...)`, that the
            regions of a head such as dyreg are compared with; None: the cache's own boxes, where
            these were annotated.
        submission: also write the predictions as a test server takes them.
        say: prints one line for a person.

    Returns:
        The figures, and the files that were written.

    Raises:
        ValueError: a cache of another backbone, a head of other sizes, labels that the run does
            not know, or an empty split. `submission` cannot hold the predictions. The run's own
            manifest cannot be found.
        FolderBusy: a process trains in the folder; it would write files of the same names.
    """
    folder, device = Path(folder), device_for(device, precision)
    guard = EvaluationGuard(folder, say)
    if phase:
        checkpoint = phase_checkpoint(folder, phase)
    trained = load_trained(folder, cache, checkpoint, settings)
    recipe, classes, head = trained.recipe, trained.classes, trained.head
    if submission is not None:
        submission.check(classes, recipe.data.target)

    manifest, tag = manifest_and_tag(folder, trained, cache, manifest, split, phase, say)
    part = require_split_views(cache, "test", split, manifest, classes, recipe.data)
    if submission is not None:
        submission.check_clips(part.clips)
    print_excluded(part, say)
    tag += _place(head, structure, cache, device)
    store = open_store([head], cache, [part], recipe, "disk", device)
    boxes = _annotated_boxes(trained, part, annotations)
    predictions = predict(head, part, store, recipe, precision)
    of_regions = {}
    if boxes is not None:
        of_regions, count = region_figures(trained, part, store, boxes, precision)
        say(f"Dist: {count:,} annotated boxes in the views of split {split}{_hint(count)}")

    about = {
        "checkpoint": trained.checkpoint,
        "fingerprint": cache.fingerprint,
        "manifest": os.path.abspath(manifest.path),
    }
    if structure:
        about["structure"] = structure
    with guard.writing(trained.checkpoint):
        found = write_evaluation(
            folder, tag, recipe, classes, part, predictions, about, of_regions, head
        )
    write_submission(submission, predictions, part, recipe, classes, say)
    return found


def _place(head: "nn.Module", structure: str, cache: "Cache", device: "torch.device") -> str:
    """Move a head to a device, and let it compute all views with one structure if one is named.

    Returns:
        The part of the files' names that stands for the structure.
    """
    if not structure:
        head.to(device)
        return ""
    # On the CPU, where the views of a clip are read.
    one, name = structure_named(structure, head, cache)
    head.to(device).force(one)
    return f"_structure-{name}"


def _annotated_boxes(
    trained: TrainedHead, part: SplitViews, annotations: Any | None
) -> AnnotatedBoxes | None:
    """Return the annotated boxes that a head's regions are compared with; None without any.

    Raises:
        ValueError: annotations were given for a head without regions.
    """
    if not has_regions(trained.head):
        if annotations is not None:
            raise ValueError(
                f"head {trained.recipe.head.name} looks at no regions: annotated boxes are for "
                "heads that do, such as dyreg"
            )
        return None
    if annotations is None and not has_annotated_boxes(part.group):
        return None
    return AnnotatedBoxes(part.group, annotations)


def _hint(count: int) -> str:
    """Say what may be wrong where no annotated box was found."""
    if count:
        return ""
    return (
        "; are they those of these clips? Their keys may be the names of the files: "
        "--set proposal_options.key=stem"
    )


def exchange_structures(
    folder: Path | str,
    cache: "Cache",
    split: str,
    names: Sequence[str],
    *,
    checkpoint: str = "",
    phase: str = "",
    manifest: "Manifest | None" = None,
    say: Callable[[str], None] = print,
) -> list[Exchanged]:
    """Evaluate videos with one another's structures, as in GOS's Figure 5, on the CPU.

    The table is written to the run folder, as exchange_SPLIT.csv with the further parts of a name
    that `evaluate` has.

    Args:
        folder: the folder of a run of head gos.
        cache: the run's cache.
        split: the split that the videos belong to.
        names: the videos.
        checkpoint, phase, manifest, say: as for `evaluate`.

    Returns:
        One row for each video with each structure.

    Raises:
        ValueError: the run chooses no structures, or the split lacks one of the videos.
        FolderBusy: a process trains in the folder.
    """
    folder = Path(folder)
    watch = refuse_if_busy(folder, say)
    watched = watch_run(folder)
    if phase:
        checkpoint = phase_checkpoint(folder, phase)
    trained = load_trained(folder, cache, checkpoint)
    manifest, tag = manifest_and_tag(folder, trained, cache, manifest, split, phase, say)
    data = trained.recipe.data
    part = require_split_views(cache, "test", split, manifest, trained.classes, data)
    found = exchange(trained.head, part, trained.recipe, trained.classes, cache, names)

    rows: list[Sequence] = [[field.name for field in fields(Exchanged)]]
    rows += [list(astuple(row)) for row in found]
    refuse_if_busy(folder, say, watch)
    with watched.guarded():
        write_rows(folder / f"exchange_{tag}.csv", rows)
    return found
