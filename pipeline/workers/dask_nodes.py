"""Dask's scheduler and workers without their web servers, and a cluster of them on this machine.

Dask's own classes open a web server even without a dashboard. It shows tasks, call stacks and logs
to anybody who asks.
"""

import logging
import os
from collections.abc import Sequence

import distributed

from pipeline.text.printable import guard_output
from pipeline.workers.cores import allowed_cores, cores_here
from pipeline.workers.gpus import near_cores, parse_cores, stay_on, visible_gpus

KEEPING = 5.0  # seconds between two checks that there are as many workers as there should be
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


def pinned_cluster(workers: int, threads: int, own_gpus: Sequence[str], dashboard: str, security):
    """Start workers on this machine that only it can reach.

    Each sees one GPU, in turn, where there are any. It computes with its part of the cores, or with
    as many threads as OMP_NUM_THREADS says.

    Args:
        workers: the number of processes.
        threads: of each.
        own_gpus: GPUs, one for each process, which then stays on the cores near its own; none gives
            the processes all GPUs in turn.
        dashboard: HOST:PORT; "" for none.
        security: Dask's `Security` with the keys of this run.

    Returns:
        The `distributed.LocalCluster`.
    """
    from distributed import LocalCluster, SpecCluster
    from tornado.ioloop import PeriodicCallback

    gpus = list(own_gpus) or visible_gpus()
    omp_threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores_here() // workers))
    near = near_cores(own_gpus, allowed_cores()) if own_gpus else []

    class QuietCluster(SpecCluster):
        """Passes our class of schedulers on: LocalCluster, which calls this, has no option."""

        def __init__(self, *, scheduler: dict, **kwargs):
            super().__init__(scheduler={**scheduler, "cls": QuietScheduler}, **kwargs)

    class PinnedCluster(LocalCluster, QuietCluster):
        """Gives every worker, and every one that replaces it, the GPU of its number."""

        def new_worker_spec(self) -> dict:
            ((number, spec),) = super().new_worker_spec().items()
            env = {"OMP_NUM_THREADS": omp_threads}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            if near:
                own = near[number % len(near)]
                env[CORES] = ",".join(map(str, own))
            ours = {"env": env, "worker_class": QuietWorker}
            return {number: {**spec, "options": {**spec["options"], **ours}}}

    cluster = PinnedCluster(
        n_workers=0,
        threads_per_worker=threads,
        memory_limit=0,  # networks are not Dask's to spill
        host="127.0.0.1",
        dashboard_address=dashboard or None,
        security=security,
        protocol="tls://",
        silence_logs=logging.ERROR,
    )
    cluster.scale(workers)
    # Dask gives up on a worker that is not back in time, and on one that dies while it starts.
    keeper = PeriodicCallback(lambda: cluster.scale(workers), 1000 * KEEPING)
    cluster.loop.add_callback(keeper.start)
    return cluster
