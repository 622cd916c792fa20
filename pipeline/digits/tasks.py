"""The tasks by name."""

from pipeline.digits.meet_task import Meet
from pipeline.digits.scenes import Task
from pipeline.digits.sync_tasks import MultiSyncDigits, Sync3, SyncDigits

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (Meet, Sync3, SyncDigits, MultiSyncDigits)
}
