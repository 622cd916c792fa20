"""Dist on generated digits, whose places are known."""

import numpy as np
import pytest
import torch
from torch import nn

from heads.interface.clips import HeadOutput
from heads.reproduction.digit_regions import DigitBoxes, digit_boxes, distance_of_network
from pipeline.backbones import build_backbone, freeze
from pipeline.digits import DigitVideos, MultiSyncDigits, cache_digits, load_images

TASK = MultiSyncDigits(digits=2, frames=4, canvas=64, size=32, tile=14)


@pytest.fixture(scope="module")
def images():
    return load_images()


class LooksAt(nn.Module):
    """Has the only region of each step where `place` says, on a map of 8 x 8 cells."""

    def __init__(self, place):
        super().__init__()
        self.place, self.seen = place, 0

    def forward(self, clips, want_maps=False):
        assert want_maps
        assert not self.training
        first, self.seen = self.seen, self.seen + len(clips.frames)
        middles = self.place(np.arange(first, self.seen))  # [B,T,1,2], (y, x) in [0,1]
        maps = {"centres.a": middles * 8 - 0.5, "kernels.a": torch.ones(*middles.shape[:3], 8, 8)}
        return HeadOutput(torch.zeros(1), maps=maps)


def test_a_network_that_looks_at_the_second_digit_is_as_far_from_the_first_as_they_are(images):
    videos = DigitVideos(TASK, images["test"], 3, "test")
    made = videos[np.arange(7)]
    middles = (made.boxes[..., :2] + made.boxes[..., 2:]) / 2 / TASK.size

    def second(numbers):
        return middles[numbers][:, :, 1:].flip(-1)

    network = LooksAt(second).train()
    found = distance_of_network(network, videos, 7, batch=3)
    apart = (middles[:, :, 0] - middles[:, :, 1]).norm(dim=-1).mean().item()
    assert found["dist"] == pytest.approx(apart / 2, abs=1e-5)
    assert found["dist_regions"] == pytest.approx(0, abs=1e-5)
    assert network.training


def test_boxes_of_a_cache_are_those_of_its_videos_at_its_steps(images, tmp_path):
    torch.manual_seed(0)
    backbone, weights = build_backbone("digit_cnn", width=8, pixels="unit"), tmp_path / "w.pt"
    torch.save(backbone.state_dict(), weights)
    counts = {"train": 3, "test": 2}
    cache = cache_digits(
        tmp_path / "cache", TASK, images, counts, freeze(backbone), weights, seed=3
    )
    boxes, valid = DigitBoxes(cache, TASK, images, 3).of(np.array([4, 1]), 2)
    assert valid.all()
    for k, (split, number) in enumerate((("test", 1), ("train", 1))):
        made = DigitVideos(TASK, images[split], 3, split)[[number]]
        expected = made.boxes[0, [0, 2]] / TASK.size
        torch.testing.assert_close(boxes[k], expected)
        again = digit_boxes(TASK, images[split], 3, split, [number])[0]
        np.testing.assert_allclose(again[[0, 2]], expected)
