"""Checkpoints: reads them, renames other projects' keys to ours, inflates 2-D kernels, loads them.

A file is recognised by its keys, whatever its name:
- ours: a backbone's state dict, or a dict that holds one under "backbone" (a training run's
  checkpoint);
- Caffe2's pickles of video-nonlocal-net and of PySlowFast's model zoo (`res2_0_branch2a_w`);
- pytorchvideo's hub models (`blocks.1.res_blocks.0.branch2.conv_a.weight`) and PySlowFast's
  (`s2.pathway0_res0.branch2.a.weight`), such as I3D_8x8_R50, I3D_NLN_8x8_R50 and C2D_8x8_R50;
- the ports of video-nonlocal-net: kinetics-res50 (`layer1.0.conv1.0.weight`) and i3d_r50_kinetics
  (`layer1.0.conv1.weight`);
- mmaction2's I3D, C2D, TSN and TSM (`backbone.layer1.0.conv1.conv.weight`);
- TSM's release (`module.base_model.layer1.0.conv1.net.weight`) and EAN's (`relation1.`);
- torchvision's image ResNets (`layer1.0.conv1.weight` with 2-D kernels), which are inflated.

A checkpoint also decides how pixels are normalised. The Kinetics models take mean 0.45 and standard
deviation 0.225, those of mmaction2, TSM, EAN and torchvision take ImageNet's, and ours what was
saved. All of them take RGB, unless the settings in a file of PySlowFast say otherwise.
docs/weights.md lists files with the options that they need.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.backbones._base import Backbone
from pipeline.backbones._checkpoint_advice import refusal
from pipeline.backbones._checkpoint_keys import PYSLOWFAST
from pipeline.backbones._checkpoint_origins import objection
from pipeline.backbones._checkpoint_readings import (
    FRESH,
    NOT_IN_IMAGES,
    Reading,
    readings_of,
    whole_reading,
)
from pipeline.backbones._checkpoint_settings import settings_of
from pipeline.files.atomic_files import sha256_of
from pipeline.networks.checkpoint_files import read_checkpoint
from pipeline.networks.checkpoint_names import HOLDERS, other_states, states
from pipeline.text.printable import unguarded_error

INFLATIONS = ("mean", "centre")


def load(
    backbone: Backbone,
    source: str | Path,
    *,
    inflate: str = "mean",
    fresh: str | Iterable[str] = (),
) -> None:
    """Load a checkpoint into a backbone; set its pixel normalisation and `weights_sha256`.

    The classifier may be there or not. Stages after the backbone's last are left out. What wrappers
    put before the names (`module.`, `_orig_mod.`, `encoder.`) is taken off. Nothing else may
    differ.

    Args:
        backbone: the backbone.
        source: "imagenet" (torchvision's IMAGENET1K_V1 weights, fetched through torchvision), or
            the path of a checkpoint.
        inflate: how a 2-D kernel becomes one of t×h×w. "mean" repeats it t times, divided by t, so
            that a still clip gives what the image gave (STRG). "centre" puts it into the middle
            tap, with zeros elsewhere, so that each frame gives what it gave as an image (GOS's
            release).
        fresh: parts that the checkpoint may lack, of `FRESH`; in a string with commas between them.
            ImageNet weights may always lack those of `NOT_IN_IMAGES`.

    Raises:
        ValueError: the file cannot be read, holds anything that is not plain data, or does not fit.
        OSError: the weights cannot be fetched.
    """
    if isinstance(fresh, str):
        fresh = [part for part in fresh.split(",") if part]
    fresh = tuple(fresh)
    if inflate not in INFLATIONS:
        raise ValueError(f"inflate={inflate!r}: expected one of {', '.join(INFLATIONS)}")
    for part in fresh:
        if part not in FRESH:
            raise ValueError(f"fresh={part!r}: expected names among {', '.join(FRESH)}")

    expected = backbone.state_dict()
    # A file may hold several state dicts: of the network and of its moving average, say.
    if source == "imagenet":
        saved, found = None, [_fetch_imagenet(backbone)]
        digest = _state_sha256(found[0])
        fresh = (*fresh, *NOT_IN_IMAGES)
    else:
        saved = read(source)
        found = list(states(saved)) or _by_other_keys(saved, source, expected, inflate, fresh)
        digest = sha256_of(Path(source))

    readings = []
    for state in found:
        readings += readings_of(state, expected, inflate, fresh)
    fitting = [reading for reading in readings if reading.fits]
    reading = fitting[0] if fitting else whole_reading(readings)
    if reading is None:
        raise ValueError(
            f"weights {source}: do not fit {refusal(backbone, readings, found, fresh)}"
        )
    try:
        state, changes = _as_trained(backbone, reading, saved)
    except ValueError as error:
        name = backbone.name or "the backbone"
        raise ValueError(f"weights {source}: do not fit {name}: {error}") from None
    # Not strict: `fresh` parts may be missing. All else was compared above.
    backbone.load_state_dict(state, strict=False)
    backbone.weights_sha256 = digest
    if changes:
        backbone.weights_sha256 = hashlib.sha256(f"{digest} {changes}".encode()).hexdigest()


def _as_trained(
    backbone: Backbone, reading: Reading, saved: object
) -> tuple[dict[str, Tensor], str]:
    """The weights, seeing pixels as in their training; ValueError if the network was another one.

    Returns:
        The state dict, and what of it the file's settings changed. The latter is a part of the
        checksum: caches that were made without these settings are others.
    """
    options = getattr(backbone, "options", {})
    reason = objection(reading.project, reading.names, reading.prefix, options)
    settings = settings_of(saved) if reading.project is PYSLOWFAST else None
    if settings and not reason:
        has_non_local = any(".non_local." in name for name in reading.state)
        reason = settings.objection(options, has_non_local)
    if reason:
        raise ValueError(reason)
    if settings is None:
        return reading.state, ""

    state = settings.fold(reading.state)
    changes = []
    for name in ("pixel_mean", "pixel_std"):
        if not torch.equal(state[name], reading.state[name]):
            changes.append(f"{name} {state[name].tolist()}")
    if settings.bgr:
        changes.append("bgr")
    return state, " ".join(changes)


def read(path: str | Path) -> object:
    """Read a checkpoint file, on the CPU.

    Args:
        path: a file of `torch.save`, or a pickle of arrays.

    Returns:
        What it holds.

    Raises:
        ValueError: it does not exist, or holds anything else than plain tensors and data.
        OSError: the disk fails.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"weights {path}: no such file; expected none, imagenet, or the path of a checkpoint"
        )
    try:
        return read_checkpoint(path)
    except ValueError as error:
        raise ValueError(
            f"weights {path}: not a checkpoint of plain tensors that "
            f"torch.load(weights_only=True) accepts, nor a pickle of arrays ({error}); save a "
            f"state dict with torch.save"
        ) from error


def _by_other_keys(
    saved: object,
    source: str | Path,
    expected: dict[str, Tensor],
    inflate: str,
    fresh: Iterable[str],
) -> list[dict[str, Tensor]]:
    """The state dicts under keys that are none of HOLDERS.

    If the network is below one of these keys, only the state dicts there. ValueError if there is no
    state dict, or if several keys hold such a network.
    """
    tables: dict[str, list[dict[str, Tensor]]] = {}
    for key, table in other_states(saved):
        tables.setdefault(key, []).append(table)
    if not tables:
        keys = ""
        if isinstance(saved, dict):
            keys = f" with keys {', '.join(map(str, list(saved)[:5]))}"
        raise ValueError(
            f"weights {source}: expected a state dict, or one under {', '.join(HOLDERS[:6])}; got "
            f"{type(saved).__name__}{keys}"
        )

    fitting = []
    for key, below in tables.items():
        readings = []
        for table in below:
            readings += readings_of(table, expected, inflate, fresh)
        if any(not reading.faults for reading in readings):
            fitting.append(key)
    if len(fitting) > 1:
        raise ValueError(
            f"weights {source}: holds several such networks, under "
            f"{', '.join(map(repr, fitting))}; save a state dict of one of them alone"
        )

    found = []
    for key in fitting or tables:
        found += tables[key]
    return found


def _fetch_imagenet(backbone: Backbone) -> dict[str, Tensor]:
    from torchvision.models import get_weight

    if not backbone.imagenet:
        raise ValueError(
            f"weights imagenet: there are none for {backbone.name}; give none or the path of a "
            f"checkpoint"
        )
    weights = get_weight(f"{backbone.imagenet}_Weights.IMAGENET1K_V1")
    try:
        with unguarded_error():  # torchvision draws a progress bar
            return dict(weights.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        raise OSError(
            f"weights imagenet: could not fetch {weights.url} ({error}); download it and give its "
            f"path"
        ) from error


def _state_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes, in the order of the names.

    A state dict that torchvision fetched has no file of its own to hash.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
