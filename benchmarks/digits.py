"""Digit videos in memory: batches drawn in torch against one video after the other in numpy and
Pillow.

Both make the same bits. The loop is what writes mp4 files (`pipeline.digits.videos`, without the
writing), on one core; batches use all of torch's threads, or the GPU. Rounds take turns, the median
is shown. "paths" is the part of ours that decides what happens, in numpy on the CPU wherever the
rest runs. `--threads 1` compares core with core.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _report import arguments, report

from pipeline.digits import TASKS, DigitVideos, load_images, videos
from pipeline.workers.memory import keep_freed_memory


def per_second(work: Callable[[range], object], indices: range) -> float:
    """Videos a second that `work` makes of `indices`."""
    begun = time.perf_counter()
    work(indices)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return len(indices) / (time.perf_counter() - begun)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--videos", type=int, default=256, help="per round and task, in batches of --batch"
    )
    parser.add_argument(
        "--loop-videos", type=int, default=48, help="per round and task, for the loop"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=0, help="torch's threads; 0: as many as it takes by itself"
    )
    given = parser.parse_args()
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    images = load_images()["train"]
    rows = []
    for name, kind in TASKS.items():
        made = DigitVideos(kind(), images, device=given.device)
        work = {
            "ours": lambda indices, made=made: [None for _ in made.batches(indices, given.batch)],
            "paths": lambda indices, made=made: made.task.scenes(
                made.images, 0, "train", np.asarray(indices)
            ),
            "loop": lambda indices, made=made: [
                None for _ in videos(made.task, made.images, 0, "train", indices)
            ],
        }
        counts = {"ours": given.videos, "paths": given.videos, "loop": given.loop_videos}
        rates = {part: [] for part in work}
        for round_ in range(given.rounds + 1):
            for part, do in work.items():
                rate = per_second(do, range(round_ * counts[part], (round_ + 1) * counts[part]))
                rates[part] += [rate] * (round_ > 0)  # the first one warms up
        ours, paths, loop = (statistics.median(rates[part]) for part in ("ours", "paths", "loop"))
        ratios = [a / b for a, b in zip(rates["ours"], rates["loop"], strict=True)]
        rows.append(
            {
                "task": name,
                "ours, videos/s": ours,
                "loop, videos/s": loop,
                "ours / loop": statistics.median(ratios),
                "paths alone, videos/s": paths,
            }
        )
    report(f"digit videos on {given.device}, batches of {given.batch}", rows, given.json)


if __name__ == "__main__":
    main()
