"""The precisions that networks compute in, what the CPU has of them, and their cost.

bf16 is faster than fp32 only on a CPU with instructions for it: AVX512_BF16 or AMX on x86-64,
BF16 on ARM. `ONEDNN_MAX_CPU_ISA` (or `DNNL_MAX_CPU_ISA`) limits what oneDNN uses. Convolutions
are oneDNN's, so this limit counts here. `ATEN_CPU_CAPABILITY` limits torch's own kernels; it
changes no convolution and no LSTM, so only `words_for_cpu` shows it.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# By the values of --precision. "tf32" rounds the factors of products to 10 bits, on a GPU.
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Time of a forward pass of i3d_r50 in bf16, divided by its time in fp32: 18 with
# ONEDNN_MAX_CPU_ISA=AVX2, 2.2 with AVX512_CORE, 0.52 without a limit. A single 3×3 convolution
# takes 6 to 12 times as long under AVX2. (One core of an AMD EPYC with AVX512_BF16, torch 2.14.1.)
_COSTS = {
    "none": "convolutions take about 12 times as long as with --precision fp32 (i3d_r50: 18 "
    "times); fp32 is the better choice",
    "emulated": "it computes in float32 and rounds: convolutions take about twice as long as with "
    "--precision fp32",
}

# Values of ONEDNN_MAX_CPU_ISA that exclude bf16.
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision.

    Args:
        precision: "fp32", "tf32", "bf16" or "fp16".

    Raises:
        ValueError: another name.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[precision]


def set_float32(precision: str) -> None:
    """Decide what this process's products and convolutions of float32 numbers are on a GPU.

    torch's own default rounds the factors of convolutions to TF32, and not those of matrices.

    Args:
        precision: "tf32" rounds both, any other one neither.
    """
    kind = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind
    torch.backends.cudnn.rnn.fp32_precision = kind


def refuse_on_cpu(precision: str, device: torch.device | str) -> None:
    """Refuse tf32 and fp16 on a CPU: it has no TF32, and computes fp16 at no useful speed.

    Args:
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: where the network runs.

    Raises:
        ValueError: tf32 or fp16 on a CPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if precision == "tf32" and on_cpu:
        raise ValueError(
            "precision tf32 needs a GPU: pass --precision fp32, or work on a machine with a GPU "
            "(--device cuda)"
        )
    if precision == "fp16" and on_cpu:
        raise ValueError(
            "precision fp16 needs a GPU (fp16 on a CPU is a hundred times slower than fp32): pass "
            "--precision fp32 or bf16, or work on a machine with a GPU (--device cuda)"
        )


def bf16_on_cpu() -> str:
    """Return how this process computes bf16 convolutions on the CPU.

    Returns:
        "native", "emulated" (oneDNN converts to float32 and back: AVX-512 without AVX512_BF16),
        or "none" (torch's own loops: AVX2 and older).
    """
    # oneDNN knows the limit that it was given.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "none"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if limit.upper() in _WITHOUT_BF16 or not _has_bf16():
        return "emulated"
    return "native"


def _has_bf16() -> bool:
    """Return whether the CPU itself has instructions for bf16."""
    # torch before 2.12.
    if not hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16")
    return any(map(capabilities.get, names))


def words_for_cpu() -> str:
    """Describe this CPU in one line: the kernels that torch uses, and what bf16 is here."""
    words = {
        "native": "native",
        "emulated": "through float32, slower than fp32",
        "none": "none, very slow",
    }
    bf16 = words[bf16_on_cpu()]
    return f"{torch.backends.cpu.get_cpu_capability()} kernels; bf16: {bf16}"


def cost(precision: str, device: torch.device | str) -> str | None:
    """Say in one line what a precision costs on a device.

    Args:
        precision: "fp32", "tf32", "bf16" or "fp16".
        device: where the network runs.

    Returns:
        A line for the person who asked for it; None if it costs nothing.
    """
    if precision != "bf16" or torch.device(device).type != "cpu":
        return None
    support = bf16_on_cpu()
    if support == "native":
        return None

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    why = f" (limited by ONEDNN_MAX_CPU_ISA={limit})" if limit else ""
    return (
        f"precision bf16: this CPU{why} has no bf16 arithmetic (AVX512_BF16, AMX): "
        f"{_COSTS[support]}"
    )


@functools.cache
def autocast_runs_lstm(dtype: torch.dtype) -> bool:
    """Return whether an LSTM runs on this CPU under autocast.

    Autocast casts the input of oneDNN's LSTM. For AVX2 oneDNN has no LSTM in bf16, and raises
    "could not create a primitive descriptor".

    Args:
        dtype: what autocast casts to.
    """
    zeros, weight, bias = torch.zeros(1, 1, 1), torch.zeros(4, 1), torch.zeros(4)
    state, weights = (zeros, zeros), [weight, weight, bias, bias]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            # One layer with biases, no dropout, in evaluation, one direction, batch first.
            torch.lstm(zeros, state, weights, True, 1, 0.0, False, False, True)
    except RuntimeError:
        return False
    return True


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Compute in mixed precision on a device; fp32 changes nothing.

    An LSTM that a CPU cannot compute in bf16 stays in float32 (`heads.interface.lstm`).

    Args:
        device: where the network runs.
        precision: "fp32", "tf32", "bf16" or "fp16".

    Raises:
        ValueError: a CPU cannot compute another layer in this precision; it says what to pass
            instead.
    """
    is_mixed = dtype_of(precision) != torch.float32
    # torch wants a dtype of lower precision even where autocast is off.
    dtype = dtype_of(precision) if is_mixed else torch.bfloat16
    try:
        with torch.autocast(device.type, dtype, enabled=is_mixed):
            yield
    except RuntimeError as error:
        if is_mixed and device.type == "cpu" and "primitive" in str(error):
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"precision {precision}: this CPU ({words_for_cpu()}) cannot compute a layer in "
                f"it ({reason}); pass --precision fp32"
            ) from error
        raise
