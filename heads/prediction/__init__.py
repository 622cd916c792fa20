"""Ask a trained head about videos: extract, build graphs, predict, and keep nothing of it.

It decodes videos, and imports every room of `heads` that predicts or draws.

    inputs           videos, folders and manifests become one list of clips
    asked_run        a run with all that its features were made with
    stream           the predictions of clips, shard by shard
    videos           one answer per video; `vidgraph.predict`
    pictures         a picture per video
    frames_evaluate  evaluates a run on videos, in place of a cache
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "AskedRun": "asked_run",
    "VideoAnswer": "videos",
    "VideoAnswers": "videos",
    "evaluate_from_frames": "frames_evaluate",
    "open_run": "asked_run",
    "predict": "videos",
    "predict_videos": "videos",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
