"""vidgraph in one flat list, for notebooks and scripts.

    import vidgraph

    cache = vidgraph.Cache("caches/something")
    cache["train"].view(17)                        # one view: a dictionary of arrays
    cache["train"].batch([3, 1, 2], ["nodes"])     # several views, in this order

    data = vidgraph.dataset(cache, split="train", fields=["nodes", "boxes", "valid"])
    head = vidgraph.build_head("strg", data.dims, len(data.classes))

    vidgraph.predict("runs/strg", cache, "val").scores     # [videos, classes]
    vidgraph.predict("runs/strg", "holiday.mp4").answers   # of videos that are in no cache

Everything here is defined in the packages `pipeline` and `heads`. Each name is imported when it is
first used, so `import vidgraph` itself takes milliseconds.
"""

from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.config.recipe import read_recipe
    from heads.data.view_dataset import ViewDataset, dataset
    from heads.evaluation.saved_heads import load_run
    from heads.interface.clips import Clips, Dims, HeadOutput
    from heads.prediction.videos import predict
    from heads.zoo import build_head, head_names, head_options
    from pipeline.backbones import Backbone, backbone_names, backbone_options, build_backbone
    from pipeline.cache.joined import open_caches
    from pipeline.cache.reader import Cache, Group
    from pipeline.manifests.manifest import read_manifest
    from pipeline.proposals import build_proposals, proposal_names

_HOMES = {
    # A cache, its views, and the views of a split as a torch Dataset.
    "Cache": "pipeline.cache.reader",
    "Group": "pipeline.cache.reader",
    "open_caches": "pipeline.cache.joined",
    "read_manifest": "pipeline.manifests.manifest",
    "ViewDataset": "heads.data.view_dataset",
    "dataset": "heads.data.view_dataset",
    # Heads, and what they receive and return.
    "build_head": "heads.zoo",
    "head_names": "heads.zoo",
    "head_options": "heads.zoo",
    "Clips": "heads.interface.clips",
    "Dims": "heads.interface.clips",
    "HeadOutput": "heads.interface.clips",
    # Backbones and sources of boxes.
    "Backbone": "pipeline.backbones",
    "build_backbone": "pipeline.backbones",
    "backbone_names": "pipeline.backbones",
    "backbone_options": "pipeline.backbones",
    "build_proposals": "pipeline.proposals",
    "proposal_names": "pipeline.proposals",
    # Trained heads.
    "read_recipe": "heads.config.recipe",
    "load_run": "heads.evaluation.saved_heads",
    "predict": "heads.prediction.videos",
}

__all__ = list(_HOMES)


def _refuse_hidden_packages() -> None:
    """Raise ImportError if a folder or file of the same name hides one of our packages.

    Python looks in the working directory first, and `pipeline` is a common name.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("pipeline", "heads", "cli"):
        found = find_spec(name)
        if found is None:
            raise ImportError(f"vidgraph needs its package {name}, which is missing: install again")

        if found.origin is None:
            # A folder without an __init__.py. It hides a package that is installed as editable.
            hiding = Path(next(iter(found.submodule_search_locations)))
        else:
            # A package is a folder with an __init__.py; a module is a file.
            origin = Path(found.origin).resolve()
            hiding = origin.parent if origin.name == "__init__.py" else origin

        if hiding.resolve() != home / name:
            raise ImportError(
                f"{hiding} hides vidgraph's package {name}: rename it, or start Python in another "
                f"folder"
            )


_refuse_hidden_packages()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        return metadata.version("vidgraph")
    raise AttributeError(f"module 'vidgraph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
