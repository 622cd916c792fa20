"""`python dask_worker.py …`: Dask's worker as a job of Slurm starts it, for
`pipeline.workers.slurm`.

A job may start in a folder of data, whose files must not be imported. Its machine has other users
too, so Dask's temporary folder, which is on the module path, must be a private one.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file: its modules are `pipeline`'s
    from pipeline.workers.module_path import guard_program

    guard_program()
    import dask
    from distributed.cli.dask_worker import main

    from pipeline.workers.dask_scratch import private_scratch

    if sys.argv[1:2] == ["-m"]:  # dask_jobqueue puts `-m MODULE` before the arguments
        del sys.argv[1:3]
    dask.config.set({"temporary-directory": private_scratch()})
    main()
