"""`vidgraph summary`: the modules, the operations that are not counted, the output."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cli.__main__ import main
from heads.evaluation.counting import count, count_backbone, count_head, dims_on
from heads.evaluation.summary import count_named
from heads.interface.clips import Dims
from tests.support.tiny_cache import Tiny

DIMS = Dims(4, 3, 8, {"res5": (8, 5, 5)})
NARROW = {"width": 8}


class Mixed(nn.Module):
    """A convolution and a list of layers that is never called itself, with a product of its own
    between them.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 5, bias=False)])
        self.matrix = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        y = F.max_pool2d(F.relu(self.conv(x)), 2).mean((2, 3)) @ self.matrix.expand(4, 4)
        for layer in self.layers:
            y = layer(y)
        return y.softmax(-1)


@pytest.fixture(scope="module")
def mixed():
    module = Mixed().to("meta")
    x = torch.empty(2, 3, 10, 10, device="meta")
    return count(module, lambda: module(x), "x")


def test_each_module_has_its_parameters_and_the_products_that_ran_inside_it(mixed):
    rows = {row.name: (row.kind, row.parameters, row.macs) for row in mixed.rows}
    assert rows["conv"] == ("Conv2d", 4 * 28, 2 * 4 * 8 * 8 * 27)
    assert rows["layers"] == ("ModuleList", 20 + 20, 2 * (16 + 20))
    assert rows["layers.1"] == ("Linear", 20, 2 * 20)
    assert mixed.total.parameters == 4 * 28 + 16 + 40
    assert mixed.total.macs == rows["conv"][2] + 2 * 16 + rows["layers"][2]
    assert mixed.device == "meta"


def test_what_is_not_counted_is_listed_with_its_elements(mixed):
    found = {
        row.operation: (row.kind, row.calls, row.elements_in, row.elements_out)
        for row in mixed.left_out
    }
    assert found == {
        "relu": ("activation", 1, 2 * 4 * 64, 2 * 4 * 64),
        "max_pool2d_with_indices": ("pool", 1, 2 * 4 * 64, 2 * 4 * 16),
        "mean": ("sum", 1, 2 * 4 * 16, 2 * 4),
        "softmax": ("softmax", 1, 10, 10),
    }
    assert mixed.tool_macs == mixed.total.macs + 2 * (2 * 4 * 64)


def test_parts_of_a_backbone_add_up_to_it_and_a_cut_stops_it():
    whole, part = (
        count_backbone("resnet18", NARROW, frames=2, size=(64, 64), upto=upto)
        for upto in (None, "res3")
    )
    top = [row for row in whole.rows[1:] if "." not in row.name]
    assert sum(row.macs for row in top) == whole.total.macs > part.total.macs > 0
    assert sum(row.parameters for row in top) == whole.total.parameters
    assert part.row("res4").macs == 0 < part.row("res3").macs
    norms = sum(row.elements_in for row in whole.left_out if row.kind == "norm")
    assert whole.tool_macs > whole.total.macs + 2 * norms


def test_a_head_that_asks_for_values_is_counted_on_real_tensors_and_gives_the_same():
    """GOS's released RoIAlign asks for none, the paper's checks its grid."""
    small = {"width": 8, "taps": 3}
    aligned = count_head("gos", DIMS, 5, {"variant": "released", "roi": "aligned", **small})
    old = count_head("gos", DIMS, 5, {"variant": "released", **small})
    assert aligned.device == "cpu"
    assert aligned.row("fc") == old.row("fc")
    assert aligned.row("cells").macs == old.row("cells").macs > 0


def test_sequences_are_counted_as_their_matrix_products():
    """An LSTM of one kernel would be none: 4 gates of inputs and states at every step."""
    head = count_head("mean_lstm", DIMS, 5, {"hidden": 16})
    lstm = next(row for row in head.rows if row.kind == "LSTM")
    assert lstm.macs == DIMS.T * 4 * 16 * (DIMS.C + 16)


def test_sizes_of_views_are_those_of_the_backbone():
    dims = dims_on("i3d_r50", {"reduce": 32, "res5_stride": 1}, frames=16, size=(64, 96), boxes=7)
    assert (dims.T, dims.N, dims.C) == (8, 7, 32)
    assert dims.maps["res5"] == (2048, 4, 6)
    assert dims.maps["reduced"] == (32, 4, 6)
    assert "stem" not in dims.maps  # before the second pool, so of twice the steps


def test_a_recipe_a_head_and_a_run_of_it_count_the_same(tmp_path):
    from heads.config.recipe import read_recipe
    from heads.training.train import train

    cache = Tiny().write(tmp_path)
    settings = {"iterations": 0, "epochs": 1, "schedule": "constant", "drop_at": []}
    settings = {f"phases.classifier.train.{key}": value for key, value in settings.items()}
    recipe = read_recipe("strg_table4_sth_i3d", settings)
    run = train(recipe, cache, tmp_path / "run", device="cpu", say=lambda line: None)
    of_run = count_named(str(run.folder), {})
    assert of_run.total.parameters == run.parameters
    assert count_named("strg_table4_sth_i3d", {}, cache=cache.path).rows == of_run.rows
    assert count_named("pool", {}, cache=cache.path).rows == of_run.rows
    assert count_named("pool", {}, cache=cache.path, classes=9).total.parameters == 9 * (4 + 1)


def test_a_head_that_continues_a_backbone_reads_its_maps():
    lower = {f"backbone_options.{key}": value for key, value in {"eab": "res4", "width": 8}.items()}
    sizes = {"frames": 8, "size": (64, 64), "classes": 5}
    found = count_named(
        "ean", {"backbone": "ean_r50", "cut": "res4.5", "position": "none", **lower}, **sizes
    )
    assert found.row("network").macs > 0
    plain = count_named("ean", {"position": "none", **lower}, backbone="ean_r50", **sizes)
    assert found.row("head").parameters == plain.total.parameters


def vidgraph(capsys, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


SMALL = ("resnet18", "--set", "width=8", "--frames", 2, "--size", "64x96")


def test_the_table_has_a_total_and_as_many_levels_as_asked_for(capsys):
    code, out, _ = vidgraph(capsys, "summary", *SMALL)
    assert code == 0
    assert "total" in out
    assert "res2.0" not in out
    assert "native_batch_norm" in out
    assert "res2.0" in vidgraph(capsys, "summary", *SMALL, "--depth", 2)[1]
    assert "res2 " not in vidgraph(capsys, "summary", *SMALL, "--depth", 0)[1]


def test_json_has_every_module_and_exact_numbers(capsys):
    code, out, _ = vidgraph(capsys, "summary", *SMALL, "--json")
    record = json.loads(out)
    counted = count_backbone("resnet18", NARROW, frames=2, size=(64, 96))
    assert code == 0
    assert (record["parameters"], record["macs"], record["tool_macs"]) == (
        *totals(counted),
        counted.tool_macs,
    )
    assert [module["name"] for module in record["modules"]] == [
        row.name for row in counted.rows[1:]
    ]
    assert record["left_out"][0].keys() == {
        "operation",
        "kind",
        "calls",
        "elements_in",
        "elements_out",
    }


def totals(counted):
    return counted.total.parameters, counted.total.macs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["goss"], "'goss' is no backbone, head, run folder or recipe: did you mean gos"),
        (
            ["resnet18", "--nodes", 3],
            "resnet18 is a backbone: nodes does not apply to it; its options are --frames, "
            "--size, --upto",
        ),
        (["gos", "--upto", "res4"], "gos is a head: upto does not apply to it"),
        (["resnet18", "--set", "wdith=8"], "no option 'wdith': did you mean width"),
        (["resnet18", "--upto", "res9"], "cut 'res9' is not one of resnet18"),
        (["gos", "--set", "varient=x"], "no option 'varient': did you mean variant"),
        (["gos", "--nodes", 0], "head gos needs boxes, valid"),
        (["pool", "--backbone", "resnet"], "backbone 'resnet' is not known: did you mean resnet18"),
        (["digit_cnn", "--size", 5, "--frames", 2], "digit_cnn cannot run 2 frames of 5×5"),
        (["resnet18", "--size", "12x"], "expected a side such as 224"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_nearest_names(args, message, capsys):
    code, _, err = vidgraph(capsys, "summary", *args)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
