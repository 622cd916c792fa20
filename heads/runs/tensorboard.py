"""A run's log as curves for TensorBoard. An error in writing them never ends a training."""

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

_NUMBERS = itertools.count()  # number the files that this process writes


class Curves:
    """A file of TensorBoard in `folder`. TensorBoard then ignores what earlier files hold after
    mini-batch `step`.

    The file is written without TensorBoard's own writer, whose thread raises errors that nobody can
    catch. The first error ends the curves, and `say` gets one line.
    """

    def __init__(self, folder: Path, step: int, say: PrintLine):
        self.folder, self._say = folder, say
        self._file: FileIO | None = None
        self._attempt(lambda: self._begin(step + 1))

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes one line of the log."""
        values = {"train/loss": line["loss"], "train/lr": line["lr"]}
        values |= {f"val/{name}": value for name, value in line["val"].items()}
        if self._file is not None:
            self._attempt(lambda: self._scalars(values, line["step"]))

    def close(self) -> None:
        """Closes the file; may be called again."""
        if self._file is not None:
            self._attempt(self._end)

    def _begin(self, purged: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = open(self.folder / name, "wb", buffering=0)  # noqa: SIM115 (`close` closes it)
        start = SessionLog(status=SessionLog.START)
        events = (Event(file_version="brain.Event:2"), Event(step=purged, session_log=start))
        self._put(*events)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard.summary import scalar

        self._put(
            *(Event(step=step, summary=scalar(name, value)) for name, value in values.items())
        )

    def _put(self, *events: Any) -> None:
        """Writes all events or, with an OSError, none: the file is cut back to its length
        before.
        """
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
            self._file.truncate(before)
            raise

    def _end(self) -> None:
        file, self._file = self._file, None
        file.close()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Runs `work`; an error in it ends the curves and nothing else."""
        try:
            work()
        except Exception as error:
            file, self._file = self._file, None
            reason = getattr(error, "strerror", None) or first_line(error)
            self._say(
                f"{self.folder}: no more curves for TensorBoard ({reason}); log.jsonl has "
                f"the same figures"
            )
            if file is not None:
                with suppress(OSError):  # a network file system may say again that its disk is full
                    file.close()
