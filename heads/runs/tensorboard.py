"""Write a run's log as curves for TensorBoard; an error in it never ends a training."""

import itertools
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

from pipeline.text.printable import first_line
from pipeline.workers.waiting import PrintLine

# Numbers of the files that this process writes.
_NUMBERS = itertools.count()


class Curves:
    """A file of curves for TensorBoard.

    TensorBoard's own writer is not used: its thread raises errors that nobody can catch. Here the
    first error ends the curves and prints one line.

    Args:
        folder: where the file is written.
        step: TensorBoard ignores what earlier files hold after this mini-batch.
        say: prints one line for a person.
    """

    def __init__(self, folder: Path, step: int, say: PrintLine):
        self.folder, self._say = folder, say
        self._file: FileIO | None = None
        self._attempt(lambda: self._begin(step + 1))

    def write(self, line: Mapping[str, Any]) -> None:
        """Write the line of an epoch."""
        values = {"train/loss": line["loss"], "train/lr": line["lr"]}
        values |= {f"val/{name}": value for name, value in line["val"].items()}
        for form, found in line.get("beside", {}).items():
            values |= {f"val_{form}/{name}": value for name, value in found.items()}
        for name, share in line.get("changed", {}).items():
            values[f"val/{name}_changed"] = share
        if self._file is not None:
            self._attempt(lambda: self._scalars(values, line["step"]))

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file is not None:
            self._attempt(self._end)

    def _begin(self, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard finds files by this prefix and reads them in the order of the times.
        process = f"{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        name = f"events.out.tfevents.{int(time.time()):010d}.{process}"
        self._file = open(self.folder / name, "wb", buffering=0)  # noqa: SIM115 (`close` closes it)
        start = SessionLog(status=SessionLog.START)
        self._put(Event(file_version="brain.Event:2"), Event(step=first_step, session_log=start))

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard.summary import scalar

        events = [Event(step=step, summary=scalar(name, value)) for name, value in values.items()]
        self._put(*events)

    def _put(self, *events: Any) -> None:
        """Write all events, or none of them and raise OSError."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(records).write(event.SerializeToString())

        left, before = memoryview(records.getvalue()), self._file.tell()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            # Half a record would hide all records after it.
            self._file.truncate(before)
            raise

    def _end(self) -> None:
        file, self._file = self._file, None
        file.close()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Call `work`; an error in it ends the curves and nothing else."""
        try:
            work()
        except Exception as error:
            file, self._file = self._file, None
            reason = getattr(error, "strerror", None) or first_line(error)
            self._say(
                f"{self.folder}: no more curves for TensorBoard ({reason}); log.jsonl has the "
                f"same figures"
            )
            if file is not None:
                # A network file system may report once more that its disk is full.
                with suppress(OSError):
                    file.close()
