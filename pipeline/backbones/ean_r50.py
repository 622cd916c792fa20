"""EAN's trunk: Tian et al., EAN: Event Adaptive Network for Enhanced Action Recognition, IJCV 2022.

    bottleneck: conv1 1×1, BN, ReLU -> ME -> Shift -> conv2 3×3, BN, ReLU -> conv3 1×1, BN, + x,
      ReLU
    ME(x) = x + x·s, s = σ(BN(W2 mean_hw d)) − 0.5, u = BN(W1 x)
      d_t = DW3×3(u)_{t+1} − u_t for the first T − 1 steps, 0 for the last
    Shift: depth-wise, 3 taps over time, starts as TSM's shift, learned
    EAB(x) = x + expand(second(M relu(BN(first(z)))) + W maxpool3³(z)), z = compress(x)       eq. 2
      first, second: convolutions with 1, 3, 5 taps on the three channel groups, across space and
        along time
      M [B,u,u] = ESP-Net of the sample, z_o = Σ_i M_oi z_i at every position
    LMC: x + m after the stem's maximum, m from the differences of 5 adjacent frames          eq. 12

Shapes at 224² and T segments: stem 64×T×56², res2 256×T×56², res3 512×T×28², res4 1024×T×14², res5
2048×T×7². Input [B,3,T,H,W] with any T. With lmc the input is [B,3,5T,H,W] with T = `segments`:
frames 5k .. 5k+4 are segment k.

A stage (`stem`, `res2` ..) is the map behind its EAB; its last block (`res4.5`) is the map before
it. From the cut `res4.5` the last EAB and all of res5 are run; from `res5` nothing of the trunk.

Parameters, released variant, 174 classes: trunk and classifier 24 043 218, EABs 5 551 355, of which
ESP-Nets 5 059 927.

variant="released" differs from "paper" as follows (the paper's choice in brackets):
- An EAB convolves along time first, then applies M, then convolves across space (the other way).
- One tap is no convolution (a 1×1×1 convolution).
- ESP-Net has seven 3³ convolutions on z (a 1³ and two 5³ with stride 2, on x).
- compress and expand have 4 groups (1).
- LMC sees every other pixel and has patches of 16×16 in 256 values (every pixel, patches of 32×32
  in 128 values). Its two 3³ convolutions have residuals, the first one a 1³ convolution more (one
  after the other, no residuals).
- The RGB frame is a segment's middle one (the first).
- 16 segments have one more 1³ convolution on each side of LMC's two, and a second motion branch,
  with the weights 0.6, 0.2 and 0.2 (the network of 8 segments).

Differs from the paper: nothing known. The release declares a BN of width C in each EAB that is
never used; it is not built. The biases that the released ESP-Net has in front of its BNs are there
and never learn.

Not stated in the paper, and chosen:
- ESP-Net keeps C/16 channels, with BN and ReLU after each convolution.
- LMC's 3³ convolutions see the four differences of one segment, not those of the next; its BNs, and
  the ReLU between the two.
- Channel shuffle deals from the three groups in turn.
- expand starts at its default times 0.01, as released ("zero" is the other start that the paper
  allows).
"""

from torch import nn

from pipeline.backbones._base import Backbone
from pipeline.backbones._ean import Design, EventAdaptiveBlock, MotionBottleneck
from pipeline.backbones._i3d import DEPTHS
from pipeline.backbones._layers import MaxPool
from pipeline.backbones._lmc import MotionStem
from pipeline.backbones._resnet import ResNet

STAGES = ("stem", "res2", "res3", "res4", "res5")


class EANResNet(ResNet):
    """ResNet-50 of `MotionBottleneck`s with an `EventAdaptiveBlock` at the end of some stages.

    Args:
        eab: the stages that end in a block.
        design: of the blocks.
        lmc: add Latent Motion Code to the stem's map.
        segments: T, with lmc.
        reduce: see `ResNet`.
        width: see `ResNet`.
    """

    def __init__(
        self,
        eab: tuple[str, ...],
        design: Design,
        lmc: bool,
        segments: int,
        reduce: int,
        width: int,
    ):
        pool = MaxPool((1, 3, 3), (1, 2, 2), (0, 1, 1))
        super().__init__(
            MotionBottleneck,
            [[1] * blocks for blocks in DEPTHS[50]],
            width=width,
            conv1_taps=1,
            conv1_stride=1,
            pool1=pool,
            pool2=None,
            res5_stride=2,
            reduce=reduce,
            imagenet="ResNet50",
        )
        if lmc:
            self.stem = MotionStem(width, pool, design.released, segments)
        # Version 2: the release's motion layers for 16 segments, no residuals in the paper's, and
        # the convolution of pool="none".
        changed_motion = lmc and (segments == 16 or not design.released)
        if changed_motion or (eab and design.pool == "none"):
            self.version = 2
        self.eab = nn.ModuleDict()
        for stage in STAGES:
            if stage in eab:
                channels = width if stage == "stem" else self.get_submodule(stage)[-1].channels
                self.eab[stage] = EventAdaptiveBlock(channels, design)

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """Return the modules in the order in which they run (see `Backbone.units`)."""
        # A stage's name goes from its last block to the EAB behind it.
        units = []
        for names, module in super().units():
            stage = names[-1] if names else ""
            if stage in self.eab:
                units += [(names[:-1], module), ((stage,), self.eab[stage])]
            else:
                units.append((names, module))
        return units


def build(
    variant: str = "paper",
    eab: str = "stem,res2,res3,res4",
    fusion: str = "dynamic",
    pool: str = "max",
    scales: str = "multi",
    inter_relu: bool = True,
    dilation: bool = True,
    factorised: bool = False,
    expand: str = "small",
    lmc: bool = False,
    segments: int = 8,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Build EAN's trunk.

    Args:
        variant: "paper" or "released" (top of this file).
        eab: the stages that end in an Event Adaptive Block, with commas between them; "none" for
            no block (Tables 5 and 6: "stem,res2" is stages 1-2).
        fusion: M of each block: "dynamic", "static", "shuffle" or "identity" (Table 9; M = I is the
            Incep-Block).
        pool: the pool of each block: "max", "avg" or "none" (Table 10), which leaves the 1×1×1
            convolution W alone.
        scales: taps of the three channel groups (Table 8): "multi" (1, 3, 5), "small" (3 each, the
            S-Block with fusion="identity") or "large" (5 each, the L-Block).
        inter_relu: the ReLU between the halves of a block.
        dilation: make 5 taps of 3 with dilation 2.
        factorised: 1×3×1 then 1×1×3 in place of 1×3×3: (1+1+1)D (Table 10).
        expand: start of a block's last convolution, "small" or "zero".
        lmc: add Latent Motion Code. The input then has 5 adjacent frames for each segment.
        segments: T with lmc, 8 or 16.
        reduce: channels of the stage "reduced" (see `ResNet`), 0 for none.
        width: channels of the stem; with lmc a multiple of 4.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: another value.
    """
    stages = ()
    if eab != "none":
        stages = tuple(part.strip() for part in eab.split(","))
    if not set(stages) <= set(STAGES) or len(set(stages)) < len(stages):
        raise ValueError(
            f"eab={eab!r}: expected none, or names among {', '.join(STAGES)}, each once, a comma "
            f"between them"
        )
    if segments not in (8, 16):
        raise ValueError(f"segments={segments!r}: expected 8 or 16")
    if width < 1 or (lmc and width % 4):
        raise ValueError(f"width={width}: expected at least 1, and with lmc a multiple of 4")
    design = Design(variant, fusion, pool, scales, inter_relu, dilation, factorised, expand)
    return EANResNet(stages, design, lmc, segments, reduce, width)
