"""`vidgraph evaluate`: a trained head on a split of a cache."""

from pathlib import Path

import click
from click.core import ParameterSource

from cli._shared.annotations import annotated_boxes_of, annotations_option
from cli._shared.caches import caches_option
from cli._shared.interrupt import stoppable
from cli._shared.options import device_option, plugin_option, say_cost
from cli._shared.say import say
from pipeline.text.counted import counted

# Option -> what it does in place of an evaluation, and the options that it would not hear.
IN_PLACE = {
    "--ensemble": (
        "sums stored predictions",
        (
            *("--cache", "--manifest", "--checkpoint", "--phase", "--structure", "--exchange"),
            *("--annotations", "--set", "--device", "--precision", "--root", "--workers"),
            "--per-class",
        ),
    ),
    "--exchange": (
        "prints single scores, computed on the CPU in fp32",
        (
            *("--structure", "--aggregate", "--scores", "--annotations", "--set"),
            *("--device", "--precision", "--submission", "--submission-format"),
            *("--root", "--workers", "--per-class"),
        ),
    ),
}


@click.command("evaluate")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@caches_option("The cache to evaluate on.  [default: the run's]", required=False)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Labels and splits.  [default: the run's own]",
)
@click.option(
    "--split",
    default="test",
    type=click.Choice(["train", "val", "test"]),
    help="Which clips, by their test views.",
)
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="Which weights.  [default: what the run's own figures use]",
)
@click.option(
    "--phase",
    default="",
    show_default=False,
    help="What this phase of the recipe ended with, in place of a checkpoint.",
)
@click.option(
    "--structure",
    default="",
    show_default=False,
    metavar="NAME",
    help="Of gos: one structure for all videos, common, clip:CLIP, a run, or a CSV file.",
)
@click.option(
    "--exchange",
    multiple=True,
    metavar="CLIP",
    help="Of gos: evaluate these videos with one another's structures alone.",
)
@click.option(
    "--aggregate",
    type=click.Choice(["mean", "max"]),
    help="Over the test views of a video.  [default: the recipe's]",
)
@click.option(
    "--scores",
    type=click.Choice(["softmax", "sigmoid", "logits"]),
    help="What is aggregated.  [default: the recipe's]",
)
@annotations_option(
    "File of annotated boxes, with which the regions of a head are compared (Dist).  "
    "[default: the cache's boxes, where these are annotations]"
)
@device_option
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic of the head.",
)
@click.option(
    "--ensemble",
    is_flag=True,
    help="Sum the scores that the RUNs predicted before, in place of evaluating them.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="With --ensemble: a folder for the sums and their figures.",
)
@click.option(
    "--submission",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the predictions as Something-Something's test server takes them.",
)
@click.option(
    "--submission-format",
    type=click.Choice(["v1", "v2"]),
    help="v1: id;label, the likeliest class by name. v2: id and the numbers of the five likeliest."
    "  [default: v1]",
)
@click.option(
    "--per-class/--no-per-class",
    default=None,
    help="Print the figures of every class.  [default: up to 30 classes]",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Of a run from frames: folder that the paths of --manifest start from.  [default: its "
    "own]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Of a run from frames: decode processes.  [default: 1 on a CPU, one per spare core beside "
    "a GPU]",
)
@plugin_option
def command(
    runs,
    cache,
    manifest,
    split,
    checkpoint,
    phase,
    structure,
    exchange,
    aggregate,
    scores,
    annotations,
    settings,
    device,
    precision,
    ensemble,
    into,
    submission,
    submission_format,
    per_class,
    root,
    workers,
) -> int:
    """Evaluate the trained head in the folder RUN, or in each of several.

    Predictions and figures are written to that folder, those of another phase (--phase) beside
    those of the run. The figures of every class are in per_class_SPLIT.csv, and are printed where
    there are few classes.

    A run that trained its backbone too (`vidgraph finetune`) is evaluated from the videos of its
    manifest, unless --cache names a cache of that backbone. Exit code 3: some of them cannot be
    read.

    For DyReg's regions, annotated boxes give Dist: how far boxes are from the nearest region, and
    regions from the nearest box, each also before training (start). docs/heads.md says it exactly.

    With --structure every video gets the same structure of GOS: "common" is the one that most
    training videos chose (Table 1, non-adaptive only in testing). --exchange, given for each of
    several videos, prints how each is classified with the structure of each (Figure 5), and writes
    a table beside the predictions. docs/heads.md says more.

    With --ensemble the runs count as one: their scores are summed, video by video. It reads the
    predictions that evaluating each run has written. `vidgraph evaluate runs/ean8 runs/ean16
    --ensemble` is EAN's ensemble of 8 and 16 frames.

    With --submission FILE the split needs no labels. FILE has a line per video and no header.
    """
    replaced = {}
    if aggregate:
        replaced["aggregate"] = aggregate
    if scores:
        replaced["scores"] = scores
    if phase and checkpoint:
        raise click.UsageError(
            "--phase and --checkpoint: expected one of them; a phase has one checkpoint, its last"
        )
    if ensemble:
        _refuse_unheard("--ensemble")
    elif exchange:
        _refuse_unheard("--exchange")
    submission = _submission(runs, ensemble, submission, submission_format)
    if ensemble:
        return _ensemble(runs, split, replaced, into, submission)
    if into is not None:
        raise click.UsageError(
            "--into goes with --ensemble only; an evaluation writes to the run's folder"
        )
    if exchange:
        # A video that is named twice is one video.
        names = tuple(dict.fromkeys(exchange))
        for run in runs:
            _exchange(run, cache, manifest, split, checkpoint, phase, names)
        return 0
    boxes = annotated_boxes_of(annotations, settings)
    say_cost(precision, device)
    code = 0
    for run in runs:
        options = {
            "checkpoint": checkpoint or "",
            "phase": phase,
            "structure": structure,
            "settings": replaced,
            "device": device,
            "precision": precision,
            "annotations": boxes,
            "submission": submission,
        }
        videos = {"root": root, "workers": workers}
        code = max(code, _evaluate(run, cache, manifest, split, options, videos, per_class))
    return code


def _refuse_unheard(mode: str) -> None:
    """Raise UsageError for an option of the command line that `mode` would not hear."""
    what, unheard = IN_PLACE[mode]
    context = click.get_current_context()
    for parameter in context.command.params:
        option = parameter.opts[0]
        source = context.get_parameter_source(parameter.name)
        if option in unheard and source is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option} does not apply to {mode}, which {what}")


def _submission(runs, ensemble, path, form):
    """Return the file for a test server, or None."""
    from heads.evaluation.submission import Submission

    if path is None:
        if form:
            raise click.UsageError("--submission-format goes with --submission FILE")
        return None
    if len(runs) > 1 and not ensemble:
        raise click.UsageError(
            "--submission: expected one RUN, or --ensemble, since it is one file; evaluate the "
            "RUNs one by one"
        )
    return Submission(path, form or "v1")


def _ensemble(runs, split, settings, into, submission) -> int:
    from cli._shared.figures import print_figures
    from heads.evaluation.ensemble import ensemble, scores_of_run

    total = ensemble(runs, split, settings)
    if submission is not None:
        submission.check(total.classes, total.target)
        submission.check_clips(total.clips)
    if into is not None:
        total.save(into, split)
    if submission is not None:
        count = submission.write(total.clips, total.classes, total.scores)
        say(
            f"{submission.path}: {counted(count, 'video')} of split {split}, format "
            f"{submission.format}"
        )
    rows = {str(run): scores_of_run(run, split, settings).figures for run in runs}
    print_figures(f"split {split}, sum of scores", {**rows, "ensemble": total.figures}, "run")
    return 0


def _cache_of(run, cache):
    from heads.interface.run_records import RUN
    from heads.runs.run_files import read_json
    from pipeline.cache.joined import open_caches

    # A run from frames may have no cache.
    about = {} if cache else read_json(run / "run.json", RUN)
    # A run on several caches lists all of them; "cache" is the first.
    paths = cache or about.get("caches") or about.get("cache")
    if not paths:
        raise click.UsageError(f"{run} was trained from frames, without a cache: pass --cache")
    return open_caches(paths)


def _exchange(run, cache, manifest, split, checkpoint, phase, names) -> None:
    from cli._shared.figures import print_exchange
    from heads.evaluation.evaluate import exchange_structures
    from pipeline.manifests.manifest import read_manifest

    found = exchange_structures(
        run,
        _cache_of(run, cache),
        split,
        names,
        checkpoint=checkpoint or "",
        phase=phase,
        manifest=read_manifest(manifest) if manifest else None,
        say=say,
    )
    print_exchange(f"{run}, split {split}", found)


def _evaluate(run, cache, manifest, split, options, videos, per_class) -> int:
    """Evaluate one run, print its figures and files, and return the exit code.

    Args:
        run, cache, manifest, split: as given.
        options: further arguments of `evaluate_run`.
        videos: `root` and `workers`, for a run whose features are in no cache.
        per_class: whether to print the figures of every class; None where there are few.
    """
    from cli._shared.figures import print_classes, print_figures
    from heads.evaluation.evaluate import evaluate_run
    from pipeline.manifests.manifest import read_manifest
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    lost = []
    if not cache and _is_from_frames(run, options["checkpoint"], options["phase"]):
        labels = read_manifest(manifest, videos["root"]) if manifest else None
        found, lost = _evaluate_frames(run, labels, split, options, videos)
    else:
        for name, value in videos.items():
            if value is not None:
                raise click.UsageError(
                    f"--{name} is for a run that trained its backbone too, evaluated without "
                    f"--cache; leave it out"
                )
        labels = read_manifest(manifest) if manifest else None
        found = evaluate_run(run, _cache_of(run, cache), split, manifest=labels, say=say, **options)
    print_figures(str(run), {split: found.figures})
    print_classes(found.classes, per_class)
    say(f"written to {run}: {', '.join(path.name for path in found.files)}")
    return 3 if lost else 0


def _is_from_frames(run, checkpoint, phase) -> bool:
    """Return whether a run trained its backbone too, so that no cache has its features."""
    from heads.evaluation.saved_heads import trained_its_backbone
    from heads.runs.start_weights import phase_checkpoint

    if phase:
        checkpoint = phase_checkpoint(run, phase)
    return trained_its_backbone(run, checkpoint)


def _evaluate_frames(run, manifest, split, options, videos):
    """Evaluate a run on its videos; return what was found, and the clips that cannot be read."""
    from contextlib import ExitStack

    from cli._shared.progress import progress, say_aside
    from heads.prediction.frames_evaluate import evaluate_from_frames
    from pipeline.stages.jobs import RunOptions

    for name, option in (("structure", "--structure"), ("annotations", "--annotations")):
        if options[name]:
            raise click.UsageError(
                f"{option} needs a cache of the run's own backbone: pass --cache, after "
                f"`vidgraph extract --weights {run}/best.pt`"
            )
    taken = ("checkpoint", "phase", "settings", "precision", "submission")
    with stoppable("stopped; nothing was written"), ExitStack() as stack:

        def announce(todo: int, total: int):
            return stack.enter_context(progress("evaluate", todo, "clips"))

        return evaluate_from_frames(
            run,
            split,
            manifest=manifest,
            options=RunOptions(device=options["device"], workers=videos["workers"]),
            announce=announce,
            say=say_aside,
            **{name: options[name] for name in taken},
        )
