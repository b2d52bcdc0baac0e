"""System calls that no tool chain needs and that reach far into the kernel, or take memory that nobody can count.

The kernel answers them as if it did not know them (ENOSYS). Numbers are those of `asm/unistd_64.h` (x86_64) and
`asm-generic/unistd.h` (aarch64); other processors are not supported. The program is one of classic BPF (seccomp(2)).
"""

from __future__ import annotations

import platform
import struct

# name: (x86_64, aarch64)
REFUSED = {
    # memory that belongs to no process and to no folder
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    # the kernel's own machinery
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    # what belongs to whom, and what is mounted where
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # other processes' memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
}
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH of linux/audit.h
X32 = 0x40000000  # x86_64's other numbering, whose calls are refused all
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
NUMBER_AT, MACHINE_AT = 0, 4  # in struct seccomp_data
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 38, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO | ENOSYS, _KILL_PROCESS


def program(machine: str | None = None) -> bytes:
    """The filter for bubblewrap's `--seccomp`; raises ValueError for a processor whose numbers are not in the table."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"processor {machine}: its system calls are not listed; use one of {', '.join(MACHINES)}")
    column = list(MACHINES).index(machine)
    numbers = [each[column] for each in REFUSED.values()]
    steps = [(LOAD, 0, 0, MACHINE_AT), (EQUAL, 1, 0, MACHINES[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT)]
    steps.append((AT_LEAST, len(numbers) + 1, 0, X32))
    steps += [(EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
