"""Backbones: frames in, feature maps out. A backbone `NAME` is the module `NAME.py`, with a
function `build(*, named options) -> Backbone`.

Files whose names start with "_" are shared code. Backbones of other packages and files are found
too (see `pipeline.plugins`). docs/adding_a_backbone.md shows how to add one.
"""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from pipeline.encoder_names import is_encoder
from pipeline.lazy_names import load_lazily
from pipeline.plugins import BACKBONE, display_name, is_known, known_names, load_build, own_names
from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from pipeline.backbones._base import Backbone, HasTokens
    from pipeline.backbones._ean import EventAdaptiveBlock
    from pipeline.backbones._ean_kernels import fusion_matrix, kernel_sizes
    from pipeline.backbones._freezing import freeze
    from pipeline.backbones._layers import Conv, MaxPool
    from pipeline.backbones._non_local import NonLocal

# Loaded when first asked for, so that a command line can list the names without loading torch.
_HOMES = {
    "Backbone": "_base",
    "Conv": "_layers",
    "EventAdaptiveBlock": "_ean",
    "HasTokens": "_base",
    "MaxPool": "_layers",
    "NonLocal": "_non_local",
    "freeze": "_freezing",
    "fusion_matrix": "_ean_kernels",
    "kernel_sizes": "_ean_kernels",
}

__all__ = [
    "Backbone",
    "Conv",
    "EventAdaptiveBlock",
    "HasTokens",
    "MaxPool",
    "NonLocal",
    "backbone_names",
    "backbone_options",
    "build_backbone",
    "freeze",
    "fusion_matrix",
    "kernel_sizes",
]

__getattr__ = load_lazily(__name__, _HOMES)


def backbone_names() -> tuple[str, ...]:
    """Return the names of all backbones, ours and those of installed packages, in alphabetical
    order.

    It imports none of them.
    """
    return known_names(BACKBONE)


def _libraries(name: str) -> str:
    """What to say of encoders to a person whose unknown name has a colon."""
    if ":" not in name:
        return ""
    return (
        "; an encoder of another library is hf:REPOSITORY-OR-FOLDER, timm:NAME or torchvision:NAME"
    )


def backbone_options(name: str) -> dict[str, Any]:
    """Return the options of a backbone with their defaults.

    Args:
        name: a name of `backbone_names`, or that of a file (see `pipeline.plugins.give_file`).

    Raises:
        ValueError: there is no such backbone; the message has the nearest names.
    """
    if not is_known(BACKBONE, name):
        raise ValueError(
            f"backbone {name!r} is not known: {nearest(name, backbone_names())}{_libraries(name)}"
        )
    if is_encoder(name):
        return _encoders().encoder_options(name)
    parameters = inspect.signature(load_build(BACKBONE, name)).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def build_backbone(
    name: str,
    weights: str | None = None,
    *,
    inflate: str = "mean",
    fresh: str | tuple[str, ...] = (),
    **options,
) -> "Backbone":
    """Build a backbone, in training mode, float32, on the CPU.

    Args:
        name: a name of `backbone_names`, such as "i3d_r50", that of a file (see
            `pipeline.plugins.give_file`), or that of an encoder (see `pipeline.encoder_names`).
        weights: None or "none" for random weights, "imagenet" for torchvision's ResNet, which
            torchvision fetches, or the path of a checkpoint. An encoder takes "pretrained" in
            place of "imagenet".
        inflate: how a 2-D kernel fills the T taps of a 3-D one: "mean" (each gets 1/T) or "centre".
        fresh: prefixes of parameters that keep their random values, e.g. "non_local".
        **options: options of the backbone's own `build`.

    Returns:
        The backbone. `backbone.stages` names the points where it can be cut.

    Raises:
        ValueError: unknown name, option or value, or weights that do not fit.
    """
    known = backbone_options(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"backbone {display_name(name)} has no option {option!r}: {nearest(option, known)}"
            )
    for option, default in known.items():
        if default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"backbone {display_name(name)} needs the option {option!r}, which was not given"
            )
    if is_encoder(name):
        backbone = _encoders().build_encoder(name, weights, options)
        backbone.options = {**known, **options}
        return backbone
    backbone = load_build(BACKBONE, name)(**options)

    if name not in own_names(BACKBONE):
        from pipeline.backbones._base import Backbone

        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"backbone {display_name(name)}: build returns {type(backbone).__name__}, "
                f"expected a pipeline.backbones.Backbone"
            )
        # Ours run their convolutions through `convolve`; one of others may have torch's own layers.
        from pipeline.networks.memory_format import guard

        guard(backbone)
    backbone.name, backbone.options = name, {**known, **options}

    if weights not in (None, "none"):
        from pipeline.backbones import _checkpoints as checkpoints

        checkpoints.load(backbone, weights, inflate=inflate, fresh=fresh)
    return backbone


def _encoders() -> Any:
    """The room of the encoders. It is built on this one, which therefore loads it by its name."""
    return importlib.import_module("pipeline.encoders")
