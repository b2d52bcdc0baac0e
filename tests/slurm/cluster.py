"""A throw-away Slurm cluster of several nodes inside one machine: real slurmctld, slurmd and munged of Debian.

    python cluster.py start DIR [--nodes 4] [--owner PID]      . DIR/env.sh      python cluster.py stop DIR
    python cluster.py ctl DIR VERB [NODE]     down up cut join slurmd-kill slurmd-start ctld-kill ctld-start status

Every node is a pid, net, mount, uts and ipc namespace with an address, /proc and /dev/shm of its own, joined by a
bridge in a private network namespace. All are descendants of one pid namespace: killing its init removes every process,
interface and mount at once, and the machine's own network, /etc and /run are never touched. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CLIENTS = ("sbatch", "squeue", "srun", "scancel", "scontrol", "sinfo", "sacct")
PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare", *CLIENTS)
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")  # Debian's, for PROGRAMS
MARK = ".slurm-test-cluster"
LOGIN, LOGIN_IP = "login", "10.77.0.254"
GPUS = 8
LONGEST = 60  # of DIR: a unix socket's path has 107 characters
# (an ordinary user's own user namespace will not do: slurmctld needs setgroups(), which is denied there)
UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
NODE_INIT = """
hostname "$1" && mount -t tmpfs -o mode=1777 tmpfs /dev/shm && mount -t tmpfs tmpfs "$2/bin" && ip link set lo up
until ip -4 -o addr show dev eth0 2>/dev/null | grep -q inet; do sleep .02; done
: > "$2/run/$1.ready"
while :; do sleep 3600 & wait; done
"""
CONF = """
ClusterName=test
SlurmctldHost={login}({login_ip})
SlurmctldPort=7001
SlurmdPort=7002
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s by default, 5 at least
AuthInfo=socket={dir}/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
StateSaveLocation={dir}/spool/ctld
SlurmdSpoolDir={dir}/spool/%n
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={dir}/log/jobcomp.txt
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,max_rpc_cnt=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
# believe these lines, not the hardware
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
# times for tests: the defaults are 120, 300, 10, 2 and 30 s
SlurmctldTimeout=10
SlurmdTimeout=4
MessageTimeout=4
TCPTimeout=1
KillWait=4
# its default; at 10 s a busy machine drained a node
UnkillableStepTimeout=60
BatchStartTimeout=5
CompleteWait=0
InactiveLimit=0
ReturnToService=2
# as in production, so that the scripts have to set their own
KillOnBadExit=0
WaitTime=0
MinJobAge=3600
DebugFlags=NO_CONF_HASH
SlurmctldDebug=verbose
SlurmdDebug=verbose
LogTimeFormat=iso8601_ms
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE PriorityTier=9 State=UP PreemptMode=OFF
PartitionName=grace Nodes=ALL Default=NO MaxTime=INFINITE PriorityTier=1 State=UP GraceTime=15
"""


def wait_for[T](test: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true answer of `test`. Raises TimeoutError that names `what`."""
    end = time.monotonic() + timeout_s
    while not (answer := test()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)
    return answer


def addresses(nodes: int) -> dict[str, str]:
    """Addresses of the nodes by name."""
    return {f"n{i}": f"10.77.0.{i}" for i in range(1, nodes + 1)}


def configure(folder: Path, nodes: dict[str, str]) -> None:
    """Write all that the daemons read below `folder`."""
    for name in ("run", "log", "spool/ctld", "bin", "dev", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in (folder, folder / "run", folder / "log", folder / "spool"):
        path.chmod(0o755)  # munged refuses a socket that others cannot reach
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    for index in range(GPUS):  # slurmd counts character devices: copies of /dev/null
        os.mknod(folder / f"dev/nvidia{index}", 0o20666, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={folder}/dev/nvidia[0-{GPUS - 1}]\n")
    lines = "\n".join(  # not all alike, as in many clusters
        f"NodeName={name} NodeHostname={name} NodeAddr={ip} Port=7002 "
        f"CPUs={64 if name == 'n2' else 128} RealMemory=2000000 Gres=gpu:h100:{GPUS} State=UNKNOWN"
        for name, ip in nodes.items()
    )
    (folder / "slurm.conf").write_text(CONF.format(dir=folder, login=LOGIN, login_ip=LOGIN_IP, nodes=lines))
    known = {"localhost": "127.0.0.1", LOGIN: LOGIN_IP, **nodes}
    (folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in known.items()))
    # names from that file alone: a DNS that is out of reach makes every miss wait for 10 s
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    (folder / "cluster.json").write_text(json.dumps(nodes))


class Supervisor:
    """Init of the cluster's pid namespace: starts the daemons and nodes, and answers `ctl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, str] = json.loads((folder / "cluster.json").read_text())
        self.boxes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.env["SLURM_CONF"] = f"{folder}/slurm.conf"

    def spawn(self, *command: str, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"log/{name}.out").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env)

    def run(self) -> None:
        for words in (
            ["hostname", LOGIN],
            ["mount", "--bind", f"{self.folder}/hosts", "/etc/hosts"],
            ["mount", "--bind", f"{self.folder}/nsswitch.conf", "/etc/nsswitch.conf"],
            ["ip", "link", "set", "lo", "up"],
            ["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0"],
            ["ip", "addr", "add", f"{LOGIN_IP}/24", "dev", "br0"],
            ["ip", "link", "set", "br0", "up"],
        ):
            subprocess.run(words, check=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{self.folder}/run/ctl.sock")
            server.listen(8)
            server.settimeout(0.2)
            self.munged()
            self.ctld_start()
            for node in self.nodes:
                self.up(node)
            (self.folder / "run/ready").touch()
            while True:
                self.answer(server)

    def munged(self) -> None:
        run, folder = f"{self.folder}/run", self.folder
        self.munge = self.spawn(
            "munged", "-F", "-f", f"--key-file={folder}/munge.key", f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.pid", f"--log-file={folder}/log/munged.log", f"--seed-file={run}/munged.seed",
            "--num-threads=10", name="munged",
        )  # fmt: skip
        wait_for(lambda: Path(f"{run}/munge.sock").exists(), 10, "munged's socket")

    def answer(self, server: socket.socket) -> None:
        """Reap what was left to us, and carry out one command if there is one; an error is an answer."""
        known = {child.pid for child in (self.munge, self.ctld, *self.boxes.values()) if child.poll() is None}
        for pid in set(children(os.getpid())) - known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            words = connection.recv(4096).decode().split()
            try:
                reply = self.command(*words) or "ok"
            except (AttributeError, OSError, RuntimeError, LookupError, subprocess.SubprocessError) as error:
                reply = f"error: {error!r}"
            connection.sendall(reply.encode())

    def command(self, verb: str, *node: str) -> str | None:
        actions: dict[str, Callable[..., str | None]] = {
            "down": self.down, "up": self.up, "cut": self.cut, "join": self.join, "slurmd-start": self.slurmd_start,
            "slurmd-kill": self.slurmd_kill, "ctld-kill": self.ctld_kill, "ctld-start": self.ctld_start,
            "status": self.status,
        }  # fmt: skip
        return actions[verb](*node)

    def ctld_start(self) -> None:
        self.ctld = self.spawn("slurmctld", "-D", name="slurmctld")

        def listens() -> bool:
            if self.ctld.poll() is not None:
                raise RuntimeError("slurmctld ended: " + (self.folder / "log/slurmctld.out").read_text()[-1000:])
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex((LOGIN_IP, 7001)) == 0

        wait_for(listens, 20, "slurmctld's port")

    def ctld_kill(self) -> None:
        self.ctld.kill()
        self.ctld.wait()

    def status(self) -> str:
        return json.dumps({"slurmctld": self.ctld.poll(), "nodes": {n: box.poll() for n, box in self.boxes.items()}})

    def up(self, node: str) -> None:
        """Switch a node on, if it is off."""
        if node in self.boxes and self.boxes[node].poll() is None:
            return
        ready, ours = self.folder / f"run/{node}.ready", os.readlink("/proc/self/ns/net")
        ready.unlink(missing_ok=True)
        script = ["/bin/sh", "-c", NODE_INIT, "node", node, str(self.folder)]
        box = self.boxes[node] = self.spawn(*UNSHARE, *script, name=f"node.{node}")
        wait_for(lambda: os.readlink(f"/proc/{box.pid}/ns/net") != ours, 10, f"{node}'s network namespace")
        cable, inside = f"v{node}", ["nsenter", "-t", str(box.pid), "-n", "ip"]
        subprocess.run(["ip", "link", "del", cable], check=False, stderr=subprocess.DEVNULL)
        for words in (
            ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(box.pid)],
            ["ip", "link", "set", cable, "master", "br0", "up"],
            [*inside, "addr", "add", f"{self.nodes[node]}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "route", "add", "default", "via", LOGIN_IP],
        ):
            subprocess.run(words, check=True)
        wait_for(ready.exists, 10, f"{node} ready")
        self.slurmd_start(node)

    def down(self, node: str) -> None:
        """Power loss: every process of the node vanishes at once."""
        box = self.boxes.pop(node)
        box.kill()  # --kill-child takes the node's init, hence all of it
        box.wait()
        subprocess.run(["ip", "link", "del", f"v{node}"], check=False, stderr=subprocess.DEVNULL)

    def cut(self, node: str) -> None:
        """Pull the network cable."""
        subprocess.run(["ip", "link", "set", f"v{node}", "down"], check=True)

    def join(self, node: str) -> None:
        subprocess.run(["ip", "link", "set", f"v{node}", "up"], check=True)

    def slurmd_start(self, node: str) -> None:
        inside = ["nsenter", "-t", str(children(self.boxes[node].pid)[0]), "-m", "-u", "-i", "-n", "-p"]
        words = [*inside, "slurmd", "-N", node]
        done = subprocess.run(
            words, check=False, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
        if done.returncode:
            raise RuntimeError(f"slurmd {node}: {done.stderr}")

    def slurmd_kill(self, node: str) -> None:
        pid = (self.folder / f"run/slurmd.{node}.pid").read_text().strip()  # as the node counts
        inside = ["nsenter", "-t", str(children(self.boxes[node].pid)[0]), "-m", "-p"]
        subprocess.run([*inside, "/bin/kill", "-9", pid], check=True)


def children(pid: int) -> list[int]:
    """Children of a process; none where it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def born(pid: int) -> str | None:
    """When a process started, so that a number that was used again is noticed; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def can_unshare() -> bool:
    """Whether this machine lets us make the namespaces that a cluster is made of."""
    script = "ip link add br0 type bridge && ip link add va type veth peer name vb"
    return subprocess.run([*UNSHARE, "/bin/sh", "-c", script], check=False, **QUIET).returncode == 0


def environment(folder: Path) -> dict[str, str]:
    """What a client of the cluster needs in its environment."""
    return {
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "TMPDIR": f"{folder}/tmp",
    }


def start(folder: Path, nodes: int, owner: int) -> None:
    """Start a cluster in `folder`, which ends with the process `owner`, and wait until all nodes are idle."""
    if len(str(folder)) > LONGEST:
        sys.exit(f"{folder}: too long for unix sockets; use something like /tmp/sl.a")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    configure(folder, addresses(nodes))
    with (folder / "log/supervisor.out").open("ab") as log:
        top = subprocess.Popen(
            [*UNSHARE, sys.executable, __file__, "supervise", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    (folder / "run/top.pid").write_text(f"{top.pid} {born(top.pid)}")
    for client in CLIENTS:  # hidden inside the nodes by an empty tmpfs over bin
        enter = f'SLURM_CONF={folder}/slurm.conf exec nsenter -t {top.pid} -n -u {shutil.which(client)} "$@"'
        (folder / "bin" / client).write_text(f"#!/bin/sh\n{enter}\n")
        (folder / "bin" / client).chmod(0o755)
    variables = environment(folder)
    (folder / "env.sh").write_text("".join(f"export {name}={value}\n" for name, value in variables.items()))

    def idle() -> bool:
        if top.poll() is not None:
            raise RuntimeError("the supervisor ended")
        words = ["sinfo", "-h", "-p", "main", "-N", "-o", "%t"]
        if not (folder / "run/ready").exists():
            return False
        done = subprocess.run(words, check=False, env={**os.environ, **variables}, capture_output=True, text=True)
        return done.stdout.split() == ["idle"] * nodes

    try:
        wait_for(idle, 60, "idle nodes")
    except (RuntimeError, TimeoutError):
        for name in ("supervisor.out", "slurmctld.log", "slurmctld.out", "munged.out"):
            if (folder / "log" / name).exists():
                sys.stderr.write(f"--- {name}\n{(folder / 'log' / name).read_text(errors='replace')[-1500:]}\n")
        stop(folder)
        raise
    if owner:
        watch = [sys.executable, __file__, "watch", str(folder), "--owner", str(owner)]
        subprocess.Popen(watch, start_new_session=True, cwd="/", **QUIET)


def stop(folder: Path) -> None:
    """End all of the cluster in `folder` and remove it; nothing where there is none."""
    if not (folder / MARK).exists():
        return
    pid, when = (folder / "run/top.pid").read_text().split()
    if born(int(pid)) == when:
        for init in children(int(pid)):
            os.kill(init, signal.SIGKILL)

    def gone() -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(pid), os.WNOHANG)  # where we are the parent
        return born(int(pid)) != when

    wait_for(gone, 15, f"end of process {pid}")
    shutil.rmtree(folder, ignore_errors=True)


def control(folder: Path, words: list[str]) -> None:
    """Send one command to the supervisor and print its answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(f"{folder}/run/ctl.sock")
        client.sendall(" ".join(words).encode())
        reply = client.recv(65536).decode()
    print(reply)
    sys.exit(reply.startswith("error"))


def watch(folder: Path, owner: int) -> None:
    """Stop the cluster when its owner is gone: a killed pytest leaves nothing behind."""
    began = born(owner)
    while began and born(owner) == began and (folder / MARK).exists():
        time.sleep(0.5)
    stop(folder)


def main() -> None:
    """The command line above."""
    os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"  # Debian's user has no sbin
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["start", "stop", "ctl", "supervise", "watch"])
    parser.add_argument("dir", type=lambda text: Path(text).absolute())
    parser.add_argument("words", nargs="*")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--owner", type=int, default=0)
    given = parser.parse_args()
    if given.verb == "start":
        start(given.dir, given.nodes, given.owner)
    elif given.verb == "stop":
        stop(given.dir)
    elif given.verb == "supervise":
        Supervisor(given.dir).run()
    elif given.verb == "watch":
        watch(given.dir, given.owner)
    else:
        control(given.dir, given.words)


if __name__ == "__main__":
    main()
