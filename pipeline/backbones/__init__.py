"""Backbones: frames in, feature maps out. One file per backbone; a file whose name starts with "_"
is shared code.

A backbone file has `build(*, named options) -> Backbone`. Its file name is its name, so a new file
is a new backbone.
"""

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from pipeline.backbones._base import Backbone
    from pipeline.backbones._freezing import freeze

__all__ = ["Backbone", "backbone_names", "backbone_options", "build_backbone", "freeze"]


_HOMES = {"Backbone": "_base", "freeze": "_freezing"}


def __getattr__(name: str):
    # Loaded when first asked for, so that a command line can list the names without loading torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def backbone_names() -> list[str]:
    """The names that `build_backbone` knows, in alphabetical order. Loads no backbone."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def backbone_options(name: str) -> dict[str, object]:
    """The options of the backbone `name` with their defaults. ValueError for an unknown name."""
    return {
        option: parameter.default
        for option, parameter in inspect.signature(_build_of(name)).parameters.items()
    }


def _build_of(name: str):
    if name not in backbone_names():
        raise ValueError(f"backbone {name!r} is not known: {nearest(name, backbone_names())}")
    return importlib.import_module(f"{__name__}.{name}").build


def build_backbone(
    name: str,
    weights: str | None = None,
    *,
    inflate: str = "mean",
    fresh: str | tuple[str, ...] = (),
    **options,
) -> "Backbone":
    """Builds the backbone `name` with the options of its file's `build`, in training mode, in
    float32 on the CPU.

    weights: None or "none" (random initialisation), "imagenet" (torchvision's, fetched through
    torchvision), or the path of a checkpoint; see `weights.load`, which also says what `inflate`
    ("mean" or "centre") and `fresh` mean. ValueError for a name, option or value that is not known,
    and for weights that do not fit.
    """
    build = _build_of(name)
    known = backbone_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"backbone {name} has no option {option!r}: {nearest(option, known)}")
    backbone = build(**options)
    backbone.name, backbone.options = name, {**known, **options}
    if weights not in (None, "none"):
        from pipeline.backbones import _checkpoints as checkpoints

        checkpoints.load(backbone, weights, inflate=inflate, fresh=fresh)
    return backbone
