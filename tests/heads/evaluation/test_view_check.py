"""A head that cannot read the views of a split is refused before anything is trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from heads.evaluation.view_check import check_cached_views
from heads.interface.clips import HeadOutput
from tests.heads.training.test_train import recipe, run
from tests.support.tiny_cache import Tiny


class OneGrid(nn.Module):
    """Takes maps of 7x7 cells, none of them padding."""

    needs, uses = ("res5",), ("grid",)

    def forward(self, clips, want_maps=False):
        if (clips.grid != 7).any():
            raise ValueError(f"expected 7x7 cells, got {clips.grid.tolist()}")
        return HeadOutput(torch.zeros(len(clips.grid), 2))


class Views:
    """A group of views with maps of given grids, padded to 8x8."""

    def __init__(self, grids):
        self.grids, self.read = np.array(grids), []
        self.clips = [f"clip-{k}" for k in range(len(grids))]

    def batch(self, rows, fields):
        self.read.append((tuple(rows), tuple(fields)))
        arrays = {"grid": self.grids[rows]}
        if "res5" in fields:
            arrays["res5"] = np.zeros((len(rows), 2, 3, 8, 8), np.float32)
        return arrays


def check(grids, head=None):
    group = Views(grids)
    rows = np.arange(len(grids))
    part = SimpleNamespace(split="test", group=group, all_rows=lambda: (rows, rows))
    check_cached_views(head or OneGrid(), "one_grid", part, ("res5", "grid"))
    return group


def test_a_view_of_every_size_is_read_once():
    group = check([(7, 7)] * 5)
    assert [rows for rows, fields in group.read if "res5" in fields] == [(0,)]


def test_one_view_of_another_size_among_many_is_found():
    with pytest.raises(
        ValueError, match=r"split test, clip clip-3: head one_grid cannot read this .* 7x7 cells"
    ):
        check([(7, 7)] * 3 + [(8, 7)] + [(7, 7)] * 9)


def test_an_error_of_torch_is_put_in_words():
    class Flat(nn.Module):
        def forward(self, clips, want_maps=False):
            return nn.Linear(7 * 7, 2)(clips.maps["res5"].flatten(3))

    with pytest.raises(ValueError, match=r"head one_grid cannot read this view.*mat1 and mat2"):
        check([(7, 7)], Flat())


def test_nothing_is_written_for_a_head_that_cannot_read_the_test_views(tmp_path, monkeypatch):
    """As a head with one weight per cell and test views of more cells."""
    cache, seen = Tiny().write(tmp_path), []

    def build(name, dims, num_classes, **options):
        class Head(nn.Module):
            needs = ("pooled",)

            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(dims.C, num_classes)

            def forward(self, clips, want_maps=False):
                seen.append(self.training)
                if not self.training:
                    raise ValueError("test views have other sizes")
                return HeadOutput(self.fc(clips.pooled.mean(1)))

        return Head()

    monkeypatch.setattr("heads.training.head_builder.build_head", build)
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="test views have other sizes"):
        run(recipe(), cache, folder)
    assert True not in seen
    assert not folder.exists()
