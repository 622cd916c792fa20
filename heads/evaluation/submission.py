"""Predictions as Something-Something's test server takes them: a line per video, without a header.

    v1    100;Holding something                       the name of the likeliest class
    v2    100;41;37;12;5;140                          the ids of the five likeliest, best first

The ids of V2 are the numbers of labels.json, which are the positions in the run's classes if these
come from the list that `vidgraph manifest something-something-v2` writes. Both forms are those that
the released code of TSM writes (its `--csv_file`), and V2's is that of the data set's own baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files.atomic_files import write_text

FORMATS = ("v1", "v2")
# Classes per video that the server of V2 takes.
BEST = 5


@dataclass(frozen=True)
class Submission:
    """A file for the test server.

    Attributes:
        path: the file; one that exists is replaced.
        format: "v1" or "v2"; see the top of this module.

    Raises:
        ValueError: another format.
    """

    path: Path
    format: str = "v1"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"submission: expected a format of {', '.join(FORMATS)}, got {self.format!r}"
            )

    def check(self, classes: Sequence[str], target: str) -> None:
        """Raise ValueError if predictions of these classes cannot be written.

        Args:
            classes: the K names in the order of their ids.
            target: "single" or "multi", of the recipe.
        """
        if target != "single":
            raise ValueError(
                "submission: the server takes one class per video, and this run predicts several "
                "(data.target = 'multi')"
            )
        if not self.path.parent.is_dir():
            raise ValueError(f"submission: {self.path.parent}: no such folder; make it first")
        if self.format == "v2" and len(classes) < BEST:
            raise ValueError(
                f"submission: format v2 names the {BEST} likeliest classes, and this run knows "
                f"{len(classes)}; pass --submission-format v1"
            )
        for name in classes:
            if self.format == "v1" and (";" in name or len(name.splitlines()) != 1):
                raise ValueError(
                    f"submission: class {name!r} cannot stand in a line 'id;label'; rename it, or "
                    f"pass --submission-format v2"
                )

    def check_clips(self, clips: Sequence[str]) -> None:
        """Raise ValueError if the id of a video cannot stand in a line.

        Args:
            clips: the ids.
        """
        for clip in clips:
            if ";" in clip:
                raise ValueError(f"submission: clip {clip!r}: expected an id without a semicolon")

    def write(self, clips: Sequence[str], classes: Sequence[str], scores: np.ndarray) -> int:
        """Write the file.

        Args:
            clips: the V ids of the videos.
            classes: the K names.
            scores: [V,K], one score per video and class.

        Returns:
            The number of lines, V.

        Raises:
            ValueError: an id with a semicolon.
        """
        self.check_clips(clips)
        # Stable: of equal scores, the class of the lower number comes first.
        order = np.argsort(-scores, axis=1, kind="stable")
        lines = []
        for clip, best in zip(clips, order.tolist(), strict=True):
            if self.format == "v1":
                lines.append(f"{clip};{classes[best[0]]}\n")
            else:
                lines.append(";".join([clip, *map(str, best[:BEST])]) + "\n")
        write_text(self.path, "".join(lines))
        return len(lines)
