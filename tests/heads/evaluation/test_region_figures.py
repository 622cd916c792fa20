"""`vidgraph evaluate` measures how far a head's regions are from annotated boxes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.__main__ import vidgraph
from heads.config.recipe import read_recipe
from heads.data.splits import cache_dims
from heads.drawing import draw_view
from heads.evaluation.evaluate import evaluate
from heads.runs.run_files import save_checkpoint, write_json
from heads.zoo import build_head, head_version
from pipeline.cache.reader import Cache
from pipeline.proposals import build_proposals
from tests.support.tiny_cache import Tiny

SIDE, MIDDLE = 4, 2.5 / 4  # cells; the anchor "centre" is cell 2, whose middle is at 2.5
DYREG = {"width": 8, "offset_width": 4, "anchors": "centre"}


@dataclass
class Annotated(Tiny):
    """Views with a map, whose boxes were annotated."""

    T: int = 4
    fields: tuple = (*Tiny.fields, "res5")

    def tensors(self, clip, label, rng):
        made = super().tensors(clip, label, rng)
        frames = np.arange(self.T, dtype=np.int32)
        return {**made, "frames": frames, "crop": np.array([0, 0, 64, 64, 64, 64], np.float32)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Cache:
    config = {"backbone": "digit_cnn", "proposals": "annotations"}
    return Annotated(config=config).write(tmp_path_factory.mktemp("annotated"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Cache:
    return Annotated().write(tmp_path_factory.mktemp("plain"))


def run_of(folder: Path, cache: Cache, name: str, seed: int = 0, **options) -> Path:
    """The folder of a run of a head with lively weights, as training leaves it."""
    torch.manual_seed(0)
    recipe = read_recipe("demo_strg").as_dict()
    recipe |= {"name": name, "head": {"name": name, "options": options}}
    dims, classes = cache_dims(cache), ["class 0", "class 1", "class 2"]
    head = build_head(name, dims, len(classes), **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    about = {
        "recipe": recipe,
        "classes": classes,
        "dims": dims.as_dict(),
        "seed": seed,
        "fingerprint": cache.fingerprint,
        "config": cache.config,
        "head_versions": {name: head_version(name)},
    }
    folder.mkdir(parents=True)
    write_json(folder / "run.json", about)
    save_checkpoint(folder / "last.pt", {"state": head.state_dict(), "about": about})
    return folder


def evaluated(run: Path, cache: Cache, **options) -> tuple[dict[str, float], str]:
    said: list[str] = []
    return evaluate(run, cache, "test", say=said.append, **options), "\n".join(said)


def distance_from(point: float, cache: Cache) -> float:
    """The mean distance of the boxes of split test from (point, point)."""
    group = cache["test"]
    rows = [row for row, clip in enumerate(group.clips) if int(clip.split("-")[1]) >= 18]
    fields = group.batch(rows, ["boxes", "valid"])
    boxes = fields["boxes"][fields["valid"]]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return float(np.hypot(*(middles - point).T).mean())


def test_before_training_all_regions_are_in_the_middle(cache, tmp_path):
    run = run_of(tmp_path / "dyreg", cache, "dyreg", **DYREG)
    figures, said = evaluated(run, cache)
    assert figures["dist_start"] == pytest.approx(distance_from(MIDDLE, cache), abs=1e-5)
    assert not math.isclose(figures["dist"], figures["dist_start"], abs_tol=1e-3)
    assert {"dist_regions", "dist_regions_start", "top1"} <= figures.keys()
    count = int(cache["test"].batch(range(36, 48), ["valid"])["valid"].sum())
    assert f"Dist: {count} annotated boxes in the views of split test" in said
    assert json.loads((run / "metrics_test.json").read_text())["dist"] == figures["dist"]


def test_the_start_has_the_weights_that_the_run_s_seed_gave(cache, tmp_path):
    """Semantic regions are random at first, so that another seed has another start."""
    starts = []
    for seed in (0, 1, 1):
        options = {**DYREG, "regions": "semantic"}
        run = run_of(tmp_path / str(len(starts)), cache, "dyreg", seed, **options)
        starts.append(evaluated(run, cache)[0]["dist_start"])
    assert starts[1] == starts[2] != starts[0]


@pytest.mark.parametrize("regions", ["lite", "static", "constant_time", "fixed", "detector"])
def test_every_kind_of_regions_has_a_distance(regions, cache, tmp_path):
    run = run_of(tmp_path / regions, cache, "dyreg", **DYREG, regions=regions)
    figures, _ = evaluated(run, cache)
    assert 0 < figures["dist"] < 1
    if regions in ("fixed", "detector"):
        assert figures["dist"] == figures["dist_start"]


def test_without_annotated_boxes_or_regions_there_is_no_distance(cache, plain, tmp_path):
    run = run_of(tmp_path / "dyreg", plain, "dyreg", **DYREG)
    assert "dist" not in evaluated(run, plain)[0]
    other = run_of(tmp_path / "pool", cache, "pool")
    assert "dist" not in evaluated(other, cache)[0]


def written(tmp_path: Path, rows: list[str]) -> str:
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(["clip,frame,x1,y1,x2,y2", *rows]) + "\n")
    return str(file)


def test_the_command_takes_boxes_of_a_file_and_prints_dist(plain, tmp_path):
    """One annotated box, of 0.25 by 0.5 of the frame, at its upper left corner."""
    run = run_of(tmp_path / "dyreg", plain, "dyreg", **DYREG)
    boxes = written(tmp_path, ["clip-20,2,0,0,32,32"])
    words = ["evaluate", str(run), "--cache", str(plain.path), "--annotations", boxes]
    more = ["--set", "proposal_options.annotated_height=128"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(vidgraph, [*words, *more])
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "metrics_test.json").read_text())
    assert figures["dist_start"] == pytest.approx(math.dist((MIDDLE,) * 2, (0.125, 0.125)))
    table = done.stdout + done.stderr
    assert "Dist, start" in table
    assert f"{figures['dist_start']:.3f}" in table
    assert "2 annotated boxes" in table  # of two views


def test_what_cannot_be_compared_is_said(plain, tmp_path):
    boxes = written(tmp_path, ["clip-20,2,0,0,32,32"])
    pool = run_of(tmp_path / "pool", plain, "pool")
    words = ["evaluate", str(pool), "--cache", str(plain.path)]
    done = CliRunner().invoke(vidgraph, [*words, "--annotations", boxes], standalone_mode=False)
    assert "head pool looks at no regions" in str(done.exception)
    assert not (pool / "metrics_test.json").exists()

    done = CliRunner().invoke(vidgraph, [*words, "--set", "proposal_options.key=stem"])
    assert "expected proposal_options.KEY=VALUE beside --annotations" in done.output
    together = ["evaluate", str(pool), "--ensemble", "--annotations", boxes]
    done = CliRunner().invoke(vidgraph, together)
    assert "--annotations does not apply to --ensemble" in done.output

    run = run_of(tmp_path / "dyreg", plain, "dyreg", **DYREG)
    nobody = written(tmp_path, ["clip-1,2,0,0,32,32"])
    words = ["evaluate", str(run), "--cache", str(plain.path), "--annotations", nobody]
    done = CliRunner().invoke(vidgraph, words)
    assert "Dist: 0 annotated boxes" in done.output
    assert "proposal_options.key=stem" in done.output


def test_show_draws_the_boxes_of_a_file_beside_regions_and_nowhere_else(plain, tmp_path):
    boxes = written(tmp_path, ["clip-20,2,0,0,32,32"])
    run = run_of(tmp_path / "dyreg", plain, "dyreg", **DYREG)
    source = build_proposals("annotations", file=boxes, num_boxes=2, allow_missing=True)
    drawing = draw_view(plain, "clip-20", run=run, what=["regions"], annotations=source)
    assert "annotated boxes in white" in drawing.sections[0].note
    assert "annotated" not in draw_view(plain, "clip-20", run=run).sections[-1].note

    words = ["show", "clip-20", "--cache", str(plain.path), "--annotations", boxes]
    done = CliRunner().invoke(vidgraph, words, standalone_mode=False)
    assert "annotated boxes are drawn beside regions: it needs a trained" in str(done.exception)


def test_weights_are_those_of_before_training_not_of_the_checkpoint(cache):
    """`build_head` alone leaves the offsets at 0: every region starts at its anchor."""
    head = build_head("dyreg", cache_dims(cache), 3, **DYREG)
    assert not head.alone.regions.alpha.any()
