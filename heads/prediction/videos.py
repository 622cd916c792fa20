"""One answer per video, from a trained run.

for answer in predict_videos("runs/strg-seed0", ["holiday.mp4"]).answers:
    print(answer.name, answer.top(5))
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from heads.evaluation import saved_heads
from heads.evaluation.ensemble import VideoScores
from heads.evaluation.metrics import aggregate, scores_of
from heads.prediction.asked_run import AskedRun, open_run
from heads.prediction.inputs import AskedVideo, find_videos
from heads.prediction.pictures import Pictures
from heads.prediction.stream import PredictedShard, predict_clips
from pipeline.cache.reader import Cache
from pipeline.files.scratch import scratch_folder
from pipeline.manifests.manifest import Manifest
from pipeline.stages.jobs import Advance, RunOptions
from pipeline.workers.waiting import PrintLine, print_nothing


@dataclass(frozen=True)
class VideoAnswer:
    """What a run says of one video.

    Attributes:
        name: of the video, for a person.
        clip: its clip id.
        labels: its own classes, where a manifest gives them.
        classes: [K] class names.
        scores: [K], aggregated over its views; None if the video could not be read.
        logits: [R,K] of its views; None if the video could not be read.
        failure: why it could not be read; "" if it could.
        remarks: what looks wrong with it although it was answered.
        picture: the picture that was drawn, if one was.
    """

    name: str
    clip: str
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    scores: np.ndarray | None = None
    logits: np.ndarray | None = None
    failure: str = ""
    remarks: tuple[str, ...] = ()
    picture: Path | None = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the classes with the highest scores; of equal scores, the first class first.

        Args:
            count: how many, at most.

        Returns:
            (class, score), best first; nothing for a video that could not be read.
        """
        if self.scores is None:
            return []
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.classes[k], float(self.scores[k])) for k in order]


@dataclass(frozen=True)
class VideoAnswers(VideoScores):
    """The scores of all videos that could be read, and the answers of all videos.

    Attributes:
        answers: one per video, in the order in which they were asked.
    """

    answers: tuple[VideoAnswer, ...] = field(default=())

    @property
    def failures(self) -> dict[str, str]:
        """The videos that could not be read -> why."""
        return {answer.name: answer.failure for answer in self.answers if answer.failure}


def predict(
    run: "saved_heads.TrainedHead | str | Path",
    what: "Cache | str | Path | Sequence[str | Path]",
    split: str = "test",
    *,
    manifest: Manifest | None = None,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 0,
) -> VideoScores:
    """Compute one score per video and class. Nothing is written.

    Args:
        run: a run folder, or what `load_run` returned.
        what: a cache, or its path: the test views of a split are predicted. Or videos: a video, a
            folder, a manifest (.csv), or a list of these.
        split: of a cache: "train", "val" or "test"; its clips need test views there.
        manifest: of a cache: labels and splits; None for its own copy.
        device: "auto", "cpu" or "cuda".
        precision: of the head: "fp32", "tf32", "bf16" or "fp16".
        workers: of videos: decode processes. 0 decodes in this process; with more, a script needs
            the line `if __name__ == "__main__":`, as with every use of multiprocessing.

    Returns:
        `scores` [V, K] of the videos `clips` [V] for `classes` [K], aggregated over a video's views
        as the run's recipe says. Of a cache, `targets` has the labels of the split. Of videos,
        `answers` has one entry per video, and those that could not be read are in `failures`.

    Raises:
        ValueError: no such run, cache or video; the split has no test views; or nothing says how
            the features of new videos are made.
        LossNotFinite: the head's logits are NaN or infinite.
    """
    if _is_cache(what):
        if not isinstance(run, saved_heads.TrainedHead):
            run = saved_heads.load_run(run, what)
        return saved_heads.predict(
            run, what, split, manifest=manifest, device=device, precision=precision
        )
    asked = run
    if isinstance(run, saved_heads.TrainedHead):
        asked = open_run(run.folder, checkpoint=run.checkpoint)
    paths = [what] if isinstance(what, (str, Path)) else what
    options = RunOptions(device=device, workers=workers)
    return predict_videos(asked, paths, options=options, precision=precision)


def _is_cache(what: object) -> bool:
    if isinstance(what, Cache):
        return True
    return isinstance(what, (str, Path)) and os.path.isfile(os.path.join(what, "cache.json"))


def predict_videos(
    run: AskedRun | str | Path,
    paths: Sequence[str | Path],
    *,
    root: str | Path | None = None,
    options: RunOptions | None = None,
    precision: str = "fp32",
    scratch: str | Path | None = None,
    show: str | Path | None = None,
    top: int = 5,
    announce: Callable[[int, int], Advance] | None = None,
    on_answer: Callable[[VideoAnswer], None] | None = None,
    say: PrintLine = print_nothing,
) -> VideoAnswers:
    """Ask a run about videos, folders of videos, folders of frames, and manifests.

    Args:
        run: the run, or its folder.
        paths: what to ask about.
        root: the folder that the paths in manifests start from; None: each manifest's own.
        options: how to work; None for the defaults.
        precision: of the head.
        scratch: a folder with room for some hundred MB; None for that of temporary files.
        show: a folder for a picture per video; None for no pictures.
        top: classes in a picture.
        announce: called once with (videos, videos); see `pipeline.stages.extract.extract`.
        on_answer: called with each answer as soon as there is one.
        say: prints one line for a person.

    Returns:
        The answers.

    Raises:
        ValueError: no such run or video, or the networks are not those of the run's training.
        LossNotFinite: the head's logits are NaN or infinite.
    """
    asked = run if isinstance(run, AskedRun) else open_run(run)
    options = options or RunOptions(device="auto", workers=None)
    pictures = None if show is None else Pictures(Path(show), asked, top)
    answers: list[VideoAnswer] = []
    with scratch_folder(Path(scratch or tempfile.gettempdir())) as folder:
        videos = find_videos(paths, folder, root)
        for remark in videos.remarks:
            say(remark)
        shards = predict_clips(asked, videos.manifest, folder, options, precision, announce, say)
        for shard in shards:
            for answer in _answers_of(asked, shard, videos.of_clip, pictures):
                answers.append(answer)
                if on_answer is not None:
                    on_answer(answer)
    return _joined(asked, answers)


def _answers_of(
    run: AskedRun,
    shard: PredictedShard,
    of_clip: dict[str, AskedVideo],
    pictures: Pictures | None,
) -> list[VideoAnswer]:
    """The answers of a shard's clips, in their order."""
    failures = {failure["clip"]: failure for failure in shard.failures}
    logits, scores = _tables_of(run, shard)
    answers = []
    for clip in shard.clips:
        video = of_clip[clip.clip]
        about = (video.name, clip.clip, video.labels, run.classes)
        if clip.clip not in scores:
            failure = failures.get(clip.clip, {"error": "DecodeError", "message": "no view of it"})
            # A link stands for a file whose name no manifest can hold.
            message = failure["message"].replace(clip.place, video.name)
            answers.append(VideoAnswer(*about, failure=f"{failure['error']}: {message}"))
            continue
        remarks = [one["message"] for one in shard.warnings if one["clip"] == clip.clip]
        picture = None
        if pictures is not None:
            picture = pictures.draw(shard.cache, clip.clip, video, scores[clip.clip])
        answers.append(
            VideoAnswer(
                *about,
                scores=scores[clip.clip],
                logits=logits[clip.clip],
                remarks=tuple(remarks),
                picture=picture,
            )
        )
    return answers


def _tables_of(
    run: AskedRun, shard: PredictedShard
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The logits [R,K] and the scores [K] of every clip that could be read."""
    if shard.part is None:
        return {}, {}
    found, recipe = shard.predictions, run.recipe
    scores = scores_of(found.logits, recipe.scores)
    scores = aggregate(scores, found.video, len(shard.part), recipe.evaluate.aggregate)
    logits = {}
    for number, clip in enumerate(shard.part.clips):
        logits[clip] = found.logits[found.video == number]
    return logits, dict(zip(shard.part.clips, scores, strict=True))


def _joined(run: AskedRun, answers: Sequence[VideoAnswer]) -> VideoAnswers:
    read = [answer for answer in answers if answer.scores is not None]
    scores = np.zeros((0, len(run.classes)))
    if read:
        scores = np.stack([answer.scores for answer in read])
    return VideoAnswers(
        tuple(answer.clip for answer in read),
        run.classes,
        scores,
        None,
        run.recipe.data.target,
        tuple(answers),
    )
