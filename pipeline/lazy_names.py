"""Public names of a package, imported when somebody first asks for them.

A room's `__init__.py` names what others may use. Importing all of it at once would load torch,
h5py or Dask for every command line, so each name is imported on its first use (PEP 562).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def load_lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package.

    Args:
        package: the package's `__name__`.
        homes: public name -> the submodule that defines it. A name must differ from all
            submodules: Python binds an imported submodule to its own name.

    Returns:
        A function for the package's `__getattr__`.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
