"""Which part of RSTG's digit experiments is at fault: the digit network's features, or the graph.

Features: a linear probe for the digits' centres, in pixels, on the last map of a digit network and
on its spatial mean. Without --weights, a network is trained first: --place-steps mini-batches on
whole frames, or on single digits for 0.

Graph: the rows of --rows, trained on ideal maps (a spot at each digit's centre, a channel per
class), which no digit network is between. With --train-videos 0 no graph is trained.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _report import arguments, report

from heads.interface.clips import Clips, Dims
from heads.interface.random_streams import INIT, reseed
from heads.reproduction.centre_probe import probe_centres
from heads.reproduction.experiments import recipe_of
from heads.reproduction.ideal_maps import centres_of, digit_cnn_geometry, ideal_maps
from heads.reproduction.place_training import last_map
from heads.reproduction.reproduce import Reproduction
from heads.reproduction.tables import RSTG
from heads.training.learner import Learner
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.digits import DigitVideos

PROBED = 4000, 1000  # training and test frames of the probe
TESTED = 1000  # test videos of the graph
AT_ONCE = 250


def probe_rows(work: Reproduction, weights: Path | None) -> list[dict]:
    """Probe the features of a digit network on the frames of every task."""
    width, options = work.size.cnn, RSTG.lower_options
    if weights is None:
        backbone, _ = work.digit_network(RSTG.tasks[-1])
    else:
        backbone = build_backbone("digit_cnn", weights=str(weights), width=width, **options)
    backbone.eval()

    rows = []
    for name in RSTG.tasks:
        task = replace(work.task(name), frames=1)
        images, sets = work.pictures(task), []
        for split, count in zip(("train", "test"), PROBED, strict=True):
            # Videos that the network was not trained on.
            videos, maps, centres, classes = DigitVideos(task, images[split], 1, split), [], [], []
            for first in range(0, count, AT_ONCE):
                batch = videos[np.arange(first, first + AT_ONCE)]
                with torch.inference_mode():
                    maps.append(last_map(backbone, batch))
                centres.append(centres_of(task, batch.corners)[:, 0])
                classes.append(batch.classes)
            sets.append([torch.cat(part) for part in (maps, centres, classes)])

        row = {"task": name}
        views = {"map": lambda x: x.flatten(1), "spatial mean": lambda x: x.mean((2, 3))}
        for view, take in views.items():
            train, test = ((take(maps), centres, classes) for maps, centres, classes in sets)
            found = probe_centres(train, test, task.classes)
            row[f"{view}, px"] = found.features
        row["guess, px"] = found.guess
        rows.append(row)
    return rows


class IdealVideos:
    """The ideal maps of the videos of a split.

    Args:
        work: the experiment.
        name: of the task.
        split: "train" or "test".
    """

    def __init__(self, work: Reproduction, name: str, split: str):
        self.task, self.split = work.task(name), split
        self.images = work.pictures(self.task)[split]
        self.geometry = digit_cnn_geometry(self.task.size)

    def __getitem__(self, indices: np.ndarray) -> tuple[Clips, torch.Tensor]:
        """Return the maps and labels of some videos."""
        scenes = self.task.scenes(self.images, 0, self.split, indices)
        centres = centres_of(self.task, torch.from_numpy(scenes.corners))
        classes = torch.from_numpy(scenes.classes)
        maps = ideal_maps(centres, classes, self.task.classes, self.geometry)
        clips = Clips(maps={"conv3": maps}, pooled=maps.mean((3, 4)))
        return clips, torch.from_numpy(scenes.labels)


def train_on_ideal_maps(
    work: Reproduction, name: str, row, videos: int, seed: int, state: dict | None = None
) -> tuple[dict, dict]:
    """Train a row's head on ideal maps.

    Args:
        work: the experiment.
        name: of the task.
        row: of the table, one that reads cached maps.
        videos: training videos, none of them twice.
        seed: of the weights.
        state: weights to start from.

    Returns:
        A row of figures, and the weights.
    """
    recipe = recipe_of(row, work.size, name)
    training = replace(recipe.all_phases[0].train, epochs=1)
    train, test = (IdealVideos(work, name, split) for split in ("train", "test"))
    cells, task = train.geometry.cells, train.task
    dims = Dims(task.frames, 0, task.classes, maps={"conv3": (task.classes, cells, cells)})
    reseed(torch.device("cpu"), seed, INIT)
    head = build_head(recipe.head.name, dims, len(task.labels), **recipe.head.options)
    if state is not None:
        head.load_state_dict(state)

    begun = time.perf_counter()
    steps = videos // training.batch
    learner = Learner(head, training, "single", steps, seed, "fp32")
    for step in range(steps):
        numbers = np.arange(step * training.batch, (step + 1) * training.batch)
        learner.step(*train[numbers])
    seconds = time.perf_counter() - begun

    head.eval()
    right = 0
    for first in range(0, TESTED, AT_ONCE):
        clips, labels = test[np.arange(first, first + AT_ONCE)]
        with torch.inference_mode():
            right += (head(clips).logits.argmax(1) == labels).sum().item()
    figures = {
        "task": name,
        "row": row.title,
        "right, %": 100 * right / TESTED,
        "guess, %": 100 * task.guess,
        "videos": videos,
        "videos/s": videos / seconds,
    }
    return figures, head.state_dict()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", default="small", help="a size of `vidgraph reproduce rstg`")
    parser.add_argument("--weights", type=Path, help="a digit network of that size, digit_cnn.pt")
    parser.add_argument("--place-steps", type=int, help="instead of the size's")
    parser.add_argument("--rows", default="time_only,one_temporal,all_temporal")
    parser.add_argument("--train-videos", type=int, default=20000, help="per row and task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    size = next(size for size in RSTG.sizes if size.name == given.size)
    if given.place_steps is not None:
        size = replace(size, place_steps=given.place_steps)
    with TemporaryDirectory() as folder:
        work = Reproduction(RSTG, size, Path(folder), say=lambda line: print(line, flush=True))
        rows = probe_rows(work, given.weights)
    report("distance of a linear probe from the digits' centres", rows, given.json)
    if not given.train_videos:
        return

    known, figures = {row.name: row for row in RSTG.rows}, []
    for row in given.rows.split(","):
        state = None
        # Where all tasks have the same labels, a row on five digits starts from its row on three.
        for name in RSTG.tasks:
            start = state if size.starts.get(name) else None
            found, state = train_on_ideal_maps(
                work, name, known[row], given.train_videos, given.seed, start
            )
            print(found, flush=True)
            figures.append(found)
    report("graphs on ideal maps", figures, None)


if __name__ == "__main__":
    main()
