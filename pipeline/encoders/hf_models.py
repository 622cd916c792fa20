"""Models of transformers as backbones: `hf:REPOSITORY-OR-FOLDER`, through its Auto classes.

A repository's or folder's `config.json` says which class of the library it is. Code of a
repository is never run. The pixels' mean and std are those of its processor's configuration.
`last` is the library's `last_hidden_state`.
"""

import inspect
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoder_names import HF_CONFIG
from pipeline.encoders.backbone import Encoder
from pipeline.encoders.hf_sizes import SPACE_FIRST, Windows, fit_to, windows_of
from pipeline.encoders.layouts import Layout
from pipeline.encoders.structure import first_stride, largest_list
from pipeline.encoders.videomae_release import from_release, is_release
from pipeline.encoders.weights import (
    NONE,
    PRETRAINED,
    State,
    does_not_fit,
    fetch_failed,
    is_ours,
    needs_package,
    read_state,
)

# Attributes by which a model of several towers has the one that sees pixels.
TOWERS = ("vision_model", "vision_tower")
# Parts that the features do without: they pool, predict or classify.
UNUSED = ("pooler", "predictor", "head")
# Weights that only training by masking reads.
MASKING = ("mask_token",)


def build(
    model: str, weights: str, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
) -> tuple[nn.Module, Encoder, State | None]:
    """Build a model of transformers with its weights.

    Args:
        model: a repository, such as "facebook/vjepa2-vitl-fpc64-256", or a local folder.
        weights: "pretrained" (those of the repository or folder), "none", or the path of another
            folder or file.
        mean: of RGB in [0,1]; (): the processor's.
        std: of RGB in [0,1]; (): the processor's.

    Returns:
        The model, what the backbone needs to know of it, and the state dict of a fine-tuned
        backbone where the weights are one: the caller loads it.

    Raises:
        ValueError: transformers is missing, the model needs code that it does not have, or the
            weights do not fit.
        OSError: the configuration or the weights cannot be fetched.
    """
    try:
        import transformers
    except ImportError as error:
        needs_package(f"hf:{model}", "transformers", "transformers", error)
    transformers.utils.logging.disable_progress_bar()
    config = _config(model)
    make = partial(_random, config)

    state = fine_tuned = None
    if weights not in (NONE, PRETRAINED) and not os.path.isdir(weights):
        state = read_state(weights)
    if state is not None and is_ours(state):
        fine_tuned = state
    elif state is not None and is_release(config, state):
        state = from_release(config, state)
    if weights == NONE or fine_tuned is not None:
        net = make()
    else:
        net = _loaded(model, config, weights, state)
    return net, _described(model, config, net, make, mean, std), fine_tuned


def _config(model: str) -> Any:
    from transformers import AutoConfig

    is_folder = os.path.isdir(model)
    if is_folder and not os.path.isfile(os.path.join(model, HF_CONFIG)):
        raise ValueError(
            f"hf:{model}: expected a {HF_CONFIG} in this folder, as save_pretrained of "
            f"transformers writes it beside the weights"
        )
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError as error:
        said = _one_line(error)
        if is_folder:
            raise ValueError(
                f"hf:{model}: its {HF_CONFIG} cannot be read ({said}); save the model again"
            ) from error
        raise OSError(
            f"hf:{model}: there is no such folder, and no {HF_CONFIG} of such a repository could "
            f"be fetched ({said}); name a folder that save_pretrained wrote, or download the "
            f"repository elsewhere and name its folder"
        ) from error
    # A type that the library does not know, or one whose code is in the repository.
    except (ValueError, KeyError) as error:
        said = _one_line(error)
        raise ValueError(
            f"hf:{model}: transformers has no class for it ({said}); code of a repository is never "
            f"run: install a newer transformers, or convert the weights to a class that it has"
        ) from error


def _one_line(error: Exception) -> str:
    """What a library said, short enough to stand in a message."""
    return " ".join(str(error).split())[:200]


def _random(config: Any) -> nn.Module:
    from transformers import AutoModel

    return _trunk(AutoModel.from_config(config, trust_remote_code=False))


def _trunk(net: nn.Module) -> nn.Module:
    """The tower that sees pixels, without the parts that its features do without."""
    towers = [getattr(net, name, None) for name in TOWERS]
    while any(isinstance(tower, nn.Module) for tower in towers):
        net = next(tower for tower in towers if isinstance(tower, nn.Module))
        towers = [getattr(net, name, None) for name in TOWERS]
    for name in UNUSED:
        part = getattr(net, name, None)
        # A pooling without weights costs nothing, and may be called whatever is asked for.
        if isinstance(part, nn.Module) and next(part.parameters(), None) is not None:
            setattr(net, name, None)
    if getattr(net, "use_head", False):
        net.use_head = False
    return net


def _loaded(model: str, config: Any, weights: str, state: dict | None) -> nn.Module:
    """The model with weights of a repository, folder or state dict; every weight must be there."""
    from transformers import AutoModel

    options = {
        "config": config,
        "dtype": torch.float32,
        "output_loading_info": True,
        # The library would only refer to a report that it logs. The shapes are refused below.
        "ignore_mismatched_sizes": True,
    }
    where = model if weights == PRETRAINED else weights
    try:
        if state is not None:
            kind = type(AutoModel.from_config(config, trust_remote_code=False))
            whole, found = kind.from_pretrained(None, state_dict=state, **options)
        else:
            whole, found = AutoModel.from_pretrained(where, trust_remote_code=False, **options)
    except OSError as error:
        if not os.path.isdir(where):
            fetch_failed(f"hf:{model}", error)
        raise ValueError(f"weights {where}: {_one_line(error)}") from error
    except RuntimeError as error:
        raise ValueError(f"weights {where}: do not fit hf:{model} ({_one_line(error)})") from error
    # The library of safetensors raises an error of its own class, right below Exception.
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(
            f"weights {where}: a damaged file of safetensors ({_one_line(error)}); copy or "
            f"download it again"
        ) from error

    net = _trunk(whole)
    own = {id(parameter) for parameter in net.parameters()}
    needed = {name for name, parameter in whole.named_parameters() if id(parameter) in own}
    for name, have, want in sorted(found["mismatched_keys"]):
        if name in needed:
            raise ValueError(
                f"weights {where}: do not fit hf:{model}: {name} has the shape {list(have)}, "
                f"expected {list(want)}"
            )
    missing = [name for name in found["missing_keys"] if name in needed]
    missing = [name for name in missing if not name.endswith(MASKING)]
    if missing:
        raise does_not_fit(where, "misses", missing)
    return net


def _described(
    model: str, config: Any, net: nn.Module, make: partial, mean: tuple, std: tuple
) -> Encoder:
    # A configuration of two towers has one of its own for what sees pixels.
    config = getattr(config, "vision_config", config)
    # Configurations of videos say how many frames a clip has.
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    processor = _processor(model)
    size = _size(config, processor)
    found_mean, found_std = _normalisation(model, processor, mean, std)

    listed = largest_list(net)
    blocks, sequential = [], True
    for name, block in net.get_submodule(listed).named_children():
        inner = getattr(block, "blocks", None)
        merges = getattr(block, "downsample", None) is not None
        if isinstance(inner, nn.ModuleList) and hasattr(block, "downsample"):
            # Swin merges tokens at a stage's end; the map is the one before.
            blocks.append(f"{listed}.{name}.blocks.{len(inner) - 1}")
            sequential = sequential and not merges and len(inner) == 1
        else:
            blocks.append(f"{listed}.{name}")
    layout = Layout(
        per_frame=frames is None,
        patch=first_stride(net),
        space_first=config.model_type in SPACE_FIRST,
    )
    return Encoder(
        make,
        partial(
            last_hidden_state, native=size, is_video=frames is not None, windows=windows_of(net)
        ),
        tuple(blocks),
        layout,
        (frames or 1, *size),
        found_mean,
        found_std,
        reroll=_owner_of_reroll(net),
        sequential=sequential,
    )


def _owner_of_reroll(net: nn.Module) -> str | None:
    """The name of the module that puts Hiera's tokens in order; None where none does."""
    for name, module in net.named_modules():
        if hasattr(module, "reroll"):
            return name
    return None


def _processor(model: str) -> dict[str, Any]:
    """The configuration of the model's processor of videos or images; {} without any."""
    from transformers.models.auto.image_processing_auto import get_image_processor_config
    from transformers.models.auto.video_processing_auto import get_video_processor_config

    for read in (get_video_processor_config, get_image_processor_config):
        try:
            found = read(model)
        except OSError:
            continue
        if "image_mean" in found or "do_normalize" in found:
            return found
    return {}


def _size(config: Any, processor: dict[str, Any]) -> tuple[int, int]:
    """(H, W) that the model was trained with."""
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    size = size or processor.get("crop_size") or processor.get("size") or 224
    if isinstance(size, dict):
        side = size.get("shortest_edge", 224)
        return size.get("height", side), size.get("width", side)
    if isinstance(size, (list, tuple)):
        return size[0], size[-1]
    return size, size


def _normalisation(
    model: str, processor: dict[str, Any], mean: tuple, std: tuple
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of RGB in [0,1]: a processor first rescales, then perhaps shifts, then divides.

    ValueError where nothing says them.
    """
    if mean or std:
        if len(mean) != 3 or len(std) != 3:
            raise ValueError(
                f"hf:{model}: expected mean and std of three numbers each, of RGB in [0,1], got "
                f"mean={list(mean)} and std={list(std)}"
            )
        return tuple(mean), tuple(std)
    normalises = processor.get("do_normalize", True)
    if normalises and not {"image_mean", "image_std"} <= set(processor):
        raise ValueError(
            f"hf:{model}: no preprocessor_config.json says the mean and std of its pixels; save "
            f"the model's processor beside it, or pass --set backbone_options.mean=[...] --set "
            f"backbone_options.std=[...] (of RGB in [0,1])"
        )
    scale = 255 * processor.get("rescale_factor", 1 / 255)
    shift = 1.0 if processor.get("offset", False) else 0.0
    means = processor["image_mean"] if normalises else (0.0,) * 3
    stds = processor["image_std"] if normalises else (1.0,) * 3
    return tuple((shift + m) / scale for m in means), tuple(s / scale for s in stds)


def last_hidden_state(
    net: nn.Module, pixels: Tensor, native: tuple[int, int], is_video: bool, windows: Windows
) -> Tensor:
    """The library's own forward pass.

    Args:
        net: a model of transformers.
        pixels: frames [b,3,H,W] or clips [B,3,F,H,W].
        native: (H, W) that its position embeddings have; others are interpolated where it can.
        is_video: whether it reads clips.
        windows: of its blocks, as it was built.

    Raises:
        ValueError: it cannot compute clips of this size.
    """
    fit_to(net, (pixels.shape[2] if is_video else 1, *pixels.shape[-2:]), windows)
    accepted = inspect.signature(net.forward).parameters
    options: dict[str, Any] = {net.main_input_name: pixels}
    if is_video:
        options[net.main_input_name] = pixels.transpose(1, 2)  # [B,F,3,H,W]
    if "interpolate_pos_encoding" in accepted and tuple(pixels.shape[-2:]) != native:
        options["interpolate_pos_encoding"] = True
    if "skip_predictor" in accepted:  # V-JEPA 2
        options["skip_predictor"] = True
    return net(**options).last_hidden_state
