"""What every benchmark shares: a table for people, a JSON file for later, and the machine it ran
on.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# benchmarks/heads.py is called like the package `heads`: this folder must not be looked at first,
# neither here nor in processes that are spawned. Every script imports this file before `heads`.
HERE = Path(__file__).resolve().parent
sys.path[:] = [
    str(HERE.parent),
    *(path for path in sys.path if Path(path).resolve() != HERE),
    str(HERE),
]


def arguments(text: str) -> argparse.ArgumentParser:
    """A parser that knows `--json FILE`; `text` is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, help="also write the rows and the machine to this file"
    )
    return parser


def machine() -> dict[str, object]:
    """The machine and the versions that a figure depends on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cores = {
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
    }
    return cores | {
        name: _version(name) for name in ("torch", "torchvision", "numpy", "h5py", "decord", "av")
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def require_decord() -> None:
    """Ends the program, with code 0, where there is no decord to compare with."""
    if find_spec("decord") is None:
        print("left out: this compares with plain decord, which is not installed here")
        sys.exit(0)


def report(title: str, rows: list[dict[str, object]], json_path: Path | None = None) -> None:
    """Prints `rows` (all with the same keys) as a table below `title`, and writes them where
    asked.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(
            *(f"{value:,.2f}" if isinstance(value, float) else str(value) for value in row.values())
        )
    console = Console(width=None if os.isatty(1) else 140)
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()), style="dim")
    if json_path:
        json_path.write_text(
            json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n"
        )
