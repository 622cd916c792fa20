"""Choose the frames, the crop and the flip of every view of a clip, without looking at a pixel.

Where things are decided:

    which frame numbers      pipeline/views/frame_numbers.py   segments, stride, linspace, gos
    which crop               pipeline/views/crops.py
    all of one view          pipeline/views/sampling.py        `Sampling` (options), `views_of`
    which test views stay    pipeline/views/equal_views.py     where their number changes
    random numbers           pipeline/views/stateless_random.py
    what is known of a clip  pipeline/views/video_info.py

The room uses numpy and `pipeline.text`, and no other room.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "Draws": "stateless_random",
    "Sampling": "sampling",
    "VideoInfo": "video_info",
    "View": "sampling",
    "count_views": "sampling",
    "gos_frames": "frame_numbers",
    "linspace_frames": "frame_numbers",
    "segment_frames": "frame_numbers",
    "stride_frames": "frame_numbers",
    "views_of": "sampling",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
