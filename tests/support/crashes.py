"""How pytest-xdist hands out tests when one of its processes dies, for example of a fault in native
code.

xdist's own scheduler for `--dist loadfile` (3.8) gives the test that killed a process to the next
one, which dies of it too, and so on. Where there is one process only, it waits for ever. Where a
second process dies before the successor of the first is ready, it ends in an internal error
(KeyError). Here the test has failed, the report names it, and the rest of its file runs in a new
process.
"""

import pytest

try:
    from xdist.scheduler import LoadFileScheduling
except ImportError:  # without xdist there is one process, and nothing to hand out
    LoadFileScheduling = object


class Scheduling(LoadFileScheduling):
    """The tests of a file stay together; one that kills its process is not run again."""

    def remove_node(self, node):
        """Takes a process out that has ended; the name of the test that it died of, if any."""
        units = self.assigned_work.pop(node)
        left = [(unit, test) for unit in units.values() for test, done in unit.items() if not done]
        if not left:
            return None
        unit, crashed = left[0]
        unit[crashed] = True
        self.workqueue.update(
            {file: tests for file, tests in units.items() if not all(tests.values())}
        )
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def schedule(self):
        super().schedule()
        # A process holds its last test back until it gets more, or hears that no more come.
        for node in self.nodes:
            self._reschedule(node)

    def _reschedule(self, node):
        # A node that is not registered has only been started, and knows no tests yet.
        if node in self.registered_collections:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
