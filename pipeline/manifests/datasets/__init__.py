"""Published data sets: their official files, as they are downloaded, become rows of a manifest.

    dataset            `Dataset`, what the official files say; classes that a mirror changes
    annotation_files   finding and reading official files
    video_folders      finding the videos in one listing of their folder
    manifest_writer    the manifest, its class list, and the lists for mirrored views
    the other modules  one published data set each, with a function `read`

Official files are read here, and no video is opened. What a file says is data: only a name that
the listing of the videos has becomes a path.
"""

from pipeline.manifests.datasets.dataset import Dataset, DatasetClip, mirrored_pairs, protected

__all__ = ["Dataset", "DatasetClip", "mirrored_pairs", "protected"]
