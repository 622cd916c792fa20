"""Dask's scheduler and workers without their web servers.

Dask's own classes open a web server even without a dashboard. It shows tasks, call stacks and logs
to anybody who asks.
"""

import distributed

from pipeline.text.printable import guard_output


class QuietScheduler(distributed.Scheduler):
    """A scheduler that starts its web server only for a dashboard."""

    def start_http_server(self, routes, dashboard_address, *args, **kwargs) -> None:
        if dashboard_address:
            super().start_http_server(routes, dashboard_address, *args, **kwargs)


class QuietWorker(distributed.Worker):
    """A worker without a web server, which prints control characters as escapes."""

    def __init__(self, *args, **kwargs):
        guard_output()
        super().__init__(*args, **kwargs)

    def start_http_server(self, *args, **kwargs) -> None:
        pass
