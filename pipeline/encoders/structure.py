"""What the structure of a model tells of it: its patches, its blocks, what lies between them."""

import re

from torch import nn

from pipeline.encoders.layouts import Size

_NUMBERED = re.compile(r"(.*?)(\d+)")


def first_stride(model: nn.Module) -> Size:
    """Return (frames, height, width) of the stride of a model's first convolution.

    For a transformer this is the size of a patch.

    Raises:
        ValueError: the model has no convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            return tuple(module.stride)
        if isinstance(module, nn.Conv2d):
            return (1, *module.stride)
    raise ValueError(
        f"{type(model).__name__} has no convolution that cuts frames into patches, so "
        f"that it cannot be a backbone: choose a model of frames or clips (docs/backbones.md)"
    )


def are_neighbours(blocks: tuple[str, ...]) -> bool:
    """Return whether blocks are the consecutive parts of one list: nothing lies between them.

    What has no number is a stem before them.
    """
    found = [_NUMBERED.fullmatch(name) for name in blocks]
    while found and found[0] is None:
        found.pop(0)
    if not found or None in found:
        return False
    # The stem of a ResNet, such as act1, is numbered too.
    lists = {match[1] for match in found}
    if len(lists) > 1 and found[0][1] != found[-1][1]:
        found = found[1:]
    same = len({match[1] for match in found}) == 1
    numbers = [int(match[2]) for match in found]
    return same and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def stage_names(blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of cuts: stage1, stage2, ...; "stem" for what is in another list than the last.

    Args:
        blocks: names of modules, such as ("act1", "layer1", "layer2").
    """
    last = _NUMBERED.fullmatch(blocks[-1])
    names, number = [], 0
    for block in blocks:
        match = _NUMBERED.fullmatch(block)
        if not names and last and (match is None or match[1] != last[1]):
            names.append("stem")
            continue
        number += 1
        names.append(f"stage{number}")
    return tuple(names)


def largest_list(model: nn.Module) -> str:
    """Return the name of the list of modules that holds most of a model's parameters.

    Of a list in a list the outer one. Raises ValueError where a model has none.
    """
    largest, most = "", 0
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) == 0:
            continue
        count = sum(parameter.numel() for parameter in module.parameters())
        # An outer list comes first, and holds at least as many.
        if count > most:
            largest, most = name, count
    if not largest:
        raise ValueError(f"{type(model).__name__} has no list of blocks to cut it at")
    return largest
