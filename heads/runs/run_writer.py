"""Write the folder of a run at work: its log, its checkpoints, and what a phase leaves behind.

Both training loops use it: heads/training/training_run.py on a cache, and
heads/finetuning/end_to_end.py on frames. The phases of one recipe may be trained by both, one
after the other, in one folder. heads/runs/run_files.py lists the files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heads.config.recipe import Recipe, to_toml
from heads.config.recipe_tables import Phase
from heads.interface.run_records import METRICS, RUN
from heads.runs import run_files
from heads.runs.folder_lock import FolderBusy, FolderLock, refuse_if_lost
from heads.runs.start_weights import default_checkpoint
from heads.runs.tensorboard import Curves
from pipeline.files.owners import remove_abandoned
from pipeline.workers.waiting import PrintLine

# What PHASE.pt keeps of a checkpoint.
PHASE_KEYS = ("about", "phase", "state", "backbone")


class RunWriter:
    """The folder of one run.

    Args:
        path: the folder, which need not exist yet.
        recipe: the whole recipe, with all its phases.
        say: prints one line for a person.
    """

    def __init__(self, path: Path, recipe: Recipe, say: PrintLine = print):
        self.path, self.recipe, self._say = Path(path), recipe, say
        self._curves: Curves | None = None
        self._lock: FolderLock | None = None

    def enter(self, lock: FolderLock | FolderBusy | OSError) -> None:
        """Take the folder's lock until `close`.

        Args:
            lock: what `heads.runs.folder_lock.lock_folders` returned; an exception is raised.
        """
        if isinstance(lock, Exception):
            raise lock
        self._lock = lock
        # Partial files of a process that was killed while it wrote them.
        remove_abandoned(self.path)

    def make(self) -> None:
        """Make the folder.

        Raises:
            FolderGone: this process has locked the folder and it was moved away.
        """
        # Any file would do: the check is about the folder that it lies in.
        refuse_if_lost(self.path / "run.json")
        self.path.mkdir(parents=True, exist_ok=True)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return (metrics.json, run.json) of the phase that finished last; None if none did."""
        metrics, record = self.path / "metrics.json", self.path / "run.json"
        if not metrics.exists() or not record.exists():
            return None
        return run_files.read_json(metrics, METRICS), run_files.read_json(record, RUN)

    def after(self, phase_in_folder: str, own_phase: str) -> int:
        """Return how many phases the folder's phase comes after this run's phase.

        Args:
            phase_in_folder: the phase that the folder has.
            own_phase: the phase that this run trains.

        Returns:
            0 for the same phase, a negative number for an earlier one.

        Raises:
            ValueError: the folder has a later phase.
        """
        names = [phase.name for phase in self.recipe.all_phases]
        # A phase that the recipe does not have any more counts as earlier than all.
        position = names.index(phase_in_folder) if phase_in_folder in names else -1
        after = position - names.index(own_phase)
        if after > 0:
            raise ValueError(
                f"{self.path} has trained phase {phase_in_folder}, which comes after {own_phase}: "
                f"choose another folder (--name), or start over with --no-resume"
            )
        return after

    def last(self) -> dict[str, Any] | None:
        """Return the content of last.pt; None if there is none."""
        path = self.path / "last.pt"
        return run_files.load_checkpoint(path) if path.exists() else None

    def refuse_to_lose(self, phases: Sequence[Phase], started: bool) -> None:
        """Check, before a run starts over, that it would not delete weights that it needs.

        Args:
            phases: the phases that the run will train.
            started: whether the first phase gets its weights from elsewhere.

        Raises:
            ValueError: a phase needs what an earlier phase left in this folder.
        """
        names = [phase.name for phase in self.recipe.all_phases]
        earlier = names[: names.index(phases[0].name)]
        # PHASE.pt of teachers, and of the phase before the first one.
        needed: set[str] = set()
        for phase in phases:
            needed.update(phase.train.distil.teachers)
        if phases[0].start == "previous" and not started:
            needed.update(earlier[-1:])

        for name in earlier:
            path = self.path / f"{name}.pt"
            if name in needed and path.exists():
                raise ValueError(
                    f"{path}: starting over would delete it, and phase {phases[0].name} needs it; "
                    f"choose another folder (--name) with --start {path}"
                )

    def remove(self, *names: str) -> None:
        """Delete checkpoints, such as "last" and "best".

        Raises:
            FolderBusy: another process has taken the folder over.
        """
        refuse_if_lost(self.path / "last.pt")
        for name in names:
            (self.path / f"{name}.pt").unlink(missing_ok=True)

    def begin(self, record: Mapping[str, Any], epochs: int, steps: int, tensorboard: bool) -> None:
        """Write the files that a run starts with.

        Args:
            record: the content of run.json.
            epochs: epochs, over all phases, that the log keeps.
            steps: mini-batches, over all phases, that the curves keep.
            tensorboard: also write curves for TensorBoard.
        """
        refuse_if_lost(self.path / "metrics.json")
        # It marks a finished run, which this one is not any more.
        (self.path / "metrics.json").unlink(missing_ok=True)
        run_files.start_log(self.path / "log.jsonl", epochs)
        run_files.write_text(self.path / "recipe.toml", to_toml(self.recipe))
        run_files.write_json(self.path / "run.json", record)
        if tensorboard:
            self._curves = Curves(self.path / "tensorboard", steps, self._say)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append the line of an epoch to the log."""
        run_files.append_log(self.path / "log.jsonl", dict(line))

    def show(self, line: Mapping[str, Any]) -> None:
        """Write the line of an epoch as points of curves, if the run writes curves."""
        if self._curves is not None:
            self._curves.write(line)

    def keep(self, phase: Phase) -> None:
        """Write what a phase ended with to PHASE.pt, unless it is there.

        A second call must not overwrite it: best.pt may belong to the next phase by then.
        """
        path = self.path / f"{phase.name}.pt"
        if path.exists():
            return
        name = default_checkpoint(self.path, phase.name)
        saved = run_files.load_checkpoint(self.path / f"{name}.pt")
        kept = {key: saved[key] for key in PHASE_KEYS if key in saved}
        run_files.save_checkpoint(path, kept)

    def reason(self, error: Exception) -> Exception:
        """Return FolderGone if the folder was moved or deleted, else `error`."""
        return error if self._lock is None else self._lock.reason(error)

    def close(self) -> None:
        """Close the curves and release the lock; may be called twice."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None
        if self._lock is not None:
            self._lock.leave()
            self._lock = None


def epoch_line(line: Mapping[str, Any], name: str, epoch: int, of: int, better: bool) -> str:
    """Return one line about an epoch for a person.

    Args:
        line: the line of the log.
        name: the phase's name; "" for a recipe without phases.
        epoch: epochs of the phase that are done.
        of: epochs of the phase in all.
        better: whether the epoch is the best so far.
    """
    figures = []
    for figure, value in line["val"].items():
        shown = f"{value:.3f}" if figure == "loss" else f"{100 * value:.1f} %"
        figures.append(f"{figure} {shown}")
    val = f", val {', '.join(figures)}" if figures else ""
    for form, found in line.get("beside", {}).items():
        shown = [f"{name} {100 * value:.1f} %" for name, value in found.items() if name != "loss"]
        val += f", {form} {', '.join(shown)}"
    for name, part in line.get("changed", {}).items():
        val += f", {name} changed for {100 * part:.1f} % of views"
    share = 100 * line["waiting"] / max(line["seconds"], 1e-9)
    start = f"{name} epoch" if name else "epoch"
    best = " (best)" if better else ""
    return (
        f"{start} {epoch}/{of}: loss {line['loss']:.4f}, lr {line['lr']:.2g}{val}{best}; "
        f"{line['seconds']:.1f} s, waited {line['waiting']:.1f} s ({share:.0f} %) for data"
    )
