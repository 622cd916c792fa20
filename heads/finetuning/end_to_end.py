"""Train from frames: one phase of one run, with any source of frames.

    frames = FrameOptions(train_from="stem", frozen_bn=False)
    network = new_network(recipe, backbone, dims, classes=5, seed=0, frames=frames)
    result = train_frames(recipe, "runs/digits-0", network, source, classes)

`source` is a `heads.finetuning.frame_training.FrameSource`: it names the videos of each split and
hands out their frames.

The run folder is that of heads/training/train.py (heads/runs/run_files.py lists its files), and
what a run computes depends on the same things. Its checkpoints also hold the backbone's weights,
under "backbone", as `vidgraph extract --weights` reads them. They are written every
`checkpoint_every` mini-batches. A run that was killed continues from the last one, also inside an
epoch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heads.config.recipe import PLAIN, Recipe
from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.frame_predictions import check_test_views
from heads.finetuning.frame_training import FrameRunOptions, FrameSource
from heads.finetuning.frames_run import FramesRun
from heads.finetuning.joint_network import JointNetwork
from heads.training.study import Result
from pipeline.workers.waiting import PrintLine


def train_frames(
    recipe: Recipe,
    folder: Path | str,
    network: JointNetwork,
    source: FrameSource,
    classes: tuple[str, ...],
    options: FrameRunOptions | None = None,
    *,
    phase: str = "",
    processes: ProcessGroup | None = None,
    say: PrintLine = print,
    about: Mapping[str, Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    begin: Callable[[JointNetwork], None] | None = None,
) -> Result:
    """Train one phase of a recipe from frames and evaluate it on val and test.

    Args:
        recipe: the whole recipe.
        folder: of the run; made, or continued.
        network: on its device.
        source: of the frames.
        classes: the K class names.
        options: how the run works; None for the defaults.
        phase: its name; "" for the recipe's first.
        processes: those that train together; None for this one alone.
        say: prints a line.
        about: what tells this run from others, beside recipe, seeds and classes.
        conditions: what else the phase's result depends on.
        notes: further entries of run.json.
        begin: called with the network before the phase's first mini-batch. It is not called
            where a phase is continued.

    Returns:
        The result; a finished run is read back.

    Raises:
        ValueError: recipe, splits and folder do not agree.
        FolderBusy: another process trains in the folder.
    """
    run = FramesRun(
        recipe,
        recipe.phase(phase or recipe.all_phases[0].name or PLAIN),
        Path(folder),
        network,
        source,
        classes,
        options or FrameRunOptions(),
        processes or ProcessGroup(),
        say,
        about,
        conditions,
        notes,
    )
    finished = run.finished() if run.options.resume else None
    if finished is not None:
        run.say(f"{folder}: finished before, read back")
        return finished

    try:
        run.enter()
        check_test_views(network, run.recipe.head.name, source)
        continued = run.open()
        if begin is not None and not continued:
            begin(network)
        if run.options.checkpointing:
            network.checkpoint_activations()
        run.fit()
        return run.finish()
    except Exception as error:
        # Where the folder was moved or deleted, that is the reason for whatever failed.
        reason = run.files.reason(error)
        if reason is not error:
            raise reason from None
        raise
    finally:
        run.close()
