"""Plug-ins: what is found, what is executed, and what is refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from heads.zoo import build_head, check_options, head_names, head_options
from pipeline import plugins
from pipeline.backbones import build_backbone
from pipeline.proposals import build_proposals
from tests.support import plugin_files
from tests.support.plugin_files import marked

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    """Each test starts as a fresh process does."""
    monkeypatch.setattr(plugins, "_given", {})
    monkeypatch.setattr(plugins, "_noted", {})
    yield
    for name in [name for name in sys.modules if name.startswith("vidgraph_plugin_")]:
        del sys.modules[name]


def saved(folder: Path, source: str, name: str = "my_head.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", ["my_head.py", "μου κεφάλι.py", "a@b.py", "my.head.py"])
def test_a_file_is_built_by_the_name_that_it_is_given(tmp_path, name):
    from heads.interface.contract import DIMS

    given = plugins.give_file(saved(tmp_path, plugin_files.HEAD, name))
    assert plugins.is_recorded(given)
    assert plugins.display_name(given) == name.removesuffix(".py")
    assert head_options(given) == {"width": 8}
    head = build_head(given, DIMS, 3, width=4)
    assert head.first.out_features == 4
    assert given not in head_names()
    with pytest.raises(ValueError, match="no option 'widht': did you mean width"):
        check_options(given, {"widht": 3})
    with pytest.raises(ValueError, match="option width: expected int"):
        build_head(given, DIMS, 3, width="wide")


def test_a_head_that_is_no_module_is_refused_in_one_line(tmp_path):
    from heads.interface.contract import DIMS

    given = plugins.give_file(saved(tmp_path, "def build(dims, num_classes): return 3"))
    with pytest.raises(ValueError, match=r"build returns int, expected a torch\.nn\.Module"):
        build_head(given, DIMS, 3)


def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path):
    from heads.interface.contract import DIMS

    head = plugins.give_file(saved(tmp_path, plugin_files.HEAD))
    backbone = plugins.give_file(saved(tmp_path, plugin_files.BACKBONE, "small.py"))
    boxes = plugins.give_file(saved(tmp_path, plugin_files.BOXES, "halves.py"))
    for name in (backbone, boxes):
        with pytest.raises(ValueError, match=r"this is no head; expected a function build\(dims"):
            build_head(name, DIMS, 3)
    with pytest.raises(ValueError, match="backbone my_head needs the option 'dims'"):
        build_backbone(head)
    with pytest.raises(ValueError, match=r"expected a pipeline\.backbones\.Backbone"):
        build_backbone(boxes)
    with pytest.raises(ValueError, match="'my_head' needs the option 'dims'"):
        build_proposals(head)
    with pytest.raises(ValueError, match="expected an object with `propose`"):
        build_proposals(backbone)


def test_backbones_and_sources_of_boxes_are_files_too(tmp_path):
    backbone = plugins.give_file(saved(tmp_path, plugin_files.BACKBONE, "small.py"))
    assert build_backbone(backbone, width=16).channels("conv2") == 16
    boxes = plugins.give_file(saved(tmp_path, plugin_files.BOXES, "halves.py"))
    assert build_proposals(boxes).num_boxes == 2


def test_relative_paths_start_from_the_folder_that_is_named(tmp_path, monkeypatch):
    saved(tmp_path / "there", plugin_files.HEAD)
    assert plugins.give_file("./my_head.py", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert plugins.given_name("my_head.py") == plugins.given_name("./my_head.py")
    assert plugins.given_name("gos") == "gos"


def test_a_path_alone_executes_nothing(tmp_path):
    """Only `give_file` allows a file, whichever way its path came here."""
    path = saved(tmp_path, marked(plugin_files.HEAD, tmp_path / "ran"))
    for look_up in (
        lambda: check_options(str(path), {}),
        lambda: build_backbone(str(path)),
        lambda: build_proposals(str(path)),
    ):
        with pytest.raises(ValueError, match="not executed"):
            look_up()
    assert not (tmp_path / "ran").exists()


def test_a_recorded_name_executes_nothing_until_the_same_bytes_are_given(tmp_path, monkeypatch):
    path = saved(tmp_path, marked(plugin_files.HEAD, tmp_path / "ran"))
    recorded = plugins.give_file(path)
    checksum = recorded.rpartition("@")[2]
    monkeypatch.setattr(plugins, "_given", {})  # another process

    check_options(recorded, {"whatever": 1})  # a record is read, nothing is executed
    with pytest.raises(
        ValueError, match=rf"my_head\.py.*{checksum[:12]}.*--plugin my_head\.py"
    ) as said:
        head_options(recorded)
    assert "\n" not in str(said.value)
    plugins.note_paths({checksum: "/there/my_head.py"})
    with pytest.raises(ValueError, match=r"/there/my_head\.py.*--plugin /there/my_head\.py"):
        head_options(recorded)

    path.write_text(marked(plugin_files.HEAD, tmp_path / "ran") + "\n# changed\n")
    plugins.give_file(path)
    with pytest.raises(ValueError, match=f"{checksum[:12]} when it was recorded.*changed since"):
        head_options(recorded)
    assert not (tmp_path / "ran").exists()

    moved = saved(tmp_path / "elsewhere", marked(plugin_files.HEAD, tmp_path / "ran"), "other.py")
    plugins.give_file(moved)
    assert head_options(recorded) == {"width": 8}
    assert (tmp_path / "ran").read_text() == "ran "


def test_what_is_executed_are_the_bytes_that_were_given(tmp_path):
    """Neither a file that was swapped afterwards nor compiled code beside it."""
    path = saved(tmp_path, plugin_files.HEAD)
    name = plugins.give_file(path)
    path.write_text("raise SystemExit('swapped')")
    assert head_options(name) == {"width": 8}
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise SystemExit(0)", "cannot be loaded: SystemExit"),
        ("import sys\nsys.exit('bye\\x1b[2J')", r"cannot be loaded: SystemExit: bye\\x1b\[2J"),
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named"),
        ("def build(:", "cannot be loaded: SyntaxError"),
        ("1 / 0", "cannot be loaded: ZeroDivisionError"),
        ("x = '\xff'.encode().decode('ascii')", "cannot be loaded: UnicodeDecodeError"),
        ("", r"expected a function build\(dims, num_classes"),
        ("build = 3", r"expected a function build\(dims, num_classes"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, source, said):
    name = plugins.give_file(saved(tmp_path, source, "broken.py"))
    for _ in range(2):  # and it is no other the second time
        with pytest.raises(ValueError, match=said) as error:
            head_options(name)
        assert str(error.value).startswith(str(tmp_path / "broken.py"))
        assert "\n" not in str(error.value)


def test_what_a_file_prints_goes_to_standard_error(tmp_path, capsys):
    head_options(plugins.give_file(saved(tmp_path, "print('hello')\n" + plugin_files.HEAD)))
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "hello\n")


def test_files_that_are_none_are_refused(tmp_path):
    for path in ("there/is/none.py", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match="expected the file of a plug-in"):
            plugins.give_file(path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"ends in \.py"):
        plugins.give_file(tmp_path / "notes.txt")


def test_a_worker_takes_the_files_of_its_client_if_they_are_the_same(tmp_path, monkeypatch):
    path = saved(tmp_path, plugin_files.HEAD)
    name = plugins.give_file(path)
    files = plugins.given_files()
    assert files == {str(path): name.rpartition("@")[2]}
    monkeypatch.setattr(plugins, "_given", {})
    plugins.take_over(files)
    assert head_options(name) == {"width": 8}
    monkeypatch.setattr(plugins, "_given", {})
    path.write_text(plugin_files.HEAD + "\n")
    with pytest.raises(ValueError, match="another file than on the machine where"):
        plugins.take_over(files)


# Entry points, in a process of its own


@pytest.fixture
def site(tmp_path):
    """A folder of packages, as pip leaves them, each with the entry points that it is given."""

    def install(package: str, points: dict[str, list[str]], version: str = "1.2") -> None:
        info = tmp_path / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        lines = []
        for group, rows in points.items():
            lines += [f"[{group}]", *rows, ""]
        (info / "entry_points.txt").write_text("\n".join(lines))

    for name, source in (
        ("their_head", plugin_files.HEAD),
        ("their_backbone", plugin_files.BACKBONE),
        ("their_boxes", plugin_files.BOXES),
        ("their_pool", "raise SystemExit('never loaded')"),
        ("their_broken", "import there_is_no_such_module"),
    ):
        saved(tmp_path, source, f"{name}.py")
    install(
        "their-heads",
        {
            "vidgraph.heads": [
                "mean = their_head",
                "both = their_head",
                "pool = their_pool",
                "broken = their_broken",
                "gone = there_is_none",
                "_hidden = their_head",
                "../x = their_head",
            ],
            "vidgraph.backbones": ["small = their_backbone"],
            "vidgraph.proposals": ["halves = their_boxes"],
        },
    )
    install("other-heads", {"vidgraph.heads": ["both = their_head"]}, "0.3")

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_packages_add_names_and_ours_win(site):
    found = site(
        "import sys\n"
        "from heads.zoo import head_names, head_options\n"
        "from pipeline.backbones import backbone_names, backbone_options\n"
        "from pipeline.proposals import build_proposals, proposal_names\n"
        "print({'mean', 'both', 'broken', 'gone'} <= set(head_names()))\n"
        "print({'_hidden', '../x'} & set(head_names()), head_names().count('pool'))\n"
        "print('small' in backbone_names(), 'halves' in proposal_names())\n"
        "print([name for name in sys.modules if name.startswith(('their', 'torch'))])\n"
        "print(head_options('mean'), 'variant' in head_options('pool'))\n"
        "print(backbone_options('small'), build_proposals('halves').num_boxes)\n"
    )
    assert found.splitlines() == [
        "True",
        "set() 1",
        "True True",
        "[]",
        "{'width': 8} True",
        "{'width': 8} 2",
    ]


def test_a_clash_and_a_broken_package_are_said_when_their_name_is_asked_for(site):
    found = site(
        "from heads.zoo import head_options\n"
        "head_options('mean')\n"
        "for name in ('both', 'broken', 'gone', 'mena'):\n"
        "    try:\n"
        "        head_options(name)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    ).splitlines()
    assert len(found) == 4
    assert "the packages other-heads 0.3 and their-heads 1.2 both have one" in found[0]
    assert "head broken of the package their-heads 1.2 (their_broken)" in found[1]
    assert "ModuleNotFoundError" in found[1]
    assert "there_is_none" in found[2]
    assert "did you mean mean" in found[3]
