"""The folder of a run at work, whichever loop trains it: its log, its checkpoints by name, and what
a phase leaves behind.

heads/runs/run_files.py lists the files. heads/training/training_run.py trains on a cache,
heads/finetuning/end_to_end.py on frames; a recipe's phases may do one after the other in one
folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heads.config.recipe import Recipe, to_toml
from heads.config.recipe_tables import Phase
from heads.interface.run_records import METRICS, RUN
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, FolderLock, refuse_if_lost
from heads.runs.start_weights import default_checkpoint
from heads.runs.tensorboard import Curves
from pipeline.files.owners import remove_abandoned
from pipeline.workers.waiting import PrintLine


class RunWriter:
    """`path`, which need not exist yet, of a run of the whole `recipe`; `say` gets lines for a
    person.
    """

    def __init__(self, path: Path, recipe: Recipe, say: PrintLine = print):
        self.path, self.recipe, self._say = Path(path), recipe, say
        self._curves: Curves | None = None
        self._held: FolderLock | None = None

    def enter(self, held: FolderLock | FolderBusy | OSError) -> None:
        """From now on this process alone writes there, until `close`; raises what stands against it
        (see `heads.runs.folder_lock.lock_folders`).
        """
        if isinstance(held, Exception):
            raise held
        self._held = held
        remove_abandoned(self.path)  # what a process was writing when it was killed

    def make(self) -> None:
        """Makes the folder, unless this process works there: then it is there, or Gone says that it
        was moved away.
        """
        refuse_if_lost(self.path / "run.json")
        self.path.mkdir(parents=True, exist_ok=True)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(metrics.json, run.json) where a phase was finished last."""
        done = self.path / "metrics.json"
        if not done.exists() or not (self.path / "run.json").exists():
            return None
        return runs.read_json(done, METRICS), runs.read_json(self.path / "run.json", RUN)

    def after(self, there: str, mine: str) -> int:
        """How many phases after `mine` the phase `there` comes, which the folder has; ValueError
        for a later one.
        """
        names = [phase.name for phase in self.recipe.all_phases]
        after = (names.index(there) if there in names else -1) - names.index(mine)
        if after > 0:
            raise ValueError(
                f"{self.path} has trained phase {there}, which comes after {mine}: choose another "
                f"folder (--name), or start "
                "over with --no-resume"
            )
        return after

    def last(self) -> dict[str, Any] | None:
        """last.pt, if there is one."""
        path = self.path / "last.pt"
        return runs.load_checkpoint(path) if path.exists() else None

    def refuse_to_lose(self, phases: Sequence[Phase], started: bool) -> None:
        """Before a run of these `phases` starts over: ValueError where one needs what an earlier
        phase left in this folder, which would be gone. `started`: the first of them has its weights
        from elsewhere.
        """
        names = [phase.name for phase in self.recipe.all_phases]
        earlier = names[: names.index(phases[0].name)]
        needed = {name for phase in phases for name in phase.train.distil.teachers}
        if phases[0].start == "previous" and not started:
            needed.update(earlier[-1:])
        for path in (self.path / f"{name}.pt" for name in earlier if name in needed):
            if path.exists():
                raise ValueError(
                    f"{path}: starting over would remove it, and phase {phases[0].name} needs it; "
                    f"choose another folder "
                    f"(--name) with --start {path}"
                )

    def remove(self, *names: str) -> None:
        """Removes checkpoints. Busy if another process has taken the folder over."""
        refuse_if_lost(self.path / "last.pt")
        for name in names:
            (self.path / f"{name}.pt").unlink(missing_ok=True)

    def begin(self, record: Mapping[str, Any], epochs: int, steps: int, tensorboard: bool) -> None:
        """Makes the folder that of a run with `record`, of which so many epochs and mini-batches
        over all phases are kept.
        """
        refuse_if_lost(self.path / "metrics.json")
        (self.path / "metrics.json").unlink(missing_ok=True)
        runs.start_log(self.path / "log.jsonl", epochs)
        runs.write_text(self.path / "recipe.toml", to_toml(self.recipe))
        runs.write_json(self.path / "run.json", record)
        if tensorboard:
            self._curves = Curves(self.path / "tensorboard", steps, self._say)

    def log(self, line: Mapping[str, Any]) -> None:
        """One epoch more in the log."""
        runs.append_log(self.path / "log.jsonl", dict(line))

    def show(self, line: Mapping[str, Any]) -> None:
        """The same as curves, where tensorboard is written."""
        if self._curves is not None:
            self._curves.write(line)

    def keep(self, phase: str) -> None:
        """Writes what the phase ended with to PHASE.pt, once: best.pt may be the next phase's when
        this is called again.
        """
        path = self.path / f"{phase}.pt"
        if not path.exists():
            saved = runs.load_checkpoint(self.path / f"{default_checkpoint(self.path)}.pt")
            runs.save_checkpoint(
                path,
                {
                    key: saved[key]
                    for key in ("about", "phase", "state", "backbone")
                    if key in saved
                },
            )

    def reason(self, error: Exception) -> Exception:
        """What ended the run: `error`, or Gone, where that came of the folder's being moved or
        deleted.
        """
        return error if self._held is None else self._held.reason(error)

    def close(self) -> None:
        """Closes the curves and gives the folder up; may be called again."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None
        if self._held is not None:
            self._held.leave()
            self._held = None


def epoch_line(line: Mapping[str, Any], name: str, epoch: int, of: int, better: bool) -> str:
    """One epoch for a person: `line` of the log, the phase's `name` ("" for the only one), epochs
    done `of` all.
    """
    val = ", ".join(
        f"{k} {v:.3f}" if k == "loss" else f"{k} {100 * v:.1f} %" for k, v in line["val"].items()
    )
    share = 100 * line["waiting"] / max(line["seconds"], 1e-9)
    return (
        f"{name + ' ' if name else ''}epoch {epoch}/{of}: loss {line['loss']:.4f}, lr "
        f"{line['lr']:.2g}"
        f"{', val ' + val if val else ''}{' (best)' if better else ''}; "
        f"{line['seconds']:.1f} s, waited {line['waiting']:.1f} s ({share:.0f} %) for data"
    )
