"""Encoders of timm, transformers and torchvision as backbones, named LIBRARY:MODEL.

    backbone               a library's model as a `Backbone`, by the library's own forward
    taps                   reads, replaces and skips the outputs of its blocks
    layouts                from tokens and maps to [B,C,T,h,w], and back
    structure              what a model's modules tell: patches, lists of blocks
    weights                files of weights, checksums, what does not fit
    quiet                  log lines of the libraries stay off the terminal
    timm_models, torchvision_models, hf_models      what differs between the libraries
    hf_sizes               what classes of transformers keep of one size
    videomae_release       weights of VideoMAE V2's release for transformers' class

A library is imported when a model of it is built.
"""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from pipeline.encoder_names import library_and_model

if TYPE_CHECKING:
    from pipeline.backbones import Backbone

__all__ = ["build_encoder", "encoder_options"]

# A module for each library of `pipeline.encoder_names`.
_ADAPTERS = {"timm": "timm_models", "hf": "hf_models", "torchvision": "torchvision_models"}


def _adapter(name: str) -> Any:
    library, _ = library_and_model(name)
    return importlib.import_module(f"pipeline.encoders.{_ADAPTERS[library]}")


def encoder_options(name: str) -> dict[str, Any]:
    """Return the options of an encoder with their defaults.

    Args:
        name: such as "hf:facebook/vjepa2-vitl-fpc64-256".
    """
    parameters = inspect.signature(_adapter(name).build).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("model", "weights")}


def build_encoder(name: str, weights: str | None, options: dict[str, Any]) -> "Backbone":
    """Build an encoder of another library with its weights, in training mode, on the CPU.

    Args:
        name: LIBRARY:MODEL.
        weights: None or "none" for random weights, "pretrained" for those that the library
            fetches, or the path of a file or folder.
        options: of `encoder_options`.

    Raises:
        ValueError: the library is missing, or it has no such model; the weights do not fit.
        OSError: the weights cannot be fetched.
    """
    from pipeline.encoders.backbone import EncoderBackbone
    from pipeline.encoders.quiet import quiet
    from pipeline.encoders.weights import NONE, load_exactly, state_sha256
    from pipeline.networks.memory_format import guard

    weights = weights or NONE
    if weights == "imagenet":
        raise ValueError(
            f"weights imagenet: {name} takes pretrained (what its library fetches), none, or the "
            f"path of a file or folder"
        )
    _, model = library_and_model(name)
    with quiet():
        net, encoder, fine_tuned = _adapter(name).build(model, weights, **options)
        backbone = EncoderBackbone(name, net.train(), encoder)
    if fine_tuned is not None:
        load_exactly(backbone, fine_tuned, weights)
    if weights != NONE:
        backbone.weights_sha256 = state_sha256(backbone.state_dict())
    guard(backbone)
    return backbone
