"""`vidgraph predict`: asks a trained head about videos."""

import sys
from pathlib import Path
from typing import TextIO

import click

from cli._shared.interrupt import stoppable
from cli._shared.options import (
    FOLDER,
    device_option,
    plugin_option,
    require_writable,
    say_cost,
    time_limit_option,
)
from cli._shared.progress import progress, say_aside
from cli._shared.say import say, to_json, warn
from pipeline.text.counted import counted

_FILE = click.Path(path_type=Path)
ENDINGS = (".csv", ".json")


@click.command("predict")
@click.argument("run", type=_FILE)
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...", type=_FILE)
@click.option(
    "--top", default=5, type=click.IntRange(min=1), help="Classes per video, the best first."
)
@click.option("--out", type=_FILE, metavar="FILE", help="Also write the answers: a .csv or .json.")
@click.option("--show", type=_FILE, metavar="DIR", help="Also draw a picture per video into DIR.")
@click.option("--root", type=FOLDER, help="Folder of a manifest's paths.  [default: its own]")
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    help="Which weights.  [default: what the run's own figures use]",
)
@click.option(
    "--like",
    type=_FILE,
    metavar="CACHE",
    help="Take the options of the extraction from this cache.  [default: the run's record]",
)
@click.option("--weights", help="Where the backbone's weights are now.  [default: where they were]")
@click.option(
    "--annotations",
    type=_FILE,
    help="File of the videos' boxes, of a run on annotated boxes.  [default: that of the training]",
)
@click.option(
    "--proposal-weights",
    help="Where the weights of the source of boxes are now.  [default: where they were]",
)
@click.option(
    "--allow-truncated", is_flag=True, help="Take videos that end before their container says."
)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic of the head; features have that of the run's extraction.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Decode processes.  [default: 1 on a CPU, one per spare core beside a GPU]",
)
@click.option(
    "--scratch",
    type=FOLDER,
    help="Folder for features on their way; they are removed.  [default: that of temporary files]",
)
@time_limit_option(120.0)
@device_option
@plugin_option
def command(run: Path, videos: tuple[Path, ...], **given) -> int:
    """Name the classes of VIDEOs with the trained head in the folder RUN.

    A VIDEO is a video, a folder of videos, a folder of frames, or a manifest (.csv), with labels or
    without. No cache is needed: frames, networks, boxes and graphs are made with the options of the
    run, and nothing of them stays. Each video gets one line: the classes with the best scores.

    Exit code 3: some videos could not be read. They are named, and the others are answered.
    """
    out, show = given["out"], given["show"]
    if out is not None:
        if out.suffix.lower() not in ENDINGS:
            raise click.UsageError(f"--out {out}: expected a name that ends in .csv or .json")
        require_writable(out)
    if show is not None:
        require_writable(show / "picture.png")
    with stoppable("stopped; nothing was kept"):
        answers = _ask(run, videos, given)
    if out is not None:
        _write(out, run, answers, given["top"])
        say(out)
    return 3 if answers.failures else 0


def _ask(run: Path, videos: tuple[Path, ...], given: dict):
    """Print one line per video as soon as it is answered; return all answers."""
    import time
    from contextlib import ExitStack

    from heads.prediction.asked_run import open_run
    from heads.prediction.videos import predict_videos
    from pipeline.stages.jobs import RunOptions
    from pipeline.stages.recorded import MovedFiles
    from pipeline.workers.memory import keep_freed_memory

    keep_freed_memory()
    begun = time.monotonic()
    # A progress bar takes standard output over and prints it on the terminal, above itself. What
    # goes to a file or a pipe must get there.
    redirected = None if sys.stdout.isatty() else sys.stdout
    moved = MovedFiles(
        weights=given["weights"],
        annotations=given["annotations"],
        proposal_weights=given["proposal_weights"],
    )
    asked = open_run(
        run,
        checkpoint=given["checkpoint"] or "",
        like=given["like"],
        moved=moved,
        allow_truncated=given["allow_truncated"],
    )
    say_cost(given["precision"], given["device"])
    say_cost(asked.config.precision, given["device"])
    options = RunOptions(
        device=given["device"], workers=given["workers"], time_limit=given["time_limit"]
    )
    with ExitStack() as stack:

        def announce(todo: int, total: int):
            return stack.enter_context(progress("predict", todo, "videos"))

        answers = predict_videos(
            asked,
            videos,
            root=given["root"],
            options=options,
            precision=given["precision"],
            scratch=given["scratch"],
            show=given["show"],
            top=given["top"],
            announce=announce,
            on_answer=lambda answer: _print(answer, given["top"], redirected),
            say=say_aside,
        )
    _print_end(answers, time.monotonic() - begun, given["show"])
    return answers


def _print(answer, top: int, file: TextIO | None) -> None:
    """Print the line of a video on `file`, or on standard output."""
    if answer.failure:
        warn(f"{answer.name}: failed: {answer.failure}")
        return
    first, *others = answer.top(top)
    line = f"{answer.name}: {_shown(*first)}"
    if answer.labels:
        line += " (right)" if first[0] in answer.labels else f" (is {', '.join(answer.labels)})"
    if others:
        line += f"; {', '.join(_shown(*one) for one in others)}"
    say(line, file=file)
    for remark in answer.remarks:
        warn(f"{answer.name}: warning: {remark}")


def _shown(name: str, score: float) -> str:
    return f"{name} {score:.3f}"


def _print_end(answers, seconds: float, show: Path | None) -> None:
    """Print how many videos were answered, and how many of the labelled ones rightly."""
    asked, failed = len(answers.answers), len(answers.failures)
    text = f"{asked - failed:,} of {counted(asked, 'video')} answered in {seconds:.1f} s"
    labelled = [one for one in answers.answers if one.labels and one.scores is not None]
    if labelled and answers.target == "single":
        right = sum(one.top(1)[0][0] in one.labels for one in labelled)
        text += f"; top-1 of {len(labelled):,} with a label: {100 * right / len(labelled):.1f} %"
    if show is not None and asked > failed:
        text += f"; pictures in {show}"
    warn(text)
    if failed:
        what = counted(failed, "video")
        what += " could not be read"
        if any(one.failure.startswith("MissingBoxes") for one in answers.answers):
            what += (
                "; the boxes of this run are annotated: give a manifest whose clip ids are those "
                "of --annotations FILE"
            )
        warn(what)


def _write(path: Path, run: Path, answers, top: int) -> None:
    """Write a row, or an entry, per video."""
    from pipeline.files.atomic_files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        text = _csv(answers, top)
    else:
        text = to_json(_record(run, answers, top), plain=False) + "\n"
    write_text(path, text)


def _csv(answers, top: int) -> str:
    import io

    from pipeline.text.printable import write_table

    count = min(top, len(answers.classes))
    header = ["video", "clip", "label", "error"]
    for number in range(1, count + 1):
        header += [f"class {number}", f"score {number}"]
    rows = [header]
    for answer in answers.answers:
        row = [answer.name, answer.clip, ";".join(answer.labels), answer.failure]
        for name, score in answer.top(count):
            row += [name, score]
        rows.append(row + [""] * (len(header) - len(row)))
    text = io.StringIO()
    write_table(text, rows)
    return text.getvalue()


def _record(run: Path, answers, top: int) -> dict:
    videos = []
    for answer in answers.answers:
        entry = {"video": answer.name, "clip": answer.clip, "labels": list(answer.labels)}
        if answer.failure:
            entry["error"] = answer.failure
        else:
            best = [{"class": name, "score": score} for name, score in answer.top(top)]
            entry |= {"classes": best, "logits": answer.logits.tolist()}
        videos.append(entry)
    return {"run": str(run), "classes": list(answers.classes), "videos": videos}
