"""What waits for the GPU while a network is trained from frames: counted on a pretended one."""

import pytest
import torch

from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.frame_training import (
    FrameRunOptions,
    FramesLearner,
    new_network,
    training_of_all_weights,
)
from heads.finetuning.joint_network import joint_dims
from heads.interface.clips import Clips, Dims
from heads.interface.contract import random_clips
from pipeline.backbones import build_backbone
from tests.heads.finetuning.test_finetune import CLASSES, LENGTH, SIDE, recipe
from tests.support.cuda_sites import call_sites

BOXES, VIEWS = 2, 2
SMALL = {"width": 8, "supernodes": 1, "taps": 1}
HEADS = {
    "pool": {"dropout": 0.5},
    "roi_pool": {"dropout": 0.5},
    "mean_lstm": {"dropout": 0.5},
    "strg": {"width": 8},
    "gos": SMALL,
    "gos discrete": {**SMALL, "mode": "discrete"},
    "gos_temp_conv": {"regions": "nodes", "neighbours": "cached", "width": 8, "taps": 1},
    "rstg": {"width": 8},
    "rstg_map": {"backbone": "tsm_r18", "backbone_options": {"width": 8}, "at": "res3.0"},
    "attentive": {"depth": 1, "heads": 1},
    "ean": {"width": 16},
}


pytestmark = pytest.mark.usefixtures("gpu")


def learner(head: str) -> FramesLearner:
    asked = recipe(head.split()[0], HEADS[head], epochs=1)
    phase = asked.phases[0]
    torch.manual_seed(0)
    backbone = build_backbone("tsm_r18", width=8)
    dims = joint_dims(backbone, LENGTH, SIDE, boxes=BOXES)
    one = asked.of(phase)
    net = new_network(one, backbone, dims, len(CLASSES), 0, phase.frames, neighbours=2).to("cuda")
    training = training_of_all_weights(one.train, phase.frames)
    return FramesLearner(
        net.train(), training, one.data, 4, FrameRunOptions(), ProcessGroup(), None
    )


@pytest.mark.parametrize("head", HEADS)
def test_no_mini_batch_of_frames_waits(head, gpu):
    """In training and in evaluation; the graphs that a head reads are computed on the way."""
    one = learner(head)
    boxes = random_clips(Dims(LENGTH, BOXES, 1), size=VIEWS, dtype=torch.float32)
    frames = torch.randint(0, 256, (VIEWS, LENGTH, SIDE, SIDE, 3), dtype=torch.uint8)
    clips = Clips(frames=frames, boxes=boxes.boxes, scores=boxes.scores, valid=boxes.valid)
    clips = clips.to("cuda")
    targets = torch.tensor([0, 1]).to("cuda")
    # The first step may bring constants to the device.
    one.step_part([(clips, targets)], VIEWS)
    with call_sites(gpu) as sites:
        for _ in range(2):
            one.step_part([(clips, targets)], VIEWS)
        assert sites.waits == {}
        one.head.eval()
        with torch.inference_mode():
            one.head(clips)
            sites.clear()
            one.head(clips)
        assert sites.waits == {}
