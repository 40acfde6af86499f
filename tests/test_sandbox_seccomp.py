"""The filter of system calls, by its table and line by line, for both architectures; what honest programs do still works."""

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from evals import sandbox, sandbox_seccomp
from evals.sandbox import Level, Program, Verdict
from evals.sandbox_seccomp import ALLOWED, ARCHITECTURES, ARGUMENTS, DEADLY, RESTRICTED, Calls

TABLES = {"allowed": ALLOWED, "restricted": RESTRICTED, "deadly": DEADLY}
ALLOW, KILL, ABSENT = "allow", "kill", "absent"
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


def answer(
    machine: str, number: int, arguments: tuple[int, ...] = (), architecture: int | None = None
) -> str:
    """What the filter returns for a call: an interpreter of its four operations."""
    audit = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, audit, 0, *(*arguments, *[0] * 6)[:6])
    code, at, loaded = sandbox_seccomp.lines(machine), 0, 0
    while True:
        operation, true, false, operand = code[at]
        assert 0 <= true < 256 and 0 <= false < 256
        at += 1
        if operation == sandbox_seccomp.RETURN:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x50000 + errno.ENOSYS: ABSENT}[operand]
        if operation == sandbox_seccomp.LOAD:
            (loaded,) = struct.unpack_from("<I", data, operand)
        else:
            met = loaded == operand if operation == sandbox_seccomp.EQUAL else loaded >= operand
            at += true if met else false


def numbers(calls: Calls, machine: str) -> set[int]:
    column = list(ARCHITECTURES).index(machine)
    return {pair[column] for pair in calls.values() if pair[column] is not None}  # type: ignore[misc]


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_call_has_the_answer_of_its_list_and_every_other_does_not_exist(machine: str) -> None:
    allowed, restricted, deadly = (numbers(calls, machine) for calls in TABLES.values())
    assert len(allowed | restricted | deadly) == len(allowed) + len(restricted) + len(deadly)
    for number in range(1000):
        if number not in restricted:
            expected = ALLOW if number in allowed else KILL if number in deadly else ABSENT
            assert answer(machine, number) == expected, number


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_calls_of_another_architecture_are_deadly(machine: str) -> None:
    for number in (0, 1, 9, 63):
        assert answer(machine, number, architecture=0x40000003) == KILL  # i386
        assert answer(machine, 2**30 + number) == KILL  # x32
        assert answer(machine, 2**32 - 1 - number) == KILL


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_restricted_calls_are_allowed_with_the_listed_arguments_alone(machine: str) -> None:
    for name, pair in RESTRICTED.items():
        number = pair[list(ARCHITECTURES).index(machine)]
        place, values = ARGUMENTS[name]
        assert number is not None
        for value in {*range(2000), *range(0x5400, 0x5500), 0x8901, 0x8902, 2**31, 2**32 - 1, *values}:
            arguments = [7] * 6
            for upper in (0, 2**32):  # the kernel does not look at the upper half either
                arguments[place] = value + upper
                assert answer(machine, number, tuple(arguments)) == (ALLOW if value in values else ABSENT)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    path = Path("/usr/include") / HEADERS[machine]
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", path.read_text())
    real = {name: int(number) for name, number in found}
    for name, pair in (ALLOWED | RESTRICTED | DEADLY).items():
        kernels = name if machine == "x86_64" or name != "newfstatat" else "fstatat"
        assert pair[list(ARCHITECTURES).index(machine)] == real.get(kernels), name


def test_a_machine_without_a_table_has_no_filter() -> None:
    with pytest.raises((KeyError, ValueError)):
        sandbox_seccomp.lines("riscv64")
    assert platform.machine() in ARCHITECTURES


# What programs do, of which each line needs calls of its own.
HONEST = {
    "asyncio": """
import asyncio
async def wait(i):
    await asyncio.sleep(0.001 * i)
    return i
async def main(): return await asyncio.gather(*map(wait, range(3)))
assert asyncio.run(main()) == [0, 1, 2]""",
    "temporary files": """
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    with open(f'{folder}/x', 'w') as file: file.write('a')
    os.mkdir(f'{folder}/y')
    assert sorted(os.listdir(folder)) == ['x', 'y']
assert not os.path.exists(folder)
with tempfile.TemporaryFile() as file: file.write(b'x')""",
    "files": """
import os, pathlib, shutil
fd = os.open('/tmp/f', os.O_RDWR | os.O_CREAT)
os.write(fd, b'abc'); os.lseek(fd, 0, 0); os.ftruncate(fd, 2); os.fsync(fd); os.dup2(fd, 10)
assert os.pread(fd, 3, 0) == b'ab'
os.link('/tmp/f', '/tmp/l'); os.symlink('f', '/tmp/s'); os.rename('/tmp/l', '/tmp/m'); os.truncate('/tmp/m', 0)
assert os.readlink('/tmp/s') == 'f' and os.access('/tmp/f', os.R_OK)
os.set_blocking(fd, False); os.set_inheritable(fd, True); os.posix_fallocate(fd, 0, 10); os.chdir('/tmp')
pathlib.Path('/tmp/a').write_text('x' * 10**6)
shutil.copyfile('/tmp/a', '/tmp/b'); shutil.move('/tmp/b', '/tmp/c'); shutil.disk_usage('/tmp')
assert pathlib.Path('/tmp/c').stat().st_size == 10**6
pathlib.Path('/tmp/d').touch()
assert len(list(pathlib.Path('/tmp').glob('*'))) >= 6""",
    "archives": """
import gzip, zipfile
with gzip.open('/tmp/g', 'wb') as file: file.write(b'x')
with zipfile.ZipFile('/tmp/z', 'w') as file: file.writestr('a', 'b')
zipfile.ZipFile('/tmp/z').extractall('/tmp/zz')""",
    "a data base": """
import sqlite3
with sqlite3.connect('/tmp/db') as base:
    base.execute('create table t (a)'); base.execute('insert into t values (1)')
assert list(base.execute('select * from t')) == [(1,)]""",
    "memory": """
import mmap
memory = mmap.mmap(-1, 2**20); memory[:3] = b'abc'; memory.resize(2**21); memory.flush(); memory.close()
assert len(bytearray(2**27)) == 2**27""",
    "time and signals": """
import signal, time
rung = []
signal.signal(signal.SIGALRM, lambda *a: rung.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause()
time.sleep(0.001); time.process_time(); time.thread_time(); time.localtime()
assert rung""",
    "locks": """
import queue, threading
lock = threading.Lock()
assert lock.acquire() and not lock.acquire(timeout=0.001)
waiting = queue.Queue()
try: waiting.get(timeout=0.001)
except queue.Empty: pass""",
    "pipes": """
import os, select
out, into = os.pipe()
os.write(into, b'x')
poll = select.poll(); poll.register(out)
assert select.select([out], [], [], 1)[0] == [out] and poll.poll(1)""",
    "randomness": "import os, random, secrets, uuid\nrandom.SystemRandom().random(); uuid.uuid4(); os.urandom(8)",
    "the machine": """
import os, resource, sys
assert os.cpu_count() and os.sched_getaffinity(0) and os.uname() and os.times() and os.getcwd() and os.getpid()
resource.getrusage(0); resource.getrlimit(7); os.getgroups(); sys.stdout.isatty(); os.sysconf('SC_PHYS_PAGES')
resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))""",
    "numpy": """
import numpy
a = numpy.random.default_rng(0).random((200, 200))
numpy.linalg.svd(a @ a.T); numpy.fft.fft(a); numpy.save('/tmp/x.npy', a)
assert numpy.load('/tmp/x.npy', mmap_mode='r').sum() > 0""",
    "silence": """
import contextlib, os
with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere): print('x')
try: input()
except EOFError: pass""",
}


@pytest.mark.parametrize("deed", HONEST)
@pytest.mark.parametrize("level", [sandbox.probe(), Level.none])
def test_what_honest_programs_do_still_works(deed: str, level: Level) -> None:
    if level is Level.none and "/tmp/" in HONEST[deed]:
        pytest.skip("it writes to this machine's /tmp")
    program = Program(f"{HONEST[deed]}\ndef f(): return 1", "assert f() == 1", ("f",))
    assert sandbox.run([program], level=level) == [Verdict("passed")]
