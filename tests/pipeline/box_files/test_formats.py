"""Every format of boxes, written as its own program writes it, against the boxes that were meant.

Two clips of 80 x 40 pixels. In clip "a", a cup stands still and a hand moves; the hand is away in
frame 1, and nobody looked at frame 3.
"""

import csv
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.box_files import FORMATS
from pipeline.box_files.formats import format_of
from pipeline.box_files.names import clip_and_frame
from pipeline.box_files.yolo import class_names_of
from pipeline.proposals import BoxesError, build_proposals
from pipeline.proposals._contract import CHECKS, SourceCase

WIDTH, HEIGHT, FPS = 80, 40, 10.0
INFO = SimpleNamespace(frames=8, fps=FPS, width=WIDTH, height=HEIGHT, first=0)
CLIPS = {name: SimpleNamespace(clip=name, path=f"videos/{name}.mp4") for name in ("a", "b")}
# (clip, frame, class, object, x1, y1, x2, y2), pixels.
TRUTH = [
    ("a", 0, "cup", 5, 8, 4, 24, 20),
    ("a", 0, "hand", 7, 40, 10, 60, 30),
    ("a", 1, "cup", 5, 8, 4, 24, 20),
    ("a", 2, "cup", 5, 8, 4, 24, 20),
    ("a", 2, "hand", 7, 44, 10, 64, 30),
    ("b", 0, "hand", 2, 0, 0, 40, 40),
]
LOOKED_AT = {"a": (0, 1, 2), "b": (0,)}
CLASSES = ("cup", "hand")


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def coco(folder, *, results=False):
    images, of = [], {}
    for clip, frames in LOOKED_AT.items():
        for frame in frames:
            of[clip, frame] = len(images) + 10
            name = f"{clip}/{frame + 1:06d}.jpg"
            images.append({"id": of[clip, frame], "file_name": name, "width": 160, "height": 80})
    found = [
        {
            "image_id": of[clip, frame],
            "category_id": 3 + 4 * CLASSES.index(name),
            # Pictures of twice the size.
            "bbox": [2 * x1, 2 * y1, 2 * (x2 - x1), 2 * (y2 - y1)],
            "score": 0.5,
            "track_id": track,
        }
        for clip, frame, name, track, x1, y1, x2, y2 in TRUTH
    ]
    categories = [{"id": 7, "name": "hand"}, {"id": 3, "name": "cup"}]
    about = {"images": images, "categories": categories}
    if not results:
        (folder / "boxes.json").write_text(json.dumps({**about, "annotations": found}))
        return {"file": folder / "boxes.json"}
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "images.json").write_text(json.dumps(about))
    return {"file": folder / "results.json", "images": str(folder / "images.json")}


def ours(folder):
    head = ("clip", "frame", "x1", "y1", "x2", "y2", "class", "track")
    rows = [(clip, frame, *box, name, track) for clip, frame, name, track, *box in TRUTH]
    write_table(folder / "boxes.csv", [head, *rows])
    return {"file": folder / "boxes.csv"}


def ours_by_second(folder):
    head = ("clip", "second", "x1", "y1", "x2", "y2", "class", "track", "width", "height")
    rows = [
        (clip, frame / FPS, *(2 * v for v in box), name, track, 160, 80)
        for clip, frame, name, track, *box in TRUTH
    ]
    write_table(folder / "boxes.csv", [head, *rows])
    return {"file": folder / "boxes.csv"}


def ava(folder):
    rows = []
    for clip, frame, _, track, x1, y1, x2, y2 in TRUTH:
        part = (x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT)
        # Two actions of one person.
        rows += [(clip, f"{frame / FPS:.4f}", *part, action, track) for action in (12, 17)]
    write_table(folder / "ava.csv", rows)
    return {"file": folder / "ava.csv"}


def mot(folder):
    for clip in LOOKED_AT:
        (folder / clip / "gt").mkdir(parents=True)
        rows = [
            (frame + 1, track, x1, y1, x2 - x1, y2 - y1, 1, CLASSES.index(name) + 1, 0.9)
            for of, frame, name, track, x1, y1, x2, y2 in TRUTH
            if of == clip
        ]
        # A box that the ground truth says to leave out.
        rows.append((1, 99, 0, 0, 9, 9, 0, 1, 1))
        write_table(folder / clip / "gt" / "gt.txt", rows)
    return {"file": folder, "class_names": "cup,hand"}


def yolo(folder):
    (folder / "data.yaml").write_text("names:\n  0: cup\n  1: hand\n")
    labels = folder / "labels"
    labels.mkdir()
    for clip, frames in LOOKED_AT.items():
        for frame in frames:
            lines = []
            for of, at, name, track, x1, y1, x2, y2 in TRUTH:
                if (of, at) == (clip, frame):
                    middle = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT
                    size = (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
                    cells = (CLASSES.index(name), *middle, *size, 0.5, track)
                    lines.append(" ".join(map(str, cells)))
            (labels / f"{clip}_{frame + 1}.txt").write_text("\n".join(lines))
    return {"file": labels}


def action_genome(folder):
    people, things = {}, {}
    for clip, frames in LOOKED_AT.items():
        for frame in frames:
            picture = f"{clip}.mp4/{frame + 1:06d}.png"
            here = [row for row in TRUTH if row[:2] == (clip, frame)]
            hands = np.array([row[4:] for row in here if row[2] == "hand"], np.float32)
            people[picture] = {
                "bbox": hands.reshape(-1, 4),
                "bbox_score": np.full(len(hands), 0.5, np.float32),
                "bbox_size": (WIDTH, HEIGHT),
                "bbox_mode": "xyxy",
            }
            things[picture] = [
                {
                    "class": "cup",
                    "bbox": (row[4], row[5], row[6] - row[4], row[7] - row[5]),
                    "visible": True,
                    "metadata": {"set": "train"},
                }
                for row in here
                if row[2] == "cup"
            ]
            things[picture].append({"class": "sofa", "bbox": None, "visible": False})
    (folder / "person_bbox.pkl").write_bytes(pickle.dumps(people))
    (folder / "object_bbox_and_relationship.pkl").write_bytes(pickle.dumps(things))
    return {"file": folder}


def supervision(folder, kind="csv"):
    edges = ("x_min", "y_min", "x_max", "y_max")
    rows = [
        {
            **dict(zip(edges, box, strict=True)),
            "class_id": CLASSES.index(name),
            "confidence": 0.5,
            "tracker_id": track,
            "class_name": name,
            "video": clip,
            "frame_number": frame,
        }
        for clip, frame, name, track, *box in TRUTH
    ]
    path = folder / f"detections.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    else:
        write_table(path, [list(rows[0]), *[row.values() for row in rows]])
    return {"file": path}


def detection(row):
    _, _, name, track, x1, y1, x2, y2 = row
    box = [x1 / WIDTH, y1 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT]
    return {"_cls": "Detection", "label": name, "bounding_box": box, "index": track}


def fiftyone(folder):
    samples = [
        {"_id": {"$oid": clip}, "filepath": f"data/{clip}.mp4", "_media_type": "video"}
        for clip in LOOKED_AT
    ]
    frames = []
    for clip, numbers in LOOKED_AT.items():
        for frame in numbers:
            here = [detection(row) for row in TRUTH if row[:2] == (clip, frame)]
            frames.append(
                {
                    "_sample_id": {"$oid": clip},
                    "frame_number": frame + 1,
                    "found": {"_cls": "Detections", "detections": here},
                }
            )
    (folder / "samples.json").write_text(json.dumps({"samples": samples}))
    (folder / "frames.json").write_text(json.dumps({"frames": frames}))
    return {"file": folder}


def fiftyone_video(folder):
    for clip, numbers in LOOKED_AT.items():
        frames = {}
        for frame in numbers:
            found = []
            for row in TRUTH:
                if row[:2] == (clip, frame):
                    x1, y1, x2, y2 = np.divide(row[4:], (WIDTH, HEIGHT) * 2).tolist()
                    corners = {"x": x1, "y": y1}, {"x": x2, "y": y2}
                    box = dict(zip(("top_left", "bottom_right"), corners, strict=True))
                    found.append({"label": row[2], "bounding_box": box, "index": row[3]})
            frames[str(frame + 1)] = {"frame_number": frame + 1, "objects": {"objects": found}}
        (folder / f"{clip}.json").write_text(json.dumps({"frames": frames}))
    return {"file": folder}


def fiftyone_pictures(folder):
    labels = {}
    for clip, numbers in LOOKED_AT.items():
        for frame in numbers:
            here = [detection(row) for row in TRUTH if row[:2] == (clip, frame)]
            for one in here:
                one["label"] = CLASSES.index(one["label"])
            labels[f"{clip}_{frame:03d}"] = here
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES, "labels": labels}))
    return {"file": folder / "labels.json"}


WRITERS = {
    "coco": coco,
    "coco results": lambda folder: coco(folder, results=True),
    "csv": ours,
    "csv by second": ours_by_second,
    "ava": ava,
    "mot": mot,
    "yolo": yolo,
    "action-genome": action_genome,
    "supervision csv": supervision,
    "supervision json": lambda folder: supervision(folder, "json"),
    "fiftyone": fiftyone,
    "fiftyone video": fiftyone_video,
    "fiftyone pictures": fiftyone_pictures,
}


def source_of(kind, folder, **more):
    options = WRITERS[kind](folder)
    return build_proposals("annotations", **{**options, "file": str(options["file"])}, **more)


def rows_of(source, clip, frame):
    """(class, object, box in pixels) of a frame, in any order."""
    boxes, scores, labels = source.propose_labelled(None, CLIPS[clip], INFO, (frame,))
    found = []
    for k in np.flatnonzero(scores[0] >= 0):
        number = labels["box_class"][0, k]
        name = source.class_names[number] if number >= 0 else None
        track = int(labels["track"][0, k]) if "track" in labels else None
        pixels = boxes[0, k] * [WIDTH, HEIGHT, WIDTH, HEIGHT]
        found.append((name, track, tuple(np.round(pixels, 3).tolist())))
    return sorted(found)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_boxes_that_were_meant(kind, tmp_path):
    source = source_of(kind, tmp_path)
    renamed = {"ava": {"cup": "person", "hand": "person"}}
    renamed["action-genome"] = {"hand": "person"}
    names = renamed.get(kind, {})
    for clip in CLIPS:
        for frame in range(5):
            meant = []
            for of, at, name, track, *box in TRUTH:
                if (of, at) == (clip, frame):
                    track = None if kind == "action-genome" else track
                    meant.append((names.get(name, name), track, tuple(map(float, box))))
            assert rows_of(source, clip, frame) == sorted(meant), (clip, frame)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_keeps_the_contract_of_sources(kind, tmp_path):
    case = SourceCase(source_of(kind, tmp_path, num_boxes=3), CLIPS["a"], INFO, (0, 1, 2, 5))
    for check in CHECKS.values():
        check(case)


def test_every_format_is_tried_here():
    tried = {kind.split()[0] for kind in WRITERS}
    assert set(FORMATS) - tried == {"something-else", "gos"}


@pytest.mark.parametrize("kind", ["coco", "coco results", "supervision csv"])
def test_scores_are_kept(kind, tmp_path):
    _, scores = source_of(kind, tmp_path).propose(None, CLIPS["a"], INFO, (0,))
    np.testing.assert_allclose(scores[0, :3], [0.5, 0.5, -1])


def test_the_fingerprint_follows_every_file_that_was_read(tmp_path):
    before = source_of("coco results", tmp_path).weights_sha256
    text = (tmp_path / "images.json").read_text()
    (tmp_path / "images.json").write_text(text.replace("000001", "000004"))
    options = {"file": str(tmp_path / "results.json"), "images": str(tmp_path / "images.json")}
    assert build_proposals("annotations", **options).weights_sha256 != before

    folder = tmp_path / "names"
    folder.mkdir()
    before = source_of("yolo", folder).weights_sha256
    # The name of a file says which frame it is of.
    (folder / "labels" / "b_1.txt").rename(folder / "labels" / "b_2.txt")
    again = build_proposals("annotations", file=str(folder / "labels"))
    assert again.weights_sha256 != before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "path: x\nnames:\n  0: cup\n  1: 'left hand'  # of a person\nnc: 2\n"),
        ("data.yaml", "names:\n- cup\n- left hand\n"),
        ("data.yml", 'nc: 2\nnames: [cup, "left hand"]\n'),
        ("data.yaml", "names: {0: cup, 1: left hand}\n"),
        ("classes.txt", "cup\nleft hand\n"),
        ("obj.names", "cup\n\nleft hand\n"),
    ],
)
def test_names_of_yolos_classes_are_found_beside_the_labels(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    assert class_names_of(tmp_path) == ("cup", "left hand")
    (tmp_path / "labels").mkdir()
    assert class_names_of(tmp_path / "labels") == ("cup", "left hand")


# ---- slots ----


def something_else(*frames):
    """Entries of a clip: for each frame a list of (category, name, box in pixels)."""
    corners = ("x1", "y1", "x2", "y2")
    return [
        {
            "labels": [
                {
                    "box2d": dict(zip(corners, box, strict=True)),
                    "standard_category": category,
                    "category": name,
                }
                for category, name, box in found
            ]
        }
        for found in frames
    ]


CUP, LID, HAND = (8, 4, 40, 20), (0, 0, 80, 40), (16, 10, 32, 30)
ENTRIES = something_else(
    [("hand", "hand", HAND), ("0001", "lid", LID), ("0000", "cup", CUP)],
    [("0001", "lid", LID)],
    [("hand", "hand", HAND), ("hand", "hand", LID)],
)


def slots_of(tmp_path, numbers=(0, 1, 2, 3), **options):
    (tmp_path / "boxes.json").write_text(json.dumps({"a": ENTRIES}))
    source = build_proposals("annotations", file=str(tmp_path / "boxes.json"), **options)
    return source, *source.propose_labelled(None, CLIPS["a"], INFO, numbers)


def test_objects_of_something_else_stay_in_their_slots(tmp_path):
    source, boxes, scores, labels = slots_of(tmp_path, num_boxes=5)
    assert source.slots
    pixels = np.round(boxes * [80, 40, 80, 40]).astype(int).tolist()
    none = [0, 0, 0, 0]
    assert pixels[0] == [list(CUP), list(LID), list(HAND), none, none]
    # The lid stays in the second row although the cup and the hand are away.
    assert pixels[1] == [none, list(LID), none, none, none]
    assert pixels[2] == [none, none, list(HAND), list(LID), none]
    assert scores[3].tolist() == [-1] * 5
    assert labels["track"].tolist() == [
        [0, 1, 2, -1, -1],
        [-1, 1, -1, -1, -1],
        [-1, -1, 2, 3, -1],
        [-1] * 5,
    ]
    assert source.class_names == ("hand", "object")
    assert labels["box_class"][0].tolist() == [1, 1, 0, -1, -1]


def test_categories_of_something_else_are_classes_if_asked(tmp_path):
    source, _, _, labels = slots_of(tmp_path, num_boxes=4, classes="category")
    assert source.class_names == ("cup", "hand", "lid")
    assert labels["box_class"][0].tolist() == [0, 2, 1, -1]


def test_more_objects_than_slots_are_said(tmp_path):
    source, boxes, _, _ = slots_of(tmp_path, num_boxes=2)
    assert not boxes[2].any()
    remark = source.remark(CLIPS["a"], INFO, (0, 1))
    assert "4 objects, and 2 slots" in remark
    assert "--boxes 4" in remark
    assert slots_of(tmp_path, num_boxes=4)[0].remark(CLIPS["a"], INFO, (0, 1)) == ""


def test_a_source_with_slots_keeps_the_contract(tmp_path):
    source = slots_of(tmp_path)[0]
    for check in CHECKS.values():
        check(SourceCase(source, CLIPS["a"], INFO, (0, 1, 2, 5)))


# ---- frames that nobody looked at ----


def test_a_frame_takes_the_boxes_of_the_nearest_one_that_was_looked_at(tmp_path):
    """At 10 frames a second: a detector looked at frames 0, 10 and 20, and saw nothing at 10."""
    images = [
        {"id": k, "file_name": f"a/{k:05d}.jpg", "width": WIDTH, "height": HEIGHT}
        for k in (0, 10, 20)
    ]
    found = [
        {"image_id": k, "category_id": 1, "bbox": [k, 0, 10, 10], "score": 1.0} for k in (0, 20)
    ]
    content = {"images": images, "categories": [], "annotations": found}
    (tmp_path / "boxes.json").write_text(json.dumps(content))

    def left_edges(seconds, numbers):
        options = {"nearest": seconds} if seconds else {}
        source = build_proposals("annotations", file=str(tmp_path / "boxes.json"), **options)
        boxes, scores = source.propose(None, CLIPS["a"], INFO, numbers)
        return np.where(scores[:, 0] >= 0, np.round(boxes[:, 0, 0] * WIDTH), -1).tolist()

    assert left_edges(0, (0, 4, 20)) == [0, -1, 20]
    # Frame 5 lies in the middle, and takes the earlier one. Frame 6 is nearer to the empty one.
    assert left_edges(0.5, (4, 5, 6, 14, 15, 16, 25, 26)) == [0, 0, -1, -1, -1, 20, 20, -1]
    assert left_edges(0.2, (2, 3, 17, 18)) == [0, -1, -1, 20]


def test_a_listed_clip_without_any_box_is_remarked_on(tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps({"a": [[], []]}))
    source = build_proposals("annotations", file=str(tmp_path / "boxes.json"))
    assert "none of its frames has a box" in source.remark(CLIPS["a"], INFO, (0, 1))


def test_seconds_need_a_frame_rate(tmp_path):
    source = source_of("ava", tmp_path)
    info = SimpleNamespace(**{**vars(INFO), "fps": 0.0})
    with pytest.raises(BoxesError, match="frame rate is not known; give it in the manifest"):
        source.propose(None, CLIPS["a"], info, (0,))


def test_a_stretched_frame_is_scaled_by_both_of_its_sides(tmp_path):
    ours(tmp_path)
    options = {"annotated_width": 160, "annotated_height": 40}
    source = build_proposals("annotations", file=str(tmp_path / "boxes.csv"), **options)
    boxes, _ = source.propose(None, CLIPS["b"], INFO, (0,))
    np.testing.assert_allclose(boxes[0, 0], [0, 0, 0.25, 1])


# ---- names, numbers, and what is wrong ----


@pytest.mark.parametrize(
    ("picture", "meant"),
    [
        ("clip7/000012.jpg", ("clip7", 12)),
        ("frames/clip7.mp4/frame_12.png", ("frames/clip7.mp4", 12)),
        ("clip7_000012.txt", ("clip7", 12)),
        ("train/clip_7-3", ("train/clip_7", 3)),
        ("x\\clip7\\img-4.jpg", ("x/clip7", 4)),
    ],
)
def test_a_pictures_name_says_clip_and_frame(picture, meant):
    assert clip_and_frame(picture) == meant


@pytest.mark.parametrize("picture", ["clip.jpg", "12.jpg", ""])
def test_a_name_without_clip_or_number_is_refused(picture):
    with pytest.raises(ValueError, match="says no clip and frame"):
        clip_and_frame(picture)


def test_the_first_number_of_a_file_decides_what_its_numbers_count_from(tmp_path):
    for first in (0, 1):
        folder = tmp_path / str(first)
        folder.mkdir()
        for frame in (0, 1):
            x = 0.25 + 0.25 * frame
            (folder / f"a_{frame + first}.txt").write_text(f"0 {x} 0.5 0.1 0.1")
        source = build_proposals("annotations", file=str(folder))
        boxes, _ = source.propose(None, CLIPS["a"], INFO, (0, 1))
        np.testing.assert_allclose(boxes[:, 0].mean(-1), [0.375, 0.5], atol=1e-6)
    # A detector that saw nothing in the first frame leaves no file for it.
    (tmp_path / "0" / "a_0.txt").unlink()
    source = build_proposals("annotations", file=str(tmp_path / "0"), count_from=0)
    assert source.propose(None, CLIPS["a"], INFO, (0, 1))[1][:, 0].tolist() == [-1, 1]


def test_two_clips_of_one_name_in_two_folders_are_not_mixed_up(tmp_path):
    images = [{"id": k, "file_name": f"{k}/a/1.jpg"} for k in (0, 1)]
    found = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    (tmp_path / "boxes.json").write_text(json.dumps({"images": images, "annotations": found}))
    source = build_proposals("annotations", file=str(tmp_path / "boxes.json"))
    with pytest.raises(BoxesError, match="no boxes under 'a'"):
        source.propose(None, CLIPS["a"], INFO, (0,))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"images": [{"id": 1, "file_name": "nothing"}]}', r"images\[0\]: the name"),
        (
            "x.json",
            '{"images": [], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1]}]}',
            r"annotations\[0\]: image_id 1 is none of the images; .*images=FILE",
        ),
        ("x.json", '[{"image_id": "a/1", "bbox": [1, 2, -3, 4]}]', r"annotations\[0\]: expected f"),
        ("x.json", '{"images": [', "line 1, column 13"),
        ("x.csv", "a,0.5,0,0,1,cup,3,1", "line 1: could not convert"),
        ("x.csv", "a,0.5,0,0", "line 1: .*expected video, second"),
        ("x.txt", "1,1,0,0,9", "no column clip"),
        ("x.txt", "1,1,0,0,9,9,1\n2,1,0,0,9", "line 2: .*expected frame, object"),
        ("a_1.txt", "0 0.5 0.5 0.1", "line 1: 4 numbers; expected class"),
        ("a_1.txt", "cup 0.5 0.5 0.1 0.1", "line 1: .*expected class"),
        ("x.csv", "x_min,y_min,x_max,y_max,class_id\n1,1,2,2,0", "no column of frames"),
        ("x.csv", "x_min,y_min,x_max,y_max,frame\n1,1,2,up,0", "box 1: .*'up'"),
        (
            "x.json",
            '{"samples": [{"_id": 1, "filepath": "a.mp4", "_media_type": "video"}]}',
            "no frames.json beside it",
        ),
        ("x.csv", "clip,frame,x1,y1,x2,y2,track\na,0,0,0,1,1,one", "column track: .*'one'"),
        ("x.csv", "clip,frame,x1,y1,x2,y2,width,height\na,0,0,0,1,1,0,3", "width and height above"),
        ("x.csv", "clip,second,x1,y1,x2,y2\na,-1,0,0,1,1", "column second: expected a number"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_with_its_place(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        build_proposals("annotations", file=str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    (tmp_path / "person_bbox.pkl").write_bytes(pickle.dumps({"a/1.png": print}))
    with pytest.raises(ValueError, match="would execute"):
        build_proposals("annotations", file=str(tmp_path))


def test_a_detection_in_two_fields_is_not_read_twice(tmp_path):
    fiftyone(tmp_path)
    content = json.loads((tmp_path / "frames.json").read_text())
    content["frames"][0]["other"] = content["frames"][0]["found"]
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="in the fields found, other"):
        build_proposals("annotations", file=str(tmp_path))


def test_a_format_can_be_named(tmp_path):
    # All of AVA's numbers could be MOT's, if videos are called by numbers.
    path = tmp_path / "1.csv"
    path.write_text("1,1,0.25,0.5,1,1,1\n")
    assert format_of(path, path.read_text()) == "ava"
    clip = SimpleNamespace(clip="1", path="1.mp4")
    source = build_proposals("annotations", file=str(path), format="mot")
    boxes, _ = source.propose(None, clip, INFO, (0,))
    np.testing.assert_allclose(boxes[0, 0] * [80, 40, 80, 40], [0.25, 0.5, 1.25, 1.5], rtol=1e-6)
