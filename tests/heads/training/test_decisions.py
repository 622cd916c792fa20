"""The shares of views whose decision changed since the last validation."""

import numpy as np

from heads.training.decisions import Decisions


def test_a_view_counts_once_however_much_of_it_changed():
    decisions = Decisions()
    first = np.zeros((4, 3), int)
    assert decisions.changed({"structure": first}) == {}
    second = first.copy()
    second[1, 0] = 1
    second[3] = 2
    assert decisions.changed({"structure": second}) == {"structure": 0.5}
    assert decisions.changed({"structure": second}) == {"structure": 0.0}


def test_decisions_of_other_views_are_not_compared():
    decisions = Decisions()
    decisions.changed({"structure": np.zeros((4, 3), int)})
    assert decisions.changed({"structure": np.ones((5, 3), int)}) == {}


def test_a_continued_run_compares_with_the_decisions_of_its_checkpoint():
    decisions, continued = Decisions(), Decisions()
    assert decisions.state() == {}
    continued.load({})
    present = np.array([[0, 1], [2, 2]])
    decisions.changed({"structure": present})
    present[0] = 7  # the checkpoint has a copy
    continued.load(decisions.state())
    assert continued.changed({"structure": present}) == {"structure": 0.5}
