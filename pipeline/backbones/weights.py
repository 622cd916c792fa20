"""Checkpoints: reads them, renames other projects' keys to ours, inflates 2-D kernels, and loads what fits exactly.

Read by their keys, whatever the file's name:
- ours: a backbone's state dict, or a dict that holds one under "backbone" (a training run's checkpoint);
- pytorchvideo's hub models (`blocks.1.res_blocks.0.branch2.conv_a.weight`) and PySlowFast's
  (`s2.pathway0_res0.branch2.a.weight`), such as I3D_8x8_R50, I3D_NLN_8x8_R50 and C2D_8x8_R50;
- the ports of video-nonlocal-net: kinetics-res50 (`layer1.0.conv1.0.weight`) and i3d_r50_kinetics (`layer1.0.conv1.weight`);
- torchvision's image ResNets (`layer1.0.conv1.weight` with 2-D kernels), which are inflated.

A checkpoint also decides how pixels are normalised: by mean 0.45 and standard deviation 0.225 for the Kinetics models,
by ImageNet's for torchvision's, by what was saved for ours. All of them take RGB.
"""

import errno
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.backbones._base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from pipeline.shown import unguarded_error

KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

INFLATIONS = ("mean", "centre")

# Parts that a checkpoint may lack if the caller says so: they then keep their random start.
FRESH = ("reduced", "non_local", "me", "shift", "eab", "lmc", "stack")
# Those that image networks never have, and that start as the identity or near it.
NOT_IN_IMAGES = FRESH[1:]

# Where training scripts keep the state dict in what they save.
_HOLDERS = ("backbone", "model_state", "state_dict", "model")

_CLASSIFIER = re.compile(r"^(fc|classifier|head|blocks\.\d+\.(proj|output_pool))\.")

_ABC = {"a": "1", "b": "2", "c": "3"}


def load(backbone: Backbone, source: str | Path, *, inflate: str = "mean", fresh: str | Iterable[str] = ()) -> None:
    """Loads `source` into `backbone`, and sets its pixel normalisation and `weights_sha256`.

    source: "imagenet" (torchvision's IMAGENET1K_V1 weights, fetched through torchvision) or the path of a checkpoint.
    inflate: what a 2-D kernel becomes in a t×h×w one: "mean" repeats it t times divided by t, so that a still clip gives what
    the image gave (STRG); "centre" puts it into the middle tap, zeros elsewhere, so that each frame gives what it gave as an
    image (GOS's release). fresh: parts that the checkpoint may lack, of `FRESH`, a comma between them in a
    string; ImageNet weights may always lack those of `NOT_IN_IMAGES` (non-local blocks; EAN's parts).
    ValueError if the file cannot be read, holds anything that is not plain data, or does not fit: the classifier may be
    there or not, and stages after the backbone's last are left out; nothing else may differ. OSError if there is no network.
    """
    fresh = tuple(filter(None, fresh.split(","))) if isinstance(fresh, str) else tuple(fresh)
    if inflate not in INFLATIONS:
        raise ValueError(f"inflate={inflate!r}: expected one of {', '.join(INFLATIONS)}")
    for part in fresh:
        if part not in FRESH:
            raise ValueError(f"fresh={part!r}: expected names among {', '.join(FRESH)}")
    if source == "imagenet":
        state = _fetch_imagenet(backbone)
        digest = _state_sha256(state)
        fresh = (*fresh, *NOT_IN_IMAGES)
    else:
        state = _state_dict(read(source), source)
        digest = _file_sha256(Path(source))
    own = backbone.state_dict()
    state = rename(state, own)
    state = {key: _inflated(value, own[key].shape, inflate) if key in own else value for key, value in state.items()}
    _check_fit(state, own, f"weights {source}: do not fit {backbone.name or 'the backbone'}", fresh)
    backbone.load_state_dict(state, strict=False)
    backbone.weights_sha256 = digest


def read(path: str | Path) -> object:
    """What a checkpoint file holds, on the CPU. ValueError with one line if it is absent or is not plain tensors and data."""
    if not Path(path).is_file():
        raise ValueError(f"weights {path}: no such file; expected none, imagenet, or the path of a checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file fails in whichever operation it happens to reach
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: its table points before the file's start
            raise
        reason = " ".join(str(error).split()).split(". ")[0][:120]  # what follows is advice about loading code
        raise ValueError(
            f"weights {path}: not a checkpoint of plain tensors that torch.load(weights_only=True) accepts "
            f"({type(error).__name__}: {reason}); save a state dict with torch.save"
        ) from error


def rename(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the names of ours, without the classifier and without stages that `own`, the target, does not have.

    Foreign ones gain `pixel_mean` and `pixel_std`. Keys that follow no known pattern stay as they are.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if own.keys() & state.keys():
        renamed = dict(state)
    else:
        renamed = {_our_name(key, state): value for key, value in state.items() if not _CLASSIFIER.match(key)}
        images = renamed.get("stem.conv1.weight", torch.empty(0)).dim() == 4
        renamed["pixel_mean"] = torch.tensor(IMAGENET_MEAN if images else KINETICS_MEAN)
        renamed["pixel_std"] = torch.tensor(IMAGENET_STD if images else KINETICS_STD)
    stages = {key.split(".")[0] for key in own}
    return {key: value for key, value in renamed.items() if not re.match(r"res\d\.", key) or key.split(".")[0] in stages}


def _our_name(key: str, state: dict[str, Tensor]) -> str:
    if key.startswith("blocks."):
        return _from_pytorchvideo(key, state)
    if re.match(r"s\d\.pathway0_", key):
        return _from_pyslowfast(key)
    return _from_torchvision(key)


def _from_torchvision(key: str) -> str:
    """torchvision's names and those of the video-nonlocal-net ports, which follow them."""
    if key.startswith(("conv1.", "bn1.")):
        return f"stem.{key}"
    key = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
    key = re.sub(r"\.conv(\d)\.0\.", r".conv\1.", key)
    key = re.sub(r"\.conv(\d)\.1\.", r".bn\1.", key)
    return key.replace(".shortcut.", ".downsample.").replace(".nl.", ".non_local.")


def _from_pyslowfast(key: str) -> str:
    key = key.replace("s1.pathway0_stem.conv.", "stem.conv1.").replace("s1.pathway0_stem.bn.", "stem.bn1.")
    key = re.sub(r"^s(\d)\.pathway0_res(\d+)\.", r"res\1.\2.", key)
    key = re.sub(r"^s(\d)\.pathway0_nonlocal(\d+)\.(conv_)?", r"res\1.\2.non_local.", key)
    key = key.replace(".branch1.", ".downsample.0.").replace(".branch1_bn.", ".downsample.1.")
    key = re.sub(r"\.branch2\.([abc])\.", lambda m: f".conv{_ABC[m[1]]}.", key)
    return re.sub(r"\.branch2\.([abc])_bn\.", lambda m: f".bn{_ABC[m[1]]}.", key)


def _from_pytorchvideo(key: str, state: dict[str, Tensor]) -> str:
    key = key.replace("blocks.0.conv.", "stem.conv1.").replace("blocks.0.norm.", "stem.bn1.")
    # A pool between two stages takes a number too, so stages are counted by the blocks that they hold.
    numbers = sorted({int(m[1]) for m in (re.match(r"blocks\.(\d+)\.res_blocks\.", other) for other in state) if m})
    key = re.sub(r"^blocks\.(\d+)\.res_blocks\.", lambda m: f"res{2 + numbers.index(int(m[1]))}.", key)
    key = key.replace(".branch1_conv.", ".downsample.0.").replace(".branch1_norm.", ".downsample.1.")
    key = re.sub(r"\.branch2\.conv_([abc])\.", lambda m: f".conv{_ABC[m[1]]}.", key)
    return re.sub(r"\.branch2\.norm_([abc])\.", lambda m: f".bn{_ABC[m[1]]}.", key)


def _inflated(value: Tensor, shape: torch.Size, how: str) -> Tensor:
    """A 2-D kernel [C',C,h,w] as [C',C,t,h,w]; anything that is not one, or that has no such target, as it is."""
    if value.dim() != 4 or len(shape) != 5:
        return value
    taps = shape[2]
    kernel = value.unsqueeze(2).repeat(1, 1, taps, 1, 1)
    if how == "mean":
        return kernel / taps
    return kernel * (torch.arange(taps) == taps // 2).to(value.dtype)[:, None, None]


def _state_dict(saved: object, source: str | Path) -> dict[str, Tensor]:
    """The dict of named tensors in what was saved: itself, or what one of the usual keys holds."""
    candidates = [saved, *(saved[key] for key in _HOLDERS if key in saved)] if isinstance(saved, dict) else []
    for state in candidates:
        if isinstance(state, dict) and state and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            return state
    raise ValueError(
        f"weights {source}: expected a state dict, or one under {', '.join(_HOLDERS)}; got {type(saved).__name__}"
        + (f" with keys {', '.join(map(str, list(saved)[:5]))}" if isinstance(saved, dict) else "")
    )


def _check_fit(state: dict[str, Tensor], own: dict[str, Tensor], headline: str, fresh: Iterable[str]) -> None:
    # Ports of other frameworks' models have no batch counter, and nothing here reads it.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    missing = [key for key in missing if not set(fresh) & set(key.split("."))]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
    if not (missing or unexpected or shapes):
        return
    faults = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in groups if keys)
    absent = [part for part in FRESH if any(part in key.split(".") for key in missing)]
    advice = f"fresh={','.join(absent)} leaves those at their start" if absent else "choose the options that the weights had"
    raise ValueError(f"{headline}: {faults}; {advice}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _fetch_imagenet(backbone: Backbone) -> dict[str, Tensor]:
    from torchvision.models import get_weight

    if not backbone.imagenet:
        raise ValueError(f"weights imagenet: there are none for {backbone.name}; give none or the path of a checkpoint")
    weights = get_weight(f"{backbone.imagenet}_Weights.IMAGENET1K_V1")
    try:
        with unguarded_error():  # its bar
            return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise OSError(f"weights imagenet: could not fetch {weights.url} ({error}); download it and give its path") from error


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _state_sha256(state: dict[str, Tensor]) -> str:
    """Over names and bytes in the order of the names, since a state dict from a hub has no file to speak of."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
