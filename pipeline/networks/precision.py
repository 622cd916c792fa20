"""The precisions that networks compute in, what the CPU has of them, and what to do where it lacks
one.

bf16 is faster than fp32 only on a CPU with instructions for it: AVX512_BF16 or AMX on x86-64, BF16
on ARM. `ONEDNN_MAX_CPU_ISA` (or `DNNL_MAX_CPU_ISA`) limits what oneDNN uses, and convolutions are
oneDNN's, so it counts here. `ATEN_CPU_CAPABILITY` limits torch's own kernels: it changes no
convolution and no LSTM, so it only shows in `words_for_cpu`.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # by the names of --precision

# Time of a forward pass of i3d_r50 in bf16, divided by its time in fp32, on one core of an AMD EPYC
# with AVX512_BF16, torch
# 2.14.1: 18 with ONEDNN_MAX_CPU_ISA=AVX2, 2.2 with AVX512_CORE, 0.52 without a limit. A single 3×3
# convolution under AVX2 takes 6 to 12 times as long.
COSTS = {
    "none": "convolutions take about 12 times as long as with --precision fp32 (i3d_r50: 18 "
    "times); fp32 is the better choice",
    "emulated": "it computes in float32 and rounds: convolutions take about twice as long as with "
    "--precision fp32",
}
WITHOUT_BF16 = {
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
}  # values of ONEDNN_MAX_CPU_ISA


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a precision by its name. ValueError for an unknown name."""
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[precision]


def refuse_fp16_on_cpu(precision: str, device: torch.device | str) -> None:
    """ValueError for fp16 on a CPU, which no CPU computes at a useful speed."""
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise ValueError(
            "precision fp16 needs a GPU (fp16 on a CPU is a hundred times slower than fp32): pass "
            "--precision fp32 or bf16, "
            "or work on a machine with a GPU (--device cuda)"
        )


def bf16_on_cpu() -> str:
    """How this process computes bf16 convolutions on the CPU.

    Returns:
        "native", "emulated" (oneDNN converts to float32 and back: AVX-512 without AVX512_BF16), or
        "none" (torch's own loops: AVX2 and older).
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # oneDNN knows what it was limited to
        return "none"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return "emulated" if limit.upper() in WITHOUT_BF16 or not _has_bf16() else "native"


def _has_bf16() -> bool:
    """Whether the CPU itself has instructions for bf16."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.12
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    there = torch.cpu.get_capabilities()
    return any(
        there.get(name)
        for name in ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16")
    )


def words_for_cpu() -> str:
    """One line on this CPU for a person: the kernels that torch uses, and what bf16 is here."""
    bf16 = {
        "native": "native",
        "emulated": "through float32, slower than fp32",
        "none": "none, very slow",
    }[bf16_on_cpu()]
    return f"{torch.backends.cpu.get_cpu_capability()} kernels; bf16: {bf16}"


def cost(precision: str, device: torch.device | str) -> str | None:
    """One line on what `precision` costs on `device`, for a person who asked for it; None where it
    costs nothing.
    """
    if (
        precision != "bf16"
        or torch.device(device).type != "cpu"
        or (found := bf16_on_cpu()) == "native"
    ):
        return None
    limit = "ONEDNN_MAX_CPU_ISA" if os.environ.get("ONEDNN_MAX_CPU_ISA") else ""
    why = f" (as {limit}={os.environ[limit]} has it)" if limit else ""
    return (
        f"precision bf16: this CPU{why} has no bf16 arithmetic (AVX512_BF16, AMX): {COSTS[found]}"
    )


@functools.cache
def autocast_runs_lstm(dtype: torch.dtype) -> bool:
    """Whether an LSTM runs on this CPU under autocast to `dtype`. Autocast casts what oneDNN's LSTM
    is given, and oneDNN has none in bf16 for AVX2: it raises "could not create a primitive
    descriptor".
    """
    zeros, weight, bias = torch.zeros(1, 1, 1), torch.zeros(4, 1), torch.zeros(4)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            torch.lstm(
                zeros,
                (zeros, zeros),
                [weight, weight, bias, bias],
                True,
                1,
                0.0,
                False,
                False,
                True,
            )
    except RuntimeError:
        return False
    return True


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision on `device`: nothing for fp32.

    An LSTM that a CPU cannot compute in bf16 stays in float32 (`heads.interface.lstm`). ValueError,
    which says what to take instead, for another layer that it cannot.
    """
    dtype = (
        torch.bfloat16 if precision == "fp32" else dtype_of(precision)
    )  # off for fp32, but torch wants a dtype
    try:
        with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
            yield
    except RuntimeError as error:
        if precision != "fp32" and device.type == "cpu" and "primitive" in str(error):
            why = str(error).splitlines()[0]
            raise ValueError(
                f"precision {precision}: this CPU ({words_for_cpu()}) cannot compute a layer in "
                f"it ({why}); "
                "pass --precision fp32"
            ) from error
        raise
