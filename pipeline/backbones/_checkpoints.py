"""Checkpoints: reads them, renames other projects' keys to ours, inflates 2-D kernels, and loads
what fits exactly.

Read by their keys, whatever the file's name:
- ours: a backbone's state dict, or a dict that holds one under "backbone" (a training run's
  checkpoint);
- pytorchvideo's hub models (`blocks.1.res_blocks.0.branch2.conv_a.weight`) and PySlowFast's
  (`s2.pathway0_res0.branch2.a.weight`), such as I3D_8x8_R50, I3D_NLN_8x8_R50 and C2D_8x8_R50;
- the ports of video-nonlocal-net: kinetics-res50 (`layer1.0.conv1.0.weight`) and i3d_r50_kinetics
  (`layer1.0.conv1.weight`);
- torchvision's image ResNets (`layer1.0.conv1.weight` with 2-D kernels), which are inflated.

A checkpoint also decides how pixels are normalised: by mean 0.45 and standard deviation 0.225 for
the Kinetics models, by ImageNet's for torchvision's, by what was saved for ours. All of them take
RGB.
"""

import errno
import hashlib
import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.backbones._base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from pipeline.files.atomic_files import sha256_of
from pipeline.networks.checkpoint_names import HOLDERS, other_states, states, tried, unwrapped
from pipeline.plugins import BACKBONE, own_names
from pipeline.text.printable import unguarded_error

KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

INFLATIONS = ("mean", "centre")

# Parts that a checkpoint may lack if the caller says so: they then keep their random start.
FRESH = ("reduced", "non_local", "me", "shift", "eab", "lmc", "stack")
# Those that image networks never have, and that start as the identity or near it.
NOT_IN_IMAGES = FRESH[1:]

_CLASSIFIER = re.compile(r"^(fc|classifier|head|blocks\.\d+\.(proj|output_pool))\.")

_ABC = {"a": "1", "b": "2", "c": "3"}


def load(
    backbone: Backbone,
    source: str | Path,
    *,
    inflate: str = "mean",
    fresh: str | Iterable[str] = (),
) -> None:
    """Loads `source` into `backbone`, and sets its pixel normalisation and `weights_sha256`.

    source: "imagenet" (torchvision's IMAGENET1K_V1 weights, fetched through torchvision) or the
    path of a checkpoint. inflate: what a 2-D kernel becomes in a t×h×w one: "mean" repeats it t
    times divided by t, so that a still clip gives what the image gave (STRG); "centre" puts it into
    the middle tap, zeros elsewhere, so that each frame gives what it gave as an image (GOS's
    release). fresh: parts that the checkpoint may lack, of `FRESH`, a comma between them in a
    string; ImageNet weights may always lack those of `NOT_IN_IMAGES` (non-local blocks; EAN's
    parts). ValueError if the file cannot be read, holds anything that is not plain data, or does
    not fit: the classifier may be there or not, stages after the backbone's last are left out, and
    what wrappers put before the names (`module.`, `_orig_mod.`, `encoder.`) is taken off; nothing
    else may differ. OSError if there is no network.
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
        found = [state]
    else:
        saved = read(source)
        found = list(states(saved)) or _by_other_keys(
            saved, source, backbone.state_dict(), inflate, fresh
        )
        digest = sha256_of(Path(source))
    own = backbone.state_dict()
    readings = [reading for state in found for reading in _readings(state, own, inflate, fresh)]
    fitting = [reading for reading in readings if reading.fits] or _the_only_one(readings)
    if not fitting:
        raise ValueError(
            f"weights {source}: do not fit {_refusal(backbone, readings, found, fresh)}"
        )
    backbone.load_state_dict(fitting[0].state, strict=False)
    backbone.weights_sha256 = digest


@dataclass(frozen=True)
class _Reading:
    """One way to read a checkpoint.

    `state` holds the tensors below `prefix`, in our names and shapes. `faults` are the keys that do
    not fit, by what is wrong with them. `beside` are names outside the prefix that belong to
    something else.
    """

    prefix: str
    state: dict[str, Tensor]
    faults: dict[str, list[str]]
    beside: list[str]

    @property
    def fits(self) -> bool:
        """Whether the checkpoint holds the whole network and nothing else."""
        return not self.faults and not self.beside


def _readings(
    state: dict[str, Tensor], own: dict[str, Tensor], inflate: str, fresh: Iterable[str]
) -> list[_Reading]:
    """The ways to read a state dict, as it is and without each prefix that its names may have."""
    found = []
    for prefix, below, beside in unwrapped(state, own):
        renamed = rename(below, own)
        fitted = {
            key: _inflated(value, own[key].shape, inflate) if key in own else value
            for key, value in renamed.items()
        }
        found.append(_Reading(prefix, fitted, _faults(fitted, own, fresh), beside))
    return found


def read(path: str | Path) -> object:
    """What a checkpoint file holds, on the CPU. ValueError with one line if it is absent or is not
    plain tensors and data.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"weights {path}: no such file; expected none, imagenet, or the path of a checkpoint"
        )
    try:
        with torch.serialization.safe_globals(
            [Namespace]
        ):  # a table of options, which many scripts save beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # a damaged or foreign file fails in whichever operation it happens to reach
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # EINVAL: its table points before the file's start
            raise
        reason = " ".join(str(error).split()).split(". ")[0][
            :120
        ]  # what follows is advice about loading code
        raise ValueError(
            f"weights {path}: not a checkpoint of plain tensors that "
            f"torch.load(weights_only=True) accepts "
            f"({type(error).__name__}: {reason}); save a state dict with torch.save"
        ) from error


def rename(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the names of ours, without the classifier and without stages that `own`, the
    target, does not have.

    Foreign ones gain `pixel_mean` and `pixel_std`. Keys that follow no known pattern stay as they
    are.
    """
    if own.keys() & state.keys():
        renamed = dict(state)
    else:
        renamed = {
            _our_name(key, state): value
            for key, value in state.items()
            if not _CLASSIFIER.match(key)
        }
        images = renamed.get("stem.conv1.weight", torch.empty(0)).dim() == 4
        renamed["pixel_mean"] = torch.tensor(IMAGENET_MEAN if images else KINETICS_MEAN)
        renamed["pixel_std"] = torch.tensor(IMAGENET_STD if images else KINETICS_STD)
    stages = {key.split(".")[0] for key in own}
    return {
        key: value
        for key, value in renamed.items()
        if not re.match(r"res\d\.", key) or key.split(".")[0] in stages
    }


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
    key = key.replace("s1.pathway0_stem.conv.", "stem.conv1.").replace(
        "s1.pathway0_stem.bn.", "stem.bn1."
    )
    key = re.sub(r"^s(\d)\.pathway0_res(\d+)\.", r"res\1.\2.", key)
    key = re.sub(r"^s(\d)\.pathway0_nonlocal(\d+)\.(conv_)?", r"res\1.\2.non_local.", key)
    key = key.replace(".branch1.", ".downsample.0.").replace(".branch1_bn.", ".downsample.1.")
    key = re.sub(r"\.branch2\.([abc])\.", lambda m: f".conv{_ABC[m[1]]}.", key)
    return re.sub(r"\.branch2\.([abc])_bn\.", lambda m: f".bn{_ABC[m[1]]}.", key)


def _from_pytorchvideo(key: str, state: dict[str, Tensor]) -> str:
    key = key.replace("blocks.0.conv.", "stem.conv1.").replace("blocks.0.norm.", "stem.bn1.")
    # A pool between two stages takes a number too, so stages are counted by the blocks that they
    # hold.
    numbers = sorted(
        {
            int(m[1])
            for m in (re.match(r"blocks\.(\d+)\.res_blocks\.", other) for other in state)
            if m
        }
    )
    key = re.sub(
        r"^blocks\.(\d+)\.res_blocks\.", lambda m: f"res{2 + numbers.index(int(m[1]))}.", key
    )
    key = key.replace(".branch1_conv.", ".downsample.0.").replace(
        ".branch1_norm.", ".downsample.1."
    )
    key = re.sub(r"\.branch2\.conv_([abc])\.", lambda m: f".conv{_ABC[m[1]]}.", key)
    return re.sub(r"\.branch2\.norm_([abc])\.", lambda m: f".bn{_ABC[m[1]]}.", key)


def _inflated(value: Tensor, shape: torch.Size, how: str) -> Tensor:
    """A 2-D kernel [C',C,h,w] as [C',C,t,h,w]; anything that is not one, or that has no such
    target, as it is.
    """
    if value.dim() != 4 or len(shape) != 5:
        return value
    taps = shape[2]
    kernel = value.unsqueeze(2).repeat(1, 1, taps, 1, 1)
    if how == "mean":
        return kernel / taps
    return kernel * (torch.arange(taps) == taps // 2).to(value.dtype)[:, None, None]


def _the_only_one(readings: list[_Reading]) -> list[_Reading]:
    """The reading in which all of the network is there, if one prefix alone gives that: beside it
    is no second network.
    """
    whole = [reading for reading in readings if not reading.faults]
    return whole[:1] if len({reading.prefix for reading in whole}) == 1 else []


def _by_other_keys(
    saved: object, source: str | Path, own: dict[str, Tensor], inflate: str, fresh: Iterable[str]
) -> list[dict[str, Tensor]]:
    """The tables under keys that are none of HOLDERS: those under the one key below which the
    network is, else all of them.

    ValueError if there is none, or if several keys hold such a network.
    """
    tables: dict[str, list[dict[str, Tensor]]] = {}
    for key, table in other_states(saved):
        tables.setdefault(key, []).append(table)
    whole = {
        key: any(
            not reading.faults
            for table in some
            for reading in _readings(table, own, inflate, fresh)
        )
        for key, some in tables.items()
    }
    fitting = [key for key, there in whole.items() if there]
    if len(fitting) > 1:
        several = ", ".join(map(repr, fitting))
        raise ValueError(
            f"weights {source}: holds several such networks, under {several}; save a state dict "
            f"of one of them alone"
        )
    if tables:
        return [
            table for key, some in tables.items() if key in fitting or not fitting for table in some
        ]
    raise ValueError(
        f"weights {source}: expected a state dict, or one under {', '.join(HOLDERS[:6])}; got "
        f"{type(saved).__name__}"
        + (f" with keys {', '.join(map(str, list(saved)[:5]))}" if isinstance(saved, dict) else "")
    )


def _faults(
    state: dict[str, Tensor], own: dict[str, Tensor], fresh: Iterable[str]
) -> dict[str, list[str]]:
    """What keeps a state dict from fitting: the missing, unexpected and mis-shaped keys; empty if
    it fits.
    """
    # Ports of other frameworks' models have no batch counter, and nothing here reads it.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    missing = [key for key in missing if not set(fresh) & set(key.split("."))]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    return {what: keys for what, keys in groups.items() if keys}


def _refusal(
    backbone: Backbone,
    readings: list[_Reading],
    found: list[dict[str, Tensor]],
    fresh: Iterable[str],
) -> str:
    """The rest of the error: the backbone, the keys that do not fit in the nearest reading, what
    was tried, what to do.
    """
    own = backbone.state_dict()
    nearest = min(readings, key=lambda one: (sum(map(len, one.faults.values())), len(one.beside)))
    groups = {**nearest.faults, **({"beside it": nearest.beside} if nearest.beside else {})}
    said = [f"{backbone.name or 'the backbone'}: "]
    said += ["; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in groups.items())]
    if words := tried([nearest.prefix], {key: None for state in found for key in state}, own):
        said += [f"; {words}"]
    return "".join(said) + f"; {_advice(backbone, nearest, readings, found, fresh)}"


def _advice(
    backbone: Backbone,
    nearest: _Reading,
    readings: list[_Reading],
    found: list[dict[str, Tensor]],
    fresh: Iterable[str],
) -> str:
    """What to do about a checkpoint that does not fit."""
    if parts := [one.prefix for one in readings if not one.faults]:
        return (
            f"the names below {' or '.join(map(repr, parts))} would fit, but other names stand "
            f"beside them: "
            f"save a state dict of these alone"
        )
    absent = [
        part
        for part in FRESH
        if any(part in key.split(".") for key in nearest.faults.get("missing", ()))
    ]
    if not absent and (others := _others_that_fit(backbone, nearest, found, fresh)):
        return f"they fit {' or '.join(others)}"
    if absent:
        return f"fresh={','.join(absent)} leaves those at their start"
    names = ", ".join(getattr(backbone, "options", {}))
    return f"choose the options that the weights had{f' ({names})' if names else ''}, or another backbone"


def _others_that_fit(
    backbone: Backbone, nearest: _Reading, found: list[dict[str, Tensor]], fresh: Iterable[str]
) -> list[str]:
    """What a checkpoint fits instead: this backbone with another value of one option, or other
    backbones.
    """
    given, shapes = (
        getattr(backbone, "options", {}),
        [{key: value.to("meta") for key, value in one.items()} for one in found],
    )
    sides = sorted(
        {
            value.shape[0]
            for state in shapes
            for value in state.values()
            if value.dim() and value.shape[0] > 1
        }
    )
    choices = {
        "temporal": ("alternating", "every", "none"),
        "reduce": (0, *sides[:4]),
        "width": sides[:4],
        "stages": (2, 3, 4),
    }
    same = [
        (
            backbone.name,
            {**given, option: value},
            f"{backbone.name} with --set backbone_options.{option}={value}",
        )
        for option, values in choices.items()
        for value in values
        if option in given and value != given[option] and "mis-shaped" in nearest.faults
    ]
    kept = {option: given[option] for option in ("width", "reduce") if option in given}
    fitting = [words for name, options, words in same if _fits(name, options, shapes, fresh)]
    for name in own_names(BACKBONE):
        # Not those of other packages, whose code would run. By the names first: to build a network
        # takes a good part of a second.
        if name != backbone.name and _fits(name, {}, shapes, fresh, names_only=True):
            fitting += [f"the backbone {name}"] * any(
                _fits(name, options, shapes, fresh) for options in (kept, {})
            )
    return fitting[:3]


def _fits(
    name: str,
    options: dict,
    shapes: list[dict[str, Tensor]],
    fresh: Iterable[str],
    names_only: bool = False,
) -> bool:
    """Whether one of the state dicts fits a backbone, or (`names_only`) its names do."""
    from pipeline.backbones import build_backbone

    try:
        with torch.device("meta"):  # shapes alone
            own = build_backbone(name, **options).state_dict()
    except ValueError:  # an option or a value that it does not take
        return False
    readings = (one for state in shapes for one in _readings(state, own, "mean", fresh))
    return any(
        not one.beside and not one.faults.keys() - ({"mis-shaped"} if names_only else set())
        for one in readings
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _fetch_imagenet(backbone: Backbone) -> dict[str, Tensor]:
    from torchvision.models import get_weight

    if not backbone.imagenet:
        raise ValueError(
            f"weights imagenet: there are none for {backbone.name}; give none or the path of a "
            f"checkpoint"
        )
    weights = get_weight(f"{backbone.imagenet}_Weights.IMAGENET1K_V1")
    try:
        with unguarded_error():  # draws a progress bar
            return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise OSError(
            f"weights imagenet: could not fetch {weights.url} ({error}); download it and give its "
            f"path"
        ) from error


def _state_sha256(state: dict[str, Tensor]) -> str:
    """Over names and bytes in the order of the names, since a state dict from a hub has no file to
    speak of.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
