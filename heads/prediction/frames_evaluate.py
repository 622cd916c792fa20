"""Evaluate a run on videos, in place of a cache: for a run that trained its backbone too.

The features of such a run are in no cache. Its videos are decoded, and what the run's own backbone
makes of them goes to its head, shard by shard.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from heads.data.splits import SplitViews, require_split_views
from heads.evaluation.evaluation_files import (
    Evaluation,
    EvaluationGuard,
    write_evaluation,
    write_submission,
)
from heads.evaluation.file_names import manifest_and_tag
from heads.evaluation.head_predictor import Predictions, loss_of_views
from heads.evaluation.saved_heads import TrainedHead
from heads.evaluation.submission import Submission
from heads.finetuning.frame_predictions import without_videos
from heads.finetuning.video_views import PlannedCache
from heads.interface.run_records import RUN
from heads.prediction.asked_run import AskedRun, open_run
from heads.prediction.inputs import AskedVideo, list_videos, video_of
from heads.prediction.stream import PredictedShard, predict_clips
from heads.runs import run_files
from pipeline.cache.reader import Cache
from pipeline.files.scratch import scratch_folder
from pipeline.manifests.manifest import Clip, Manifest, ManifestError, read_manifest
from pipeline.stages.jobs import Advance, RunOptions
from pipeline.text.counted import agree, counted

# Failed clips that are named.
NAMED = 5


def evaluate_from_frames(
    folder: Path | str,
    split: str,
    *,
    checkpoint: str = "",
    phase: str = "",
    settings: Mapping[str, str] | None = None,
    options: RunOptions | None = None,
    precision: str = "fp32",
    manifest: Manifest | None = None,
    submission: Submission | None = None,
    scratch: Path | None = None,
    announce: Callable[[int, int], Advance] | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Evaluation, list[str]]:
    """Evaluate a run's checkpoint on the videos of a split, and write predictions and figures.

    The files are those of `heads.evaluation.evaluate.evaluate_run`.

    Args:
        folder: the run folder.
        split: the split's name.
        checkpoint, phase, settings, precision, submission, say: as for `evaluate_run`.
        options: how to work; None for the defaults.
        manifest: labels, splits and videos; None: the run's own.
        scratch: a folder with room for some hundred MB; None for that of temporary files.
        announce: called once with (clips, clips); see `pipeline.stages.extract.extract`.

    Returns:
        The figures and the files; and the clips that could not be read, which are left out.

    Raises:
        ValueError: nothing says how the features are made, no manifest can be found, the split is
            empty, or none of its clips can be read.
        FolderBusy: a process trains in the folder.
    """
    folder, options = Path(folder), options or RunOptions(device="auto", workers=None)
    guard = EvaluationGuard(folder, say)
    run = open_run(folder, checkpoint=checkpoint, phase=phase, settings=settings)
    recipe, classes = run.recipe, run.classes
    if submission is not None:
        submission.check(classes, recipe.data.target)

    at_hand = manifest or _own_manifest(folder)
    planned = PlannedCache(str(at_hand.path), at_hand, run.config.sampling)
    about = run.saved.saved["about"]
    trained = TrainedHead(
        run.saved.checkpoint, run.head, recipe, classes, True, about.get("manifest")
    )
    labels, tag = manifest_and_tag(folder, trained, planned, manifest, split, phase, say)
    planned = replace(planned, manifest=labels)
    part = require_split_views(planned, "test", split, labels, classes, recipe.data)
    if submission is not None:
        submission.check_clips(part.clips)

    by_id = {clip.clip: clip for clip in labels.clips}
    clips = [by_id[clip] for clip in part.clips]
    with scratch_folder(Path(scratch or tempfile.gettempdir())) as here:
        videos = list_videos(_videos_of(clips, folder), here)
        shards = predict_clips(run, videos.manifest, here, options, precision, announce, say)
        predictions, part, lost = _gathered(run, part, shards)
    if lost:
        more = ", …" if len(lost) > NAMED else ""
        names = ", ".join(lost[:NAMED])
        say(
            f"split {split}: {len(lost):,} of {counted(len(clips), 'clip')} cannot be read and "
            f"{agree(len(lost), 'is', 'are')} left out: {names}{more}"
        )
    written = {
        "checkpoint": run.saved.checkpoint,
        "fingerprint": about["fingerprint"],
        "manifest": os.path.abspath(labels.path),
    }
    with guard.writing(run.saved.checkpoint):
        found = write_evaluation(folder, tag, recipe, classes, part, predictions, written, {})
    write_submission(submission, predictions, part, recipe, classes, say)
    return found, lost


def _own_manifest(folder: Path) -> Manifest:
    """The manifest that a run was trained with, or the copy in its cache."""
    record = run_files.read_json(folder / "run.json", RUN)
    named = record.get("manifest")
    if named is not None:
        try:
            return read_manifest(named["path"], named["root"])
        except (ManifestError, OSError):
            pass
    cache = _cache_of(record)
    if cache is None:
        raise ValueError(
            f"{folder}: the manifest that it was trained with is gone; pass --manifest with a copy"
        )
    return cache.manifest


def _cache_of(record: Mapping) -> Cache | None:
    """The cache of a run; None if it has none, or it is gone."""
    path = record.get("cache")
    if path is None or not (Path(path) / "cache.json").is_file():
        return None
    return Cache(path)


def _videos_of(clips: Sequence[Clip], folder: Path) -> list[AskedVideo]:
    """The videos of clips.

    A manifest of other labels may lie elsewhere than the videos. Where it leads to nothing, the
    run's cache knows the place.
    """
    places: dict[str, str] = {}
    if not all(os.path.exists(clip.place) for clip in clips):
        cache = _cache_of(run_files.read_json(folder / "run.json", RUN))
        if cache is not None:
            places = {clip.clip: clip.place for clip in cache.manifest.clips}
    videos = []
    for clip in clips:
        video = video_of(clip)
        if not os.path.exists(clip.place):
            video = replace(video, place=places.get(clip.clip, clip.place))
        videos.append(video)
    return videos


def _gathered(
    run: AskedRun, part: SplitViews, shards: Iterable[PredictedShard]
) -> tuple[Predictions, SplitViews, list[str]]:
    """Put the predictions of shards in the order of a split, without clips that failed."""
    started = time.monotonic()
    per_clip = part.group.per_clip
    number = {clip: k for k, clip in enumerate(part.clips)}
    views = len(part) * per_clip
    tables: dict[str, np.ndarray] = {}
    read = np.zeros(len(part), bool)
    for shard in shards:
        if shard.part is None:
            continue
        found = shard.predictions
        of_clips = np.array([number[clip] for clip in shard.part.clips])
        read[of_clips] = True
        # All views of a clip are there, in their order.
        at = of_clips[found.video] * per_clip + np.tile(np.arange(per_clip), len(of_clips))
        for name, values in {"logits": found.logits, **found.stored}.items():
            if name not in tables:
                tables[name] = np.zeros((views, *values.shape[1:]), values.dtype)
            tables[name][at] = values
    if not read.any():
        raise ValueError(
            f"split {part.split}: none of its {counted(len(part), 'clip')} can be read; run "
            "`vidgraph check`"
        )

    kept = np.repeat(read, per_clip)
    lost = [clip for clip in part.clips if not read[number[clip]]]
    part = without_videos(part, np.flatnonzero(~read))
    logits = tables.pop("logits")[kept]
    rows, video = part.all_rows()
    stored = {name: values[kept] for name, values in tables.items()}
    loss = loss_of_views(logits, part, run.recipe)
    return Predictions(logits, rows, video, loss, time.monotonic() - started, stored), part, lost
