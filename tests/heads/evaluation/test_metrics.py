"""Views to videos, and the figures, against counts made by hand."""

import numpy as np
import pytest

from heads.evaluation.metrics import (
    aggregate,
    confusion,
    mean_average_precision,
    scores_of,
    summarise,
    top_k,
)


def test_top_k_counts_labels_among_the_k_highest():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = np.array([1, 1, 0, 0])
    assert top_k(scores, labels, 1) == 0.5
    assert top_k(scores, labels, 2) == 0.75
    assert top_k(scores, labels, 3) == 1


def test_equal_scores_are_no_hit_for_everybody():
    """A head that says the same for every class must score chance, not 100 %."""
    assert top_k(np.zeros((200, 200)), np.arange(200), 1) == 1 / 200
    assert top_k(np.zeros((200, 200)), np.arange(200), 5) == 5 / 200


def test_average_precision_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    targets = np.array([[1], [0], [1], [0]])
    assert mean_average_precision(scores, targets) == pytest.approx((1 + 2 / 3) / 2)


def test_classes_without_positives_are_left_out_of_the_mean():
    scores = np.array([[0.9, 0.1], [0.2, 0.3]])
    assert mean_average_precision(scores, np.array([[1, 0], [0, 0]])) == 1
    assert np.isnan(mean_average_precision(scores, np.zeros((2, 2))))
    assert summarise(scores, np.zeros((2, 2))) == {}


def test_softmax_and_sigmoid_survive_large_logits():
    logits = np.array([[1e4, -1e4], [0, 0]], np.float32)
    np.testing.assert_allclose(scores_of(logits, "softmax"), [[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(scores_of(logits, "sigmoid"), [[1, 0], [0.5, 0.5]])
    np.testing.assert_array_equal(scores_of(logits, "logits"), logits)


def test_views_aggregate_by_mean_or_max_whatever_their_order():
    scores = np.array([[1.0, 0], [5, 2], [3, 4], [0, 9]])
    video = np.array([1, 0, 1, 1])
    np.testing.assert_allclose(aggregate(scores, video, 2, "mean"), [[5, 2], [4 / 3, 13 / 3]])
    np.testing.assert_allclose(aggregate(scores, video, 2, "max"), [[5, 2], [3, 9]])
    with pytest.raises(ValueError, match="video 2 of 3 has no view"):
        aggregate(scores, video, 3, "mean")


def test_confusion_rows_are_labels():
    table = confusion(np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]]), np.array([0, 0, 2]))
    np.testing.assert_array_equal(table, [[1, 1, 0], [0, 0, 0], [0, 1, 0]])


def test_class_mean_does_not_follow_the_balance_of_classes():
    scores = np.eye(2)[[0] * 9 + [0]]
    found = summarise(scores, np.array([0] * 9 + [1]))
    assert found == {"top1": 0.9, "class_mean": 0.5}
    assert "top5" in summarise(np.random.default_rng(0).random((4, 6)), np.arange(4))
