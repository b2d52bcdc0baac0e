"""The planner's constants for a run that trains: one device and one stack out of a file of conf/hardware."""

from __future__ import annotations

from pathlib import Path

from llama31.command import entry
from llama31.config import Cluster, ConfigError, Device, Issue, Plan, Stack


def chosen(cluster: Cluster) -> tuple[Device, Stack] | None:
    """What `cluster` names; None where it names no device. ConfigError where the file or an entry is not there."""
    if cluster.device is None:
        return None
    path = Path(cluster.hardware)
    own = path.suffix == ".yaml"
    if own and (path.parent.name != "hardware" or not path.is_file()):
        reason = "there is no such file" if path.parent.name == "hardware" else "it does not lie in a folder `hardware`"
        raise ConfigError([Issue("cluster.hardware", str(path), reason, "give .../hardware/NAME.yaml")])
    try:
        given = [f"hardware={path.stem if own else path}"]
        hardware = entry.compose(Plan, "plan", given, path.resolve().parent.parent if own else None).hardware
    except ConfigError as error:
        raise ConfigError([_of_cluster(issue, cluster.hardware) for issue in error.issues]) from error
    entries = (("device", cluster.device, hardware.devices), ("stack", cluster.stack, hardware.stacks))
    issues = [
        Issue(f"cluster.{key}", name, f"{cluster.hardware} has no such entry", f"give one of {', '.join(known)}")
        for key, name, known in entries
        if name not in known
    ]
    if issues:
        raise ConfigError(issues)
    return hardware.devices[cluster.device], hardware.stacks[cluster.stack]


def _of_cluster(issue: Issue, name: str) -> Issue:
    """A problem of the file, told of the key that names it."""
    if issue.key == "hardware":
        return Issue("cluster.hardware", name, issue.problem, issue.remedy.replace("hardware=", "cluster.hardware="))
    return issue._replace(problem=f"{issue.problem} (cluster.hardware={name})")
