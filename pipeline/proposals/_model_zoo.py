"""Whether an installed detectron2 works, where its configs are, and the addresses of its weights.

`detectron2.model_zoo` imports pkg_resources, which setuptools no longer has from version 82 on. So
that module is not imported here: its configs are files, and its list of weights is plain data in
its source.
"""

import ast
import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pipeline.text.printable import first_line
from pipeline.text.suggestions import nearest

INSTALL = (
    "the command in INSTALL.md of the repository facebookresearch/detectron2 (it is on no package "
    "index)"
)
USED = (
    "detectron2",
    "detectron2.modeling",
    "detectron2.config",
    "detectron2.structures",
    "detectron2.utils.file_io",
)
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow", "cv2": "opencv-python", "hydra": "hydra-core"}


def why_no_detectron2() -> str:
    """Say in one line why detectron2 does not work here and what to do about it; "" if it works."""
    try:
        for name in USED:
            import_module(name)
    except Exception as error:  # an old one may raise anything on newer libraries
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """What a failed import of detectron2 means."""
    said = first_line(error)
    name = getattr(error, "name", None) or ""
    not_found = isinstance(error, ModuleNotFoundError)
    words = said.replace("'", " ").replace(".", " ").split()

    if not_found and name == "detectron2":
        return f"it is not installed; install it with {INSTALL}"
    if "_C" in words and "undefined symbol" not in said:
        return f"its compiled part, detectron2._C, is missing ({said}); install it with {INSTALL}"
    if "undefined symbol" in said or ".so" in said:
        return (
            f"its compiled part does not load ({said}): it was built for another torch; install it "
            f"again with {INSTALL}"
        )
    if not_found and name.startswith("detectron2."):
        where = ", ".join(find_spec("detectron2").submodule_search_locations)
        return (
            f"{where} has no {name}: it is another folder of that name; install detectron2 with "
            f"{INSTALL}"
        )
    if not_found and name:
        package = name.partition(".")[0]
        distribution = DISTRIBUTIONS.get(package, package)
        return f"it needs {package}, which is not installed; pip install {distribution}"
    return f"it does not load ({type(error).__name__}: {said}); install a newer one with {INSTALL}"


def package_folder() -> Path:
    """Return the folder of the installed package."""
    return Path(import_module("detectron2").__file__).parent


def config_file(name: str) -> Path:
    """Return the YAML file of a name in the model zoo, with or without its ending.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    package, known = package_folder(), {}
    # Of an installed package, or of a checkout that was not built.
    for folder in (package / "model_zoo" / "configs", package.parent / "configs"):
        for path in folder.rglob("*.yaml"):
            known[path.relative_to(folder).with_suffix("").as_posix()] = path
        if known:
            break
    if not known:
        expected = f"expected them in {package / 'model_zoo' / 'configs'}"
        raise ValueError(
            f"the detectron2 here has no configs ({expected}); install it again, or name a YAML "
            f"file"
        )

    bare = _bare(name)
    if bare not in known:
        if name.startswith((".", "~")) or Path(name).is_absolute():
            raise ValueError("there is no such file")
        raise ValueError(f"no such file, nor a name in the model zoo: {nearest(bare, known)}")
    return known[bare]


def weights_url(name: str) -> str:
    """Return the URL of the model zoo's weights for one of its names; ValueError without one."""
    source = package_folder() / "model_zoo" / "model_zoo.py"
    wanted = ("S3_PREFIX", "CONFIG_PATH_TO_URL_SUFFIX")
    found = {}
    try:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id in wanted:
                found[target.id] = ast.literal_eval(node.value)
        prefix, suffixes = (found[key] for key in wanted)
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{source} does not list its weights as expected ({reason}); pass weights=FILE"
        ) from None
    name = _bare(name)
    if name not in suffixes:
        raise ValueError("detectron2's model zoo has no weights for that name; pass weights=FILE")
    return f"{prefix}{name}/{suffixes[name]}"


def fetched(address: str) -> Path:
    """Download a file into detectron2's cache of downloads, unless it is there.

    Args:
        address: a URL, or what detectron2 calls detectron2:// or catalog://.

    Returns:
        The local file.

    Raises:
        ValueError: it cannot be downloaded.
    """
    # Our error says in one line what iopath logs about a failure.
    logging.getLogger("iopath").setLevel(logging.CRITICAL)
    try:
        if address.startswith("catalog://"):
            import_module("detectron2.checkpoint")  # knows what these are
        return Path(import_module("detectron2.utils.file_io").PathManager.get_local_path(address))
    except Exception as error:
        # No network, no such file, no room and no such entry raise different errors.
        reason = first_line(error)
        raise ValueError(
            f"could not fetch {address} ({reason}); fetch it elsewhere and pass weights=FILE"
        ) from None


def _bare(name: str) -> str:
    return name.removesuffix(".yaml")
