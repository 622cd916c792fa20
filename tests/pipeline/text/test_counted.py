"""Nouns and verbs agree with their numbers."""

import pytest

from pipeline.text import agree, counted


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 clips are"), (1, "1 clip is"), (2, "2 clips are"), (1001, "1,001 clips are")],
)
def test_noun_and_verb_agree_with_their_number(count, words):
    assert f"{counted(count, 'clip')} {agree(count, 'is', 'are')}" == words


def test_a_plural_may_be_another_word():
    assert counted(2, "class", "classes") == "2 classes"
    assert counted(1, "class", "classes") == "1 class"
