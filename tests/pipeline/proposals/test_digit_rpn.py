"""The small RPN: it learns a tiny problem in seconds, and is a source of boxes like the others."""

import numpy as np
import pytest
import torch

from pipeline.proposals import build_proposals
from pipeline.proposals.digit_rpn import build, fit, recall

SIDE = 12


def squares(
    count: int, seed: int, height: int = 34, width: int = 46
) -> tuple[np.ndarray, np.ndarray]:
    """Frames [count,H,W,3] with two bright squares each, boxes [count,2,4] in pixels; no side is a
    multiple of the stride.
    """
    rng = np.random.default_rng(seed)
    frames = np.full((count, height, width, 3), 30, np.uint8)
    left = np.stack(
        [rng.integers(0, width // 2 - SIDE, count), rng.integers(0, height - SIDE, count)], -1
    )
    right = np.stack([left[:, 0] + width // 2, rng.integers(0, height - SIDE, count)], -1)
    boxes = np.stack([left, right], 1)
    boxes = np.concatenate([boxes, boxes + SIDE], -1)
    for frame, some in zip(frames, boxes, strict=True):
        for x1, y1, x2, y2 in some:
            frame[y1:y2, x1:x2] = 220
    return frames, boxes.astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("rpn") / "rpn.pt", *squares(64, seed=0), steps=80, batch=8)


def propose(source, frames):
    return source.propose(torch.from_numpy(frames), None, None, tuple(range(len(frames))))


def test_a_fit_finds_the_objects_of_frames_that_it_has_not_seen(weights):
    found, per_object = recall(build(str(weights), num_boxes=4), *squares(30, seed=1))
    assert found >= 0.95
    assert 0.95 <= per_object <= 2


def test_random_weights_do_not_find_them(tmp_path):
    untrained = fit(tmp_path / "rpn.pt", *squares(8, seed=0), steps=2, batch=2, lr=1e-9)
    assert recall(build(str(untrained), num_boxes=4), *squares(30, seed=1))[0] < 0.5


def test_boxes_are_in_the_unit_square_best_first_and_padded_rows_say_so(weights):
    boxes, scores = propose(build(str(weights), num_boxes=6), squares(5, seed=2)[0])
    assert boxes.shape == (5, 6, 4)
    assert boxes.dtype == scores.dtype == np.float32
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (scores[:, -1] == -1).all()
    assert not boxes[scores < 0].any()
    real = boxes[scores >= 0]
    assert (real[:, 2:] > real[:, :2]).all()


def test_a_frame_has_the_same_boxes_alone_and_among_others(weights):
    frames, source = squares(7, seed=3)[0], build(str(weights), batch=3)
    together, alone = propose(source, frames), propose(source, frames[4:5])
    np.testing.assert_allclose(together[0][4], alone[0][0], atol=1e-5)
    np.testing.assert_allclose(together[1][4], alone[1][0], atol=1e-5)


def test_a_higher_threshold_keeps_the_best_boxes_only(weights):
    frames = squares(5, seed=2)[0]
    _, all_scores = propose(build(str(weights), min_score=0.0), frames)
    threshold = float(np.median(all_scores[all_scores >= 0]))
    boxes, scores = propose(build(str(weights), min_score=threshold), frames)
    assert (scores >= 0).sum() == (all_scores >= threshold).sum()
    assert not boxes[scores < 0].any()


def test_frames_without_objects_may_stay_without_boxes(weights):
    blank = np.full((2, 34, 46, 3), 30, np.uint8)
    assert (propose(build(str(weights), min_score=0.9), blank)[1] == -1).all()


def test_the_same_arguments_give_the_same_weights(tmp_path):
    data = squares(8, seed=0)
    a, b, c = (
        torch.load(fit(tmp_path / f"{k}.pt", *data, steps=3, batch=4, seed=seed), weights_only=True)
        for k, seed in enumerate((5, 5, 6))
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_fitting_and_proposing_leave_torch_as_it_was(tmp_path, weights):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        fit(tmp_path / "rpn.pt", *squares(4, seed=0), steps=1, batch=2)
        propose(build(str(weights)), squares(1, seed=0)[0])
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)


def test_boxes_without_area_are_no_objects(tmp_path):
    frames, boxes = squares(8, seed=0)
    padded = np.concatenate([boxes, np.zeros((8, 3, 4), np.float32)], 1)
    a, b = (
        torch.load(fit(tmp_path / f"{k}.pt", frames, some, steps=3, batch=4), weights_only=True)
        for k, some in enumerate((boxes, padded))
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    source = build(str(tmp_path / "0.pt"), min_score=0.0)
    assert recall(source, frames, boxes)[0] == recall(source, frames, padded)[0]


def test_it_is_a_source_by_name_with_the_checksum_of_its_weights(weights):
    source = build_proposals("digit_rpn", weights=str(weights), size=34, num_boxes=3)
    assert (source.frame_size, source.num_boxes, source.in_view) == (34, 3, False)
    assert len(source.weights_sha256) == 64
    assert source.to("cpu", "bf16") is source
    assert propose(source, squares(2, seed=1)[0])[0].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", 0), ("num_boxes", 1.5), ("batch", True), ("min_score", 2), ("nms", -1)],
)
def test_a_bad_option_is_named(weights, option, value):
    with pytest.raises(ValueError, match=rf"digit_rpn': {option}="):
        build(str(weights), **{option: value})


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not the weights of this network"):
        build(str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match="no such weights file"):
        build(str(tmp_path / "absent.pt"))


def test_frames_that_do_not_match_their_boxes_are_refused(tmp_path):
    frames, boxes = squares(4, seed=0)
    with pytest.raises(ValueError, match="expected frames"):
        fit(tmp_path / "rpn.pt", frames, boxes[:3])
    with pytest.raises(ValueError, match="boxes with an area"):
        fit(tmp_path / "rpn.pt", frames, np.zeros_like(boxes))
