"""Advice about unknown names."""

import pytest

from pipeline.text.suggestions import nearest_names

CLIPS = [f"cat/{k}.mp4" for k in range(20)] + ["dog/walking.mp4", "dog/running.mp4"]


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("dog/walkin.mp4", "dog/walking.mp4"),
        ("walking", "dog/walking.mp4"),  # without folder and ending
        ("RUNNING.MP4", "dog/running.mp4"),
        ("cat/7.mp", "cat/7.mp4"),
    ],
)
def test_the_nearest_names_come_first_and_are_five(word, first):
    names = nearest_names(word, CLIPS).removeprefix("the nearest are ").split(", ")
    assert names[0] == first
    assert len(names) == len(set(names)) == 5
    assert set(names) <= set(CLIPS)


def test_few_names_are_all_shown():
    assert nearest_names("x", ["b", "a"]) == "the nearest are a, b"
    assert nearest_names("x", ["b"]) == "there is only b"
    assert nearest_names("x", []) == "there are none"
