"""The program `python dask_worker.py …`: a Dask worker as a Slurm job starts it.

`pipeline.workers.slurm` writes the command line. A job may start in a folder of data, whose files
must not be imported. Its machine has other users too, so Dask's temporary folder, which is on the
module path, must be a private one.
"""

import sys

if __name__ == "__main__":
    # Python puts the folder of this file first on the module path: `pipeline`'s own modules must
    # not be importable by their bare names. With "safe_path" it has not done so.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    from pipeline.workers.module_path import guard_program

    guard_program()
    import dask
    from distributed.cli.dask_worker import main

    from pipeline.workers.dask_scratch import private_scratch

    # dask_jobqueue puts `-m MODULE` before the arguments.
    if sys.argv[1:2] == ["-m"]:
        del sys.argv[1:3]
    dask.config.set({"temporary-directory": private_scratch()})
    main()
