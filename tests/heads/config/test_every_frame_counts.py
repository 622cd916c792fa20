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
from heads.config.recipe_tables import FrameOptions
from heads.config.study_file import read_study, study_names
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.interface.clips import Clips
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.stages.config import with_settings
from tests.heads.config.test_recipe_rows import ROWS, config_of_command, split

# Narrow ones of the same shape. The digit networks' maps depend on the size of a frame.
WIDTH, SIDE = 4, 64
CLASSES = 5
NARROW = {"width": 8, "offset_width": 4, "hidden": 8, "roi_size": 2}


def narrow_head(options: dict) -> dict:
    """The options of a head with few channels, and without files of weights."""
    options = {key: value for key, value in options.items() if key not in ("weights", "transfer")}
    if options.get("backbone"):
        inner = {**options.get("backbone_options", {}), "width": WIDTH}
        options["backbone_options"] = inner
    return options


@cache
def frames_without_gradient(backbone: str, sizes: tuple, head: str) -> list[int]:
    """The frames that no logit depends on.

    Args:
        backbone: its name and options, in JSON.
        sizes: frames, boxes, the cut that is pooled, how boxes become nodes.
        head: its name and options, in JSON.
    """
    length, boxes, cut, roi_pool = sizes
    (name, options), (head_name, head_options) = json.loads(backbone), json.loads(head)
    torch.manual_seed(0)
    trunk = build_backbone(name, **{**options, "width": WIDTH})
    dims = joint_dims(trunk, length, SIDE, cut, boxes)
    network = JointNetwork(
        trunk,
        build_head(head_name, dims, CLASSES, **head_options),
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
    frames = torch.randint(0, 256, (1, length, SIDE, SIDE, 3), dtype=torch.uint8)
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
    boxes = config.proposal_options.get("num_boxes", 10)
    sizes = config.sampling.frames, boxes, config.cut, config.roi_pool
    for phase in recipe.all_phases:
        head = recipe.of(phase).head
        narrow = narrow_head({**head.options, **_known(head.name)})
        lost = frames_without_gradient(backbone, sizes, json.dumps([head.name, narrow]))
        assert lost == [], f"phase {phase.name}: frames {lost} of {sizes[0]} reach no logit"


def _known(head: str) -> dict:
    """The options of `NARROW` that a head has."""
    from heads.zoo import head_options

    return {key: value for key, value in NARROW.items() if key in head_options(head)}


@pytest.mark.parametrize(
    ("name", "more"), [pytest.param(*one[2:], id=f"{one[0]}, {one[1]}") for one in ROWS]
)
def test_every_frame_of_a_row_reaches_the_logits(name, more):
    settings, words = split(more)
    check(read_recipe(name, settings), config_of_command(name, tuple(words)))


@pytest.mark.parametrize("name", [name for name in study_names() if not name.startswith("demo")])
def test_every_frame_of_a_study_s_rows_reaches_the_logits(name):
    for row in read_study(name).rows:
        config = config_of_command(row.cells["recipe"], ())
        check(row.recipe, with_settings(config, getattr(row, "extract", {})))
