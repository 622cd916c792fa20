"""Keep the log lines and warnings of another library off a person's terminal.

They tell of layers that a backbone does without, such as a classifier, and of what its authors
plan. What a person has to know is an error of ours.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Loggers of timm, transformers, and the library with which both fetch weights.
_LOGGERS = ("timm", "transformers", "huggingface_hub")


@contextmanager
def quiet() -> Iterator[None]:
    """Let the libraries log errors alone, and warn of nothing, while the context lasts."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
