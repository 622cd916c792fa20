"""Videos and folders of pictures: open, count frames, decode, and cut the pixels of views.

Imports the rooms `manifests`, `text` and `views` only. Start with `decode.open_clip`; the
decoders are imported when a reader needs them.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "ClipOpener": "view_pixels",
    "ClipPixels": "view_pixels",
    "DecodeError": "frame_reader",
    "DecodeTimeout": "frame_reader",
    "DecodeViews": "view_pixels",
    "DecoderDied": "frame_reader",
    "FrameReader": "frame_reader",
    "ProbeClip": "view_pixels",
    "TruncatedVideo": "frame_reader",
    "changed_videos": "video_identity",
    "mark_video": "video_identity",
    "open_clip": "decode",
    "write_video": "decode",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
