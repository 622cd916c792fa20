"""Models of torchvision as backbones: `torchvision:NAME`, through `torchvision.models.get_model`.

Video models read clips, image models read frames. Mean, std and input size are those of the
library's transforms for the weights that it calls DEFAULT.
"""

from functools import partial

from torch import Tensor, nn

from pipeline.encoders.backbone import Encoder
from pipeline.encoders.layouts import Layout
from pipeline.encoders.structure import first_stride
from pipeline.encoders.weights import (
    NONE,
    PRETRAINED,
    State,
    fetch_failed,
    is_ours,
    load_exactly,
    read_state,
)
from pipeline.text.printable import unguarded_error
from pipeline.text.suggestions import nearest

# The modules that classify, which a backbone does without.
CLASSIFIERS = ("fc", "head", "heads", "classifier", "AuxLogits")
# Frames of a clip that every video model of the library takes.
FRAMES = 16


def build(model: str, weights: str) -> tuple[nn.Module, Encoder, State | None]:
    """Build a model of torchvision with its weights.

    Args:
        model: its name in torchvision, such as "swin3d_t".
        weights: "pretrained" (the library's DEFAULT), the name of other weights of the library,
            such as "KINETICS400_V1", "none", or the path of a file or folder.

    Returns:
        The model, what the backbone needs to know of it, and the state dict of a fine-tuned
        backbone where the weights are one: the caller loads it.

    Raises:
        ValueError: there is no such model, it cannot be cut, or the weights do not fit.
        OSError: the weights cannot be fetched.
    """
    from torchvision.models import get_model_weights, list_models, video

    images_and_videos = {*list_models(video), *_image_models()}
    if model not in images_and_videos:
        raise ValueError(
            f"torchvision has no model {model!r} of frames or clips: "
            f"{nearest(model, images_and_videos)}"
        )
    known = get_model_weights(model).__members__
    make = partial(_create, model)
    net, fine_tuned = make(), None
    if weights == PRETRAINED or weights in known:
        entry = known.get(weights) or get_model_weights(model).DEFAULT
        try:
            with unguarded_error():  # torchvision draws a progress bar
                state = entry.get_state_dict(progress=True, check_hash=True)
        except OSError as error:
            fetch_failed(f"torchvision:{model}", error)
        load_exactly(net, state, weights, CLASSIFIERS)
    elif weights != NONE:
        state = read_state(weights)
        if is_ours(state):
            fine_tuned = state
        else:
            load_exactly(net, state, weights, CLASSIFIERS)
    return net, _described(model, net, make), fine_tuned


def _image_models() -> list[str]:
    from torchvision import models

    return models.list_models(models)


def _create(model: str) -> nn.Module:
    from torchvision.models import get_model

    net = get_model(model, weights=None)
    for name in CLASSIFIERS:
        if hasattr(net, name):
            setattr(net, name, nn.Identity())
    return net


def _described(model: str, net: nn.Module, make: partial) -> Encoder:
    from torchvision.models import get_model_weights, list_models, video
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    blocks, stages, last = _blocks(model, net)
    is_video = model in list_models(video)
    transforms = get_model_weights(model).DEFAULT.transforms()
    crop = transforms.crop_size
    height, width = (crop[0], crop[-1]) if isinstance(crop, (list, tuple)) else (crop, crop)
    layout = Layout(
        per_frame=not is_video,
        patch=first_stride(net),
        channels_last=isinstance(net, (SwinTransformer, SwinTransformer3d)),
    )
    return Encoder(
        make,
        whole,
        blocks,
        layout,
        (FRAMES if is_video else 1, height, width),
        tuple(transforms.mean),
        tuple(transforms.std),
        last=last,
        stages=stages,
    )


def _blocks(model: str, net: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The names of the modules at cuts, the names of the cuts ((): the usual), and the last module.

    torchvision has no method for features: where a family keeps its blocks is in its attributes.
    """
    names = dict(net.named_children())
    if "layer4" in names:  # ResNets, also of videos
        blocks = ("stem" if "stem" in names else "maxpool", *(f"layer{n}" for n in range(1, 5)))
        return blocks, ("stem", *(f"stage{n}" for n in range(1, 5))), "layer4"
    if "trunk_output" in names:  # RegNet
        parts = [f"trunk_output.{name}" for name, _ in net.trunk_output.named_children()]
        return tuple(parts), _numbered(parts), parts[-1]
    if "features" in names:  # S3D, Swin, ConvNeXt, EfficientNet, ...
        parts = [f"features.{name}" for name, _ in net.features.named_children()]
        return tuple(parts), _numbered(parts), "norm" if "norm" in names else parts[-1]
    if "encoder" in names:  # ViT
        parts = [f"encoder.layers.{name}" for name, _ in net.encoder.layers.named_children()]
        return tuple(parts), (), "encoder.ln"
    if "blocks" in names and "norm" in names:  # MViT
        parts = [f"blocks.{name}" for name, _ in net.blocks.named_children()]
        return tuple(parts), (), "norm"
    raise ValueError(f"torchvision:{model}: it has no sequence of blocks at which it can be cut")


def _numbered(parts: list[str]) -> tuple[str, ...]:
    return tuple(f"stage{number}" for number in range(1, len(parts) + 1))


def whole(net: nn.Module, pixels: Tensor) -> Tensor:
    """The library's own forward pass; it is left at the last block.

    Args:
        net: a model of torchvision.
        pixels: frames [b,3,H,W] or clips [B,3,F,H,W].
    """
    return net(pixels)
