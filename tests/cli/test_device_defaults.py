"""What suits a device is chosen for a new cache, and an old one goes on as it began."""

import json

import pytest

from cli._shared.device_defaults import settle
from pipeline.cache.creation import create_cache
from pipeline.manifests.manifest import read_manifest
from tests.support.fake_cuda import fake_cuda
from tests.support.tiny_videos import write_csv

NOTHING = {"precision": None, "frame_resize": None, "device": "auto"}
GPU = {"precision": "bf16", "frame_resize": "device"}
CPU = {"precision": "fp32", "frame_resize": "pil"}


def chosen(**given) -> dict[str, str]:
    found = settle({**NOTHING, **given})
    return {name: found[name] for name in ("precision", "frame_resize")}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, CPU),
        ({"device": "cuda"}, GPU),
        ({"gpus": "all"}, GPU),
        ({"gpus": "all", "device": "cpu"}, CPU),
        ({"slurm": "partition=gpu,gres=gpu:1"}, GPU),
        ({"slurm": "gpus-per-node=4"}, GPU),
        ({"slurm": "partition=long"}, CPU),
        ({"slurm": "partition=long", "device": "cuda"}, GPU),
        ({"print_sbatch": True}, CPU),
        ({"dask": 2}, CPU),
        ({"precision": "fp32", "device": "cuda"}, {**GPU, "precision": "fp32"}),
        ({"frame_resize": "pil", "device": "cuda"}, {**GPU, "frame_resize": "pil"}),
    ],
)
def test_a_new_cache_gets_what_suits_where_it_is_computed(no_gpu, given, wanted):
    assert chosen(**given) == wanted


def test_a_gpu_of_this_machine_is_found(monkeypatch):
    with fake_cuda():
        assert chosen() == GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert chosen(dask=2) == GPU


def test_a_cache_goes_on_as_it_began(tmp_path, no_gpu):
    write_csv(
        tmp_path / "manifest.csv", ("clip", "path", "split", "label"), [("a", "a.mp4", "train", 0)]
    )
    config = {"precision": "tf32", "resize": "device", "dtype": "float16"}
    create_cache(tmp_path / "cache", config, read_manifest(tmp_path / "manifest.csv"), 1)
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["config"] == config
    wanted = {"precision": "tf32", "frame_resize": "device"}
    assert chosen(cache=tmp_path / "cache") == wanted
    assert chosen(cache=tmp_path / "cache", device="cpu") == wanted


def test_what_was_chosen_is_said_and_what_was_asked_for_is_not(no_gpu, capsys):
    chosen()
    assert "precision fp32 (--precision), as suits a CPU" in capsys.readouterr().err
    chosen(precision="bf16")
    assert capsys.readouterr().err == ""
    chosen(slurm="partition=long")
    assert "--slurm asks for no GPU" in capsys.readouterr().err
