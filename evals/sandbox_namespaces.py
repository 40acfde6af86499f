"""Runs a command in new namespaces with a read-only root: what bubblewrap does, for machines without it.

    python -s -S -P sandbox_namespaces.py '{"visible": ["/usr/lib", …], "bytes": …, "files": …, "command": […]}'

New user, mount, pid, network, ipc and uts namespaces (namespaces(7), pivot_root(2)); a root that holds the
visible paths, read-only, and an empty /tmp for so many bytes and files. The command runs as pid 1 under an
ordinary user id of the new user namespace, so that exec drops every capability; it dies with its parent, and
its processes die with it. Needs unprivileged user namespaces. Linux on x86_64 and aarch64. Standard library
only.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

ROOT = "/sys"  # where the new root is built: a folder that every Linux has and that holds no visible path
USER = 1000  # any id but root's
NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
KEPT_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library that returns 0. Raises OSError if it does not."""
    if getattr(libc, name)(*(a.encode() if isinstance(a, str) else a for a in arguments)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def build_root(visible: list[str], size: int, files: int) -> None:
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("root", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(f"{ROOT}/tmp")
    mount("tmp", f"{ROOT}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},nr_inodes={files},mode=1777")
    for path in visible:
        target = ROOT + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT, 0o644))
        mount(path, target, None, MS_BIND | MS_REC)
    with open("/proc/self/mountinfo") as lines:
        mounts = [line.split() for line in lines]
    # A line: id, parent's id, device, root, mount point, options. Of several mounts at ROOT the last is ours.
    ours = {[fields[0] for fields in mounts if fields[4] == ROOT][-1]}
    for number, parent, _, _, point, options, *_ in mounts:
        if parent in ours:
            ours.add(number)
        if number in ours and point != f"{ROOT}/tmp":
            # A mount inherited from outside keeps its flags: the kernel refuses to drop them.
            flags = sum(KEPT_FLAGS.get(option, 0) for option in options.split(","))
            target = point.encode().decode("unicode_escape").encode("latin-1").decode()  # \040 is a space
            mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | flags)


def main() -> None:
    spec = json.loads(sys.argv[1])
    user, group = os.geteuid(), os.getegid()
    call("unshare", sum(NAMESPACES.values()))
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, after unshare(2), which clears it
    maps = {"setgroups": "deny", "uid_map": f"{USER} {user} 1", "gid_map": f"{USER} {group} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    pid = os.fork()
    if pid:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)
    call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # and this one dies with the process that waits above
    build_root(spec["visible"], spec["bytes"], spec["files"])
    os.chdir(ROOT)
    call("syscall", PIVOT_ROOT[os.uname().machine], ".", ".")
    call("umount2", ".", 2)  # MNT_DETACH: the old root
    os.chdir("/tmp")
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    os.execve(spec["command"][0], spec["command"], dict(os.environ))


if __name__ == "__main__":
    main()
