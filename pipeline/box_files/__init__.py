"""Files of boxes that other programs wrote: one module per format, and the content tells which.

A reader takes a `BoxText` (or a pickle's path), the class names seen so far and `ReadOptions`. It
yields (clip, `ClipBoxes`), or (clip, what is wrong with it): only that clip fails then. The room
knows neither videos nor caches: which frame number a second is, and how large a frame is, is asked
later (`pipeline.proposals.annotations`).

    table            ClipBoxes, the class names, and the collector that readers add boxes to
    file_text        whole files as text
    names            the clip and the frame number in a picture's name
    formats          which format a file has; reads files and folders
    something_else   Something-Else's and GOS's JSON, a member at a time
    rows             our CSV
    coco             COCO annotations and results, COCO-VID, YouTube-VIS
    ava              AVA's CSV, by the second
    mot              MOTChallenge's text
    yolo             YOLO's text, one file per frame
    action_genome    Action Genome's pickles
    supervision      what supervision's CSVSink and JSONSink write
    fiftyone         FiftyOne's exports
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "ClassNames": "table",
    "ClipBoxes": "table",
    "ReadOptions": "table",
    "FORMATS": "formats",
    "read_boxes": "formats",
}

__all__ = list(_HOMES)

__getattr__ = load_lazily(__name__, _HOMES)
