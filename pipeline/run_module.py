"""`python run_module.py MODULE ARGUMENTS…`: as `python -m MODULE`, without the working folder on the module path.

A job script of Slurm runs where the data lie. `python -P -m` would do the same from Python 3.11 on.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file, whose names are not for everybody
    import runpy

    from pipeline.module_path import guard_program

    guard_program()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
