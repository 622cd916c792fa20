"""Weights of other libraries' models: files of state dicts, their checksums, what does not fit."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from pipeline.networks.checkpoint_files import read_checkpoint
from pipeline.networks.checkpoint_names import states

State = dict[str, Tensor]

NONE, PRETRAINED = "none", "pretrained"

# What a folder of weights may hold, the safest first.
_FILES = ("model.safetensors", "pytorch_model.bin")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    It does not depend on how many files the weights came in, or in which format.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weight_file(source: str) -> Path:
    """Return the file that a person named, or the one in the folder that was named.

    Raises:
        ValueError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"weights {source}: expected {' or '.join(_FILES)} in this folder")
    if not path.is_file():
        raise ValueError(
            f"weights {source}: no such file; expected {PRETRAINED}, {NONE}, or the path of a "
            f"file or a folder"
        )
    return path


def read_state(source: str) -> State:
    """Read the state dict of a file: safetensors, or what torch saves. No code in it is run.

    Args:
        source: a file, or a folder with one.

    Raises:
        ValueError: there is no such file, or it holds anything else.
    """
    path = weight_file(source)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        found = list(states(read_checkpoint(path)))
    except ValueError as error:
        raise ValueError(
            f"weights {path}: not a checkpoint of plain tensors ({error}); save a state dict with "
            f"torch.save, or as safetensors"
        ) from error
    if not found:
        raise ValueError(f"weights {path}: expected a state dict, found none")
    # Of a training's weights and their moving average, the first is the one that it names first.
    return max(found, key=len)


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            f"weights {path}: this needs the package safetensors: pip install "
            f"'vidgraph[timm]' or 'vidgraph[transformers]'"
        ) from None
    try:
        return load_file(path)
    # The library raises an error of its own class.
    except Exception as error:
        raise ValueError(f"weights {path}: not a file of safetensors ({error})") from error


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of an `EncoderBackbone`, such as a fine-tuned one."""
    return "pixel_mean" in state and any(name.startswith("model.") for name in state)


def load_exactly(
    model: nn.Module, state: Mapping[str, Tensor], source: str, ignored: Iterable[str] = ()
) -> None:
    """Load a state dict into a model; every weight must be there.

    Args:
        model: the model.
        state: its weights; those of a classifier may be there too.
        source: what messages call it.
        ignored: first parts of names that the model does not have, such as a classifier's.

    Raises:
        ValueError: weights are missing, unknown, or of other shapes.
    """
    wanted, ignored = model.state_dict(), tuple(ignored)
    # Counters of batch norms are younger than some checkpoints, and nothing computes with them.
    counters = {name: own for name, own in wanted.items() if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted and not name.startswith(ignored or " ")]
    for what, names in (("misses", missing), ("has unknown", unknown)):
        if names:
            raise does_not_fit(source, what, names)
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"weights {source}: do not fit: {name} has the shape {list(state[name].shape)}, "
                f"expected {list(tensor.shape)}"
            )
    model.load_state_dict({name: state[name] for name in wanted})


def does_not_fit(source: str, what: str, names: list[str]) -> ValueError:
    """Return the error for a state dict with missing or unknown names."""
    some = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ValueError(f"weights {source}: do not fit: the file {what} {some}{more}")


def fetch_failed(name: str, error: Exception) -> NoReturn:
    """Raise an OSError that says what to do where a library cannot fetch its weights."""
    said = " ".join(str(error).split())[:200]
    raise OSError(
        f"weights {PRETRAINED}: could not fetch those of {name} ({said}); download them elsewhere "
        f"and give the file or the folder with --weights, or pass --weights {NONE}"
    ) from error


def needs_package(name: str, package: str, extra: str, error: Exception) -> NoReturn:
    """Raise a ValueError that says what to install."""
    raise ValueError(
        f"backbone {name}: this needs the package {package}, which cannot be imported ({error}): "
        f"pip install 'vidgraph[{extra}]'"
    ) from error
