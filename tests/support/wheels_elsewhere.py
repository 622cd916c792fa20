"""Can all packages of setup.cfg be installed on another kind of machine without a compiler?

`python -m tests.support.wheels_elsewhere linux-arm` asks pip to resolve the requirements of
setup.cfg for such a machine from wheels alone. Other names are macos-arm and linux-x86; without a
name it asks for all. Nothing is installed, and pip reads only the metadata of most wheels.

Exit code 0: all resolve; 1: pip's message says what does not; 4: no package index can be reached.

pip has an option for the tags of another platform. But it evaluates the markers of requirements
(`; platform_machine == "x86_64"`) for this machine. So pip runs here with the other machine's
markers.
"""

import configparser
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_INDEX = 4

LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
MACOS = {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin"}
# Markers, and the tags of wheels that such a machine takes: a Linux of glibc 2.28, macOS 14.
MACHINES = {
    "linux-x86": (
        LINUX | {"platform_machine": "x86_64"},
        ["manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(17, 29))],
    ),
    "linux-arm": (
        LINUX | {"platform_machine": "aarch64"},
        ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in range(17, 29))],
    ),
    "macos-arm": (
        MACOS | {"platform_machine": "arm64"},
        [f"macosx_{n}_0_{kind}" for n in range(11, 15) for kind in ("arm64", "universal2")],
    ),
}
PIP = """
import sys
from pip._vendor.packaging import markers

here, there = markers.default_environment, {there!r}
markers.default_environment = lambda: {{**here(), **there}}
from pip._internal.cli.main import main

sys.exit(main({arguments!r}))
"""


def requirements(extra: str = "") -> list[str]:
    """The lines of install_requires in setup.cfg, or of one of its extras."""
    read = configparser.ConfigParser()
    read.read(ROOT / "setup.cfg", encoding="utf-8")
    text = read["options.extras_require"][extra] if extra else read["options"]["install_requires"]
    return [line for line in text.splitlines() if line.strip()]


def resolve(machine: str, asked: list[str], python: str = "") -> subprocess.CompletedProcess:
    """pip's attempt to resolve requirements on a machine of MACHINES, with a Python such as 3.12
    (default: this one's).
    """
    environment, platforms = MACHINES[machine]
    python = python or ".".join(map(str, sys.version_info[:2]))
    there = environment | {"python_version": python, "python_full_version": f"{python}.0"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "install",
            "--dry-run",
            "--ignore-installed",
            "--only-binary=:all:",
            "--python-version",
            python,
        ]
        arguments += ["--target", folder, "--disable-pip-version-check", "--progress-bar", "off"]
        for platform in platforms:
            arguments += ["--platform", platform]
        code = PIP.format(there=there, arguments=[*arguments, *asked])
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def reaches_an_index() -> bool:
    """Whether pip gets an answer about a package."""
    asked = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--retries",
        "0",
        "--timeout",
        "10",
    ]
    with tempfile.TemporaryDirectory() as folder:
        return not subprocess.run(
            [*asked, "--dest", folder, "click"], capture_output=True
        ).returncode


def main() -> int:
    if not reaches_an_index():
        print("no package index can be reached")
        return NO_INDEX
    failed = 0
    for machine in sys.argv[1:] or MACHINES:
        done = resolve(machine, requirements())
        installs = re.search(r"^Would install (.*)$", done.stdout, re.MULTILINE)
        said = (
            installs[0]
            if installs
            else "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        )
        print(f"{machine}: {said}")
        failed |= done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
