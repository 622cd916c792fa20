"""`vidgraph env`: versions, devices, decoders, and what is missing."""

import click

from cli._say import say, to_json
from pipeline.text.printable import first_line

# Distribution -> the module of it that vidgraph imports.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "h5py": "h5py",
    "hdf5plugin": "hdf5plugin",
    "jinja2": "jinja2",
    "av": "av",
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn.metrics",
    "click": "click",
    "pydantic": "pydantic",
    "rich": "rich",
    "tensorboard": "torch.utils.tensorboard",
    "dask": "dask",
    "distributed": "distributed",
    "dask-jobqueue": "dask_jobqueue",
    "bokeh": "bokeh",
    "cryptography": "cryptography",
}


@click.command("env")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead.")
def command(as_json: bool) -> int:
    """Show versions, devices and decoders, and what is missing; paste it into a report of a
    problem.

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

    from pipeline.workers.cores import cores_here

    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(cores_here()),
        "cpu": _cpu(),
    }
    packages = {"vidgraph": metadata.version("vidgraph")}
    for name, module in NEEDED.items():
        trouble = _trouble(module)
        packages[name] = f"MISSING: {trouble}" if trouble else _version(name)
    return {
        "machine": machine,
        "packages": packages,
        "optional": _optional(),
        "decoding": _decoding(),
        "devices": _devices(),
    }


def _trouble(module: str) -> str:
    """Why a module cannot be imported, "" where it can."""
    import importlib

    try:
        importlib.import_module(module)
    except Exception as error:  # a broken build raises whatever it likes
        package = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return "not installed"
        return f"installed, but does not load: {type(error).__name__}: {first_line(error)}"
    return ""


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "version unknown"


def _optional() -> dict[str, str]:
    """What an option needs, and decord: the version, or why it is of no use."""
    trouble = {
        "decord": (
            _asked("pipeline.video.decode", "why_no_decord"),
            "PyAV decodes in its place, the same frames",
        ),
        "torchcodec": (_trouble("torchcodec.decoders"), "--decoder torchcodec needs it"),
        "detectron2": (
            _asked("pipeline.proposals._model_zoo", "why_no_detectron2"),
            "--proposals detectron2 needs it",
        ),
    }
    return {
        name: f"{why}; {purpose}" if why else _version(name)
        for name, (why, purpose) in trouble.items()
    }


def _decoding() -> dict[str, str]:
    """Which decoder is the default here, and the FFmpeg that each brings."""
    default, rows = "decord, and pyav for files that decord reads wrongly", {}
    if why := _asked("pipeline.video.decode", "why_no_decord"):
        default = f"pyav (decord is {why})"
    if not _trouble("pipeline.video.decode"):
        from pipeline.video.decode import ffmpeg_versions

        rows = {f"FFmpeg of {name}": version for name, version in ffmpeg_versions().items()}
    return {"default": default, **rows}


def _asked(module: str, question: str) -> str:
    """The answer of a function of ours or, if its module does not load, the reason for that."""
    import importlib

    if trouble := _trouble(module):
        return f"not to be tried ({trouble.rpartition('does not load: ')[2]})"
    return getattr(importlib.import_module(module), question)()


def _cpu() -> str:
    """The CPU's name, the kernels that torch takes on it, and whether it has instructions for
    bf16.
    """
    try:
        import torch

        from pipeline.networks.precision import words_for_cpu
    except Exception as error:
        return f"unknown, torch does not load: {type(error).__name__}"
    about = (
        torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    )  # torch from 2.12 on
    name = about.get("cpu_name") or about.get("architecture") or "CPU"
    return f"{name}, {words_for_cpu()}"


def _devices() -> dict[str, str]:
    """The GPUs that torch sees, and why one is of no use; the reason where there is none."""
    try:
        import torch
    except Exception as error:
        return {"gpu": f"unknown, torch does not load: {type(error).__name__}"}
    if not torch.cuda.is_available():
        return {"gpu": f"none that torch can use ({_why_no_gpu(torch)}): networks run on the CPU"}
    found = {}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute "
            f"{about.major}.{about.minor}"
        )
        if not _has_kernels(torch.cuda.get_arch_list(), about.major, about.minor):
            found[f"cuda:{index}"] += (
                f"; UNUSABLE: this torch has kernels for {', '.join(torch.cuda.get_arch_list())} "
                f"only"
            )
    return found


def _why_no_gpu(torch) -> str:
    """Why torch can use no GPU, in words."""
    if torch.backends.mps.is_available():
        return "Apple's GPU is not supported"
    if not torch.version.cuda:
        return "this torch was built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:  # no driver, too old a driver, a GPU in a bad state
        return first_line(error).rstrip(".").split(". Please")[0]
    return "CUDA sees no device" if not torch.cuda.device_count() else "CUDA does not start"


def _has_kernels(built: list[str], major: int, minor: int) -> bool:
    """Whether one of torch's builds ("sm_90", "compute_90") runs on compute capability major.minor.

    Machine code runs on the same major version from its minor one on, PTX ("compute_") on
    everything newer.
    """
    for name in built:
        kind, _, digits = name.rstrip("abcdefghijklmnopqrstuvwxyz").partition("_")
        if not digits.isdecimal() or len(digits) < 2:
            continue
        of = int(digits[:-1]), int(digits[-1])
        if of <= (major, minor) and (kind == "compute" or of[0] == major):
            return True
    return not built
