"""Pickles of arrays: files of Python 2 and 3 are read, and none runs code."""

import pickle
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pipeline.networks.array_pickle import is_pickle, read_arrays
from pipeline.networks.checkpoint_files import read_checkpoint
from tests.support.python2_pickles import write_as_python2

ARRAYS = {
    "conv1_w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">f4"),
    "half": np.array([0.5, 2], dtype=np.float16),
    "count": np.int64(7),
    "empty": np.zeros((0, 2), np.float32),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_arrays_in_tables_become_tensors_of_the_same_values(protocol, tmp_path):
    path = tmp_path / "weights.bin"
    saved = OrderedDict(blobs=dict(ARRAYS), epoch=3, name="i3d")
    path.write_bytes(pickle.dumps(saved, protocol=protocol))
    found = read_arrays(path)
    assert (found["epoch"], found["name"]) == (3, "i3d")
    for name, array in ARRAYS.items():
        assert isinstance(found["blobs"][name], torch.Tensor)
        np.testing.assert_array_equal(found["blobs"][name].numpy(), array)


def test_pickles_of_python_2_are_read(tmp_path):
    path = tmp_path / "c2_model.pkl"
    write_as_python2(path, {"blobs": ARRAYS})
    assert b"numpy.core.multiarray" in path.read_bytes()
    found = read_arrays(path)["blobs"]
    np.testing.assert_array_equal(found["conv1_w"].numpy(), ARRAYS["conv1_w"])
    np.testing.assert_array_equal(found["turned"].numpy(), ARRAYS["turned"])


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "call",
    [
        lambda ran: Call(open, ran, "w"),
        lambda ran: Call(subprocess.check_call, ["touch", ran]),
        lambda ran: Call(eval, f"open({ran!r}, 'w')"),
        lambda ran: Call(getattr, Call(__import__, "os"), "system"),
        lambda ran: {"blobs": {"conv1_w": Call(np.fromfile, ran)}},
        lambda ran: Call(np.memmap, ran, "f4", "w+", 0, 4),
        lambda ran: Call(torch.load, ran),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused_and_calls_nothing(call, protocol, tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(call(str(ran)), protocol=protocol))
    with pytest.raises(ValueError, match=r"loading it would execute [\w.]+: refused"):
        read_checkpoint(tmp_path / "weights.pkl")
    assert not ran.exists()


def test_an_encoding_other_than_latin1_is_refused(tmp_path):
    """A codec's name makes Python import a module."""
    stream = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    (tmp_path / "weights.pkl").write_bytes(stream)
    with pytest.raises(ValueError, match="would execute the codec 'rot13': refused"):
        read_arrays(tmp_path / "weights.pkl")


def test_a_name_with_dots_reaches_no_attribute(tmp_path):
    """Protocol 4 takes "a.b" as an attribute of what the module has."""
    stream = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    (tmp_path / "weights.pkl").write_bytes(stream)
    with pytest.raises(ValueError, match=r"would execute numpy\.ndarray\.tofile: refused"):
        read_arrays(tmp_path / "weights.pkl")


@pytest.mark.parametrize("length", [1, 2, 10, 60, 200])
def test_a_damaged_pickle_is_an_error_in_one_line(length, tmp_path):
    whole = pickle.dumps({"blobs": ARRAYS}, protocol=2)
    (tmp_path / "weights.pkl").write_bytes(whole[:length])
    with pytest.raises(ValueError, match="Error") as caught:
        read_checkpoint(tmp_path / "weights.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_told_from_pickles_whatever_their_name(zipped, tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert not is_pickle(path)
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": np.ones(2)}))
    assert is_pickle(tmp_path / "weights.pth")
    assert torch.equal(read_checkpoint(tmp_path / "weights.pth")["a"], torch.ones(2).double())


def test_a_score_that_numpy_counted_may_stand_beside_the_weights(tmp_path):
    saved = {"state_dict": {"a": torch.ones(2)}, "best": np.float64(53.4), "epochs": np.arange(3)}
    torch.save(saved, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth")["best"] == 53.4


class Progress:
    """What a training program keeps beside the weights."""


def test_an_object_of_another_program_is_named(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "log": Progress()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"it holds [\w.]+\.Progress, an object that only code"):
        read_checkpoint(tmp_path / "weights.pth")
