"""Pickles as Python 2 wrote them, in which Caffe2's weights are published."""

import pickle
import struct
from typing import ClassVar


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, in which Caffe2's files were made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = dispatch[str] = save_text


def write_as_python2(path, value, protocol=2):
    with open(path, "wb") as file:
        Python2Pickler(file, protocol).dump(value)
    # NumPy's place before version 2.
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
