"""`python dask_worker.py …`: Dask's worker as a job of Slurm starts it, for `pipeline.slurm`.

A job runs where the data lie, whose files are not to be imported, and on a machine that others use, whose temporary folder is
everybody's: Dask puts a folder of its own in there on the module path.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file: its modules are `pipeline`'s
    from pipeline.module_path import guard_program

    guard_program()
    import dask
    from distributed.cli.dask_worker import main

    from pipeline.scratch import private_scratch

    if sys.argv[1:2] == ["-m"]:  # and the name of Dask's own module, from dask_jobqueue
        del sys.argv[1:3]
    dask.config.set({"temporary-directory": private_scratch()})
    main()
