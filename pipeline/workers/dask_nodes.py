"""Dask's scheduler and workers without their web servers.

Dask's own classes open a web server even without a dashboard. It shows tasks, call stacks and logs
to anybody who asks.
"""

import os

import distributed

from pipeline.text.printable import guard_output
from pipeline.workers.gpus import parse_cores, stay_on

# The environment variable that gives a worker its cores, such as "0,1,2".
CORES = "VIDGRAPH_CORES"


class QuietScheduler(distributed.Scheduler):
    """A scheduler that starts its web server only for a dashboard."""

    def start_http_server(self, routes, dashboard_address, *args, **kwargs) -> None:
        if dashboard_address:
            super().start_http_server(routes, dashboard_address, *args, **kwargs)


class QuietWorker(distributed.Worker):
    """A worker without a web server, which prints control characters as escapes.

    It stays on the cores that its environment names.
    """

    def __init__(self, *args, **kwargs):
        guard_output()
        if os.environ.get(CORES):
            # Before any thread is started, and before the cores are counted.
            stay_on(parse_cores(os.environ[CORES]))
        super().__init__(*args, **kwargs)

    def start_http_server(self, *args, **kwargs) -> None:
        pass
