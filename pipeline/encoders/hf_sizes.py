"""What classes of transformers keep of one size, so that another size would be computed wrongly.

None of them raises an error:

    V-JEPA 2       numbers the places of tokens by its configuration's crop_size
    TimeSformer    divides tokens into steps by its configuration's num_frames
    Swin           narrows its windows on a small map, and does not widen them for the next clip

Its places have no weights, so that V-JEPA 2 is told the size of the clips. TimeSformer is refused
other numbers of frames. Swin gets back the windows that it was built with.
"""

from torch import nn

from pipeline.encoders.layouts import Size

# The tokens of one place in all frames follow one another, which no configuration says.
SPACE_FIRST = ("timesformer",)

# Name of a module -> its (window_size, shift_size).
Windows = dict[str, tuple[int, int]]


def windows_of(net: nn.Module) -> Windows:
    """Return the windows of a model's blocks, as it was built; {} for one without any.

    Args:
        net: a model that has not run yet.
    """
    found = {}
    for name, module in net.named_modules():
        if hasattr(module, "set_shift_and_window_size"):
            found[name] = module.window_size, module.shift_size
    return found


def fit_to(net: nn.Module, size: Size, windows: Windows) -> None:
    """Make a model ready for clips or frames of a size.

    Args:
        net: a model of transformers.
        size: (F, H, W) of the clips; F is 1 for frames.
        windows: of `windows_of`.

    Raises:
        ValueError: it cannot compute this size.
    """
    for name, (window, shift) in windows.items():
        module = net.get_submodule(name)
        module.window_size, module.shift_size = window, shift

    frames, height, width = size
    if net.config.model_type in SPACE_FIRST and frames != net.config.num_frames:
        raise ValueError(f"its blocks divide tokens into {net.config.num_frames} frames")

    patch = getattr(net.config, "patch_size", None)
    for module in net.modules():
        if not hasattr(module, "grid_size") or not hasattr(module, "get_position_ids"):
            continue
        if height // patch != width // patch:
            raise ValueError("it numbers the places of tokens by a square grid")
        module.grid_size = height // patch
