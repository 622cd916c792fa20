"""Which task an idle worker takes, where consecutive tasks go faster in one worker.

Tasks may have an attribute `kin`: tasks of the same kin, such as windows of one video, go to one
worker, which keeps the video open. A worker never waits for that: if nothing else is left, it takes
a task from the end of another worker's kin.
"""

from collections.abc import Collection, Sequence
from typing import Any


def kin_of(task: Any) -> str:
    """Return the kin of a task; "" if it has none."""
    return getattr(task, "kin", "")


def choose_task(queue: Sequence[str], own: str, others: Collection[str]) -> int:
    """Choose a task for an idle worker.

    Args:
        queue: the kin of each waiting task, in their order; at least one.
        own: the kin of the worker's last task.
        others: the kin of the last task of every other worker.

    Returns:
        The position in the queue.
    """

    def is_free(kin: str) -> bool:
        return not kin or kin not in others

    # The first task comes first: everything waits for its result.
    if is_free(queue[0]):
        return 0
    if own and own in queue:
        return queue.index(own)
    for position, kin in enumerate(queue):
        if is_free(kin):
            return position
    return len(queue) - 1
