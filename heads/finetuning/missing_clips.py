"""The clips whose frames or boxes a run from frames cannot read."""

from collections.abc import Iterable, Mapping

from heads.training.study import SPLITS
from pipeline.workers.waiting import PrintLine


class MissingClips:
    """Split -> the clips that cannot be read; each is reported once.

    Args:
        say: prints a line.

    Attributes:
        of: split -> the ids of its clips.
    """

    def __init__(self, say: PrintLine):
        self.say = say
        self.of: dict[str, set[str]] = {split: set() for split in SPLITS}

    def report(self, split: str, clips: Iterable[str]) -> None:
        """Add clips of a split, and print a line for each that is new."""
        for clip in sorted(set(clips) - self.of[split]):
            self.of[split].add(clip)
            self.say(
                f"split {split}: clip {clip} cannot be read and is left out; `vidgraph check` "
                "(with --annotations where boxes come from a file) says why"
            )

    def state(self) -> dict[str, list[str]]:
        """Return what a checkpoint holds of them."""
        return {split: sorted(clips) for split, clips in self.of.items()}

    def load(self, saved: Mapping[str, Iterable[str]]) -> None:
        """Add the clips of a checkpoint, which were reported before."""
        for split, clips in saved.items():
            self.of[split] |= set(clips)
