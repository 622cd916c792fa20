"""`vidgraph env`: prints versions, devices and decoders, and what is missing."""

import click

from cli._shared.say import say, to_json
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
    "scipy": "scipy.optimize",
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
    """Show versions, devices and decoders, and what is missing. Paste it into a bug report.

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
    """Collect what is installed: section -> name -> text."""
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
    """Why a module cannot be imported; "" if it can."""
    import importlib

    try:
        importlib.import_module(module)
    except Exception as error:
        # A broken build may raise anything.
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
    """Packages that only some options need: the version, or why the package cannot be used."""
    packages = {
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
    found = {}
    for name, (trouble, consequence) in packages.items():
        if trouble:
            found[name] = f"{trouble}; {consequence}"
        else:
            found[name] = _version(name)
    return found


def _decoding() -> dict[str, str]:
    """The default decoder here, and the FFmpeg that each decoder brings."""
    default, rows = "decord, and pyav for files that decord reads wrongly", {}
    trouble = _asked("pipeline.video.decode", "why_no_decord")
    if trouble:
        default = f"pyav (decord is {trouble})"

    if not _trouble("pipeline.video.decode"):
        from pipeline.video.decode import ffmpeg_versions

        rows = {f"FFmpeg of {name}": version for name, version in ffmpeg_versions().items()}
    return {"default": default, **rows}


def _asked(module: str, question: str) -> str:
    """Call a function of ours. If its module does not load, return the reason for that."""
    import importlib

    trouble = _trouble(module)
    if trouble:
        return f"not to be tried ({trouble.rpartition('does not load: ')[2]})"
    return getattr(importlib.import_module(module), question)()


def _cpu() -> str:
    """The CPU's name, torch's kernels for it, and whether it has instructions for bf16."""
    try:
        import torch

        from pipeline.networks.precision import words_for_cpu
    except Exception as error:
        return f"unknown, torch does not load: {type(error).__name__}"
    about = {}
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and newer
        about = torch.cpu.get_capabilities()
    name = about.get("cpu_name") or about.get("architecture") or "CPU"
    return f"{name}, {words_for_cpu()}"


def _devices() -> dict[str, str]:
    """The GPUs that torch sees, with a note on those that it cannot use."""
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
            built = ", ".join(torch.cuda.get_arch_list())
            found[f"cuda:{index}"] += f"; UNUSABLE: this torch has kernels for {built} only"
    return found


def _why_no_gpu(torch) -> str:
    """Why torch can use no GPU."""
    if torch.backends.mps.is_available():
        return "Apple's GPU is not supported"
    if not torch.version.cuda:
        return "this torch was built without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        # No driver, an old driver, or a GPU in a bad state.
        return first_line(error).rstrip(".").split(". Please")[0]
    if torch.cuda.device_count() == 0:
        return "CUDA sees no device"
    return "CUDA does not start"


def _has_kernels(built: list[str], major: int, minor: int) -> bool:
    """Return whether torch has kernels that run on compute capability major.minor.

    Args:
        built: what torch was built for, such as "sm_90" (machine code, which runs on the same major
            version from its minor one on) or "compute_90" (PTX, which runs on everything newer).
    """
    for name in built:
        kind, _, digits = name.rstrip("abcdefghijklmnopqrstuvwxyz").partition("_")
        if not digits.isdecimal() or len(digits) < 2:
            continue
        target = int(digits[:-1]), int(digits[-1])
        if target <= (major, minor) and (kind == "compute" or target[0] == major):
            return True
    # A torch that lists nothing is not called unusable.
    return not built
