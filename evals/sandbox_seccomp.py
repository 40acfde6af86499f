"""What a candidate may ask of the kernel: a list of allowed system calls (seccomp(2)), and no capability.

The list is what the interpreter, its standard library and numpy need to compute, to use files and to wait. A
call that is not on it does not exist (ENOSYS), as on a kernel without it: what a library merely probes for, it
does without. At a call for a process, a thread, a signal to another process or a socket the program is
killed; no honest program of a benchmark makes one.

Of note among what does not exist: keyrings; memory that no limit counts (System V and POSIX queues and shared
memory, memfd); modes, owners, times and attributes of files, since root owns the host's devices; signals by
way of descriptors (F_SETOWN, FIOASYNC); timers, priorities and limits of other processes; prctl(2), with which
a program could outlive its checker. Linux on x86_64 and aarch64. Standard library only.
"""

import ctypes
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Collection
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
Calls = dict[str, tuple[int | None, int | None]]


def _calls(table: str) -> Calls:
    words = iter(table.split())
    numbers = ((name, next(words), next(words)) for name in words)
    return {name: (_number(x86_64), _number(aarch64)) for name, x86_64, aarch64 in numbers}


def _number(word: str) -> int | None:
    return None if word == "-" else int(word)


# Name, number on x86_64, number on aarch64 (asm/unistd.h).
ALLOWED = _calls("""
    read 0 63  write 1 64  readv 19 65  writev 20 66  pread64 17 67  pwrite64 18 68  preadv 295 69  pwritev 296 70
    lseek 8 62  close 3 57  close_range 436 436  dup 32 23  dup2 33 -  dup3 292 24  pipe 22 -  pipe2 293 59
    open 2 -  openat 257 56  stat 4 -  fstat 5 80  lstat 6 -  newfstatat 262 79  statx 332 291
    access 21 -  faccessat 269 48  faccessat2 439 439  readlink 89 -  readlinkat 267 78
    getdents 78 -  getdents64 217 61  statfs 137 43  fstatfs 138 44  getcwd 79 17  chdir 80 49  fchdir 81 50
    mkdir 83 -  mkdirat 258 34  rmdir 84 -  unlink 87 -  unlinkat 263 35  umask 95 166
    rename 82 -  renameat 264 38  renameat2 316 276  link 86 -  linkat 265 37  symlink 88 -  symlinkat 266 36
    truncate 76 45  ftruncate 77 46  fallocate 285 47  fadvise64 221 223  fsync 74 82  fdatasync 75 83  flock 73 32
    sendfile 40 71  copy_file_range 326 285

    mmap 9 222  munmap 11 215  mremap 25 216  mprotect 10 226  brk 12 214  madvise 28 233  msync 26 227

    clock_gettime 228 113  clock_getres 229 114  gettimeofday 96 169  time 201 -  times 100 153
    nanosleep 35 101  clock_nanosleep 230 115  getitimer 36 102  setitimer 38 103  alarm 37 -
    poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72
    epoll_create 213 -  epoll_create1 291 20  epoll_ctl 233 21  epoll_wait 232 -  epoll_pwait 281 22

    rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139  rt_sigpending 127 136  sigaltstack 131 132
    rt_sigtimedwait 128 137  rt_sigsuspend 130 133  pause 34 -  restart_syscall 219 128
    futex 202 98  set_robust_list 273 99  rseq 334 293  exit 60 93  exit_group 231 94

    getpid 39 172  getppid 110 173  gettid 186 178  getpgrp 111 -  getpgid 121 155  getsid 124 156
    getuid 102 174  geteuid 107 175  getgid 104 176  getegid 108 177  getgroups 115 158
    getresuid 118 148  getresgid 120 150  getpriority 140 141  getrlimit 97 163  setrlimit 160 164
    getrusage 98 165  uname 63 160  sysinfo 99 179  getrandom 318 278
    sched_getaffinity 204 123  sched_yield 24 124  getcpu 309 168
""")
# Commands that only this process can feel: no owner, signal, lease or size of a pipe.
FCNTL = "DUPFD DUPFD_CLOEXEC GETFD SETFD GETFL SETFL GETLK SETLK SETLKW"
IOCTL = "TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX"
# Calls that are allowed if one argument, at this place, is one of these values.
RESTRICTED = _calls("fcntl 72 25  ioctl 16 29  prlimit64 302 261  socketpair 53 199")
ARGUMENTS: dict[str, tuple[int, set[int]]] = {
    "fcntl": (1, {getattr(fcntl, f"F_{name}") for name in FCNTL.split()}),
    "ioctl": (1, {getattr(termios, name) for name in IOCTL.split()}),
    "prlimit64": (0, {0}),  # of this process
    "socketpair": (0, {1}),  # AF_UNIX, for loops of events
}
DEADLY = _calls("""
    clone 56 220  clone3 435 435  fork 57 -  vfork 58 -  execve 59 221  execveat 322 281
    kill 62 129  tkill 200 130  tgkill 234 131  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    pidfd_send_signal 424 424  ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271
    socket 41 198  unshare 272 97  setns 308 268  io_uring_setup 425 425
""")

Line = tuple[int, int, int, int]  # struct sock_filter: operation, lines to skip if true, if false, operand
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
ALLOW, ABSENT, KILL = (
    0x7FFF0000,
    0x00050000 | errno.ENOSYS,
    0x80000000,
)  # KILL: the process, not its thread alone
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data


def lines(machine: str) -> list[Line]:
    """The filter for `machine`, one of ARCHITECTURES."""

    def numbers(calls: Calls) -> list[int]:
        column = list(ARCHITECTURES).index(machine)
        return [pair[column] for pair in calls.values() if pair[column] is not None]  # type: ignore[misc]

    found: list[Line] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
    ]
    found += [
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, 2**30),
        (RETURN, 0, 0, KILL),
    ]  # x32's doubles of all calls
    for (place, values), number in zip(ARGUMENTS.values(), numbers(RESTRICTED), strict=True):
        # The lower half of the argument: the kernel reads no more of these.
        block = [(LOAD, 0, 0, FIRST_ARGUMENT + 8 * place), *_if_any(values, ALLOW), (RETURN, 0, 0, ABSENT)]
        found += [(EQUAL, 0, len(block), number), *block]
    found += [*_if_any(numbers(ALLOWED), ALLOW), *_if_any(numbers(DEADLY), KILL), (RETURN, 0, 0, ABSENT)]
    return found


def _if_any(values: Collection[int], action: int) -> list[Line]:
    """Return `action` if what was loaded is one of at most 256 values."""
    last = len(values) - 1
    tests = [(EQUAL, last - i, int(i == last), value) for i, value in enumerate(values)]
    return [*tests, (RETURN, 0, 0, action)]


def install() -> None:
    """Put this process, for good, under the filter of its machine. Raises OSError or KeyError if it has none."""
    code = [struct.pack("HBBI", *line) for line in lines(os.uname().machine)]
    text = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    prctl(22, 2, ctypes.byref(program))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def drop_capabilities() -> None:
    """Leave a process of root's none of root's rights over other processes (capabilities(7), version 3)."""
    if libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def prctl(option: int, *arguments: Any) -> None:
    if libc.prctl(option, *arguments, *[0] * (4 - len(arguments))) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
