"""The command line as a person meets it: help, mistakes, exit codes, and the real videos."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.__main__ import _verbs, main, vidgraph
from cli._shared.options import require_writable, shard_numbers, toml_value
from cli._shared.utf8 import ensure_utf8
from pipeline.cache.reader import Cache

ROOT = Path(__file__).parents[2]
REAL = (
    "arm_wrestling.mp4",
    "people_indoors.mp4",
    "flipping_a_pancake.mkv",
    "corrupted.mp4",
    "unordered.mov",
)
ROTATED = tuple(f"video_{angle}.mov" for angle in (0, 90, 180, 270))


def code_of(capsys, *args: str) -> tuple[int, str]:
    """Exit code and what went to standard error."""
    with pytest.raises(SystemExit) as left:
        main(list(map(str, args)))
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize("verb", _verbs())
def test_every_verb_explains_itself(verb):
    result = CliRunner().invoke(vidgraph, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_every_option_has_a_line_of_help():

    def commands(command, name):
        yield name, command
        if isinstance(command, click.Group):
            for sub in command.list_commands(click.Context(command)):
                yield from commands(
                    command.get_command(click.Context(command), sub), f"{name} {sub}"
                )

    for name, command in commands(vidgraph, "vidgraph"):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]}"


def test_names_beyond_ascii_do_not_hang_on_the_locale(tmp_path):
    """As batch systems start programs: the names, the manifest and what is printed are those of any
    other day.
    """
    (tmp_path / "s\u00e9t/\u7f51").mkdir(parents=True)
    for name in ("na\u00efve.mp4", "plain.mp4"):
        (tmp_path / "s\u00e9t/\u7f51" / name).touch()
    env = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT),
    }
    asked = [
        sys.executable,
        "-m",
        "cli",
        "manifest",
        "folder",
        "s\u00e9t",
        "--out",
        "clips.csv",
        "--val",
        "0",
        "--test",
        "0",
    ]
    done = subprocess.run(asked, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\u7f51" in done.stdout.decode("utf-8")
    assert [
        line.split(",")[1] for line in (tmp_path / "clips.csv").read_text("utf-8").splitlines()[1:]
    ] == [
        "s\u00e9t/\u7f51/na\u00efve.mp4",
        "s\u00e9t/\u7f51/plain.mp4",
    ]


def test_a_command_is_started_anew_once_and_only_where_names_are_not_utf8(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *asked: started.append(asked))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-B", "/bin/vidgraph", "ls", "."])
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    ensure_utf8()
    assert not started
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setenv("PYTHONUTF8", "0")
    ensure_utf8()
    assert started == [
        (sys.executable, [sys.executable, "-X", "utf8", "-B", "/bin/vidgraph", "ls", "."])
    ]
    assert os.environ["PYTHONUTF8"] == "1"  # for child processes


def test_a_mistyped_verb_is_answered_with_the_nearest(capsys):
    code, said = code_of(capsys, "extrct")
    assert code == 2
    assert "extract" in said


def test_bad_input_is_one_line_and_code_2(capsys, tmp_path):
    code, said = code_of(
        capsys, "extract", "--manifest", tmp_path / "no.csv", "--cache", tmp_path / "cache"
    )
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert "no.csv" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--keep", "pooled,noddes"), "noddes"),
        (("--backbone", "i3d_r51"), "i3d_r50"),
        (("--set", "sampling.fsp=3"), "did you mean fps"),
        (("--set", "backbone_options.temporl=every"), "temporal"),
        (("--frames", "0"), "frames"),
        (("--cut", "res9"), "res9"),
        (("--shard", "5-3"), "5-3"),
        (("--flip-protect", "lfet"), "'lfet': did you mean left?"),
    ],
)
def test_a_wrong_option_names_itself_or_the_right_one(options, named, capsys, tmp_path):
    (tmp_path / "m.csv").write_text("clip,path,split,label\na,a.mp4,train,left\n")
    base = (
        "extract",
        "--manifest",
        tmp_path / "m.csv",
        "--cache",
        tmp_path / "cache",
        "--weights",
        "none",
    )
    code, said = code_of(capsys, *base, "--proposals", "grid", *options)
    assert code == 2
    assert named in said
    assert not (tmp_path / "cache").exists()


def test_values_of_set_are_toml_where_they_are_toml():
    assert [toml_value(t) for t in ("3", "2.5", "true", "[1, 2]", '"x"', "alternating")] == [
        3,
        2.5,
        True,
        [1, 2],
        "x",
        "alternating",
    ]


def test_shards_are_numbers_and_ranges_with_both_ends():
    assert shard_numbers(None, None, "3,10-12") == [3, 10, 11, 12]


@pytest.mark.parametrize("text", ["", "-1", "2-1", "99/4", "1-99999999999", "99999999999"])
def test_what_is_no_list_of_shards_is_refused_before_it_is_counted_out(text):
    with pytest.raises(click.BadParameter, match="a range such as 10-20"):
        shard_numbers(None, None, text)


def test_what_cannot_be_is_said_before_the_work(capsys, tmp_path):
    """Each is one line and code 2, and leaves no cache behind."""
    (tmp_path / "file").touch()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "m.csv").write_text("clip,path,split,label\na,a.mp4,train,x\n")
    manifest, cache = ("--manifest", tmp_path / "m.csv"), ("--cache", tmp_path / "cache")
    plain = (
        "--weights",
        "none",
        "--proposals",
        "grid",
        "--backbone",
        "digit_cnn",
        "--frames",
        "4",
        "--size",
        "32",
    )
    for asked, reason in (
        (("extract", *manifest, *plain, "--cache", tmp_path / "file" / "cache"), "file is a file"),
        (
            ("plan", *manifest, *plain, "--cache", tmp_path / "file"),
            "expected a folder for the cache",
        ),
        (
            ("extract", *manifest, *plain, *cache, "--root", tmp_path / "no"),
            "--root: expected the folder of the videos",
        ),
        (
            ("extract", *manifest, *plain, *cache, "--seed", "9" * 20),
            "seed: expected a whole number of 64 bits",
        ),
        (
            ("extract", *manifest, *plain, *cache, "--time-limit", "0"),
            "'--time-limit': 0.0 is not in the range",
        ),
        (("check", *manifest, "--out", tmp_path / "file" / "found.csv"), "file cannot be written"),
        (("check", *manifest, "--root", tmp_path / "no"), "'--root': Directory"),
    ):
        code, said = code_of(capsys, *asked)
        assert (code, reason in said) == (2, True), said
        assert "Traceback" not in said
    assert not (tmp_path / "cache").exists()


def test_protected_labels_of_a_whole_dataset_do_for_a_part_of_it(capsys, tmp_path):
    """Such as NAME.flip-protect.txt, which a manifest's verb makes of all classes."""
    (tmp_path / "m.csv").write_text("clip,path,split,label\na,a.mp4,train,to the left\n")
    base = (
        "extract",
        "--manifest",
        tmp_path / "m.csv",
        "--cache",
        tmp_path / "cache",
        "--weights",
        "none",
    )
    code, said = code_of(
        capsys,
        *base,
        "--proposals",
        "grid",
        "--flip-protect",
        "to the left,to the right",
        "--backbone",
        "nothing",
    )
    assert "no clip has 1 of these 2 labels, such as 'to the right'; using the rest" in said
    assert (code, "backbone 'nothing'" in said) == (2, True), said


def test_a_report_may_go_to_what_is_there_in_a_folder_that_may_only_be_read(tmp_path, monkeypatch):
    """As /dev/stdout and /dev/null."""
    (tmp_path / "there").touch()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) == tmp_path / "there")
    require_writable(tmp_path / "there", as_it_is=True)
    for path, as_it_is in ((tmp_path / "there", False), (tmp_path / "new", True)):
        with pytest.raises(ValueError, match="cannot be written"):
            require_writable(path, as_it_is)


def test_what_the_system_refuses_is_said_with_its_file_and_without_numbers(
    capsys, tmp_path, monkeypatch
):
    def refuse(*given):
        raise PermissionError(13, "Permission denied", str(tmp_path / "m.csv"))

    monkeypatch.setattr("pipeline.manifests.manifest.read_manifest", refuse)
    code, said = code_of(
        capsys, "extract", "--manifest", tmp_path / "m.csv", "--cache", tmp_path / "cache"
    )
    assert code == 2
    assert (
        said
        == f"vidgraph: {tmp_path}/m.csv: Permission denied; expected a place that this user may "
        f"use\n"
    )


def test_the_command_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "vidgraph" in done.stdout


def test_of_the_nine_real_videos_eight_are_extracted_and_one_fails_with_its_reason(
    capsys, tmp_path
):
    videos = Path(os.environ.get("VIDGRAPH_VIDEOS", ROOT.parent / "shared" / "videos"))
    if not videos.is_dir():
        pytest.skip(f"no real videos at {videos}; set VIDGRAPH_VIDEOS to their folder")
    names = REAL + ROTATED
    lines = [f"{name.partition('.')[0]},{name},test,{k % 2}" for k, name in enumerate(names)]
    (tmp_path / "nine.csv").write_text("\n".join(["clip,path,split,label", *lines]) + "\n")
    cache = tmp_path / "cache"
    code, said = code_of(
        capsys, "extract", "--manifest", tmp_path / "nine.csv", "--root", videos,
        "--cache", cache, "--backbone", "resnet18", "--weights", "none",
        "--frames", 8, "--size", 64, "--shard-size", 4, "--device", "cpu",
        "--proposals", "torchvision", "--proposal-weights", "none", "--proposal-size", 64,
    )  # fmt: skip
    assert code == 3
    assert "1 of 9 clips failed" in said
    (failure,) = Cache(cache).failures
    assert failure["clip"] == "corrupted"
    assert failure["message"]
    assert Cache(cache)["test"].ok.sum() == 8

    code, _ = code_of(capsys, "graphs", "--cache", cache, "--neighbours", 4)
    assert code == 0
    code, _ = code_of(capsys, "verify", "--cache", cache)
    assert code == 3


@pytest.mark.parametrize("verb", ["check", "extract"])
def test_who_asks_for_decord_where_it_is_not_learns_that_pyav_does_the_same(
    capsys, tmp_path, without_decord, verb
):
    asked = [verb, "--manifest", tmp_path / "m.csv"] + (
        ["--cache", tmp_path / "c"] if verb == "extract" else []
    )
    code, said = code_of(capsys, *asked, "--decoder", "decord")
    assert code == 2
    assert "decord to be installed here, it is not installed; leave --decoder out" in said
    code, said = code_of(capsys, *asked)
    assert code == 2
    assert "m.csv" in said


def test_decode_processes_are_as_many_as_the_cores_that_may_be_used(monkeypatch):
    """A batch system gives a job some of a machine's cores."""
    from cli.extract import default_workers

    monkeypatch.setattr("pipeline.workers.cores.cores_here", lambda: 7)
    assert (default_workers("cuda"), default_workers("cpu")) == (6, 1)


def test_the_choices_of_a_missing_option_stand_in_its_line(capsys):
    code, said = code_of(capsys, "export")
    assert code == 2
    assert "\t" not in said
    assert "\\t" not in said
    assert said.splitlines()[-1].startswith("Error: Missing option '--to'. Choose from: npy, ")
