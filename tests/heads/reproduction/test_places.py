"""Ideal maps, the training for class and place, and the probe that tells whether it worked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from heads.reproduction import place_training
from heads.reproduction.centre_probe import probe_centres
from heads.reproduction.ideal_maps import SPOT, centres_of, digit_cnn_geometry, ideal_maps
from heads.reproduction.place_training import PlaceTraining, train_places
from pipeline.backbones import build_backbone
from pipeline.digits import DigitVideos, Sync3, SyncDigits, load_images

TASK = Sync3(classes=5, reach=30, frames=2)


@pytest.mark.parametrize("size", [64, 48])
def test_a_cell_lies_in_the_middle_of_what_it_sees_of_the_frame(size):
    """The gradient of a cell by the pixels, whatever the geometry says."""
    backbone, geometry = build_backbone("digit_cnn", width=2), digit_cnn_geometry(size)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(0.1)  # positive everywhere: every pixel of the view counts
    pixels = torch.rand(1, 3, 1, size, size, requires_grad=True)
    fmap = backbone(pixels)
    assert fmap.shape[-1] == geometry.cells
    for cell in (0, geometry.cells - 1):
        # A maximum passes the gradient of one pixel: the mean of many frames fills the view.
        seen = torch.zeros(size)
        for _ in range(60):
            pixels = torch.rand(1, 3, 1, size, size, requires_grad=True)
            backbone(pixels)[0, 0, 0, cell, cell].backward()
            seen += pixels.grad.abs().sum((0, 1, 2, 3))
        columns = seen.nonzero().flatten()
        middle = (columns[0] + columns[-1] + 1).item() / 2
        assert abs(middle - (geometry.first + cell * geometry.stride)) <= 1


def test_a_spot_is_where_its_digit_is_in_the_channel_of_its_class():
    geometry = digit_cnn_geometry(64)
    # The second digit is a quarter of a cell right of cell (row 1, column 3).
    centres = torch.tensor([[[[11.0, 51.0], [11.0 + 3.25 * 8, 19.0]]]])
    maps = ideal_maps(centres, torch.tensor([[4, 2]]), 5, geometry)
    assert maps.shape == (1, 1, 5, 6, 6)
    assert maps[0, 0, [0, 1, 3]].abs().sum() == 0
    assert maps[0, 0, 4, 5, 0] == 1
    assert maps[0, 0, 4].argmax() == 5 * 6
    assert maps[0, 0, 2, 1, 3].item() == pytest.approx(np.exp(-(0.25**2) / (2 * SPOT**2)))
    assert maps[0, 0, 2, 1, 4].item() == pytest.approx(np.exp(-(0.75**2) / (2 * SPOT**2)))
    # Digits of one class add up.
    both = ideal_maps(centres, torch.tensor([[2, 2]]), 5, geometry)
    assert torch.allclose(both[0, 0, 2], maps[0, 0, 2] + maps[0, 0, 4])


def test_centres_are_those_of_the_boxes():
    batch = DigitVideos(TASK, load_images()["val"])[[0, 1, 2]]
    middle = (batch.boxes[..., :2] + batch.boxes[..., 2:]) / 2
    assert torch.allclose(centres_of(TASK, batch.corners), middle, atol=1e-4)


def test_the_digit_network_learns_places_better_than_empty_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(place_training, "CHECKED", 100)
    monkeypatch.setattr(place_training, "CHECKS", 1)
    tasks = [TASK, SyncDigits(classes=5, reach=30)]
    options = PlaceTraining(width=8, options={"pixels": "unit"}, steps=60, batch=8, lr=0.01)
    found = train_places(tmp_path / "net.pt", tasks, load_images(), options, say=str)
    assert found.error < 0.95
    build_backbone("digit_cnn", weights=str(found.path), width=8, pixels="unit")


def test_tasks_of_different_frames_are_refused(tmp_path):
    tasks = [TASK, replace(TASK, size=48)]
    options = PlaceTraining(width=4, options={}, steps=1)
    with pytest.raises(ValueError, match="one frame size"):
        train_places(tmp_path / "net.pt", tasks, load_images(), options, say=str)


# --- the probe


def frames(count: int, seed: int, informative: bool) -> tuple[torch.Tensor, ...]:
    """Features of two digits a frame that are linear in their centres, or noise."""
    random = torch.Generator().manual_seed(seed)
    centres = 64 * torch.rand(count, 2, 2, generator=random)
    classes = torch.tensor([[0, 1], [1, 0]])[torch.arange(count) % 2]
    by_class = centres.gather(1, classes[..., None].expand(-1, -1, 2)).flatten(1)
    noise = torch.randn(count, 4, generator=random)
    return (by_class / 10 + 3 if informative else noise), centres, classes


@pytest.mark.parametrize("informative", [True, False])
def test_the_probe_finds_what_is_linear_in_the_features_and_nothing_else(informative):
    train, test = (frames(500, seed, informative) for seed in (0, 1))
    found = probe_centres(train, test, 2)
    # The mean distance of a point to the middle of its square is 0.3826 of the side.
    assert found.guess == pytest.approx(0.3826 * 64, rel=0.05)
    if informative:
        assert found.features < 1
    else:
        assert found.features == pytest.approx(found.guess, rel=0.05)


def test_a_probe_that_could_learn_its_frames_by_heart_is_refused():
    with pytest.raises(ValueError, match="more than 4 training frames"):
        probe_centres(frames(4, 0, True), frames(9, 1, True), 2)


def test_the_probe_reads_centres_from_ideal_maps_within_three_pixels():
    geometry, sets = digit_cnn_geometry(64), []
    task = replace(TASK, frames=1)
    for split, count in (("train", 800), ("test", 200)):
        scenes = task.scenes(load_images()[split], 0, split, np.arange(count))
        centres = centres_of(task, torch.from_numpy(scenes.corners))
        classes = torch.from_numpy(scenes.classes)
        maps = ideal_maps(centres, classes, 5, geometry)[:, 0].flatten(1)
        sets.append((maps, centres[:, 0], classes))
    found = probe_centres(*sets, 5)
    assert found.features < 3 < found.guess
