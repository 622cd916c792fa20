"""`vidgraph env`: versions, devices, decoders, and what is missing."""

import click

from cli._say import say, to_json

# What each optional package is for; the others are installed with vidgraph.
OPTIONAL = {
    "detectron2": "--proposals detectron2",
    "torchcodec": "--decoder torchcodec",
    "dask_jobqueue": "--slurm",
    "matplotlib": "plots of `report` and pictures of `show`",
    "webdataset": "the comparison in benchmarks/cache_io.py",
}
NEEDED = ("torch", "torchvision", "h5py", "hdf5plugin", "decord", "av", "numpy", "click", "pydantic", "rich", "sklearn", "PIL")
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "dask_jobqueue": "dask-jobqueue"}


@click.command("env")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead.")
def command(as_json: bool) -> int:
    """Show versions, devices and decoders, and what is missing; paste it into a report of a problem.

    Exit code 0: all that vidgraph needs is there; 1: something that it needs does not load.
    """

    found = environment()
    if as_json:
        click.echo(to_json(found))
    else:
        for title, rows in found.items():
            say(f"{title}:")
            for name, value in rows.items():
                say(f"  {name:<16} {value}")
    return 1 if any(str(value).startswith("MISSING") for value in found["packages"].values()) else 0


def environment() -> dict[str, dict[str, str]]:
    """Sections of name -> what was found, all as text."""
    import platform
    from importlib import metadata

    from pipeline.cores import cores_here

    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(cores_here()),
    }
    packages = {"vidgraph": metadata.version("vidgraph"), **{name: _loads(name) for name in NEEDED}}
    optional = {}
    for name, purpose in OPTIONAL.items():
        state = _loads(name)
        optional[name] = f"not installed: {purpose} needs it" if state.startswith("MISSING") else state
    return {"machine": machine, "packages": packages, "optional": optional, "devices": _devices()}


def _loads(name: str) -> str:
    """The version of a package that can be imported, else MISSING and why."""
    import importlib
    from importlib import metadata

    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken build raises whatever it likes
        return f"MISSING: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    try:
        return metadata.version(DISTRIBUTIONS.get(name, name))
    except metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "version unknown"))


def _devices() -> dict[str, str]:
    """The GPUs that torch can use; the reason where there is none."""
    try:
        import torch
    except Exception as error:
        return {"gpu": f"unknown, torch does not load: {type(error).__name__}"}
    if not torch.cuda.is_available():
        return {"gpu": "none that torch can use: networks run on the CPU; --precision bf16 is worth trying, fp16 is not"}
    found = {}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute {about.major}.{about.minor}"
    return found
