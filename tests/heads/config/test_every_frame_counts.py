"""Every frame that a network of a table's row is given reaches its logits: narrow, untrained, from
frames.

A readout that sees the last step alone, or messages that go too few steps, leave frames without a
gradient. Nothing else would show it: such a row trains, to a lower accuracy.
"""

import json
from functools import cache

import pytest
import torch
from torch import nn

from heads.config.recipe import Recipe, read_recipe
from heads.config.recipe_tables import FrameOptions, HeadChoice
from heads.config.study_file import read_study, study_names
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.interface.clips import Clips
from heads.zoo import build_head, head_options
from pipeline.backbones import build_backbone
from pipeline.stages.config import with_settings
from tests.heads.config.test_recipe_rows import ROWS, config_of_command, split

WIDTH, CLASSES = 4, 5
NARROW = {"width": 8, "offset_width": 4, "hidden": 8, "roi_size": 2}


MOST_BOXES = 9  # of a frame, where a row has more


def narrowed(head: HeadChoice) -> str:
    """A head's name and its options with few channels, without files of weights, in JSON."""
    options = {}
    for key, value in head.options.items():
        if key not in ("weights", "transfer"):
            options[key] = value
    if "proposals" in options:
        options["proposals"] = min(options["proposals"], MOST_BOXES)
    for key in NARROW:
        if key in head_options(head.name):
            options[key] = NARROW[key]
    if options.get("backbone"):
        options["backbone_options"] = {**options.get("backbone_options", {}), "width": WIDTH}
    return json.dumps([head.name, options])


def side_for(head: str, options: dict) -> int:
    """The pixels of a frame's side, as few as the head's maps allow."""
    if head.startswith(("gos", "strg")):
        return 32
    # DyReg's modules need 3 x 3 cells, the digit networks frames of 64 pixels.
    return 96 if "res5" in options.get("at", "") else 64


@cache
def frames_without_gradient(backbone: str, sizes: tuple, head: str) -> list[int]:
    """The frames that no logit depends on.

    Args:
        backbone: its name and options, in JSON.
        sizes: frames, boxes, the cut that is pooled, how boxes become nodes.
        head: its name and options, in JSON.
    """
    length, boxes, cut, roi_pool = sizes
    (name, options), (head_name, choices) = json.loads(backbone), json.loads(head)
    side = side_for(head_name, choices)
    torch.manual_seed(0)
    trunk = build_backbone(name, **{**options, "width": WIDTH})
    dims = joint_dims(trunk, length, side, cut, boxes)
    network = JointNetwork(
        trunk,
        build_head(head_name, dims, CLASSES, **choices),
        FrameOptions(train_from="stem", frozen_bn=True),
        cut=cut,
        roi_pool=roi_pool,
    ).eval()
    # What starts at 0 would hide what lies behind it.
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)

    inputs = []
    prepare = network.backbone.prepare

    def prepare_leaf(frames: torch.Tensor) -> torch.Tensor:
        inputs.append(prepare(frames).requires_grad_())  # [B,3,F,h,w]
        return inputs[-1]

    network.backbone.prepare = prepare_leaf
    frames = torch.randint(0, 256, (1, length, side, side, 3), dtype=torch.uint8)
    corners = torch.rand(1, dims.T, boxes, 2) * 0.5
    clips = Clips(
        frames=frames,
        boxes=torch.cat([corners, corners + 0.5], -1),
        scores=torch.ones(1, dims.T, boxes),
        valid=torch.ones(1, dims.T, boxes, dtype=torch.bool),
    )
    logits = network(clips).logits
    (logits * torch.randn_like(logits)).sum().backward()
    reach = inputs[0].grad.abs().amax((0, 1, 3, 4))
    return (reach == 0).nonzero()[:, 0].tolist()


def check(recipe: Recipe, config) -> None:
    """Check the network of every phase."""
    options = {key: value for key, value in config.backbone_options.items() if key != "fresh"}
    backbone = json.dumps([config.backbone, options])
    # More boxes say nothing more of time; DyReg's detector wants 9.
    boxes = min(config.proposal_options.get("num_boxes", 10), MOST_BOXES)
    sizes = config.sampling.frames, boxes, config.cut, config.roi_pool
    for phase in recipe.all_phases:
        lost = frames_without_gradient(backbone, sizes, narrowed(recipe.of(phase).head))
        assert lost == [], f"phase {phase.name}: frames {lost} of {sizes[0]} reach no logit"


@pytest.mark.parametrize(
    ("name", "more"), [pytest.param(*one[2:], id=f"{one[0]}, {one[1]}") for one in ROWS]
)
def test_every_frame_of_a_row_reaches_the_logits(name, more):
    settings, words = split(more)
    check(read_recipe(name, settings), config_of_command(name, tuple(words)))


# Those that read a cache of any kind, or boxes that come from no frame.
OF_CACHES = ("demo", "attentive", "stin", "stlt")


@pytest.mark.parametrize("name", [name for name in study_names() if not name.startswith(OF_CACHES)])
def test_every_frame_of_a_study_s_rows_reaches_the_logits(name):
    for row in read_study(name).rows:
        config = config_of_command(row.cells["recipe"], ())
        check(row.recipe, with_settings(config, getattr(row, "extract", {})))
