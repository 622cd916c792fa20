"""What half precision costs on a CPU, and what happens on a CPU that has none.

oneDNN's own variable plays the other CPUs.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pipeline.networks.precision as precision
from heads.interface import lstm as recurrent
from heads.interface.lstm import LSTM
from pipeline.stages.config import PRECISIONS

ROOT = Path(__file__).parents[3]


def under(isa: str, code: str) -> str:
    """Return what a new process prints, with oneDNN limited to `isa`."""
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="oneDNN has other kernels on this CPU",
)
def test_a_cpu_with_avx2_alone_says_so_and_trains_an_lstm():
    code = """
import torch
from torch import nn
from heads.interface.lstm import LSTM
from pipeline.stages.config import PRECISIONS
from pipeline.networks.precision import autocast, autocast_runs_lstm, cost
print(cost("bf16", "cpu"))
layer, x = LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
with autocast(torch.device("cpu"), "bf16"):
    y, _ = layer(x)
y.float().sum().backward()
print(autocast_runs_lstm(torch.bfloat16), y.dtype, bool(layer.weight_ih_l0.grad.abs().sum() > 0))
try:
    with autocast(torch.device("cpu"), "bf16"):
        nn.LSTM(3, 4)(x)
except ValueError as error:
    print(error)
"""
    said, ran, refused = under("AVX2", code).splitlines()
    assert "no bf16 arithmetic" in said
    assert "12 times" in said
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in said
    assert ran == "False torch.bfloat16 True"
    assert refused.startswith("precision bf16: this CPU (")
    assert refused.endswith("pass --precision fp32")


@pytest.mark.parametrize(
    ("onednn", "limit", "has", "found"),
    [
        (False, "", True, "none"),
        (True, "", True, "native"),
        (True, "", False, "emulated"),
        (True, "avx512_core", True, "emulated"),
        (True, "AVX512_CORE_AMX", True, "native"),
    ],
)
def test_bf16_is_native_only_where_cpu_and_onednn_both_have_it(
    monkeypatch, onednn, limit, has, found
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(precision, "_has_bf16", lambda: has)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert precision.bf16_on_cpu() == found
    line = precision.cost("bf16", "cpu")
    assert (line is None) == (found == "native")
    assert line is None or ("\n" not in line and "fp32" in line)
    assert precision.cost("bf16", "cuda") is precision.cost("fp32", "cpu") is None


def test_an_lstm_that_stays_in_float32_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    ours, theirs = LSTM(6, 5, 2, batch_first=True), nn.LSTM(6, 5, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 6)
    (y, (h, c)), (other_y, (other_h, other_c)) = ours(x), theirs(x)
    assert torch.equal(y, other_y)
    assert torch.equal(h, other_h)
    assert torch.equal(c, other_c)
    monkeypatch.setattr(recurrent, "autocast_runs_lstm", lambda dtype: False)
    with torch.autocast("cpu", torch.bfloat16):
        y, (h, c) = ours(x.bfloat16())
    assert y.dtype == h.dtype == c.dtype == torch.bfloat16
    torch.testing.assert_close(y, theirs(x.bfloat16().float())[0].bfloat16())


def test_other_errors_keep_their_words():
    with (
        pytest.raises(RuntimeError, match="something else"),
        precision.autocast(torch.device("cpu"), "bf16"),
    ):
        raise RuntimeError("something else")


def test_the_commands_say_it_once(monkeypatch, capsys):
    from cli._options import say_cost

    monkeypatch.setattr(precision, "bf16_on_cpu", lambda: "none")
    say_cost("bf16", "cpu")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "12 times" in said
    for asked in (("fp32", "cpu"), ("fp16", "cpu")):
        say_cost(*asked)
    say_cost("bf16", "cuda", elsewhere=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", ["extract", "plan", "train", "ablate", "evaluate", "finetune"])
def test_every_verb_with_a_precision_says_it(verb):
    assert "say_cost(" in (ROOT / "cli" / f"{verb}.py").read_text()


def test_an_extraction_takes_the_precisions_that_have_a_dtype():
    assert tuple(precision.DTYPES) == PRECISIONS
