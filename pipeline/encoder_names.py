"""Names of encoders of other libraries: "timm:NAME", "torchvision:NAME", "hf:REPOSITORY-OR-FOLDER".

A name may stand where the name of a backbone does. The library is loaded when the encoder is built,
not here.
"""

import hashlib
import json
import os
from pathlib import Path

from pipeline.files.regular_files import read_small_text

LIBRARIES = ("timm", "hf", "torchvision")

# The files of a folder of transformers that decide what is computed, besides the weights.
HF_CONFIG = "config.json"
HF_PIXELS = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")

# What a folder's files say of where and by what they were saved, and not of what is computed.
_ABOUT_THE_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")

# How records call a local folder. It is no plug-in, whose records end with "@SHA256".
_DIGEST = "hf:sha256="


def is_encoder(name: str) -> bool:
    """Return whether a name of a backbone is that of another library's encoder."""
    library, colon, model = name.partition(":")
    return bool(colon and model) and library in LIBRARIES


def library_and_model(name: str) -> tuple[str, str]:
    """Split the name of an encoder.

    Args:
        name: such as "timm:vit_small_patch16_224".

    Returns:
        The library, and what the library calls the model.
    """
    library, _, model = name.partition(":")
    return library, model


def without_folder(name: str) -> str:
    """The part of an encoder's name that says what is computed.

    Args:
        name: the name of a backbone of any kind.

    Returns:
        A local folder of transformers by the checksum of its configuration, so that it may be moved
        and renamed. Any other name stays.
    """
    library, model = library_and_model(name)
    if library != "hf" or not os.path.isdir(model):
        return name
    digest = hashlib.sha256()
    for file in (HF_CONFIG, *HF_PIXELS):
        path = Path(model) / file
        if path.is_file():
            digest.update(f"{file} {_content(path)}\n".encode())
    return f"{_DIGEST}{digest.hexdigest()}"


def with_absolute_folder(name: str) -> str:
    """Return the name of an encoder so that it holds in every working directory."""
    library, model = library_and_model(name)
    if library == "hf" and os.path.isdir(model):
        return f"{library}:{os.path.abspath(model)}"
    return name


def _content(path: Path) -> str:
    """The values of a JSON file in one form; what it says of the file itself is left out."""
    try:
        table = json.loads(read_small_text(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, as transformers saves it ({error})") from None
    if isinstance(table, dict):
        table = {key: value for key, value in table.items() if key not in _ABOUT_THE_FILE}
    return json.dumps(table, sort_keys=True)
