"""Models of timm as backbones: `timm:NAME`, frame by frame, through `timm.create_model`.

timm lists the modules whose outputs are features (`feature_info`), and the mean, std and input size
that its weights were trained with. `last` is what its `forward_features` returns.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn

from pipeline.encoders.backbone import Encoder
from pipeline.encoders.layouts import Layout
from pipeline.encoders.structure import are_neighbours, first_stride, stage_names
from pipeline.encoders.weights import (
    NONE,
    PRETRAINED,
    State,
    does_not_fit,
    fetch_failed,
    is_ours,
    needs_package,
    read_state,
    weight_file,
)
from pipeline.text.suggestions import nearest


def build(model: str, weights: str) -> tuple[nn.Module, Encoder, State | None]:
    """Build a model of timm with its weights.

    Args:
        model: its name in timm, such as "vit_small_patch16_224.dino".
        weights: "pretrained", "none", or the path of a file or folder.

    Returns:
        The model, what the backbone needs to know of it, and the state dict of a fine-tuned
        backbone where the weights are one: the caller loads it.

    Raises:
        ValueError: timm is missing or has no such model, or the weights do not fit.
        OSError: the weights cannot be fetched.
    """
    try:
        import timm  # noqa: F401
    except ImportError as error:
        needs_package(f"timm:{model}", "timm", "timm", error)
    if not model.startswith(("hf-hub:", "local-dir:")):
        _check_name(model)

    options = _size_options(model)
    make = partial(_create, model, options)
    fine_tuned = None
    if weights == NONE:
        net = make()
    elif weights == PRETRAINED:
        try:
            net = _create(model, options, pretrained=True)
        # Which error a failing download raises depends on the version of the library.
        except Exception as error:
            fetch_failed(f"timm:{model}", error)
    else:
        state = read_state(weights)
        if is_ours(state):
            net, fine_tuned = make(), state
        else:
            net = _from_file(model, options, weights, state)
    return net, _described(net, make), fine_tuned


def _check_name(model: str) -> None:
    """ValueError for a name of a model, or of its weights, that timm does not know."""
    import timm

    if not timm.is_model(model):
        raise ValueError(f"timm has no model {model!r}: {nearest(model, timm.list_models())}")
    try:
        timm.models.get_pretrained_cfg(model)
    # timm's word for the part of a name behind the dot that it does not know.
    except RuntimeError:
        architecture = model.partition(".")[0]
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ValueError(f"timm has no weights {model!r}: {nearest(model, known)}") from None


def _create(model: str, options: dict[str, Any], **more: Any) -> nn.Module:
    import timm

    return timm.create_model(model, num_classes=0, **options, **more)


def _size_options(model: str) -> dict[str, Any]:
    """The options with which a model takes frames of any size, where it has them."""
    import torch

    for options in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            with torch.device("meta"):
                _create(model, options)
        except TypeError:
            continue
        return options
    return {}


def _from_file(model: str, options: dict[str, Any], weights: str, state: State) -> nn.Module:
    """The model with the weights of a file. timm renames the keys of other releases."""
    path = weight_file(weights)
    try:
        missing = _missing(model, options, state)
        # Of a model on a hub, its source would come before the file.
        overlay = {"file": str(path), "source": ""}
        net = _create(model, options, pretrained=True, pretrained_cfg_overlay=overlay)
    # Of load_state_dict, whose first line names the model, and whose others name the weights.
    except (RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"weights {path}: do not fit timm:{model} ({said})") from error
    if missing:
        raise does_not_fit(str(path), "misses", missing)
    return net


def _missing(model: str, options: dict[str, Any], state: State) -> list[str]:
    """The parameters of a model that a state dict does not give.

    timm says nothing of them where a model has no classifier. So a state dict of NaN is loaded:
    what it leaves finite is missing.
    """
    nothing = {}
    for name, tensor in state.items():
        is_float = tensor.is_floating_point()
        # One number, whatever the shape.
        nothing[name] = (
            tensor.new_full((), float("nan")).expand(tensor.shape) if is_float else tensor
        )
    overlay = {"state_dict": nothing, "source": ""}
    probe = _create(model, options, pretrained=True, pretrained_cfg_overlay=overlay)
    missing = []
    for name, parameter in probe.named_parameters():
        if not parameter.isnan().any():
            missing.append(name)
    return missing


def _described(net: nn.Module, make: Any) -> Encoder:
    config = net.pretrained_cfg
    blocks = tuple(info["module"] for info in getattr(net, "feature_info", ()))
    if not blocks or not hasattr(net, "forward_features"):
        raise ValueError(
            f"timm:{config.get('architecture', '')}: timm lists no features of this model"
        )
    per_frame = Layout(
        per_frame=True,
        patch=first_stride(net),
        channels_last=str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC"),
    )
    _, height, width = config["input_size"]
    return Encoder(
        make,
        forward_features,
        blocks,
        per_frame,
        (1, height, width),
        tuple(config["mean"]),
        tuple(config["std"]),
        reroll="" if hasattr(net, "reroll") else None,
        stages=() if hasattr(net, "blocks") else stage_names(blocks),
        sequential=are_neighbours(blocks),
    )


def forward_features(net: nn.Module, frames: Tensor) -> Tensor:
    """The library's own forward pass, up to its pooling.

    Args:
        net: a model of timm.
        frames: [b,3,H,W].
    """
    return net.forward_features(frames)
