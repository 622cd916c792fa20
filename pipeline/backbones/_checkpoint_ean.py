"""The names of EAN's release (EAN_8f.py, EAN_16f.py of its repository), turned into ours.

torchvision's names for the ResNet, and beside them:

    layer1.0.me, layer1.0.t_conv     motion excitation and the trainable shift of a block
    relation1 .. relation4           the Event Adaptive Blocks behind the stem, res2, res3, res4
    stm_proj1, stm_st_model1, stm_st_model2, proj_back     Latent Motion Code
    stack_diff_motion                the second branch of motion, with 16 segments
    sparse_transformer, new_fc       the head, which is no part of a backbone
"""

import re

import torch
from torch import Tensor

_PLACES = {"relation1": "stem", "relation2": "res2", "relation3": "res3", "relation4": "res4"}
# The release declares these and never uses them.
_UNUSED = re.compile(r"^(bn2\.|stm_proj2\.|relation\d\.bn2\.)")
_HEAD = re.compile(r"^(sparse_transformer|new_fc|fc)\.")

# Beginning of a name there -> here.
_MOTION = {
    "stm_proj1.0.": "stem.lmc.project.",
    "stm_st_model1.": "stem.lmc.first.",
    "stm_st_model2.": "stem.lmc.second.",
    "proj_back.0.": "stem.lmc.back.",
}
# The network of 16 segments has more layers on both sides of these.
_DEEP_MOTION = {
    "stm_proj1.1.": "stem.lmc.enter.0.",
    "stm_proj1.3.": "stem.lmc.enter.2.",
    "proj_back.0.": "stem.lmc.leave.0.",
    "proj_back.1.": "stem.lmc.leave.1.",
    "proj_back.3.": "stem.lmc.back.",
    "stack_diff_motion.": "stem.stack.convs.",
}
_EXCITATION = {"conv2": "depthwise", "conv3": "conv2", "bn3": "bn2"}
_BLOCK = {
    "compress_c1.": "compress.",
    "expand_c1.": "expand.",
    "t_part2_conv.": "first.groups.1.0.",
    "t_part3_conv.": "first.groups.2.0.",
    "s_part2_conv.": "second.groups.1.0.",
    "s_part3_conv.": "second.groups.2.0.",
    "max_project.": "pooled.",
    "p_prod1.": "matrix.convs.",
    "p_prod2.0.": "matrix.fc.",
}
PATCH, CELL = 16, 8  # pixels of a patch, and cells of the stem's map that it becomes


def from_ean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the tensors of EAN's release; its head and unused layers are left out.

    Args:
        state: a state dict of the release.

    Returns:
        A new state dict. A name that follows no pattern stays as it is.
    """
    motion = dict(_MOTION)
    if any(key.startswith("stack_diff_motion.") for key in state):
        motion.update(_DEEP_MOTION)
    renamed = {}
    for key, value in state.items():
        if _UNUSED.match(key) or _HEAD.match(key):
            continue
        place, _, rest = key.partition(".")
        if place in _PLACES:
            renamed.update(_event_adaptive(f"eab.{_PLACES[place]}", rest, value))
        else:
            renamed[_our_name(key, motion)] = value

    # The shift is a convolution over time alone there.
    for name, value in renamed.items():
        if name.endswith(".shift.weight") and value.dim() == 3:
            renamed[name] = value[..., None, None]
    # A patch is a pixel's row, column and colour there, and a kernel here.
    name = "stem.lmc.project.weight"
    if name in renamed and renamed[name].shape[1] == 3 * PATCH**2:
        kernel = renamed[name].reshape(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2)
        renamed[name] = kernel[:, :, None].contiguous()
    # The other way round: row, column and channel of a cell there, the channel first here.
    name = "stem.lmc.back.weight"
    if name in renamed and renamed[name].shape[0] % CELL**2 == 0:
        kernel = renamed[name].reshape(CELL, CELL, -1, renamed[name].shape[1])
        renamed[name] = kernel.permute(2, 0, 1, 3).reshape(renamed[name].shape)
    return renamed


def _our_name(key: str, motion: dict[str, str]) -> str:
    for theirs, ours in motion.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    if key.startswith(("conv1.", "bn1.")):
        return f"stem.{key}"
    key = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", key)
    key = key.replace(".t_conv.conv.", ".shift.")
    return re.sub(r"\.me\.(conv2|conv3|bn3)\.", lambda match: f".me.{_EXCITATION[match[1]]}.", key)


def _event_adaptive(block: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors of an Event Adaptive Block that one tensor of the release becomes."""
    # One norm over all channels there, one over each of the three groups here.
    if rest.startswith("non_linear.0."):
        leaf = rest.removeprefix("non_linear.0.")
        parts = [value] * 3
        if value.dim():
            third = value.shape[0] // 3
            parts = value.split([third, third, value.shape[0] - 2 * third])
        # The first group has no convolution before its norm.
        names = [f"{block}.first.groups.{place}.{leaf}" for place in ("0.0", "1.1", "2.1")]
        return dict(zip(names, parts, strict=True))

    for theirs, ours in _BLOCK.items():
        if rest.startswith(theirs):
            name = f"{block}.{ours}{rest.removeprefix(theirs)}"
            found = {name: value}
            # Ours has a bias there, which the norm behind it takes away again.
            if rest == "p_prod1.0.weight":
                found[name.replace(".weight", ".bias")] = torch.zeros(value.shape[0])
            return found
    return {f"{block}.{rest}": value}
