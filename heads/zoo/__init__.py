"""One file per head, found by its file name; each has `build(dims, num_classes, *, named options)
-> nn.Module`.

Every build takes `variant`, "paper" (the default) or "released" (heads/interface/variants.py);
docs/heads.md lists all options.

A head is an nn.Module with
  needs   the fields it reads, as `pipeline.cache.fields.FIELDS` and the cuts name them;
  uses    fields that it reads where the cache has them, and works without;
  forward(clips: heads.interface.clips.Clips, want_maps=False) -> heads.interface.clips.HeadOutput.
"""

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from torch import nn

    from heads.interface.clips import Dims


def head_names() -> tuple[str, ...]:
    """The names of all heads, in alphabetical order."""
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    )


def head_options(name: str) -> dict[str, Any]:
    """The options of head `name` with their defaults; ValueError with the nearest names for a head
    that is not there.
    """
    if name not in head_names():
        raise ValueError(f"no head {name!r}: {nearest(name, head_names())}")
    parameters = inspect.signature(
        importlib.import_module(f"{__name__}.{name}").build
    ).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_head(name: str, dims: "Dims", num_classes: int, **options: Any) -> "nn.Module":
    """Head `name` for views of these sizes, freshly initialised from torch's generator.

    ValueError for an unknown head or option (with the nearest names), an option of another type
    than its default, fewer than 2 classes, or dims that lack what the head needs.
    """
    check_options(name, options)
    if num_classes < 2:
        raise ValueError(f"head {name}: expected at least 2 classes, got {num_classes}")
    from pipeline.networks.memory_format import guard

    return guard(importlib.import_module(f"{__name__}.{name}").build(dims, num_classes, **options))


def check_options(name: str, options: dict[str, Any]) -> None:
    """ValueError unless every option is one of head `name`'s and of its default's type (an int may
    stand for a float).
    """
    defaults = head_options(name)
    for key, value in options.items():
        if key not in defaults:
            raise ValueError(f"head {name} has no option {key!r}: {nearest(key, defaults)}")
        wanted = type(defaults[key])
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            raise ValueError(
                f"head {name}, option {key}: expected {wanted.__name__} like {defaults[key]!r}, "
                f"got {value!r}"
            )
