"""The model of a GPU node that benchmarks/feed.py prints, in cases that can be done by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "_feed_model.py"


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("feed_model", FILE)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def times(model, **changed):
    """1 ms of the device is the longest; a decoder takes 1 ms too, and there are seven."""
    given = {"decode": 1e-3, "main": 1e-4, "device": 1e-3, "write": 1e-4, "bytes": 5e6}
    return model.Times(**(given | changed))


@pytest.mark.parametrize(
    ("changed", "rate"),
    [
        ({}, 1000),  # the device
        ({"decode": 0.07}, 100),  # seven decoders, each 14.3 views a second
        ({"main": 2e-3}, 500),
        ({"write": 4e-3}, 250),
        ({"bytes": 2e8}, 100),  # 20 GB/s over the bus
    ],
)
def test_the_slowest_station_sets_the_rate(model, changed, rate):
    found = model.simulate(times(model, **changed), model.Node(gpus=8, cores=64))
    assert found.rate == pytest.approx(rate, rel=0.03)
    assert found.limit == pytest.approx(1000)
    assert found.share == pytest.approx(rate / 1000, rel=0.03)


def test_twice_the_cores_decode_more_than_twice_as_much(model):
    """One core of each process drives the device: 7 decoders become 15."""
    slow = times(model, decode=0.07)
    rates = [model.simulate(slow, model.Node(8, cores)).rate for cores in (64, 128)]
    assert rates[1] / rates[0] == pytest.approx(15 / 7, rel=0.03)


def test_little_memory_for_pixels_costs_speed_and_never_gives_any(model):
    tight = times(model, decode=6.5e-3)
    rates = []
    for shared in (0, 2 << 30):
        node = model.Node(8, 64, shared=shared)
        rates.append(model.simulate(tight, node, batch=16).rate)
    assert rates[0] < rates[1]
