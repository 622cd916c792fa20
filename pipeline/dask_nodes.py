"""Dask's scheduler and workers as vidgraph starts them: they listen for each other, and for nobody else.

Dask's own open a web server each, dashboard or not, which shows tasks, call stacks and logs to whoever asks.
"""

import distributed

from pipeline.shown import guard_output


class Scheduler(distributed.Scheduler):
    """Has a web server where a dashboard was asked for."""

    def start_http_server(self, routes, dashboard_address, *more, **named) -> None:
        if dashboard_address:
            super().start_http_server(routes, dashboard_address, *more, **named)


class Worker(distributed.Worker):
    """Has no web server, and shows names in what it prints as they are."""

    def __init__(self, *given, **named):
        guard_output()
        super().__init__(*given, **named)

    def start_http_server(self, *given, **named) -> None:
        pass
