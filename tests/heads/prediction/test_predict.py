"""`predict`: a run answers new videos as `extract`, `graphs` and `evaluate` would, and keeps
nothing.
"""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vidgraph
from cli.__main__ import main
from heads.config.recipe import recipe_from
from heads.evaluation.evaluate import evaluate
from heads.finetuning.finetune import SourceOptions, finetune, frames_phase
from heads.finetuning.frame_training import FrameRunOptions
from heads.prediction import asked_run
from heads.prediction.asked_run import open_run
from heads.prediction.frames_evaluate import evaluate_from_frames
from heads.prediction.videos import predict_videos
from heads.runs import run_files
from heads.training.train import train
from pipeline.cache.reader import Cache
from pipeline.files import scratch
from pipeline.manifests.manifest import read_manifest
from pipeline.stages import passing_extract
from pipeline.stages.extract import RunOptions, extract
from pipeline.stages.graphs import build_graphs
from pipeline.stages.recorded import MovedFiles
from pipeline.video.decode import write_video
from tests.support.tiny_encoders import save_encoder
from tests.support.tiny_videos import INLINE, config_of, make_videos, picture, write_csv

SPLITS = ("train",) * 4 + ("val", "test", "test")
QUIET = {"say": lambda line: None, "device": "cpu"}
HERE = RunOptions(device="cpu", workers=0)
HEADS = {
    "pool": {},
    "strg": {},
    "gos_temp_conv": {"regions": "nodes", "neighbours": "cached", "width": 4},
}


def recipe(head: str, **training):
    training = {"epochs": 1, "batch": 4, "lr": 0.01, **training}
    options = {"name": head, **HEADS.get(head, {})}
    return recipe_from({"name": head, "source": "a test", "head": options, "train": training})


def set_splits(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    rows = [
        (row["clip"], row["path"], split, row["label"])
        for row, split in zip(rows, SPLITS, strict=True)
    ]
    write_csv(folder / "manifest.csv", ("clip", "path", "split", "label"), rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Seven videos with boxes, a cache of them with two test views, and a run of each head."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), len(SPLITS))
    set_splits(folder)
    config = config_of(folder, dtype="float16")
    config = replace(config, sampling=replace(config.sampling, test_clips=2))
    manifest = read_manifest(folder / "manifest.csv")
    extract(config, manifest, folder / "cache", INLINE)
    build_graphs(folder / "cache", neighbours=4)
    cache = Cache(folder / "cache")
    for head in HEADS:
        train(recipe(head), cache, folder / "runs" / head, tensorboard=False, **QUIET)
    whole, phase = frames_phase(recipe("strg"), train_from="conv2")
    finetune(
        whole,
        folder / "runs" / "tuned",
        phase,
        cache=cache,
        source_options=SourceOptions(workers=0),
        options=FrameRunOptions(tensorboard=False),
        **QUIET,
    )
    return folder


@pytest.fixture
def copy(place, tmp_path):
    """A copy of a run that may be changed, without its cache."""
    shutil.copytree(place / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def code_of(*args: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


def logits_of(answers) -> dict[str, np.ndarray]:
    return {one.clip: one.logits for one in answers.answers if one.logits is not None}


def stored_logits(path: Path) -> dict[str, np.ndarray]:
    """Clip -> [views,K] of a predictions_SPLIT.npz."""
    with np.load(path) as stored:
        return {
            clip: stored["logits"][stored["video"] == k] for k, clip in enumerate(stored["clips"])
        }


def assert_equal_logits(found, expected) -> None:
    assert expected.keys() <= found.keys()
    for clip, table in expected.items():
        np.testing.assert_allclose(found[clip], table, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_extract_and_evaluate_on_the_same_clips(head, place, monkeypatch):
    """Shards of two clips, so that several come and go."""
    monkeypatch.setattr(passing_extract, "SHARD_CLIPS", 2)
    run = place / "runs" / head
    answers = predict_videos(run, [place / "manifest.csv"], options=HERE)
    assert [one.clip for one in answers.answers] == [f"clip{k}" for k in range(len(SPLITS))]
    for split in ("train", "val", "test"):
        evaluate(run, Cache(place / "cache"), split, **QUIET)
        expected = stored_logits(run / f"predictions_{split}.npz")
        assert {len(table) for table in expected.values()} == {2}
        assert_equal_logits(logits_of(answers), expected)


def test_logits_of_a_fine_tuned_run_are_those_of_extract_with_its_backbone_and_evaluate(
    place, copy, tmp_path
):
    """And those that the run itself predicted from frames; neither needs the first cache."""
    run = copy / "tuned"
    own = stored_logits(run / "predictions_test.npz")
    found = logits_of(predict_videos(run, [place / "manifest.csv"], options=HERE))
    assert_equal_logits(found, own)

    best = run_files.read_json(run / "run.json")["recipe"]["evaluate"]["checkpoint"]
    config = config_of(place, weights=str(run / f"{best}.pt"), keep=("pooled", "nodes"))
    config = replace(config, sampling=replace(config.sampling, test_clips=2))
    extract(config, read_manifest(place / "manifest.csv"), tmp_path / "own", INLINE)
    build_graphs(tmp_path / "own", neighbours=4)
    evaluate(run, Cache(tmp_path / "own"), "test", **QUIET)
    (path,) = run.glob("predictions_test_*.npz")
    assert_equal_logits(found, stored_logits(path))


def test_a_fine_tuned_run_is_evaluated_from_frames_as_it_evaluated_itself(place, copy):
    run = copy / "tuned"
    own = stored_logits(run / "predictions_test.npz")
    figures = run_files.read_json(run / "metrics.json")["metrics"]["test"]
    (run / "predictions_test.npz").unlink()
    found, lost = evaluate_from_frames(run, "test", options=HERE, say=lambda line: None)
    assert lost == []
    assert_equal_logits(stored_logits(run / "predictions_test.npz"), own)
    assert found.figures == pytest.approx(figures)
    assert next(path.name for path in found.files) == "predictions_test.npz"

    # The same from the command line, without --cache.
    (run / "predictions_test.npz").unlink()
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(run), "--workers", "0", "--device", "cpu"])
    assert left.value.code == 0
    assert_equal_logits(stored_logits(run / "predictions_test.npz"), own)


def test_a_clip_that_cannot_be_read_is_left_out_of_an_evaluation_from_frames_and_named(
    place, copy, tmp_path, capsys
):
    shutil.copytree(place, tmp_path / "here", ignore=shutil.ignore_patterns("runs", "cache"))
    (tmp_path / "here" / "clip6.mp4").write_text("not a video")
    options = ["--manifest", tmp_path / "here" / "manifest.csv", "--workers", "0"]
    assert code_of("evaluate", copy / "tuned", *options, "--device", "cpu") == 3
    said = capsys.readouterr()
    assert "split test: 1 of 2 clips cannot be read and is left out: clip6" in said.err
    assert "written to " in said.out
    stored = stored_logits(copy / "tuned" / "predictions_test.npz")
    assert list(stored) == ["clip5"]


def test_the_cache_may_be_gone_but_a_run_without_a_record_needs_it(copy, place, tmp_path):
    run = copy / "pool"
    record = run_files.read_json(run / "run.json")
    assert record["extraction"]["asked"]["backbone"] == "digit_cnn"
    video = [place / "clip5.mp4"]
    expected = logits_of(predict_videos(run, video, options=HERE))

    older = {key: value for key, value in record.items() if key != "extraction"}
    run_files.write_json(run / "run.json", older)
    assert_equal_logits(logits_of(predict_videos(run, video, options=HERE)), expected)
    run_files.write_json(run / "run.json", {**older, "cache": str(tmp_path / "gone")})
    with pytest.raises(ValueError, match=r"does not record how .* cache .*gone is gone; pass --li"):
        open_run(run)
    asked = open_run(run, like=place / "cache")
    assert_equal_logits(logits_of(predict_videos(asked, video, options=HERE)), expected)


def test_heads_that_read_classes_and_tracks_of_boxes_are_asked_too(place, tmp_path):
    names, *rows = list(csv.reader((place / "boxes.csv").open()))
    known = [(*row, "cup", number % 2) for number, row in enumerate(rows)]
    write_csv(tmp_path / "boxes.csv", [*names, "class", "track"], known)
    config = config_of(place)
    options = {**config.proposal_options, "file": str(tmp_path / "boxes.csv")}
    config = replace(config, proposal_options=options, keep=("boxes",))
    extract(config, read_manifest(place / "manifest.csv"), tmp_path / "cache", INLINE)
    cache = Cache(tmp_path / "cache")
    train(recipe("stin"), cache, tmp_path / "run", tensorboard=False, **QUIET)
    found = predict_videos(tmp_path / "run", [place / "manifest.csv"], options=HERE)
    expected = stored_logits(tmp_path / "run" / "predictions_test.npz")
    assert expected
    assert_equal_logits(logits_of(found), expected)


def test_the_folder_of_an_encoder_may_have_moved(place, tmp_path):
    pytest.importorskip("transformers", reason="pip install 'vidgraph[transformers]'")
    save_encoder(tmp_path / "here", "ViT")
    config = config_of(
        place,
        backbone=f"hf:{tmp_path / 'here'}",
        backbone_options={},
        weights="pretrained",
        keep=("pooled",),
        proposals="none",
        proposal_options={},
    )
    extract(config, read_manifest(place / "manifest.csv"), tmp_path / "cache", INLINE)
    train(recipe("pool"), Cache(tmp_path / "cache"), tmp_path / "run", tensorboard=False, **QUIET)
    (tmp_path / "here").rename(tmp_path / "there")
    videos = [place / "manifest.csv"]
    with pytest.raises(ValueError, match="pass --weights with where it is now"):
        predict_videos(tmp_path / "run", videos, options=HERE)
    moved = MovedFiles(weights=str(tmp_path / "there"))
    found = predict_videos(open_run(tmp_path / "run", moved=moved), videos, options=HERE)
    expected = stored_logits(tmp_path / "run" / "predictions_test.npz")
    assert_equal_logits(logits_of(found), expected)


def test_only_what_the_head_reads_is_computed(place):
    assert open_run(place / "runs" / "pool").config.keep == ("pooled",)
    assert not open_run(place / "runs" / "pool").config.wants_boxes
    strg = open_run(place / "runs" / "strg")
    assert set(strg.config.keep) == {"pooled", "nodes", "boxes", "scores", "valid"}
    assert strg.graphs == ("iou",)
    assert strg.config.sampling.train_views == 0
    cached = open_run(place / "runs" / "gos_temp_conv")
    assert "nearest" in cached.graphs


@pytest.mark.parametrize("fault", ["gone", "changed", "others"])
def test_files_of_the_training_that_are_gone_or_others_are_refused_in_one_line(
    fault, copy, place, tmp_path
):
    """The file of boxes, and a record of another backbone than the run's."""
    boxes = tmp_path / "boxes.csv"
    shutil.copy(place / "boxes.csv", boxes)
    run = copy / "strg"
    record = run_files.read_json(run / "run.json")
    asked = record["extraction"]["asked"]
    asked["proposal_options"]["file"] = str(boxes)
    match = "no such file, expected it where the first run found it; pass --annotations"
    if fault == "gone":
        boxes.unlink()
    elif fault == "changed":
        boxes.write_text(boxes.read_text().replace("clip0", "clip9"))
        match = "changed since .*strg was made with it.* pass --annotations"
    else:
        asked["seed"] = 1
        asked["backbone_options"] = {"width": 4}
        match = "features of new videos would not be those .*: --set backbone_options.width=8 there"
    run_files.write_json(run / "run.json", record)
    with pytest.raises(ValueError, match=match) as error:
        predict_videos(run, [place / "manifest.csv"], options=HERE)
    assert "\n" not in str(error.value)


def test_boxes_of_new_videos_come_from_a_file_of_their_own(copy, place, tmp_path):
    shutil.copy(place / "clip5.mp4", tmp_path / "new.mp4")
    rows = list(csv.reader((place / "boxes.csv").open()))
    renamed = [["new", *row[1:]] for row in rows if row[0] == "clip5"]
    write_csv(tmp_path / "boxes.csv", rows[0], renamed)
    row = ("new", "new.mp4", "test", "")
    write_csv(tmp_path / "m.csv", ("clip", "path", "split", "label"), [row])
    out = tmp_path / "out.json"
    ask = ["predict", copy / "strg", tmp_path / "m.csv", "--out", out, "--device", "cpu"]
    assert code_of(*ask, "--workers", "0") == 3
    assert code_of(*ask, "--workers", "0", "--annotations", tmp_path / "boxes.csv") == 0
    (answer,) = json.loads(out.read_text())["videos"]
    known = predict_videos(copy / "strg", [place / "manifest.csv"], options=HERE)
    np.testing.assert_allclose(answer["logits"], logits_of(known)["clip5"], rtol=1e-5)


def test_videos_of_any_name_folders_of_frames_and_manifests_are_answered_and_bad_ones_named(
    place, tmp_path, capsys
):
    videos = tmp_path / "in"
    (videos / "left; right").mkdir(parents=True)
    odd = os.fsdecode(b"caf\xe9 \n'1'.mp4")
    for name in ("a b.mp4", odd, "left; right/-x.MP4"):
        shutil.copy(place / "clip5.mp4", videos / name)
    (videos / "broken.mp4").write_text("not a video")
    (videos / "notes.txt").write_text("nothing")
    frames = tmp_path / "frames"
    frames.mkdir()
    for k, pixels in enumerate(picture(5)):
        Image.fromarray(pixels).save(frames / f"{k:03d}.png")
    table = tmp_path / "m.csv"
    rows = [("one", str(place / "clip6.mp4"), "train", ""), ("two", str(videos / odd), "val", "9")]
    write_csv(table, ("clip", "path", "split", "label"), rows[:1])

    given = [videos / "a b.mp4", videos / odd, videos / "left; right" / "-x.MP4", frames, table]
    given += [videos / "broken.mp4", videos / "a b.mp4"]
    out = tmp_path / "out" / "answers.csv"
    options = ["--out", out, "--show", tmp_path / "pics", "--device", "cpu", "--workers", "0"]
    ask = ["predict", place / "runs" / "pool", *given, "--root", "/", "--top", "1"]
    assert code_of(*ask, *options) == 3
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line != str(out)]
    assert len(lines) == 5
    assert lines[0].startswith(f"{videos}/a b.mp4: ")
    assert f"{videos}/broken.mp4: failed: " in said.err
    assert "5 of 6 videos answered" in said.err

    answers = list(csv.DictReader(out.open()))
    assert len(answers) == 6
    assert [bool(row["error"]) for row in answers] == [False] * 5 + [True]
    # The same video under four names.
    assert len({(row["class 1"], row["score 1"]) for row in answers[:3]}) == 1
    pictures = sorted((tmp_path / "pics").iterdir())
    assert len(pictures) == 5
    assert all(Image.open(path).width > 200 for path in pictures)


def test_a_folder_is_answered_video_by_video_and_what_is_no_video_is_said(place, tmp_path, capsys):
    for name in ("x/1.mp4", "y/2.mp4"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(place / "clip5.mp4", tmp_path / name)
    (tmp_path / "y" / "notes.txt").touch()
    run = place / "runs" / "pool"
    assert code_of("predict", run, tmp_path, "--device", "cpu", "--workers", "0") == 0
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == [
        f"{tmp_path}/x/1.mp4",
        f"{tmp_path}/y/2.mp4",
    ]
    assert "1 ignored, neither a video nor a folder of frames: y/notes.txt" in said.err


def test_labels_are_compared_with_the_answers(place, capsys):
    ask = ["predict", place / "runs" / "pool", place / "manifest.csv", "--device", "cpu"]
    assert code_of(*ask, "--workers", "0") == 0
    said = capsys.readouterr()
    right = sum("(right)" in line for line in said.out.splitlines())
    wrong = sum("(is " in line for line in said.out.splitlines())
    assert right + wrong == len(SPLITS)
    assert f"top-1 of {len(SPLITS)} with a label: {100 * right / len(SPLITS):.1f} %" in said.err


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["RUN", "nothing.mp4"], "nothing.mp4: there is no such file; expected a video, a folder"),
        (["nowhere", "VIDEO"], "nowhere"),
        (["RUN", "VIDEO", "--out", "answers.txt"], "ends in .csv or .json"),
        (["RUN", "VIDEO", "--weights", "/gone.pt"], "gone.pt: no such file"),
        (["RUN", "VIDEO", "--proposal-weights", "x"], "come from no such file; leave it out"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_code_2(args, match, place, tmp_path, capsys):
    names = {"RUN": place / "runs" / "pool", "VIDEO": place / "clip0.mp4"}
    words = [names.get(word, word) for word in args]
    assert code_of("predict", *words, "--device", "cpu", "--workers", "0") == 2
    assert match in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_of_the_features_stays_however_it_ends(ends, place, tmp_path):
    here = tmp_path / "scratch"
    here.mkdir()
    # Left by a process that was killed: no process has the number 0.
    left = here / scratch.new_claim_name().replace(f"-{os.getpid()}-", "-0-")
    left = left.with_name(f"{scratch.NAME}.{left.name}.part")
    left.mkdir()
    (left / "features.h5").touch()
    seen = []

    def on_answer(answer):
        seen.extend(path for path in here.rglob("*.h5"))
        if ends == "badly":
            raise KeyboardInterrupt

    ask = {"options": HERE, "scratch": here, "on_answer": on_answer}
    if ends == "well":
        predict_videos(place / "runs" / "pool", [place / "clip0.mp4"], **ask)
    else:
        with pytest.raises(KeyboardInterrupt):
            predict_videos(place / "runs" / "pool", [place / "clip0.mp4"], **ask)
    assert seen
    assert list(here.iterdir()) == []


def test_at_most_six_shards_are_on_the_disk(place, tmp_path, monkeypatch):
    monkeypatch.setattr(passing_extract, "SHARD_CLIPS", 1)
    counts = []
    predict_videos(
        place / "runs" / "pool",
        [place / "manifest.csv"],
        options=HERE,
        scratch=tmp_path,
        on_answer=lambda answer: counts.append(len(list(tmp_path.rglob("*.h5*")))),
    )
    assert len(counts) == len(SPLITS)
    assert 1 <= max(counts) <= 6


def test_the_front_door_answers_videos_for_a_run_or_its_folder(place):
    path = str(place / "clip5.mp4")
    run = vidgraph.load_run(place / "runs" / "pool", place / "cache")
    found = vidgraph.predict(run, path, device="cpu")
    assert found.scores.shape == (1, 2)
    assert found.answers[0].top(1)[0][0] == found.classes[int(found.scores[0].argmax())]
    again = vidgraph.predict(place / "runs" / "pool", [path], device="cpu")
    np.testing.assert_array_equal(found.scores, again.scores)
    cached = vidgraph.predict(place / "runs" / "pool", place / "cache", "test", device="cpu")
    row = list(cached.clips).index("clip5")
    np.testing.assert_allclose(found.scores[0], cached.scores[row], rtol=1e-6)


def test_a_video_that_is_cut_by_its_manifest_is_answered_for_that_part(place, tmp_path):
    write_video(tmp_path / "long.mp4", np.concatenate([picture(0), picture(5)]), fps=8)
    rows = [("whole", "long.mp4", "test", "", "", ""), ("end", "long.mp4", "test", "", 1.0, 2.0)]
    header = ("clip", "path", "split", "label", "start", "end")
    write_csv(tmp_path / "m.csv", header, rows)
    run = place / "runs" / "pool"
    found = logits_of(predict_videos(run, [tmp_path / "m.csv"], options=HERE))
    assert not np.allclose(found["whole"], found["end"])


def test_a_head_that_reads_classes_of_boxes_asks_for_boxes(place):
    config = open_run(place / "runs" / "strg").config
    head = SimpleNamespace(needs=("box_class", "valid"), uses=("track",))
    assert asked_run._fields_of(head, (), config) == ("boxes",)


def test_a_head_on_computed_tracks_is_asked_with_the_same_tracks(place, tmp_path):
    shutil.copytree(place / "cache", tmp_path / "cache")
    build_graphs(tmp_path / "cache", neighbours=4, tracks=True)
    cache = Cache(tmp_path / "cache")
    head = {"name": "stin", "classes": "none"}
    made = {"name": "stin", "source": "a test", "head": head, "train": {"epochs": 1, "batch": 4}}
    train(recipe_from(made), cache, tmp_path / "run", tensorboard=False, **QUIET)
    evaluate(tmp_path / "run", cache, "test", **QUIET)
    expected = stored_logits(tmp_path / "run" / "predictions_test.npz")
    answers = predict_videos(tmp_path / "run", [place / "manifest.csv"], options=HERE)
    found = logits_of(answers)
    assert_equal_logits({clip: found[clip] for clip in expected}, expected)
