"""Streams of random numbers that a run's one seed feeds."""

import numpy as np
import torch

INIT, DROPOUT = 0, 1


def reseed(device: torch.device, seed: int, stream: int, number: int = 0) -> None:
    """Seed torch's generators of the CPU and of `device` from (seed, stream, number).

    Args:
        device: where the head computes.
        seed: the run's seed.
        stream: INIT or DROPOUT, or another number for other uses.
        number: the number of the mini-batch within a stream.
    """
    value = int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed: where CUDA is not in use, it formats a stack trace on every call.
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
