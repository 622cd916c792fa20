"""Who does the work: processes of this machine, Dask workers, Slurm jobs, and runs side by side.

This room imports from `pipeline.files` and `pipeline.text` only. `engines` is the entrance: it runs
jobs, one per shard, in any of these places.

What happens when a worker dies?

- A decode process crashes, or the kernel kills it. `decode_pool` starts another one and gives the
  video to it. If that one dies too, the clip is recorded as failed (DecoderDied, set in
  `pipeline.stages.shard_composer`) and the run continues. `vidgraph repair` tries the clip again.
- A decode process hangs. `decode_pool` kills it at the time limit of a video (`--time-limit`). The
  clip is recorded as failed (DecodeTimeout).
- The parent of a decode process dies. The process ends with it, and so do the programs that it has
  started (`pool_worker`).
- A process of `engines.LocalEngine` dies. The run ends with WorkerDied and exit code 1. Finished
  shards are kept, and the same command continues after them. Only `graphs --workers` has such
  processes: `extract` alone works in its own process, and `ablate --jobs` uses Dask workers.
  `ablate` tries the members of a lost group again one by one (`docs/ablate.md`).
- A Dask worker dies. Dask gives its shard to another worker, and the dead one is replaced: by
  `engines` for processes of this machine, by `slurm` for Slurm jobs. A shard that ends four workers
  is left out: the run ends with WorkersLost once all other shards are done (`dask_jobs`).
- The Dask scheduler dies. The run ends with WorkersLost and exit code 1. Finished shards are kept
  (`dask_jobs`).
- A Slurm job ends: out of time, preempted, or its node fails. `slurm` submits another one while
  there is work. With `--slurm time=…` a worker ends by itself before its job's time is over. Dask
  counts no death then, so a shard for which no job is long enough starts again in every job.
  Whoever starts it says so (`tries`). Jobs of `--print-sbatch` have no Dask. They begin no shard
  for which their time is too short; submit the script again for the rest.
- The process that holds the claim on a shard dies. A run on the same machine sees that at once. A
  run on another machine waits for 60 s without a heartbeat, and says so (`waiting`). It then takes
  the claim over and writes the shard from the start (`claims`).
- A process that was taken for dead wakes up. It continues, but only the first complete shard counts
  (`completion`).

A shard appears under its name only when it is complete, so no death leaves half a shard. The next
run removes the part files of dead writers (`claims.sweep_claims`). `docs/faults.md` has a table of
these cases: what is printed, the exit code, what the cache holds. It also lists what was tried.

Large answers of decode processes come through shared memory without a name (`arena`), so that no
death leaves any of it behind.

Other modules: `cores`, `gpus` and `memory` say what a process may use of its machine. A decode
process has two sides, `pool_process` and `pool_worker`. `module_path` keeps imports from the
working folder out. `dask_nodes`, `dask_scratch`, `dask_tls` and `dask_worker` make Dask's processes
private.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Claim": "claims",
    "ClaimWatch": "claims",
    "DaskEngine": "engines",
    "Engine": "engines",
    "LocalEngine": "engines",
    "NotAClaim": "claims",
    "TlsFiles": "dask_tls",
    "WorkerDied": "decode_pool",
    "WorkerPool": "decode_pool",
    "WorkersLost": "dask_jobs",
    "cores_here": "cores",
    "finish_shard": "completion",
    "keep_freed_memory": "memory",
    "pick_device": "engines",
    "run_jobs": "engines",
    "share_jobs": "engines",
    "take_claim": "claims",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
