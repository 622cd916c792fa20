"""Dask's scheduler and workers without their web servers.

Each of Dask's own opens a web server, dashboard or not, which shows tasks, call stacks and logs to
anybody who asks.
"""

import distributed

from pipeline.text.printable import guard_output


class QuietScheduler(distributed.Scheduler):
    """A scheduler that starts its web server only for a dashboard."""

    def start_http_server(self, routes, dashboard_address, *more, **named) -> None:
        if dashboard_address:
            super().start_http_server(routes, dashboard_address, *more, **named)


class QuietWorker(distributed.Worker):
    """A worker without a web server, whose output has control characters as escapes."""

    def __init__(self, *given, **named):
        guard_output()
        super().__init__(*given, **named)

    def start_http_server(self, *given, **named) -> None:
        pass
