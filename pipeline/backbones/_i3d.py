"""I3D and C2D ResNets: their options, checked and turned into a `ResNet`."""

from pipeline.backbones._layers import MaxPool
from pipeline.backbones._non_local import KINDS, NonLocal
from pipeline.backbones._options import require_allowed, require_widths
from pipeline.backbones._resnet import Bottleneck, ResNet

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
TEMPORAL = ("every", "alternating", "none")


def temporal_taps(depth: int, temporal: str) -> list[list[int]]:
    """Return the taps in time of the first convolution of every block, stage by stage.

    Args:
        depth: 50 or 101.
        temporal: "every", "alternating" or "none".
            "every": 3 taps in all blocks, as in GOS's supp. Table 3 and STRG's Table 1.
            "alternating": 3 taps in all of res2 and then in every other block. They are the first,
            third, ... of res3 and res4, but the second, fourth, ... of res5. The 153 GFLOPs of
            STRG's sec. 6.1 and the public Kinetics checkpoints have these.
            "none": 1 tap everywhere (C2D).
    """
    taps = []
    for stage, blocks in enumerate(DEPTHS[depth]):
        stage_taps = [1] * blocks
        if temporal == "every" or (temporal == "alternating" and stage == 0):
            stage_taps = [3] * blocks
        elif temporal == "alternating":
            first = 1 if stage == 3 else 0
            for block in range(first, blocks, 2):
                stage_taps[block] = 3
        taps.append(stage_taps)
    return taps


def resnet3d(
    depth: int,
    *,
    temporal: str = "every",
    res5_stride: int = 2,
    conv1_stride: int = 1,
    pool1_time: int = 3,
    pool1_stride: int = 1,
    pool1_pad: int = 1,
    pool2_time: int = 3,
    reduce: int = 0,
    non_local: str = "none",
    non_local_pool: bool = True,
    width: int = 64,
) -> ResNet:
    """Build a bottleneck ResNet over clips; without options that of GOS (supp. Table 3).

    A temporal window of 3 is padded by one step, so that only strides change T.

    Args:
        depth: 50 or 101.
        temporal: see `temporal_taps`. conv1 has 5 taps in time, or 1 with "none".
        res5_stride: spatial stride of res5, 1 or 2.
        conv1_stride: stride in time of the first convolution, 1 or 2.
        pool1_time: window in time of the 3×3 maximum after conv1: 1, 2 or 3.
        pool1_stride: its stride in time, 1 or 2.
        pool1_pad: its padding in space: 1 (224 -> 56) or 0 (224 -> 55).
        pool2_time: window of the maximum over time with stride 2 before res3: 3 (padded), 2, or
            1 for no such maximum.
        reduce: channels of the stage "reduced" (see `ResNet`), 0 for none.
        non_local: "gaussian" or "dot_product" adds five blocks of that kind at the
            `non_local_places`, as parts of their cuts; "none" adds none.
        non_local_pool: see `NonLocal`.
        width: channels of the stem.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: another value.
    """
    allowed = {
        "temporal": (temporal, TEMPORAL),
        "conv1_stride": (conv1_stride, (1, 2)),
        "pool1_time": (pool1_time, (1, 2, 3)),
        "pool1_stride": (pool1_stride, (1, 2)),
        "pool1_pad": (pool1_pad, (0, 1)),
        "pool2_time": (pool2_time, (1, 2, 3)),
        "res5_stride": (res5_stride, (1, 2)),
        "non_local": (non_local, (*KINDS, "none")),
    }
    require_allowed(allowed)
    require_widths(reduce, width)

    # Half a window, so that in time only strides change the size.
    pool1_padding = ((pool1_time - 1) // 2, pool1_pad, pool1_pad)
    pool2 = None
    if pool2_time > 1:
        pool2 = MaxPool((pool2_time, 1, 1), (2, 1, 1), ((pool2_time - 1) // 2, 0, 0))
    backbone = ResNet(
        Bottleneck,
        temporal_taps(depth, temporal),
        width=width,
        conv1_taps=1 if temporal == "none" else 5,
        conv1_stride=conv1_stride,
        pool1=MaxPool((pool1_time, 3, 3), (pool1_stride, 2, 2), pool1_padding),
        pool2=pool2,
        res5_stride=res5_stride,
        reduce=reduce,
        imagenet=f"ResNet{depth}",
    )
    if non_local != "none":
        add_non_local(backbone, non_local_places(depth), non_local, non_local_pool)
    return backbone


def add_non_local(backbone: ResNet, places: list[str], kind: str, pool: bool) -> None:
    """Add non-local blocks, each as a part of the block that it follows.

    Args:
        backbone: a bottleneck ResNet.
        places: the blocks that they follow.
        kind: see `NonLocal`.
        pool: see `NonLocal`.
    """
    for place in places:
        block = backbone.get_submodule(place)
        block.non_local = NonLocal(block.channels, kind, pool)


def non_local_places(depth: int) -> list[str]:
    """Return the five blocks after which Wang et al. 2018 (sec. 5.1) put a non-local block.

    There are two in res3 and three in res4, at equal distances. At depth 50 that is every other
    block, as stated there. At depth 101, where it is not stated, it is every seventh block of res4,
    as in their code.
    """
    _, res3, res4, _ = DEPTHS[depth]
    places = []
    for stage, blocks, count in (("res3", res3, 2), ("res4", res4, 3)):
        distance = blocks // count
        places += [f"{stage}.{distance * (i + 1) - 1}" for i in range(count)]
    return places
