"""Which rows of a report stand in one ranking, and how many rows stay distinguishable."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from heads.reporting.groups import groups_of
from heads.reporting.plots import Series, curves, points
from heads.reporting.report import report
from heads.reporting.run_folders import read_run
from tests.support.report_runs import Made

CLIPS = tuple(f"clip{k}" for k in range(30))
HEADS = {"strong": "strg", "weak": "pool"}


def write(folder: Path) -> Path:
    """The report of folder/runs, in folder/out."""
    report([folder / "runs"], folder / "out", macs=False, say=lambda _: None)
    return folder / "out"


def table(out: Path, name: str) -> list[dict[str, str]]:
    with open(out / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fold(number: int, test: int) -> dict:
    """Of run.json: a manifest of 60 videos, of which `test` are for testing."""
    classes = {"put": 10, "take": 10, "turn": 10}
    splits = {
        "train": {"clips": 60 - test, "sha256": f"train{number}", "classes": classes},
        "test": {"clips": test, "sha256": f"test{number}", "classes": classes},
    }
    record = {"path": f"/m/fold{number}.csv", "root": "/m", "sha256": f"{number}" * 64}
    return {"manifest": {**record, "splits": splits}}


def test_rows_are_sorted_by_val_and_not_by_test(tmp_path):
    """The row that is better on test by chance does not come first."""
    Made("lucky", skill=0.9, val={"top1": 0.4}).write(tmp_path / "runs")
    Made("chosen", head="strg", skill=0.5, val={"top1": 0.6}).write(tmp_path / "runs")
    rows = table(write(tmp_path), "study")
    assert [row["name"] for row in rows] == ["chosen", "lucky"]
    assert float(rows[0]["test top-1 %"]) < float(rows[1]["test top-1 %"])
    assert "Sorted by val." in (tmp_path / "out" / "report.md").read_text()


def test_a_row_without_val_comes_last(tmp_path):
    Made("one", skill=0.9).write(tmp_path / "runs")
    Made("two", head="strg", skill=0.5, val={"top1": 0.1}).write(tmp_path / "runs")
    assert [row["name"] for row in table(write(tmp_path), "study")] == ["two", "one"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Sorted by val; rows without figures of val come last." in text


def test_without_val_rows_are_sorted_by_the_split_that_is_shown(tmp_path):
    Made("one", skill=0.9).write(tmp_path / "runs")
    Made("two", head="strg", skill=0.5).write(tmp_path / "runs")
    assert [row["name"] for row in table(write(tmp_path), "study")] == ["one", "two"]
    assert "Sorted by test." in (tmp_path / "out" / "report.md").read_text()


OTHERS = {
    "clips": ({"clips": CLIPS[:20]}, "20 videos of test, 3 classes"),
    # The same labels; one class more to choose from.
    "classes": (
        {"classes": ("put", "take", "turn", "wait"), "targets": np.arange(30) % 3},
        "30 videos of test, 4 classes",
    ),
    "target": (
        {
            "data": {"target": "multi"},
            "targets": np.eye(3, dtype=np.float32)[np.arange(30) % 3],
        },
        "30 videos of test, 3 classes, several labels a video",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_videos_classes_or_targets_have_a_heading_and_a_table_of_their_own(what, tmp_path):
    other, heading = OTHERS[what]
    Made("one", skill=0.9).write(tmp_path / "runs")
    Made("two", head="strg", skill=0.5).write(tmp_path / "runs")
    Made("other", skill=0.99, **other).write(tmp_path / "runs")
    out = write(tmp_path)
    assert [row["name"] for row in table(out, "study")] == ["one", "two"]
    (row,) = table(out, "study-1")
    assert row["name"] == "other"
    assert row["videos"] == heading.split()[0]

    headings = re.findall("<h3>(.*?)</h3>", (out / "report.html").read_text())
    assert headings[:2] == ["30 videos of test, 3 classes", heading]
    # Learning curves and costs are drawn apart, too.
    assert headings.count("30 videos of test, 3 classes") == 3


def test_folds_are_averaged_and_each_fold_counts_once(tmp_path):
    skills = {"strong": (1.0, 0.6), "weak": (0.4, 0.2)}
    shown: dict[str, dict[int, list[float]]] = {"strong": {}, "weak": {}}
    for name, of_folds in skills.items():
        for number, skill in enumerate(of_folds, 1):
            more = {"clips": tuple(f"fold{number}-{k}" for k in range(30))}
            more |= {"head": HEADS[name], "skill": skill, "about": fold(number, 30)}
            # Two seeds of the first fold, one of the second.
            for seed in range(3 - number):
                folder = Made(f"{name}-fold{number}", seed, **more).write(tmp_path / "runs")
                top1 = read_run(folder).figures("test")["top1"]
                shown[name].setdefault(number, []).append(100 * top1)
    out = write(tmp_path)
    rows = table(out, "folds")
    assert [row["name"] for row in rows] == ["strong", "weak"]
    for row in rows:
        of_folds = [np.mean(values) for values in shown[row["name"]].values()]
        assert float(row["test top-1 %"]) == pytest.approx(np.mean(of_folds))
        assert float(row["test top-1 % sd"]) == pytest.approx(np.std(of_folds, ddof=1))
        assert (row["folds"], row["runs"], row["videos"]) == ("2", "3", "60")
    # The folds themselves are not ranked together.
    assert {row["name"] for row in table(out, "study")} == {"strong-fold1", "weak-fold1"}
    assert {row["name"] for row in table(out, "study-1")} == {"strong-fold2", "weak-fold2"}


def test_folds_in_folders_of_one_name_are_called_after_what_they_share(tmp_path):
    """As `ablate --folds` leaves them beside a run of the same recipe."""
    for number in (1, 2):
        more = {"clips": tuple(f"fold{number}-{k}" for k in range(30)), "about": fold(number, 30)}
        Made("pool", skill=0.5, epochs=4, **more).write(tmp_path / "runs" / f"fold{number}")
    Made("pool", skill=0.5).write(tmp_path / "runs" / "alone")
    (row,) = table(write(tmp_path), "folds")
    assert row["name"] == "pool, epochs=4"


def test_manifests_of_other_videos_are_no_folds(tmp_path):
    other = fold(2, 30)
    other["manifest"]["splits"]["train"]["classes"] = {"put": 30}
    Made("a", skill=0.5, about=fold(1, 30)).write(tmp_path / "runs")
    Made("b", skill=0.5, clips=CLIPS[:29], about=other).write(tmp_path / "runs")
    assert not (write(tmp_path) / "tables" / "folds.csv").exists()


def test_a_run_from_frames_beside_a_plain_one_makes_few_columns(tmp_path):
    Made("plain").write(tmp_path / "runs")
    Made("other", head="strg").write(tmp_path / "runs")
    frames = {f"key{k}": k for k in range(90)}
    config = {f"c{k}": k for k in range(40)}
    Made("whole", about={"frames": frames}, config=config).write(tmp_path / "runs")
    out = write(tmp_path)
    for path in (out / "tables").glob("settings*.csv"):
        assert len(path.read_text().splitlines()[0].split(",")) <= 9
    assert "from frames: whole" in (out / "report.md").read_text()


def test_many_rows_that_differ_in_many_settings_stay_narrow_and_lose_nothing(tmp_path):
    for k in range(6):
        config = {f"key{n}": (n if k != 5 else -n) for n in range(1, 20)}
        Made(f"row{k}", options={"dropout": k / 10}, config=config).write(tmp_path / "runs")
    rows = {row["name"]: row for row in table(write(tmp_path), "settings")}
    assert set(rows["row1"]) == {"name", "settings of its own"}
    assert "config.key7=-7" in rows["row5"]["settings of its own"]
    assert rows["row2"]["settings of its own"] == "head.options.dropout=0.2"


def numbers_on_axis(svg: str) -> list[float]:
    """The numbers at the ticks of the y axis."""
    return [float(number) for number in re.findall(r'<text class="end" x="40"[^>]*>([\d.]+)<', svg)]


def test_axes_of_percent_end_at_0_and_100():
    line = Series("a", 0, [1, 2, 3], [90.0, 99.0, 99.5], [5.0, 5.0, 5.0])
    for drawing in (curves([line], "epoch", "%", "label", "percent"), points([line], "x", "%", "")):
        ticks = numbers_on_axis(drawing)
        assert (min(ticks), max(ticks)) == (0, 100)
        # Neither bands nor error bars leave the axis, which lies between y = 20 and y = 200.
        for path in re.findall(r'<polygon[^>]*points="([^"]+)"', drawing):
            heights = [float(point.split(",")[1]) for point in path.split()]
            assert min(heights) >= 20
            assert max(heights) <= 200
        for top in re.findall(r'class="error[^>]*d="M[\d.]+ ([\d.]+)V', drawing):
            assert float(top) >= 20


def test_more_rows_than_colours_have_labels_that_no_other_has(tmp_path):
    for k in range(12):
        made = Made(f"row{k:02}", options={"dropout": k / 20}, skill=0.3 + k / 20)
        made.write(tmp_path / "runs")
    out = write(tmp_path)
    svg = (out / "plots" / "cost-seconds.svg").read_text()
    labels = re.findall(r'class="f\d label"[^>]*>(\d+)<', svg)
    assert sorted(map(int, labels)) == list(range(1, 13))
    # The legend names every number, and no row is "more".
    groups = groups_of([read_run(path) for path in sorted((tmp_path / "runs").iterdir())], "test")
    for group in groups:
        assert f"{group.rank + 1} {group.name}" in svg
    assert " more<" not in svg
    # Where colours repeat, lines have other patterns.
    learning = (out / "plots" / "learning-loss.svg").read_text()
    assert len(set(re.findall(r'class="curve (s\d d\d)"', learning))) == 12


def test_labels_of_lines_that_end_at_one_place_do_not_overlap():
    lines = [Series(f"row {k}", k, [1, 2], [50, 60 + k / 100], label=str(k)) for k in range(12)]
    drawing = curves(lines, "epoch", "%", "label", "percent")
    heights = sorted(map(float, re.findall(r'label" x="[\d.]+" y="([\d.]+)"', drawing)))
    assert len(heights) == 12
    assert np.diff(heights).min() >= 9.9
    assert heights[-1] <= 204


def test_few_rows_have_no_labels_beside_their_legend(tmp_path):
    Made("one").write(tmp_path / "runs")
    Made("two", head="strg").write(tmp_path / "runs")
    svg = (write(tmp_path) / "plots" / "cost-seconds.svg").read_text()
    assert ' label"' not in svg
