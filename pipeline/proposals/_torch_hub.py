"""Files of weights that torchvision offers, in the folder where torch keeps its downloads."""

from pathlib import Path

import torch

from pipeline.text.printable import unguarded_error


def weights_file(url: str, source: str) -> Path:
    """Return the file of a URL. It is downloaded on first use, and checked by the hash in its name.

    Args:
        url: of torchvision's weights.
        source: the name of the source of boxes, for the message.

    Raises:
        ValueError: it cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unguarded_error():  # draws a progress bar
            torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1])
    except OSError as error:
        raise ValueError(
            f"proposals {source!r}: cannot download {url} ({error}); fetch it elsewhere and pass "
            f"weights=FILE"
        ) from error
    return path
