"""A picture per video: frames, boxes where there are any, and the classes with the best scores."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from heads.drawing.head_output import HeadResult
from heads.drawing.layout import Drawing, Style
from heads.drawing.panels import predictions
from heads.drawing.sections import Strip, boxes
from heads.drawing.source import load_view
from heads.prediction.asked_run import AskedRun
from heads.prediction.inputs import AskedVideo
from pipeline.cache.reader import Cache

# Characters of a picture's name; file systems take 255 bytes.
LONGEST = 120


class Pictures:
    """Draws pictures into a folder. No two of them have the same name."""

    def __init__(self, folder: Path, run: AskedRun, top: int):
        """Remember what is drawn; the folder is made with the first picture.

        Args:
            folder: of the pictures.
            run: the run that was asked.
            top: how many classes a picture shows.
        """
        self.folder, self.run, self.top = folder, run, top
        self._taken: set[str] = set()

    def draw(self, cache: Cache, clip: str, video: AskedVideo, scores: np.ndarray) -> Path:
        """Draw the first test view of a video.

        Args:
            cache: holds the view.
            clip: its clip id.
            video: the video.
            scores: [K] of the whole video.

        Returns:
            The picture.
        """
        saved = self.run.saved
        view = load_view(cache, clip, "test", 0, "/")
        # In the cache clips have no labels, and an odd name may be replaced.
        view.clip = replace(view.clip, clip=video.name, labels=video.labels)
        result = HeadResult(
            run=self.run.folder,
            head=saved.recipe.head.name,
            checkpoint=saved.checkpoint,
            classes=saved.classes,
            scores=scores,
            scores_kind=saved.recipe.scores,
            maps={},
        )
        strips, what = [Strip("frames")], ("predictions",)
        if view.valid.any():
            strips, what = [boxes(view)], ("boxes", "predictions")
        panels = [predictions(result, video.labels, self.top)]
        drawing = Drawing(what, view, result, strips, panels, Style(top=self.top))
        return drawing.save(self.folder / self._free_name(video.name))

    def _free_name(self, name: str) -> str:
        """A file name for a video's picture."""
        plain = re.sub(r"[^\w.-]+", "_", name).strip("._")[-LONGEST:] or "video"
        free, number = plain, 1
        while free.lower() in self._taken:
            number += 1
            free = f"{plain}-{number}"
        self._taken.add(free.lower())
        return f"{free}.png"
