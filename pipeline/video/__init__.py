"""Videos and folders of pictures: open, count frames, decode, and cut the pixels of views.

Where things are decided:

    who opens a file         video_file.py (PyAV), pictures.py (Pillow), and the decoder's reader
    which decoder reads it   decode.py `open_clip`, then decord_reader.py, torchcodec_reader.py,
                             which fall back to pyav_reader.py; picture_folder.py for folders
    which frames, how many,  packets.py, bitstream.py; several recordings in one file: timeline.py
    when each is shown
    which frames a clip has  frame_reader.py `clip_info`: its start and end, its column fps
    what a picture becomes   orientation.py: turn, mirror, square pixels; video_file.py `shape_of`
                             reads what the stream says of it
    from numbers to frames   frame_reader.py `FrameReader.read`
    from frames to views     view_pixels.py `DecodeViews`: asks `views_of` for the numbers and
                             crops, has the frames read, cuts, resizes and mirrors them
    whether it is the same   video_identity.py
    video as before

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
