"""The product on a pretended GPU (tests/support/fake_cuda.py): nothing mixes devices, and the figures are the CPU's.

What the CPU gives for the same input is the right value: the pretended device computes with the CPU's kernels.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from support.fake_cuda import CudaTensor, fake_cuda
from test_demo import run as run_demo
from test_finetune import Videos
from test_finetune import network as live_network
from test_finetune import recipe as live_recipe
from test_zoo import CASES, CLASSES, ONE_SIZE, fresh, some_clips
from tiny_backbone import NAMES, relative
from tiny_cache import Tiny
from tiny_videos import config_of, make_videos, write_csv
from tiny_videos import run as extract_run

from cli.__main__ import vidgraph
from heads import runs
from heads.ablate import How as AblateHow
from heads.ablate import ablate
from heads.end_to_end import train_frames
from heads.evaluate import evaluate
from heads.finetune import Reading, finetune, frames_phase
from heads.frames import How
from heads.learner import Learner
from heads.recipe import recipe_from
from heads.store import Store
from heads.study import read_study
from heads.train import train
from heads.training import Alternate, LossShare, Training
from pipeline.cache import Cache
from pipeline.config import ExtractConfig
from pipeline.decode import VideoInfo
from pipeline.digit_cache import cache_digits
from pipeline.digits import TASKS, DigitVideos, load_images
from pipeline.extract import RunOptions
from pipeline.forward import Models
from pipeline.graphs import build_graphs, graphs_of, GraphOptions
from pipeline.manifest import Clip
from pipeline.pixels import ClipPixels
from pipeline.proposals import digit_rpn
from pipeline.roi import roi_align
from pipeline.sample import Sampling, views_of

SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module", autouse=True)
def gpu():
    with fake_cuda() as device:
        yield device


def places(state) -> set[str]:
    return {str(tensor.device) for tensor in state.values()}


# --- heads


def learner(case: str, place: str, precision: str = "fp32", **training) -> Learner:
    head = fresh(case).to(place)
    return Learner(head, Training(**{"epochs": 1, "lr": 0.01, **training}), "single", 4, 0, precision)


@pytest.mark.parametrize("case", CASES)
def test_every_head_learns_and_predicts_there_what_it_does_on_the_cpu(case):
    clips, targets = some_clips(dtype=torch.float32), torch.tensor([0, 1, 5])
    logits = []
    for place in ("cpu", "cuda"):
        one = learner(case, place, clip_norm=1.0, ema=0.9)
        mine = clips.to(place)
        assert np.isfinite(one.step(mine, targets.to(place)))
        head = fresh(case).to(place).eval()
        with torch.no_grad():
            out = head(mine, want_maps=True)
        logits.append(out.logits.cpu())
        if place == "cuda":
            assert places(one.head.state_dict()) == {"cuda:0"}
            assert places({"logits": out.logits, **out.maps, **out.stored}) == {"cuda:0"}
    assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_every_head_learns_there_in_mixed_precision(case, precision):
    one = learner(case, "cuda", precision, optimiser="adam")
    loss = one.step(some_clips(dtype=torch.float32).to("cuda"), torch.tensor([0, 1, 5], device="cuda"))
    assert np.isfinite(loss)
    state = one.state()
    again = learner(case, "cuda", precision, optimiser="adam")
    again.load(state)
    assert all(tensor.equal(again.head.state_dict()[name]) for name, tensor in state["state"].items())
