"""Networks that a checkpoint may be of although no backbone, or no such option, computes them.

A checkpoint can have every name and shape of a backbone and still be of another network: TSM's
shift has no weights. And one that does not fit is better named than listed key by key.
"""

import re
from dataclasses import dataclass

from torch import Tensor

from pipeline.backbones._checkpoint_caffe2 import is_affine, is_trained_affine
from pipeline.backbones._checkpoint_keys import (
    CAFFE2,
    EAN,
    MMACTION2,
    TORCHVISION,
    TSM,
    Project,
)

I3D_FILES = (
    "I3D on ResNet-50 is in I3D_8x8_R50.pkl of PySlowFast's model zoo, and in "
    "i3d_baseline_32x2_IN_pretrain_400k.pkl of video-nonlocal-net"
)
TSM_FILES = "TSM_somethingv2_RGB_resnet50_shift8_blockres_avg_segment8_e45.pth of TSM's release"


@dataclass(frozen=True)
class Stranger:
    """A network that no backbone here computes.

    Attributes:
        mark: a pattern that only its names have.
        name: what it is.
        help: what to take instead.
    """

    mark: str
    name: str
    help: str


STRANGERS = (
    Stranger(
        r"pathway1_|(^|\.)t_(res|conv1|pool1)|(^|\.)multipathway_blocks\.|(^|\.)(slow|fast)_path\.",
        "a SlowFast network, which has two pathways",
        I3D_FILES,
    ),
    Stranger(
        r"pathway0_stem\.conv_xy|(^|\.)blocks\.0\.conv\.conv_(t|xy)\.|(^|\.)conv1_s\.conv\.",
        "an X3D network",
        I3D_FILES,
    ),
    Stranger(
        r"\.attn\.(qkv|q|proj|pool_q|in_proj)|(^|\.)patch_embed\.|(^|\.)conv_proj\.",
        "a transformer (such as MViT, Swin, TimeSformer or VideoMAE)",
        I3D_FILES,
    ),
    Stranger(
        r"(^|\.)([Mm]ixed_3b|[Cc]onv3d_1a_7x7)\.",
        "I3D on Inception-v1 (Carreira and Zisserman); I3D here is on ResNet",
        I3D_FILES,
    ),
    Stranger(r"(^|\.)features\.0\.0\.0\.weight$", "torchvision's S3D", I3D_FILES),
    Stranger(
        r"(^|\.)stem\.3\.weight$|\.conv1\.0\.3\.weight$",
        "an R(2+1)D network (torchvision's r2plus1d_18), whose kernels are split into space and "
        "time",
        I3D_FILES,
    ),
    Stranger(
        r"(^|\.)stem\.0\.weight$",
        "torchvision's r3d_18 or mc3_18, whose kernels are 3×3×3",
        I3D_FILES,
    ),
    Stranger(r"(^|\.)conv3a[._]", "a C3D network", I3D_FILES),
    Stranger(
        r"(^|\.)layer2\.net\.",
        "TSM with a maximum over time (tpool)",
        f"take a file without it, such as {TSM_FILES}",
    ),
    Stranger(
        r"(^|\.)layer3\.22\.conv1\.(conv\.)?net\.",
        "TSM on ResNet-101, which shifts in every other block of it",
        f"take a file on ResNet-50, such as {TSM_FILES}",
    ),
    Stranger(
        r"(^|\.)layer\d\.\d+\.net\.",
        "TSM that shifts on the way into a whole block, shortcut included",
        f"take a file of residual shift (blockres), such as {TSM_FILES}",
    ),
    Stranger(
        r"\.block\.conv1\.|\.nl\.W\.",
        "TSM with non-local blocks, which tsm_r50 does not have",
        f"take a file without them (no _nl in its name), such as {TSM_FILES}",
    ),
    Stranger(
        r"\.non_local_block\.",
        "a network of mmaction2 with non-local blocks: they take their maximum behind the "
        "convolutions φ and g and do not scale, ours before them and scaled",
        "I3D_NLN_8x8_R50.pkl of PySlowFast's model zoo has blocks like those of i3d_r50_nl",
    ),
    Stranger(
        r"(^|\.)features\.\d+\.conv\.\d|(^|\.)layer\d\.\d+\.conv\.\d+\.conv\.",
        "a MobileNet",
        f"take one on ResNet-50, such as {TSM_FILES}",
    ),
    Stranger(
        r"(^|\.)(conv1_7x7_s2|inception_3a)",
        "an image network on BNInception (TSN, TSM)",
        f"take one on ResNet-50, such as {TSM_FILES}",
    ),
    Stranger(
        r"(^|\.)res[2-5]\.\d+\.conv\d\.norm\.",
        "an image network of detectron2: it sees BGR, and its strides lie in the 1×1 convolutions",
        "pass imagenet for torchvision's; a detector's RPN is read by --proposals detectron2",
    ),
    Stranger(
        r"^(conv_rpn|rpn_|fpn_)",
        "a detector of Detectron (Caffe2)",
        "a backbone takes a video or image network; a detector's RPN is read by --proposals "
        "detectron2, from a file of detectron2's model zoo",
    ),
)


def stranger(names: dict[str, Tensor]) -> str:
    """Name a network that no backbone computes, and what would help.

    Args:
        names: name -> tensor, as in the checkpoint.

    Returns:
        "NAME; HELP", or "" for names that are of no known stranger.
    """
    for each in STRANGERS:
        if any(re.search(each.mark, name) for name in names):
            return f"it is {each.name}; {each.help}"
    return ""


def odd_kernels(state: dict[str, Tensor]) -> str:
    """Name a network whose kernels have sizes that no backbone here has, and what would help.

    Args:
        state: name -> tensor, in our names.

    Returns:
        "NAME; HELP", or "" if the kernels are of usual sizes.
    """
    first = state.get("stem.conv1.weight")
    if first is not None and first.dim() > 3 and first.shape[1] not in (1, 3):
        channels = first.shape[1]
        return (
            f"its first convolution takes {channels} channels, as for optical flow or differences; "
            f"take the RGB file"
        )
    taps = {}
    for name, value in state.items():
        if re.fullmatch(r"res\d\.\d+\.conv[12]\.weight", name) and value.dim() == 5:
            taps[name] = value.shape[2]
    if taps.get("res2.0.conv2.weight", 1) > 1:
        return f"it is a 3-D ResNet with 3×3×3 convolutions; {I3D_FILES}"

    res4 = []
    for name, count in taps.items():
        if re.match(r"res4\.\d+\.conv1", name):
            res4.append(count)
    is_late = taps.get("res2.0.conv1.weight", 0) == 1 and res4 and min(res4) == 3
    if is_late:
        return (
            f"it is a Slow network (SlowFast's slow pathway), which looks across time in res4 and "
            f"res5 alone; {I3D_FILES}"
        )
    return ""


def objection(project: Project, names: dict[str, Tensor], prefix: str, options: dict) -> str:
    """Say why weights of the right names and shapes are still of another network.

    Args:
        project: whose names the checkpoint has.
        names: name -> tensor, as the checkpoint names them below the prefix.
        prefix: what was taken off the names.
        options: the backbone's options.

    Returns:
        A text with what to do; "" if there is nothing.
    """
    if project is CAFFE2:
        return _objection_to_caffe2(names)
    if project is EAN:
        return _objection_to_ean(options)

    if project not in (TSM, MMACTION2, TORCHVISION):
        return ""

    shifts = any(re.search(r"\.conv1\.(conv\.)?net\.", name) for name in names)
    if shifts and not options.get("shift"):
        if "shift" in options:
            return "it is a TSM network; pass --set backbone_options.shift=8"
        return (
            "it is a TSM network, whose blocks shift channels along time; use the backbone tsm_r50 "
            "or tsm_r18"
        )
    # TSN's networks are TSM's without the shift, in the same programs.
    of_tsn = prefix.endswith("base_model.") or project is MMACTION2
    if of_tsn and not shifts and options.get("shift"):
        return (
            "it is a 2-D network (TSN), trained without TSM's shift; pass --set "
            "backbone_options.shift=0, or a file with _shift8_ in its name"
        )
    return ""


def _objection_to_caffe2(names: dict[str, Tensor]) -> str:
    if "conv1_w" in names and names["conv1_w"].dim() == 4:
        return (
            "it is an image network of Caffe2, whose order of colours and place of strides the "
            "file does not tell; pass imagenet for torchvision's"
        )
    has_non_local = any(name.startswith("nonlocal_conv3") for name in names)
    if is_affine(names) and has_non_local:
        return (
            "it was trained with frozen norms (USE_AFFINE): its non-local blocks of res3 look at 4 "
            "steps at a time and have no norm, ours look at all steps; take the 32x2 or 8x8 file "
            "(i3d_nonlocal_32x2_IN_pretrain_400k.pkl)"
        )
    return ""


def _objection_to_ean(options: dict) -> str:
    released = {"pool": "max", "inter_relu": True, "dilation": True}
    for option, value in released.items():
        if options.get(option) != value:
            return (
                f"EAN's release has {option}={value}; pass --set backbone_options.{option}={value}"
            )
    return ""


def advice_on_blobs(names: dict[str, Tensor]) -> str:
    """Say what to do about Caffe2's blobs that no backbone takes; "" for others.

    Args:
        names: name -> tensor, as in the checkpoint.
    """
    if not is_affine(names) or is_trained_affine(names):
        return _objection_to_caffe2(names)
    return (
        "its norms have scales and no statistics: either they were folded in "
        "(modify_caffe2_ftvideo.py) or taken away (modify_blob_rm.py), and the file does not tell "
        "which; take the file that it was made from, such as i3d_baseline_8x8_IN_pretrain_400k.pkl"
    )
