"""detectron2 as it is installed today: a stand-in with its files, tiny networks, and a model_zoo
that cannot be imported.
"""

import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pipeline.proposals import build_proposals
from pipeline.proposals._model_zoo import why_no_detectron2

ZOO = "COCO-Detection/rpn_R_50_FPN_1x"
URL = f"https://example.org/detectron2/{ZOO}/137258492/model_final_02ce48.pkl"

FILES = {
    "__init__.py": "__version__ = '0.6'\n",
    "layers.py": "class FrozenBatchNorm2d:\n    pass\n",
    "structures.py": "class ImageList:\n    pass\n",
    "utils/__init__.py": "",
    "utils/file_io.py": """
from pathlib import Path
from urllib.error import URLError

class PathManager:
    served = {}  # address -> file; without one there is no network

    @classmethod
    def get_local_path(cls, address):
        if "://" not in address:
            return address
        if address not in cls.served:
            raise URLError("Name or service not known")
        return cls.served[address]
""",
    "config.py": """
import yaml
from types import SimpleNamespace as Node

class Config(Node):
    def merge_from_file(self, path, allow_unsafe=False):
        for name, value in yaml.safe_load(open(path))["MODEL"].items():
            getattr(self.MODEL, name)
            setattr(self.MODEL, name, value)

def get_cfg():
    rpn = Node(HEAD_NAME="StandardRPNHead", POST_NMS_TOPK_TEST=1000, NMS_THRESH=0.7)
    generator = Node(NAME="RPN")
    model = Node(
        META_ARCHITECTURE="GeneralizedRCNN", WEIGHTS="", PROPOSAL_GENERATOR=generator, RPN=rpn
    )
    model.PIXEL_MEAN, model.PIXEL_STD = [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]
    return Config(MODEL=model, INPUT=Node(FORMAT="BGR"))
""",
    "modeling/__init__.py": """
from torch import nn

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.objectness_logits, self.anchor_deltas = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 12, 1)

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.rpn_head, self.anchor_generator = Head(), nn.Identity()

class Backbone(nn.Module):
    size_divisibility = 32

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def output_shape(self):
        return {}

def build_backbone(cfg):
    return Backbone()

def build_proposal_generator(cfg, shape):
    return Generator()
""",
    "model_zoo/__init__.py": "from .model_zoo import get_config_file\n",
    "model_zoo/model_zoo.py": f"""
import pkg_resources_is_gone  # as pkg_resources is, which a test must not count on

class _ModelZooUrls:
    S3_PREFIX = "https://example.org/detectron2/"
    # format: {{config_path.yaml}} -> model_id/model_final_{{commit}}.pkl
    CONFIG_PATH_TO_URL_SUFFIX = {{
        "{ZOO}": "137258492/model_final_02ce48.pkl",  # noqa
    }}
""",
    f"model_zoo/configs/{ZOO}.yaml": "MODEL:\n  META_ARCHITECTURE: ProposalNetwork\n  WEIGHTS: "
    "detectron2://R-50.pkl\n",
    "model_zoo/configs/Base-RCNN-FPN.yaml": "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The folder of the stand-in, which is what `import detectron2` finds."""
    folder = tmp_path / "site" / "detectron2"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    real = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "detectron2"
    }
    for name in real:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        del sys.modules[name]
    sys.modules.update(real)


@pytest.fixture
def weights(package, tmp_path) -> dict[str, torch.Tensor]:
    """A state dict of the stand-in's networks with recognisable numbers, which lies in ours.pth and
    ours.pkl.
    """
    from detectron2.modeling import Backbone, Generator

    network = torch.nn.ModuleDict({"backbone": Backbone(), "proposal_generator": Generator()})
    state = {name: torch.full_like(value, 0.25) for name, value in network.state_dict().items()}
    torch.save({"model": state}, tmp_path / "ours.pth")
    arrays = {name: value.numpy() for name, value in state.items()} | {
        "roi_heads.box_head.fc1.bias": torch.ones(3).numpy()
    }
    (tmp_path / "ours.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    return state


def built(**options):
    return build_proposals("detectron2", size=64, num_boxes=4, **options)


def holds(source, state) -> bool:
    return torch.equal(source.backbone.stem.weight, state["backbone.stem.weight"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("ending", [".pkl", ".pth"])
def test_prefixes_of_wrappers_are_taken_off_in_both_kinds_of_files(
    package, weights, prefix, ending, tmp_path
):
    path = tmp_path / f"wrapped{ending}"
    wrapped = {prefix + name: value for name, value in weights.items()}
    if ending == ".pth":
        torch.save({"model": wrapped}, path)
    else:
        arrays = {name: value.numpy() for name, value in wrapped.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    assert holds(built(weights=str(path)), weights)


def test_a_pickle_that_would_run_code_is_refused(package, tmp_path):
    (tmp_path / "code.pkl").write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(ValueError, match=r"loading it would execute builtins\.print: refused"):
        built(weights=str(tmp_path / "code.pkl"))


def test_weights_of_torchvision_are_named(package, tmp_path):
    torch.save({"rpn.head.cls_logits.weight": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="torchvision's; pass --proposals torchvision"):
        built(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_a_name_of_the_model_zoo_needs_a_path_and_a_url_and_no_pkg_resources(
    package, weights, tmp_path, ending
):
    from detectron2.utils.file_io import PathManager

    PathManager.served[URL] = str(tmp_path / "ours.pkl")
    assert holds(built(config=ZOO + ending), weights)
    assert "detectron2.model_zoo" not in sys.modules
    with pytest.raises(ModuleNotFoundError):  # so that this is the detectron2 of the title
        import detectron2.model_zoo  # noqa: F401


def test_a_checkout_that_was_not_built_has_its_configs_beside_the_package(package):
    (package / "model_zoo" / "configs").rename(package.parent / "configs")
    assert built(weights="none").num_boxes == 4


def test_random_weights_and_a_file_need_no_network(package, weights, tmp_path):
    assert not holds(built(weights="none"), weights)
    for name in ("ours.pth", "ours.pkl"):
        source = built(weights=str(tmp_path / name))
        assert holds(source, weights)
        assert len(source.weights_sha256) == 64


@pytest.mark.parametrize("where", ["absolute", "beside", "address"])
def test_a_yaml_file_brings_its_own_weights(package, weights, tmp_path, where):
    from detectron2.utils.file_io import PathManager

    PathManager.served["detectron2://mine/ours.pkl"] = str(tmp_path / "ours.pkl")
    named = {
        "absolute": tmp_path / "ours.pth",
        "beside": "ours.pth",
        "address": "detectron2://mine/ours.pkl",
    }[where]
    config = tmp_path / "mine.yaml"
    config.write_text(f"MODEL:\n  WEIGHTS: {named}\n")
    assert holds(built(config=str(config)), weights)


# What detectron2's modeling runs into, and what we say.
BROKEN = {
    "fvcore": ("from fvcore.nn import smooth_l1_loss", r"pip install fvcore$"),
    "hydra": ("import hydra", r"pip install hydra-core$"),
    "compiled": ("from detectron2 import _C", r"compiled part, detectron2\._C, is missing"),
    "compiled too": ("import detectron2._C", r"compiled part, detectron2\._C, is missing"),
    "torch": (
        "raise ImportError('/x/_C.so: undefined symbol: _Z\\nmore')",
        r"does not load .*undefined symbol.*another torch",
    ),
    "old": ("import PIL.Image; PIL.Image.LINEARLY", r"does not load \(AttributeError: .*LINEARLY"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_detectron2_that_does_not_load_names_the_real_cause(package, monkeypatch, what):
    for name in ("fvcore", "fvcore.nn", "hydra"):
        monkeypatch.setitem(sys.modules, name, None)
    line, words = BROKEN[what]
    (package / "modeling" / "__init__.py").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=words) as caught:
        built(weights="none")
    assert "\n" not in str(caught.value)
    assert why_no_detectron2() in str(caught.value)


def test_the_folder_of_a_clone_is_not_taken_for_the_package(package, monkeypatch):
    """What `import detectron2` finds in the folder above it, where none is installed."""
    shutil.rmtree(package)
    monkeypatch.setattr(
        sys,
        "path",
        [path for path in sys.path if not Path(path, "detectron2", "__init__.py").is_file()],
    )
    (package / "detectron2").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"has no detectron2\.modeling: it is another folder of that name"
    ):
        built(weights="none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"config": "COCO-Detection/rpn_R50_FPN"}, f"did you mean .*{ZOO}"),
        ({"config": "/there/is/none.yaml", "weights": "none"}, "there is no such file"),
        ({}, f"could not fetch {URL}.*Name or service not known.*pass weights=FILE"),
        (
            {"config": "Base-RCNN-FPN"},
            "config 'Base-RCNN-FPN'.*model zoo has no weights for that name; pass weights=FILE",
        ),
        ({"config": "{}/bare.yaml"}, r"names no MODEL\.WEIGHTS; pass weights=FILE"),
        ({"config": "{}/backbone.yaml"}, "expected the weights of a whole network"),
        ({"config": "{}/broken.yaml"}, "expected a detectron2 YAML file"),
        ({"weights": "{}/none.pkl"}, "no such weights file"),
        ({"weights": "{}/none.pth"}, "no such weights file"),
    ],
)
def test_every_other_failure_is_one_line_that_names_the_cause(package, tmp_path, options, words):
    (tmp_path / "bare.yaml").write_text("MODEL:\n  META_ARCHITECTURE: ProposalNetwork\n")
    (tmp_path / "backbone.yaml").write_text("MODEL:\n  WEIGHTS: R-50.pkl\n")
    (tmp_path / "R-50.pkl").write_bytes(
        pickle.dumps({"conv1_w": torch.ones(3).numpy(), "__author__": "MSRA"})
    )
    (tmp_path / "broken.yaml").write_text("MODEL: [1, 2\nWEIGHTS:\n")
    with pytest.raises(ValueError, match=words) as caught:
        built(**{key: value.format(tmp_path) for key, value in options.items()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [None, "import (", "S3_PREFIX = 'x'\n", "S3_PREFIX = f()\n"])
def test_a_model_zoo_of_another_make_is_named(package, source):
    file = package / "model_zoo" / "model_zoo.py"
    file.unlink() if source is None else file.write_text(source)
    with pytest.raises(
        ValueError,
        match=r"model_zoo\.py does not list its weights as expected .*; pass weights=FILE",
    ) as caught:
        built()
    assert "\n" not in str(caught.value)


def test_configs_that_are_nowhere_are_said_to_be_missing(package):
    (package / "model_zoo" / "configs").rename(package / "elsewhere")
    with pytest.raises(
        ValueError, match=r"has no configs \(expected them in .*model_zoo/configs\)"
    ):
        built(weights="none")
