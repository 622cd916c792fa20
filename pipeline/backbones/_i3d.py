"""The options that I3D and C2D ResNets share, checked and turned into a `ResNet`."""

from pipeline.backbones._base import MaxPool
from pipeline.backbones._non_local import KINDS, NonLocal
from pipeline.backbones._resnet import Bottleneck, ResNet

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def temporal_taps(depth: int, temporal: str) -> list[list[int]]:
    """Taps in time of the first convolution of every block, stage by stage (spec 2.2).

    "every": 3 everywhere, GOS's table. "alternating": all of res2, then every other block (res3 and
    res4 from the first on, res5 from the second on), which is what STRG's 153 GFLOPs and the public
    Kinetics checkpoints have. "none": C2D.
    """
    with_time = {
        "every": lambda stage, block: True,
        "alternating": lambda stage, block: stage == 0 or block % 2 == (1 if stage == 3 else 0),
        "none": lambda stage, block: False,
    }[temporal]
    return [
        [3 if with_time(i, j) else 1 for j in range(blocks)]
        for i, blocks in enumerate(DEPTHS[depth])
    ]


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
    """A bottleneck ResNet over clips; without options GOS's (spec 1.2).

    temporal: see `temporal_taps`; conv1 has 5 taps, or 1 with "none". conv1_stride: in time, 1 or
    2. pool1_time, pool1_stride: window (1, 2 or 3) and stride (1 or 2) in time of the 3×3 maximum
       after conv1; pool1_pad: its padding in
    space, 1 (224 -> 56) or 0 (224 -> 55). pool2_time: window of the maximum over time with stride 2
    before res3: 3 (padded), 2, or 1 for no such pool. A window of 3 is padded by one in time, so
    that T only changes by strides. non_local: "gaussian" or "dot_product" puts five blocks of that
    kind behind those of `non_local_places`, and into their cuts; non_local_pool: see `NonLocal`.
    res5_stride, reduce, width: see `ResNet`. ValueError for any other value.
    """
    allowed = {
        "temporal": (temporal, ("every", "alternating", "none")),
        "conv1_stride": (conv1_stride, (1, 2)),
        "pool1_time": (pool1_time, (1, 2, 3)),
        "pool1_stride": (pool1_stride, (1, 2)),
        "pool1_pad": (pool1_pad, (0, 1)),
        "pool2_time": (pool2_time, (1, 2, 3)),
        "res5_stride": (res5_stride, (1, 2)),
        "non_local": (non_local, (*KINDS, "none")),
    }
    for option, (value, values) in allowed.items():
        if value not in values:
            raise ValueError(f"{option}={value!r}: expected one of {', '.join(map(str, values))}")
    if reduce < 0 or width < 1:
        raise ValueError(
            f"reduce={reduce}, width={width}: expected reduce at least 0 (no reduction) and width "
            f"at least 1"
        )
    backbone = ResNet(
        Bottleneck,
        temporal_taps(depth, temporal),
        width=width,
        conv1_taps=1 if temporal == "none" else 5,
        conv1_stride=conv1_stride,
        pool1=MaxPool(
            (pool1_time, 3, 3), (pool1_stride, 2, 2), ((pool1_time - 1) // 2, pool1_pad, pool1_pad)
        ),
        pool2=MaxPool((pool2_time, 1, 1), (2, 1, 1), ((pool2_time - 1) // 2, 0, 0))
        if pool2_time > 1
        else None,
        res5_stride=res5_stride,
        reduce=reduce,
        imagenet=f"ResNet{depth}",
    )
    for place in non_local_places(depth) if non_local != "none" else ():
        block = backbone.get_submodule(place)
        block.non_local = NonLocal(block.channels, non_local, non_local_pool)
    return backbone


def non_local_places(depth: int) -> list[str]:
    """The five blocks of Wang et al. 2018: two in res3 and three in res4, each after the same
    number of blocks.

    At depth 50 that is every other block, as stated there; at 101, where it is not stated, every
    seventh block of res4.
    """
    _, res3, res4, _ = DEPTHS[depth]
    return [
        f"{name}.{n // k * (i + 1) - 1}"
        for name, n, k in (("res3", res3, 2), ("res4", res4, 3))
        for i in range(k)
    ]
