"""Damaged files of runs give an error of one line: no traceback, no wrong figures."""

import io
import json
import shutil
import struct
import zipfile

import numpy as np
import pytest

from heads.evaluation.ensemble import scores_of_run
from heads.evaluation.prediction_files import read_predictions
from heads.evaluation.summary import count_named
from heads.interface.run_records import RUN
from heads.reporting.report import report
from heads.reporting.run_folders import failed_members
from heads.runs.find_runs import entries_below
from heads.runs.run_files import read_json, start_log
from heads.runs.start_weights import default_checkpoint
from pipeline.files.atomic_files import Damaged
from tests.pipeline.cache.test_shard_trust import lines_of, odd_copies, seal
from tests.support.report_runs import Made


@pytest.fixture
def runs(tmp_path):
    """Two runs that differ in their seed."""
    for seed in (0, 1):
        Made(seed=seed, views=2, clips=tuple(f"clip{k}" for k in range(6))).write(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def predictions(runs):
    return runs / "pool-seed0" / "predictions_test.npz"


def arrays_of(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_whole_predictions_are_what_numpy_reads(predictions):
    came, want = read_predictions(predictions, ""), arrays_of(predictions)
    assert came.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(came[name], values)
        assert came[name].dtype == values.dtype


def test_any_flipped_bit_of_predictions_is_found_or_changes_nothing(predictions):
    good, want = predictions.read_bytes(), arrays_of(predictions)
    rng, said = np.random.default_rng(0), []
    for _ in range(400):
        place = int(rng.integers(len(good)))
        predictions.write_bytes(
            good[:place] + bytes([good[place] ^ 1 << int(rng.integers(8))]) + good[place + 1 :]
        )
        try:
            came = read_predictions(predictions, "run `vidgraph evaluate`")
        except Damaged as error:
            said.append(str(error))
        else:  # the date of an array, for example
            assert came.keys() == want.keys()
            for name in want:
                np.testing.assert_array_equal(came[name], want[name])
    assert len(said) > 250
    assert all(
        line.startswith(f"{predictions}: damaged") and line.endswith("run `vidgraph evaluate`")
        for line in said
    )


def bomb(path, name: str, header: bytes, data: bytes, method=zipfile.ZIP_DEFLATED) -> None:
    """Adds an array with this header."""
    with zipfile.ZipFile(path, "a", method) as archive:
        padded = header + b" " * (-(10 + len(header) + 1) % 64) + b"\n"
        archive.writestr(
            f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data
        )


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000), }",
            b"",
            "claims the shape",
        ),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }", b"", "the shape"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8, "dtype object"),
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }",
            b"\0" * 8,
            "claims the shape",
        ),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os'), }", b"", "damaged"),
        (
            b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,), }",
            b"\0" * 10**8,
            "100,0",
        ),
    ],
)
def test_sizes_that_an_array_file_only_claims_are_refused(predictions, header, data, said):
    bomb(predictions, "structure", header, data)
    with pytest.raises(Damaged, match=said):
        read_predictions(predictions, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("logits"), "holds no logits"),
        (lambda a: a.update(logits=a["logits"] * np.nan), "not finite"),
        (lambda a: a.update(logits=a["logits"].astype("U")), "dtype"),
        (lambda a: a.update(video=a["video"] + 1), "does not number"),
        (lambda a: a.update(video=a["video"] * 1.5), "dtype"),
        (lambda a: a.update(targets=a["targets"] + 7), "targets"),
        (lambda a: a.update(targets=a["targets"][:-1]), "targets"),
        (lambda a: a.update(classes=a["classes"][:-1]), "classes is"),
    ],
)
def test_arrays_that_do_not_fit_one_another_are_refused(predictions, change, said):
    arrays = arrays_of(predictions)
    change(arrays)
    np.savez(predictions, **arrays)
    with pytest.raises(Damaged, match=said):
        read_predictions(predictions, "")
    with pytest.raises(ValueError, match=r"predictions_test\.npz"):
        scores_of_run(predictions.parent, "test")


def test_a_report_lists_damaged_predictions_with_the_command_that_makes_them_again(
    runs, predictions, tmp_path
):
    data = bytearray(predictions.read_bytes())
    # a method that there is not
    data[data.find(b"PK\x03\x04") + 8] = data[data.find(b"PK\x01\x02") + 10] = 99
    predictions.write_bytes(data)
    outcome = report([runs], tmp_path / "out", macs=False, pictures=0, say=lambda line: None)
    (problem,) = outcome.problems
    assert "predictions_test.npz: damaged" in problem
    assert f"vidgraph evaluate {predictions.parent} --split test" in problem
    assert outcome.runs == 2


ODD_SPLIT = {"test": {"clips": "x", "sha256": "a", "classes": {}}}
SPLIT = {"clips": 2, "sha256": "a", "classes": {"a": 2}}
RECORD = {"path": "/x.csv", "root": "/", "sha256": "a", "splits": {"test": SPLIT}}


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "x",
        [],
        {},
        {**RECORD, "path": 5},
        {**RECORD, "splits": []},
        {**RECORD, "splits": ODD_SPLIT},
    ],
)
def test_an_odd_record_of_a_manifest_is_a_problem_in_one_line(runs, tmp_path, odd):
    path = runs / "pool-seed0" / "run.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    seal(path, {**record, "manifest": RECORD})
    assert read_json(path, RUN)["manifest"] == RECORD
    seal(path, {**record, "manifest": odd})
    with pytest.raises(ValueError, match=r"run\.json: .*manifest"):
        read_json(path, RUN)
    outcome = report([runs], tmp_path / "out", macs=False, pictures=0, say=lambda line: None)
    assert len(outcome.problems) == 1


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "log.jsonl", "results.json"])
def test_odd_json_of_a_run_is_a_problem_in_one_line(runs, tmp_path, name):
    folder = runs / "pool-seed0"
    path = runs / name if name == "results.json" else folder / name
    if name == "results.json":
        record = {"rows": [{"failed": [{"folder": "a", "seed": 0, "epochs": 1, "error": "b"}]}]}
    else:
        record = json.loads(
            path.read_text().splitlines()[0] if name == "log.jsonl" else path.read_text()
        )
        record.pop("seal", None)
    for what, odd in odd_copies(record, 8, seed=len(name)):
        if name.endswith("jsonl") or name == "results.json":
            path.write_text(json.dumps(odd) + "\n")
        else:
            seal(path, odd)
        steps = [
            lambda: report([runs], tmp_path / "out", macs=False, pictures=0, say=lambda line: None),
            lambda: entries_below(runs),
            lambda: scores_of_run(folder, "test"),
            lambda: default_checkpoint(folder),
            lambda: count_named(str(folder), {}),
            lambda: start_log(folder / "log.jsonl", 1),
            lambda: failed_members([folder]),
        ]
        for step in steps[: 2 if name == "metrics.json" else 7]:
            assert lines_of(step) <= 1, what
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_arrays_in_both_orders_are_read(tmp_path):
    """numpy writes columns first where an array lies so."""
    arrays = {
        "logits": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "video": np.array([0, 1]),
        "view": np.array([0, 0]),
    }
    arrays |= {"clips": np.array(["a", "b"]), "classes": np.array(["x", "y", "z"])}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (tmp_path / "x.npz").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(
        read_predictions(tmp_path / "x.npz", "")["logits"], arrays["logits"]
    )
