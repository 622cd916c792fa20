"""The demo from end to end at a size of seconds, with a digit network that has learned next to
nothing.
"""

import csv
import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner

import cli.demo
from heads.reproduction import pretraining as pretrain
from heads.reproduction.pretraining import Pretraining
from pipeline.backbones import build_backbone
from pipeline.cache.reader import Cache
from pipeline.digits import load_images
from pipeline.proposals import digit_rpn
from pipeline.stages.verify import verify

TINY = (
    "--videos",
    "20",
    "--val-videos",
    "10",
    "--test-videos",
    "10",
    "--seeds",
    "2",
    "--workers",
    "0",
    "--device",
    "cpu",
)
HEADS = ("pool", "roi_pool", "mean_lstm", "strg")


def run(out, *more: str):
    with pytest.MonkeyPatch.context() as patch:
        # Kept after a few steps: what is tested is that the stages fit together, not what they
        # learn.
        patch.setattr(cli.demo, "WIDTH", 8)
        patch.setattr(cli.demo, "RPN_VIDEOS", 8)
        patch.setattr(pretrain, "Pretraining", partial(Pretraining, steps=3, batch=4))
        patch.setattr(digit_rpn, "fit", partial(digit_rpn.fit, steps=60, batch=8))
        # Train in this process: a new one takes seconds to import torch.
        patch.setattr("pipeline.workers.cores.cores_here", lambda: 1)
        return CliRunner().invoke(cli.demo.command, ["--out", str(out), *TINY, *more])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    result = run(out)
    assert result.exit_code == 0, result.output + str(result.exception)
    return out, result.output


def test_the_table_has_every_head_beside_what_guessing_gives(demo):
    out, said = demo
    rows = [line for line in said.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == [
        "chance",
        "knowing only which digits are there",
        *HEADS,
    ]
    assert "10.0" in rows[0]
    assert "16.7" in rows[1]
    assert str(out) in said
    assert "Try next" in said


def test_results_are_the_runs_own_figures(demo):
    out, _ = demo
    results = json.loads((out / "results.json").read_text())
    assert tuple(results) == HEADS
    for head in HEADS:
        runs = [
            json.loads((out / "runs" / f"demo_{head}-seed{k}" / "metrics.json").read_text())
            for k in (0, 1)
        ]
        assert results[head]["top1"] == [100 * found["metrics"]["test"]["top1"] for found in runs]


def test_the_cache_is_whole_and_holds_every_video(demo):
    cache = Cache(demo[0] / "cache")
    assert verify(cache.path) == []
    train = [clip.clip for clip in cache.manifest.clips if clip.split == "train"]
    assert cache["train"].clips == train
    assert len(train) + len(cache["test"]) == 40
    assert cache["test"].ok.all()
    view = cache["test"].view(len(cache["test"]) - 1)
    assert view["nodes"].shape == (8, cli.demo.BOXES, 8)
    assert view["iou"].shape == (7, cli.demo.BOXES, cli.demo.BOXES)
    assert view["valid"].any()


def test_a_rerun_does_nothing_twice_and_says_so(demo):
    out, said = demo
    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.name != "results.json"
    }
    result = run(out)
    assert result.exit_code == 0
    assert result.output.count("done before") == 5
    assert result.output.count("2 of 2 runs were trained before") == 4
    after = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.name != "results.json"
    }
    assert after == before
    assert [line for line in result.output.splitlines() if "│" in line] == [
        line for line in said.splitlines() if "│" in line
    ]


def test_a_demo_that_was_stopped_goes_on_where_it_was(demo):
    out, _ = demo
    record = json.loads((out / "steps.json").read_text())
    # The options, videos, digit_cnn and RPN: stopped while extracting.
    kept = dict(list(record.items())[:4])
    (out / "steps.json").write_text(json.dumps(kept))
    weights = (out / "digit_cnn.pt").stat().st_mtime_ns
    result = run(out)
    assert result.exit_code == 0
    assert result.output.count("done before") == 3
    assert "every shard was complete already" in result.output
    assert (out / "digit_cnn.pt").stat().st_mtime_ns == weights
    assert json.loads((out / "steps.json").read_text()).keys() == record.keys()


def test_another_demo_in_the_same_folder_is_refused(demo):
    result = run(demo[0], "--seed", "5")
    assert isinstance(result.exception, ValueError)
    assert "seed 0 there, 5 asked for" in str(result.exception)


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    result = run(tmp_path, "--task", "met")
    assert result.exit_code == 2
    assert "meet" in result.output


def test_a_pretrained_network_loads_as_a_backbone_and_says_how_good_it_is(tmp_path):
    lines: list[str] = []
    how = Pretraining(width=8, steps=6, batch=4)
    made = pretrain.pretrain(tmp_path / "cnn.pt", load_images(), how, seed=1, say=lines.append)
    assert made.steps == 6
    assert f"reached {100 * made.accuracy:.1f} % in 6 steps; the target is 98 %" in lines[-1]
    backbone = build_backbone("digit_cnn", weights=str(made.path), width=8, pixels="unit")
    assert len(backbone.weights_sha256) == 64
    again = pretrain.pretrain(tmp_path / "again.pt", load_images(), how, seed=1, say=lines.append)
    assert again.accuracy == made.accuracy
    state = torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(
        torch.equal(value, state[key])
        for key, value in torch.load(made.path, weights_only=True).items()
    )


def test_pretraining_ends_when_the_target_is_reached(tmp_path):
    made = pretrain.pretrain(
        tmp_path / "cnn.pt",
        load_images(),
        Pretraining(width=8, steps=60, batch=4, target=0.0001),
        say=print,
    )
    assert made.steps == pretrain.CHECK_EVERY


def test_the_boxes_file_lists_every_digit_of_every_frame(demo):
    with open(demo[0] / "videos" / "boxes.csv", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == 40 * 8 * 4


def test_a_quick_demo_and_a_whole_one_have_folders_of_their_own(demo):
    result = run(demo[0], "--quick")
    assert isinstance(result.exception, ValueError)
    assert "holds another demo (quick None there, True asked for)" in str(result.exception)
    assert "quick" not in json.loads((demo[0] / "steps.json").read_text())["asked"]
    assert set(cli.demo.QUICK) <= {option.name for option in cli.demo.command.params}
