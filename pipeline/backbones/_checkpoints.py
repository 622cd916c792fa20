"""Checkpoints: reads them, renames other projects' keys to ours, inflates 2-D kernels, loads them.

A file is recognised by its keys, whatever its name:
- ours: a backbone's state dict, or a dict that holds one under "backbone" (a training run's
  checkpoint);
- pytorchvideo's hub models (`blocks.1.res_blocks.0.branch2.conv_a.weight`) and PySlowFast's
  (`s2.pathway0_res0.branch2.a.weight`), such as I3D_8x8_R50, I3D_NLN_8x8_R50 and C2D_8x8_R50;
- the ports of video-nonlocal-net: kinetics-res50 (`layer1.0.conv1.0.weight`) and i3d_r50_kinetics
  (`layer1.0.conv1.weight`);
- torchvision's image ResNets (`layer1.0.conv1.weight` with 2-D kernels), which are inflated.

A checkpoint also decides how pixels are normalised. The Kinetics models take mean 0.45 and standard
deviation 0.225, torchvision's those of ImageNet, and ours what was saved. All of them take RGB.
"""

import errno
import hashlib
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.backbones._base import Backbone
from pipeline.backbones._checkpoint_advice import refusal
from pipeline.backbones._checkpoint_readings import (
    FRESH,
    NOT_IN_IMAGES,
    readings_of,
    whole_reading,
)
from pipeline.files.atomic_files import sha256_of
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
        found = [_fetch_imagenet(backbone)]
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
    # Not strict: `fresh` parts may be missing. All else was compared above.
    backbone.load_state_dict(reading.state, strict=False)
    backbone.weights_sha256 = digest


def read(path: str | Path) -> object:
    """Read a checkpoint file, on the CPU.

    Args:
        path: a file of `torch.save`.

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
        # Namespace: a table of options, which many scripts save beside the weights.
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or foreign file fails in whichever operation it happens to reach.
    except Exception as error:
        # EINVAL is such a failure too: the file's table points before its start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # What follows the first sentence is advice about loading code.
        reason = " ".join(str(error).split()).split(". ")[0][:120]
        raise ValueError(
            f"weights {path}: not a checkpoint of plain tensors that "
            f"torch.load(weights_only=True) accepts ({type(error).__name__}: {reason}); save a "
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
