"""A Slurm of one node, this machine: munged, slurmctld and slurmd on loopback.

Their files lie in a folder of their own.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "sinfo", "runuser")
START = 300.0  # seconds that a daemon may take to be there, on however busy a machine
CONF = """
ClusterName=vidgraph
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=4 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no Slurm can be started here; "" if one can."""
    missing = []
    for name in NEEDED:
        if not shutil.which(name, path=_path()):
            missing.append(name)
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "not root, whom Slurm's daemons have to run as"
    if subprocess.run(["id", "munge"], capture_output=True).returncode:
        return "no user munge, whom munged has to run as"
    return ""


def _path() -> str:
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Start Slurm and yield the environment in which sbatch finds it.

    RuntimeError with its logs if it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged is another user
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    ctld, node = _free_ports(2)
    conf = CONF.format(folder=folder, ctld=ctld, node=node, host=socket.gethostname().split(".")[0])
    (folder / "slurm.conf").write_text(conf)
    processes: list[subprocess.Popen] = []
    try:
        processes.append(_munged(folder / "munge"))
        for daemon in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
            with open(folder / f"{daemon[0]}.out", "wb") as log:
                output = {"stdout": log, "stderr": log}
                process = subprocess.Popen(daemon, env=env, start_new_session=True, **output)
            processes.append(process)
        _wait_for_node(folder, env, processes)
        yield env
    finally:
        subprocess.run(["scancel", "--user=root"], env=env, capture_output=True)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _munged(folder: Path) -> subprocess.Popen:
    (folder / "key").write_bytes(os.urandom(128))
    for path in (folder, folder / "key"):
        shutil.chown(path, "munge", "munge")
    (folder / "key").chmod(0o400)
    options = [f"--socket={folder / 'socket'}"]
    options += [f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")]
    command = ["runuser", "-u", "munge", "--", "munged", "--foreground", *options]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + START
    while not (folder / "socket").exists():
        if time.monotonic() > end or process.poll() is not None:
            log = folder / "log"
            reason = log.read_text() if log.exists() else process.poll()
            raise RuntimeError(f"munged did not start: {reason}")
        time.sleep(0.05)
    return process


def _wait_for_node(folder: Path, env: dict[str, str], processes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + START
    while True:
        command = ["sinfo", "--noheader", "--format=%T"]
        shown = subprocess.run(command, env=env, capture_output=True, text=True)
        state = shown.stdout.strip()
        if state in ("idle", "mixed"):
            return
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            files = folder.glob("slurm*.[lo]*")
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in files)
            raise RuntimeError(f"Slurm did not start (node {state or 'unknown'})\n{logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Free ports, below those that the kernel gives to programs that ask for any port."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"{count} free ports below 32000 are needed, found {len(found)}")
