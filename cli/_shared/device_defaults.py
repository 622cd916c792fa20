"""What `extract` and `plan` take where nobody said it: as the cache, or what suits a device.

    precision       bf16 on a GPU, fp32 on a CPU
    frame resize    on the device on a GPU, with Pillow on a CPU

Both change stored values, so they are chosen when a cache is made. Every later run takes them from
the cache.
"""

from pathlib import Path

from cli._shared.say import say

ON_GPU = {"precision": "bf16", "frame_resize": "device"}
ON_CPU = {"precision": "fp32", "frame_resize": "pil"}
# Options of sbatch that ask for GPUs.
_GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task")


def settle(given: dict) -> dict:
    """Fill in the options that depend on the device.

    Args:
        given: the options of a command, by name; "precision" and "frame_resize" may be None.

    Returns:
        The options with both.
    """
    precision, resize = given.get("precision"), given.get("frame_resize")
    if precision and resize:
        return given
    found = _of_cache(given.get("cache"))
    if not found:
        device, why = _device_of_run(given)
        found = ON_GPU if device == "cuda" else ON_CPU
        if precision is None:
            say(f"precision {found['precision']} (--precision), {why}", err=True)
    return {
        **given,
        "precision": precision or found["precision"],
        "frame_resize": resize or found["frame_resize"],
    }


def _of_cache(cache: Path | None) -> dict[str, str]:
    """What a cache was made with; {} where there is none yet."""
    from pipeline.cache.reader import read_cache_json

    if not cache or not (Path(cache) / "cache.json").is_file():
        return {}
    config = read_cache_json(Path(cache))["config"]
    return {
        "precision": config.get("precision", "fp32"),
        "frame_resize": config.get("resize", "pil"),
    }


def _device_of_run(given: dict) -> tuple[str, str]:
    """The kind of device that the run computes on, and why it is thought so, in words."""
    device = given.get("device", "auto")
    if device == "cpu":
        return "cpu", "as suits a CPU"
    if device == "cuda" or given.get("gpus") is not None:
        return "cuda", "as suits a GPU"
    if given.get("slurm") is not None or given.get("print_sbatch"):
        return _device_of_jobs(given.get("slurm") or "")
    if given.get("scheduler"):
        device = _device_of_workers(given)
        return device, "as suits a GPU" if device == "cuda" else "as suits workers without a GPU"
    if given.get("dask"):
        # torch would answer too, but the client can do without it.
        from pipeline.workers.gpus import visible_gpus

        device = "cuda" if visible_gpus() else "cpu"
    else:
        from pipeline.workers.engines import pick_device

        device = pick_device(device)
    return device, "as suits a GPU" if device == "cuda" else "as suits a CPU"


def _device_of_jobs(slurm: str) -> tuple[str, str]:
    from pipeline.workers.slurm import parse_options

    options = parse_options(slurm)
    if any(name in options for name in _GPU_OPTIONS) or "gpu" in options.get("gres", ""):
        return "cuda", "as suits jobs with a GPU"
    return "cpu", (
        "because --slurm asks for no GPU; if the jobs have one all the same, say --device cuda"
    )


def _device_of_workers(given: dict) -> str:
    """The kind of device that a worker of a running cluster has; the first one that answers."""
    from cli._shared.cluster import engine_of
    from pipeline.workers.engines import pick_device, run_jobs

    engine = engine_of(given, Path(given["cache"]) / "logs")
    ((_, device),) = run_jobs(pick_device, ["auto"], engine)
    if isinstance(device, Exception):
        raise device
    return device
