"""Read whole files of boxes: regular files of any size, as UTF-8."""

from pathlib import Path

from pipeline.files.regular_files import opened
from pipeline.text import text_files as texts


def bytes_of(path: Path) -> bytes:
    """Return the bytes of a file; ValueError where it cannot be read."""
    try:
        with opened(path) as file:
            return file.readall()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); expected a file of boxes"
        ) from error


def text_of(path: Path, digest=None) -> str:
    """Return the text of a file.

    Args:
        path: the file.
        digest: gets its bytes; None for nobody.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    data = bytes_of(path)
    if digest is not None:
        digest.update(data)
    return texts.decoded(data, path, "a text file of boxes")
