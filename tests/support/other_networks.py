"""Networks of other projects, as plain functions of their own weights by their own names.

They are written from the projects' model files and share no code with pipeline/backbones:

- `caffe2_maps`: lib/models/resnet_video.py, resnet_video_org.py, resnet_helper.py and
  nonlocal_helper.py of facebookresearch/video-nonlocal-net; slowfast/models/stem_helper.py and
  video_model_builder.py of facebookresearch/SlowFast where the two differ (the padding of pool1);
- `mmaction2_maps`: mmaction/models/backbones/resnet3d.py and resnet_tsm.py of open-mmlab/mmaction2;
- `Shifted`: ops/temporal_shift.py of mit-han-lab/temporal-shift-module.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = (3, 4, 6, 3)
# Taps in time of the first convolution of every block (arc_type 2 of resnet_video.py).
I3D_TAPS = ((3, 3, 3), (3, 1, 3, 1), (3, 1, 3, 1, 3, 1), (1, 3, 1))
HEAVY_TAPS = ((3,) * 3, (3,) * 4, (3,) * 6, (3,) * 3)
C2D_TAPS = ((1,) * 3, (1,) * 4, (1,) * 6, (1,) * 3)


def caffe2_blobs(width, taps, *, non_local=(), affine=False, seed=0):
    """Random blobs of a network of video-nonlocal-net, as `save_model_params` saves them.

    Args:
        width: channels of the stem; 64 in the published files.
        taps: of every block.
        non_local: blocks that have a non-local block behind them, such as "3_1".
        affine: norms without statistics.
        seed: of the values.
    """
    draw = torch.Generator().manual_seed(seed)
    blobs = {}

    def conv(name, source, target, *kernel):
        fan = source * kernel[0] * kernel[1] * kernel[2]
        blobs[f"{name}_w"] = torch.randn(target, source, *kernel, generator=draw) / fan**0.5

    def norm(name, channels):
        blobs[f"{name}_s"] = torch.rand(channels, generator=draw) + 0.5
        blobs[f"{name}_b"] = torch.randn(channels, generator=draw) * 0.1
        if not affine:
            blobs[f"{name}_rm"] = torch.randn(channels, generator=draw) * 0.1
            blobs[f"{name}_riv"] = torch.rand(channels, generator=draw) * 3 + 0.2

    conv("conv1", 3, width, 5 if taps[0][0] > 1 else 1, 7, 7)
    norm("res_conv1_bn", width)
    channels = width
    for stage, stage_taps in enumerate(taps, 2):
        inner = width * 2 ** (stage - 2)
        for block, count in enumerate(stage_taps):
            name = f"res{stage}_{block}"
            if block == 0:
                conv(f"{name}_branch1", channels, inner * 4, 1, 1, 1)
                norm(f"{name}_branch1_bn", inner * 4)
            conv(f"{name}_branch2a", channels, inner, count, 1, 1)
            conv(f"{name}_branch2b", inner, inner, 1, 3, 3)
            conv(f"{name}_branch2c", inner, inner * 4, 1, 1, 1)
            for letter, size in (("a", inner), ("b", inner), ("c", inner * 4)):
                norm(f"{name}_branch2{letter}_bn", size)
            channels = inner * 4
            if f"{stage}_{block}" in non_local:
                name = f"nonlocal_conv{stage}_{block}"
                for part in ("theta", "phi", "g"):
                    conv(f"{name}_{part}", channels, channels // 2, 1, 1, 1)
                    blobs[f"{name}_{part}_b"] = torch.randn(channels // 2, generator=draw) * 0.1
                conv(f"{name}_out", channels // 2, channels, 1, 1, 1)
                blobs[f"{name}_out_b"] = torch.randn(channels, generator=draw) * 0.1
                norm(f"{name}_bn", channels)
    blobs["pred_w"] = torch.zeros(400, channels)
    blobs["pred_b"] = torch.zeros(400)
    return blobs


def caffe2_file(blobs):
    """What `save_model_params` pickles: arrays, with the momenta and the step beside them."""
    saved = {name: value.numpy() for name, value in blobs.items()}
    for name in list(saved):
        if not name.endswith(("_rm", "_riv")):
            saved[f"{name}_momentum"] = saved[name] * 0
    return {"blobs": {**saved, "model_iter": 400000, "lr": saved["pred_b"][:1]}}


def caffe2_maps(blobs, frames, *, conv1_stride=1, pool1=(1, 1, 0), pool2=2, taps=I3D_TAPS):
    """The maps of a network of video-nonlocal-net.

    Args:
        blobs: its weights.
        frames: uint8 [B,F,H,W,3], RGB.
        conv1_stride: in time.
        pool1: window and stride in time, and padding in space, of the first maximum.
        pool2: window and stride of the maximum over time behind res2.
        taps: of every block.

    Returns:
        {"stem": [B,C,T,h,w], "res2": ..., "res5": ...}.
    """

    def norm(x, name):
        channels = (None, slice(None), None, None, None)
        if f"{name}_rm" in blobs:
            deviation = (blobs[f"{name}_riv"] + 1e-5).sqrt()
            x = (x - blobs[f"{name}_rm"][channels]) / deviation[channels]
        return x * blobs[f"{name}_s"][channels] + blobs[f"{name}_b"][channels]

    def conv(x, name, stride=(1, 1, 1)):
        weight = blobs[f"{name}_w"]
        padding = tuple(size // 2 for size in weight.shape[2:])
        return F.conv3d(x, weight, blobs.get(f"{name}_b"), stride, padding)

    x = (frames.permute(0, 4, 1, 2, 3).float() - 114.75) / 57.375
    x = norm(conv(x, "conv1", (conv1_stride, 2, 2)), "res_conv1_bn").relu()
    window, step, pad = pool1
    x = F.max_pool3d(x, (window, 3, 3), (step, 2, 2), (0, pad, pad))
    maps = {"stem": x}
    for stage, blocks in enumerate(BLOCKS, 2):
        if stage == 3:
            x = F.max_pool3d(x, (pool2, 1, 1), (pool2, 1, 1))
        for block in range(blocks):
            name = f"res{stage}_{block}"
            stride = 2 if block == 0 and stage > 2 else 1
            y = norm(conv(x, f"{name}_branch2a"), f"{name}_branch2a_bn").relu()
            y = conv(y, f"{name}_branch2b", (1, stride, stride))
            y = norm(y, f"{name}_branch2b_bn").relu()
            y = norm(conv(y, f"{name}_branch2c"), f"{name}_branch2c_bn")
            if block == 0:
                x = norm(conv(x, f"{name}_branch1", (1, stride, stride)), f"{name}_branch1_bn")
            x = (x + y).relu()

            name = f"nonlocal_conv{stage}_{block}"
            if f"{name}_g_w" in blobs:
                pooled = F.max_pool3d(x, (1, 2, 2), (1, 2, 2))
                theta = conv(x, f"{name}_theta").flatten(2)
                phi, g = (conv(pooled, f"{name}_{part}").flatten(2) for part in ("phi", "g"))
                p = (theta.transpose(1, 2) @ phi * theta.shape[1] ** -0.5).softmax(2)
                y = (g @ p.transpose(1, 2)).unflatten(2, x.shape[2:])
                x = x + norm(conv(y, f"{name}_out"), f"{name}_bn")
        maps[f"res{stage}"] = x
    return maps


def mmaction2_state(width, taps, *, flat=False, net="", seed=0):
    """Random weights of mmaction2's ResNet3d (or, flat, of its 2-D ResNet), by its names.

    Args:
        width: channels of the stem; 64 in the published files.
        taps: of every block.
        flat: 2-D kernels.
        net: "net." behind the first convolution of a block, as TSM has it.
        seed: of the values.
    """
    draw = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, source, target, *kernel, inside=""):
        shape = (target, source, *(kernel[1:] if flat else kernel))
        fan = source * kernel[0] * kernel[1] * kernel[2]
        state[f"{name}.conv.{inside}weight"] = torch.randn(shape, generator=draw) / fan**0.5
        state[f"{name}.bn.weight"] = torch.rand(target, generator=draw) + 0.5
        state[f"{name}.bn.bias"] = torch.randn(target, generator=draw) * 0.1
        state[f"{name}.bn.running_mean"] = torch.randn(target, generator=draw) * 0.1
        state[f"{name}.bn.running_var"] = torch.rand(target, generator=draw) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    conv("backbone.conv1", 3, width, 5 if taps[0][0] > 1 else 1, 7, 7)
    channels = width
    for stage, stage_taps in enumerate(taps, 1):
        inner = width * 2 ** (stage - 1)
        for block, count in enumerate(stage_taps):
            name = f"backbone.layer{stage}.{block}"
            conv(f"{name}.conv1", channels, inner, count, 1, 1, inside=net)
            conv(f"{name}.conv2", inner, inner, 1, 3, 3)
            conv(f"{name}.conv3", inner, inner * 4, 1, 1, 1)
            if block == 0:
                conv(f"{name}.downsample", channels, inner * 4, 1, 1, 1)
            channels = inner * 4
    state["cls_head.fc_cls.weight"] = torch.zeros(400, channels)
    state["cls_head.fc_cls.bias"] = torch.zeros(400)
    return state


def mmaction2_maps(state, frames, *, stem_steps=1, pool1_pad=1, pool2=1, shift=0):
    """The maps of mmaction2's ResNet3d, C2D, or ResNetTSM.

    Args:
        state: weights of `mmaction2_state`.
        frames: uint8 [B,F,H,W,3], RGB.
        stem_steps: stride in time of the first convolution and of the first maximum.
        pool1_pad: padding in space of the first maximum.
        pool2: window and stride of the maximum over time behind the first stage.
        shift: 1/shift of the channels are shifted each way; 0 for none.
    """
    rgb = (None, slice(None), None, None, None)
    mean = torch.tensor([123.675, 116.28, 103.53])[rgb]
    std = torch.tensor([58.395, 57.12, 57.375])[rgb]

    def module(x, name, stride=(1, 1, 1)):
        weight = state.get(f"{name}.conv.weight")
        if weight is None:
            weight = state[f"{name}.conv.net.weight"]
        if weight.dim() == 4:
            weight = weight[:, :, None]
        padding = tuple(size // 2 for size in weight.shape[2:])
        x = F.conv3d(x, weight, None, stride, padding)
        parts = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var")]
        return F.batch_norm(x, *parts, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"])

    x = (frames.permute(0, 4, 1, 2, 3).float() - mean) / std
    x = module(x, "backbone.conv1", (stem_steps, 2, 2)).relu()
    x = F.max_pool3d(x, (1, 3, 3), (stem_steps, 2, 2), (0, pool1_pad, pool1_pad))
    maps = {"stem": x}
    for stage, blocks in enumerate(BLOCKS, 1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            stride = (1, 2, 2) if block == 0 and stage > 1 else (1, 1, 1)
            entered = shifted(x.transpose(1, 2), shift).transpose(1, 2) if shift else x
            y = module(entered, f"{name}.conv1").relu()
            y = module(module(y, f"{name}.conv2", stride).relu(), f"{name}.conv3")
            if block == 0:
                x = module(x, f"{name}.downsample", stride)
            x = (x + y).relu()
        maps[f"res{stage + 1}"] = x
        if stage == 1 and pool2 > 1:
            x = F.max_pool3d(x, (pool2, 1, 1), (pool2, 1, 1))
    return maps


def shifted(x, part):
    """TSM's shift of frames [B,T,C,h,w]: an eighth (`part` = 8) from the next, as many from before.

    Beyond the ends there are zeros.
    """
    fold = x.shape[2] // part
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
    later = padded[:, 2:, :fold]
    earlier = padded[:, :-2, fold : 2 * fold]
    return torch.cat([later, earlier, x[:, :, 2 * fold :]], dim=2)


class Shifted(nn.Module):
    """TSM's wrapper of a block's first convolution, over frames [B·T,C,h,w].

    Args:
        net: the convolution; its weights' names gain "net.".
        segments: T.
    """

    def __init__(self, net, segments):
        super().__init__()
        self.net, self.segments = net, segments

    def forward(self, x):
        clips = x.unflatten(0, (-1, self.segments))
        return self.net(shifted(clips, 8).flatten(0, 1))
