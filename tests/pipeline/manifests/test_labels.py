"""Class ids follow from the labels, and labels that stand for a missing one are found."""

import pytest

from pipeline.manifests.labels import about_withheld, label_ids, withheld
from pipeline.manifests.manifest import ManifestError, read_manifest
from tests.pipeline.manifests.test_manifest import HEADER, save


def test_number_labels_keep_their_numbers_and_names_are_alphabetical():
    assert label_ids(["10", "2", "10"]) == {"2": 2, "10": 10}
    assert list(label_ids(["10", "2"])) == ["2", "10"]
    assert label_ids(["b", "a", "10", "b"]) == {"10": 0, "a": 1, "b": 2}
    assert label_ids([]) == {}
    assert label_ids(["²", "1"]) == {"1": 0, "²": 1}  # a digit to str.isdigit, no number to int
    with pytest.raises(ManifestError, match="'07'"):
        label_ids(["7", "07"])


def test_labels_that_are_numbers_are_in_the_order_of_numbers():
    assert label_ids(["10.0", "2.0", "0.0"]) == {"0.0": 0, "2.0": 2, "10.0": 10}
    assert label_ids(["10", "2.5", "-3"]) == {"-3": 0, "2.5": 1, "10": 2}
    assert label_ids(["10", "2", "other"]) == {"2": 0, "10": 1, "other": 2}
    # float() takes all of them.
    assert list(label_ids(["1_0", "9", "1e1", "nan"])) == ["9", "1_0", "1e1", "nan"]
    assert label_ids(["9" * 30, "1" + "0" * 29]) == {"1" + "0" * 29: 10**29, "9" * 30: 10**30 - 1}
    for one, other, plain in (
        ("1", "1.0", "1"),
        ("2.50", "2.5", "2.5"),
        ("+7", "7", "7"),
        ("100", "100.0", "100"),
    ):
        expected = f"another label is the same number; write {plain} in every row"
        with pytest.raises(ManifestError, match=expected):
            label_ids([one, other, "cat"])


def manifest_of(tmp_path, *labels: str, split: str = "test"):
    """A clip of train labelled cat, and one of `split` for each label."""
    rows = "".join(f"{k},{k}.mp4,{split},{label}\n" for k, label in enumerate(labels))
    return read_manifest(save(tmp_path, HEADER + "t,t.mp4,train,cat\n" + rows))


@pytest.mark.parametrize(
    "label",
    [
        "-1",
        "-1.0",
        "?",
        "NA",
        "n/a",
        "NaN",
        "nan",
        "None",
        "NULL",
        "<NA>",
        "-100",
        "unknown",
        "-",
        "n.a.",
        "<unk>",
        "TBD",
    ],
)
def test_what_programs_write_for_an_unknown_label_is_found(tmp_path, label):
    manifest = manifest_of(tmp_path, label, label, "dog", f"dog;{label}", "")
    ((found, clips),) = withheld(manifest).items()
    assert (found, [clip.clip for clip in clips]) == (label, ["0", "1", "3"])
    assert repr(label) in about_withheld(found, clips)


def test_a_word_that_may_be_a_class_is_one_where_it_is_learned(tmp_path):
    assert not withheld(manifest_of(tmp_path, "unknown", "missing", "-100", "-2", split="train"))
    assert set(withheld(manifest_of(tmp_path, "-1", "None", "0", split="train"))) == {"-1", "None"}
    assert not withheld(manifest_of(tmp_path, "1", "nano", "a-1", "Nonesuch", "no", "0"))
