"""Advice about unknown names."""

import re

import pytest

from pipeline.text.suggestions import nearest_names

CLIPS = [f"cat/{k}.mp4" for k in range(20)] + ["dog/walking.mp4", "dog/running.mp4"]


LIKE_IT = re.compile("the nearest (is|are) ")


@pytest.mark.parametrize(
    ("word", "first", "count"),
    [
        ("dog/walkin.mp4", "dog/walking.mp4", 5),
        ("walking", "dog/walking.mp4", 1),  # without folder and ending
        ("RUNNING.MP4", "dog/running.mp4", 1),
        ("cat/7.mp", "cat/7.mp4", 5),
    ],
)
def test_the_nearest_names_come_first_and_are_at_most_five(word, first, count):
    names = LIKE_IT.sub("", nearest_names(word, CLIPS)).split(", ")
    assert names[0] == first
    assert len(names) == len(set(names)) == count
    assert set(names) <= set(CLIPS)


def test_only_names_that_are_like_it_are_called_nearest():
    assert nearest_names("walking", CLIPS) == "the nearest is dog/walking.mp4"
    assert nearest_names("0815", CLIPS) == (
        "none is like it; there are cat/0.mp4, cat/1.mp4, cat/10.mp4, cat/11.mp4, cat/12.mp4, ..."
    )


def test_few_names_are_all_shown():
    assert nearest_names("x", ["b", "a"]) == "there are a, b"
    assert nearest_names("x", ["b"]) == "there is only b"
    assert nearest_names("x", []) == "there are none"
