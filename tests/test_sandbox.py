"""The sandbox: honest programs pass, attempts to cheat or to do harm fail, and nothing is left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from evals import sandbox
from evals.sandbox import Level, Limits, Program, Verdict
from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent
TESTS = "assert f(2) == 4\nassert f(3) == 9\nassert f(-5) == 25"
RIGHT = "\ndef f(x): return x * x\n"
WRONG = "\ndef f(x): return -1\n"
# Small limits, and a wall time by which this run's processes can be told from others in the process table.
LIMITS = Limits(cpu_seconds=1, wall_seconds=60.0 + os.getpid() / 2**24, memory_bytes=2**29)


# The least that each level needs. A level whose needs are met and that does not work is a failure, not a skip.
NEEDS = {
    Level.bubblewrap: ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"],
    Level.namespaces: ["unshare", "--user", "--mount", "--pid", "--net", "--fork", "true"],
}


@pytest.fixture(params=NEEDS)
def level(request: pytest.FixtureRequest) -> Level:
    """Each level that isolates, if this machine offers it."""
    command = NEEDS[request.param]
    if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip(f"this machine does not run `{' '.join(command)}`")
    return request.param


def judge(source: str, level: Level, tests: str = TESTS, limits: Limits = LIMITS) -> Verdict:
    (verdict,) = sandbox.run([Program(source, tests, ("f",))], level=level, limits=limits)
    return verdict


def survivors() -> list[str]:
    """Command lines of this run's sandboxes that are still in the process table."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_text()
            if json.dumps(LIMITS.wall_seconds) in line:
                found.append(line)
    return found


def wait_until_gone() -> list[str]:
    """Survivors after a while: what was killed may take a moment to leave the process table."""
    for _ in range(100):
        if not survivors():
            break
        time.sleep(0.1)
    return survivors()


# ---- honest programs ----


def test_a_right_program_passes(level: Level) -> None:
    assert judge(RIGHT, level) == Verdict("passed")


def test_a_wrong_program_fails(level: Level) -> None:
    assert judge(WRONG, level) == Verdict("failed", "AssertionError:")


def test_verdicts_come_in_the_order_of_the_programs(level: Level) -> None:
    programs = [Program(f"def f(): return {i % 3}", "assert f() == 0", ("f",)) for i in range(12)]
    assert [v.passed for v in sandbox.run(programs, level=level)] == [i % 3 == 0 for i in range(12)]


VALUES = [
    # (body of f, what the tests see)
    ("return [1, 2.5, 'a', None, True]", "[1, 2.5, 'a', None, True]"),
    ("return (1,), {'k': {2}}, frozenset({3})", "((1,), {'k': {2}}, frozenset({3}))"),
    ("return [b'x', bytearray(b'y'), 2j]", "[b'x', bytearray(b'y'), 2j]"),
    ("return 0.1 + 0.2", "0.30000000000000004"),
    ("import collections; return collections.Counter('aab')", "{'a': 2, 'b': 1}"),
    ("import collections; d = collections.defaultdict(list); d[1].append(2); return d", "{1: [2]}"),
    ("import collections; return collections.namedtuple('P', 'a b')(1, 2)", "(1, 2)"),
    ("import collections; return collections.deque([1, 2])", "__import__('collections').deque([1, 2])"),
    ("import fractions; return fractions.Fraction(1, 2)", "0.5"),
    ("import decimal; return decimal.Decimal('1.5')", "1.5"),
    ("import datetime; return datetime.date(2020, 1, 2)", "__import__('datetime').date(2020, 1, 2)"),
    ("import enum; return enum.IntEnum('E', 'a b').b", "2"),
    ("import numpy; return [numpy.float64(0.5), numpy.int64(3), numpy.bool_(True)]", "[0.5, 3, True]"),
    ("return range(3)", "range(3)"),
    ("return int", "int"),
]


@pytest.mark.parametrize(("body", "seen"), VALUES)
def test_values_reach_the_tests_as_they_are(body: str, seen: str) -> None:
    assert judge(f"def f(): {body}", sandbox.require(), f"assert f() == {seen}") == Verdict("passed")


def test_objects_of_the_program_can_be_made_passed_and_asked() -> None:
    source = """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def total(self): return self.a + self.b
def f(pairs): return sum(p.total() for p in pairs)
"""
    tests = """
p = Pair(1, b=2)
assert p.a == 1 and p.total() == 3 and f([p, Pair(3, 4)]) == 10
p.a = 5
assert p.total() == 7
assert Pair(1, 2) != Pair(1, 2)
"""
    program = Program(source, tests, ("f", "Pair"))
    assert sandbox.run([program]) == [Verdict("passed")]


def test_an_iterator_can_be_iterated() -> None:
    tests = "assert list(f(3)) == [0, 1, 4] and sorted(f(3), reverse=True) == [4, 1, 0]"
    assert judge("def f(n): return (i * i for i in range(n))", sandbox.require(), tests).passed


def test_exceptions_reach_the_tests_as_the_nearest_built_in_one() -> None:
    source = """
class Mine(ValueError): pass
def f(x):
    if x == 0: raise Mine('zero')
    if x == 1: raise StopIteration
    return {}['key']
"""
    tests = """
for x, kind in ((0, ValueError), (1, RuntimeError), (2, KeyError)):
    try: f(x)
    except kind: pass
    else: raise AssertionError(x)
"""
    assert judge(source, sandbox.require(), tests) == Verdict("passed")


@pytest.mark.parametrize("text", [r"\ud800", r"\x1b[31m", r"\x00", r"\u202e"])
def test_a_verdict_that_quotes_the_program_can_be_written_to_a_record(text: str, level: Level) -> None:
    """One answer in a thousand must not end the run, whatever half characters it raises."""
    verdict = judge(f"def f(): raise ValueError('{text} was it')", level, "f()")
    assert verdict.status == "failed" and verdict.detail.encode().endswith(b" was it")
    assert verdict.detail.isprintable()


def test_setup_is_trusted_and_only_named_globals_are_taken_from_the_program() -> None:
    source = "def helper(x): return 0\ndef f(x): return x"
    setup = "def helper(x): return x + 1"
    program = Program(source, "assert helper(1) == 2 and f(1) == 1", ("f",), setup)
    assert sandbox.run([program]) == [Verdict("passed")]


def test_a_name_that_the_program_lacks_is_not_taken_from_the_setup() -> None:
    program = Program("def g(): pass", "assert f(2) == 4", ("f",), setup="def f(x): return 4")
    assert sandbox.run([program]) == [Verdict("failed", "NameError: name 'f' is not defined")]


def test_order_of_sets_and_random_numbers_are_the_same_in_every_run() -> None:
    source = "import random\ndef f(): return list({str(i) for i in range(50)}), random.random()"
    reports = [judge(source, sandbox.require(), "raise ValueError(f())").detail for _ in range(3)]
    assert len(set(reports)) == 1 and "ValueError" in reports[0]


def test_text_that_is_no_program_is_a_failure() -> None:
    for source in ("Here is the function:", "def f(:", "\0", "\ud800", ""):
        assert judge(source, sandbox.require()).status == "failed"


# ---- attempts: the program is wrong and wants to pass ----

# What a program can do with a secret it found, or a verdict it made up: write it to everything it has.
SHOUT = """
import os
def shout(text):
    for fd in range(64):
        try: os.write(fd, text.encode())
        except OSError: pass
"""
# Answers that no honest candidate would send: `raw` sends bytes of its own in the place of an answer.
RAW = """
import os, struct
def raw(data):
    for fd in range(3, 64):
        try: os.write(fd, struct.pack('Q', len(data)) + data)
        except OSError: pass
"""
ATTEMPTS = {
    "exit before the check": "import sys; sys.exit(0)",
    "exit during the check": "import sys\ndef f(x): sys.exit(0)",
    "os._exit before the check": "import os; os._exit(0)",
    "os._exit during the check": "import os\ndef f(x): os._exit(0)",
    "exit at the end": "import atexit, os; atexit.register(os._exit, 0)",
    "own check": WRONG + "def check(candidate): pass\ndef __getattr__(name): return check",
    "builtins patched": WRONG
    + """
import builtins
builtins.AssertionError = type('A', (BaseException,), {'__init__': lambda *a: None})
builtins.exec = builtins.compile = lambda *a, **k: None
""",
    "checker patched": WRONG
    + """
import sys
main = sys.modules['__main__']
main.Checker.check = main.Checker.finish = main.Checker.ask = lambda *a: None
for name in list(vars(main)):
    if name not in ('decode', 'encode', 'receive', 'send'): setattr(main, name, lambda *a: None)
""",
    "equal to everything": """
class Equal:
    __eq__ = __ge__ = __le__ = lambda *a: True
    __ne__ = lambda *a: False
    __hash__ = lambda self: 0
def f(x): return Equal()
""",
    "a number equal to everything": """
class Equal(int):
    __eq__ = lambda *a: True
    __ne__ = lambda *a: False
def f(x): return Equal(1)
""",
    "a pickle that runs code": """
import os, pickle, struct
code = '''
import json, os, sys
frame = sys._getframe()
while 'job' not in frame.f_locals: frame = frame.f_back
token = frame.f_locals['job']['token']
os.write(frame.f_locals['self'].verdict, json.dumps({'token': token}).encode())
os._exit(0)
'''
class Run:
    def __reduce__(self): return exec, (code,)
def f(x):
    frame = pickle.dumps(('ok', Run()))
    for fd in range(3, 64):
        try: os.write(fd, struct.pack('Q', len(frame)) + frame)
        except OSError: pass
""",
    "a pickle that changes a class of the checker": RAW
    + r"""
from fractions import Fraction
kinds = b''.join(b'U%c%scbuiltins\nslice\ns' % (len(n), n) for n in (b'__eq__', b'__ne__', b'__lt__', b'__gt__'))
build = b'cfractions\nFraction\n(N(d' + kinds + b'tb0'
def f(x):
    raw(build + b'(U\x02okcfractions\nFraction\n(I1\ntRt.')
    return Fraction(1)
""",
    "an answer without end": """
import os, struct
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, struct.pack('Q', 2**40))
        except OSError: pass
""",
    "a tracer that skips": WRONG
    + """
import sys, threading
def trace(frame, event, argument):
    frame.f_trace_opcodes = True
    return trace
sys.settrace(trace); sys.setprofile(lambda *a: None)
sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *a: None
""",
    "catching everything": """
def f(x):
    try: return 1 / 0
    except BaseException: return True
""",
    "catching everything, then exit": """
import os
def f(x):
    try: raise SystemExit
    except BaseException: os._exit(0)
""",
    "printing the token's form": SHOUT
    + WRONG
    + """
for text in ('{"token": "%s"}' % ('0' * 32), '{"token": ""}', 'ready\\n{}', '{"status": "passed", "detail": ""}'):
    print(text, flush=True); shout(text)
""",
    "token from the environment": SHOUT + WRONG + "shout(str(dict(os.environ)))",
    "token from descriptors": SHOUT
    + WRONG
    + """
for fd in (0, 1, 2):
    try: shout(os.read(fd, 4096).decode())
    except OSError: pass
""",
    "token from the checker's memory": SHOUT
    + WRONG
    + """
for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd/0', '/proc/self/mem', f'/proc/{os.getppid()}/mem'):
    try: shout(open(path, 'rb').read(100).decode('latin-1'))
    except OSError: pass
""",
    "token from the checker's memory, as root": """
import os, re
def f(x):
    parent = f'/proc/{os.getppid()}'
    with open(parent + '/mem', 'rb') as memory:
        for line in open(parent + '/maps'):
            start, end = (int(part, 16) for part in line.split()[0].split('-'))
            try: memory.seek(start); found = re.search(rb'"token": "[0-9a-f]{32}"', memory.read(end - start))
            except (OSError, ValueError, OverflowError): continue
            if found:
                for fd in range(64):
                    try: os.write(os.open(f'{parent}/fd/{fd}', os.O_WRONLY), b'{%s}' % found[0])
                    except OSError: pass
                os._exit(0)
""",
    "token from the home folder": SHOUT
    + WRONG
    + f"""
for path in (os.path.expanduser('~/.netrc'), '{Path.home()}/.bashrc', '/home', '/etc/passwd', '/etc/hostname'):
    try: shout(open(path).read())
    except OSError: pass
""",
    "deep recursion": "def f(x): return f(x)",
    "deeper recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_wrong_program_cannot_talk_itself_into_passing(attempt: str, level: Level) -> None:
    assert not judge(ATTEMPTS[attempt], level).passed
    assert survivors() == []


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_wrong_program_does_not_pass_without_isolation_either(attempt: str) -> None:
    assert not judge(ATTEMPTS[attempt], Level.none).passed


def test_nothing_in_the_programs_memory_knows_the_tests_or_the_token(level: Level) -> None:
    source = """
import gc, re, sys
def f(known):
    things = [thing for thing in gc.get_objects() if type(thing) in (dict, list, tuple)]
    frame = sys._getframe(1)
    while frame:
        things += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    parts = (part for thing in things for part in (thing.values() if type(thing) is dict else thing))
    texts = {part for part in parts if type(part) is str}
    marks = '[0-9a-f]{32}|' + '-'.join(('MARK', 'OF', 'TESTS'))
    return [known in texts, *(text for text in texts if re.search(marks, text))]
"""
    tests = "mark = 'MARK-OF-TESTS'\nassert f('candidate') == [True], f('candidate')"
    assert judge(source, level, tests) == Verdict("passed")


def test_no_byte_of_the_programs_memory_is_of_the_tests_or_the_token() -> None:
    """At the level where a program sees /proc and can look at all that was mapped before it was forked off."""
    source = """
import ctypes, re
mark = bytes(range(65, 91))[::-1]
def f():
    count = [0, 0, 0]
    for line in open('/proc/self/maps'):
        place, rights, *rest = line.split()
        if rights.startswith('r') and rest[-1] not in ('[vvar]', '[vvar_vclock]', '[vsyscall]'):
            start, end = (int(part, 16) for part in place.split('-'))
            memory = ctypes.string_at(start, end - start)
            for i, pattern in enumerate((b'MARK[-]OF[-]TESTS', b'"token"[:] "[0-9a-f]', b'ZY[X]W')):
                count[i] += len(re.findall(pattern, memory))
    return count
"""
    tests = "mark = 'MARK-OF-TESTS'\ncount = f()\nassert count[:2] == [0, 0] and count[2] > 0, count"
    assert judge(source, Level.none, tests) == Verdict("passed")


def test_a_program_holds_no_descriptor_but_its_own(level: Level) -> None:
    source = """
import os, stat
def f():
    kinds = []
    for fd in range(2**16):
        try: kinds.append(stat.S_IFMT(os.fstat(fd).st_mode))
        except OSError: pass
    writes = 0
    for fd in range(64):
        try: writes += os.write(fd, b'')  == 0
        except OSError: pass
    return kinds == [stat.S_IFCHR, stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFIFO], kinds, writes
"""
    tests = "right, kinds, writes = f()\nassert right and writes == 3, (kinds, writes)"
    assert judge(source, level, tests) == Verdict("passed")


def test_a_program_cannot_answer_with_more_names_than_the_tests_take() -> None:
    source = """
import sys
main = sys.modules['__main__']
encode = main.encode
def lie(answer, number_of):
    if isinstance(answer[1], dict):
        answer = 'ok', {**answer[1], 'abs': lambda x: 4}
    return encode(answer, number_of)
main.encode = lie
"""
    tests = "assert abs(f(2)) == 4"
    assert judge(source + RIGHT, sandbox.require(), tests) == Verdict("passed")
    assert judge(source + WRONG, sandbox.require(), tests) == Verdict("failed", "AssertionError:")


# ---- attempts: the program is right, and does what it must not ----

KILLED = "the program made a forbidden system call"
WROTE = f"the program wrote more than {LIMITS.file_bytes} bytes"
USED = f"used {LIMITS.cpu_seconds} s of CPU time"
HARM = {
    "fork bomb": ("import os\nwhile True: os.fork()", KILLED),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=input).start()", KILLED),
    "subprocess": ("import subprocess; subprocess.Popen(['/bin/true'])", KILLED),
    "posix_spawn": ("import os; os.posix_spawn('/bin/true', ['true'], {})", KILLED),
    "exec": ("import os, sys; os.execv(sys.executable, [sys.executable])", KILLED),
    "a daemon left behind": ("import os, time\nif os.fork() == 0: os.setsid(); time.sleep(1000)", KILLED),
    "a socket": ("import socket; socket.create_connection(('127.0.0.1', 80))", KILLED),
    "killing the parent": ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", KILLED),
    "killing everything": ("import os, signal; os.kill(-1, signal.SIGKILL)", KILLED),
    "stopping the group": ("import os, signal; os.killpg(0, signal.SIGSTOP)", KILLED),
    "new namespaces": ("import ctypes; ctypes.CDLL(None).unshare(0x10000000)", KILLED),
    "tracing": ("import ctypes; ctypes.CDLL(None).ptrace(16, 1, 0, 0)", KILLED),
    "a fork by its x32 number": ("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 57)", KILLED),
    "a gigabyte of output": ("for _ in range(1024): print('x' * 2**20)", WROTE),
    "a gigabyte of errors": ("import os\nfor _ in range(1024): os.write(2, b'x' * 2**20)", WROTE),
    "a file of 10 GB": ("open('/tmp/big', 'wb').truncate(10 * 2**30)", WROTE),
    "a file of 10 GB, written": ("f = open('/tmp/big', 'wb')\nwhile True: f.write(bytes(2**20))", WROTE),
    "an endless loop": ("while True: pass", USED),
    "a loop that ignores signals": (
        "from signal import *\nfor s in {*Signals} - {9, 19}: signal(s, SIG_IGN)\nwhile True: pass",
        USED,
    ),
}


def harming(attempt: str) -> str:
    """A program that is right, and that catches whatever its deed raises."""
    deed = "\n    ".join(HARM[attempt][0].splitlines())
    return f"try:\n    {deed}\nexcept BaseException: pass\n{RIGHT}"


@pytest.mark.parametrize("attempt", HARM)
def test_a_right_program_that_does_harm_is_ended_whatever_it_catches(attempt: str, level: Level) -> None:
    detail = HARM[attempt][1]
    verdict = judge(harming(attempt), level)
    assert (verdict.status, verdict.detail) == ("timeout" if detail == USED else "failed", detail)
    assert survivors() == []


# System calls with which a program reaches what outlives it, belongs to others or is counted by no limit: number on
# x86_64 and aarch64, arguments. As root, the mode of /dev/null (descriptor 0) would be that of the host's.
CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(x86_64, aarch64, *arguments):
    result = libc.syscall(aarch64 if os.uname().machine == 'aarch64' else x86_64, *arguments)
    return ctypes.get_errno() if result == -1 else result
"""
NO_CALLS = {
    "add_key": (248, 217, b"user", b"written-by-a-program", b"x", 1, -2),
    "request_key": (249, 218, b"user", b"written-by-a-program", None, -2),
    "keyctl: the session's keyring": (250, 219, 0, -3, 0),
    "keyctl: a keyring of its own": (250, 219, 1, None),
    "shmget": (29, 194, 0, 4096, 0o1600),
    "semget": (64, 190, 0, 1, 0o1600),
    "msgget": (68, 186, 0, 0o1600),
    "mq_open": (240, 180, b"written-by-a-program", 0o102, 0o600, None),
    "memfd_create": (319, 279, b"", 0),
    "memfd_secret": (447, 447, 0),
    "fchmod": (91, 52, 0, 0o666),
    "fchmodat": (268, 53, -100, b"/dev/null", 0o666),
    "fchown": (93, 55, 0, -1, -1),
    "utimensat": (280, 88, 0, None, None, 0),
    "fsetxattr": (190, 7, 1, b"user.x", b"x", 1, 0),
    "prctl: to outlive the checker": (157, 167, 1, 0, 0, 0, 0),
    "prctl: to be traced": (157, 167, 4, 1, 0, 0, 0),
    "setsid": (112, 157),
    "setpgid": (109, 154, 0, 0),
    "setpriority": (141, 140, 0, 0, 1),
    "sched_setaffinity": (203, 122, 0, 8, b"\xff" * 8),
    "prlimit64 of another": (302, 261, 1, 7, None, None),
    "timer_create": (222, 107, 1, None, b"\0" * 8),
    "inotify_init1": (294, 26, 0),
    "eventfd2": (290, 19, 0, 0),
    "userfaultfd": (323, 282, 1),
    "perf_event_open": (298, 241, b"\1\0\0\0" + bytes(128), 0, -1, -1, 0),
    "pidfd_open": (434, 434, 1, 0),
    "landlock_create_ruleset": (444, 444, None, 0, 1),
    "mount": (165, 40, b"x", b"/tmp", b"tmpfs", 0, None),
    "chroot": (161, 51, b"/tmp"),
    "setuid": (105, 146, 0),
    "sync": (162, 81),
    "F_SETOWN": (72, 25, 3, 8, 1),
    "F_SETOWN_EX": (72, 25, 3, 15, b"\1\0\0\0\1\0\0\0"),
    "F_SETSIG": (72, 25, 3, 10, 9),
    "F_NOTIFY": (72, 25, 3, 1026, 1),
    "F_SETLEASE": (72, 25, 1, 1024, 0),
    "F_SETPIPE_SZ": (72, 25, 3, 1031, 2**20),
    "FIOSETOWN": (16, 29, 3, 0x8901, b"\1\0\0\0"),
    "FIOASYNC": (16, 29, 3, 0x5452, b"\1\0\0\0"),
    "TIOCSTI": (16, 29, 0, 0x5412, b"x"),
    "a call of a kernel to come": (10_000, 10_000),
}
ENOSYS = 38


@pytest.mark.parametrize("name", NO_CALLS)
def test_a_system_call_that_is_not_listed_does_not_exist(name: str, level: Level) -> None:
    source = CALL + f"def f(): return call(*{NO_CALLS[name]!r})"
    assert judge(source, level, f"assert f() == {ENOSYS}, f()") == Verdict("passed")


def test_no_program_changes_the_hosts_devices(level: Level) -> None:
    before = os.stat("/dev/null")
    source = """
import os
def f():
    done = []
    for deed in (
        lambda: os.chmod('/dev/null', 0o667),
        lambda: os.fchmod(0, 0o667),
        lambda: os.chown('/dev/null', 0, 1),
        lambda: os.utime('/dev/null', (0, 0)),
        lambda: os.setxattr('/dev/null', 'trusted.x', b'x'),
    ):
        try: done.append(deed())
        except OSError: pass
    return done
"""
    try:
        assert judge(source, level, "assert f() == [], f()") == Verdict("passed")
        after = os.stat("/dev/null")
        assert (before.st_mode, before.st_gid, before.st_mtime) == (
            after.st_mode,
            after.st_gid,
            after.st_mtime,
        )
    finally:
        if os.geteuid() == 0:
            os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
            os.chown("/dev/null", before.st_uid, before.st_gid)
            os.utime("/dev/null", ns=(before.st_atime_ns, before.st_mtime_ns))


def test_no_memory_escapes_its_limit(level: Level) -> None:
    """Shared memory and files without a name are no part of a process's address space."""
    source = (
        CALL
        + f"""
libc.shmat.restype = ctypes.c_void_p
def f():
    taken, most = 0, {LIMITS.memory_bytes}
    while taken < most:
        number = libc.shmget(0, 2**24, 0o1600)
        place = libc.shmat(number, None, 0) if number != -1 else None
        if place in (None, 2**64 - 1): break
        ctypes.memset(place, 1, 2**24)
        libc.shmdt(ctypes.c_void_p(place))
        taken += 2**24
    files = []
    while taken < most and len(files) < 40:
        fd = call(319, 279, b'', 0)
        if fd == {ENOSYS}: break
        files.append(fd)
        taken += os.write(fd, bytes(2**24))
    for fd in files: os.close(fd)
    return taken
"""
    )
    assert judge(source, level, "assert f() == 0, f()") == Verdict("passed")


def test_no_signal_reaches_another_process_through_a_descriptor() -> None:
    """At the level where a program sees the user's processes: here one that would die of it."""
    with subprocess.Popen(["sleep", "1000"]) as victim:
        source = f"""
import fcntl, os, signal
def f():
    out, into = os.pipe()
    try:
        fcntl.fcntl(out, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(out, fcntl.F_SETOWN, {victim.pid})
    except OSError: pass
    try: fcntl.fcntl(out, fcntl.F_SETFL, os.O_ASYNC)
    except OSError: pass
    os.write(into, b'x')
"""
        assert judge(source, Level.none, "f()") == Verdict("passed")
        with pytest.raises(subprocess.TimeoutExpired):
            victim.wait(0.5)
        victim.kill()


EMPTY_FILES = """
import os
def fill():
    made = 0
    try:
        while made < 10**5:
            os.close(os.open(f'/tmp/{made}', os.O_CREAT))
            made += 1
    except OSError: pass
    return made
"""


def test_a_program_cannot_fill_the_memory_with_empty_files(level: Level) -> None:
    limits = Limits(wall_seconds=LIMITS.wall_seconds)
    while_asked = judge(EMPTY_FILES + "f = fill", level, "assert f() < 10**4, f()", limits)
    while_it_does_not_listen = judge(
        f"""{RAW}{EMPTY_FILES}
raw(b'["tuple","ok",null]')
raw(b'["tuple","ok",["dict","f",["object",0]]]')
if fill() < 10**4: os._exit(0)
while True: os.stat('/tmp')
""",
        level,
        "f('x' * 10**7)",
        limits,
    )
    if level is Level.bubblewrap:  # which has no option for it
        assert while_asked == Verdict("failed", "the program made more than 4096 files")
        assert while_it_does_not_listen == Verdict("failed", "the program made more than 4096 files")
    else:
        assert while_asked == Verdict("passed")
        assert "exited with status 0" in while_it_does_not_listen.detail


REFUSED = {
    "10 GB of memory": "x = bytearray(10 * 2**30)",
    "memory in small pieces": "x = [bytearray(2**20) for _ in range(10 * 2**10)]",
    "many files": "x = [open(f'/tmp/{i}', 'w') for i in range(1000)]",
    "a full folder": "for i in range(100): open(f'/tmp/{i}', 'wb').write(bytes(10 * 2**20))",
    "more memory than the limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "writing into results/": f"open({str(ROOT / 'results' / 'written-by-a-program')!r}, 'w')",
    "changing the checker": f"open({str(sandbox.CHILD)!r}, 'a')",
    "writing into the root": "open('/written-by-a-program', 'w')",
    "reading the home folder": "import os; os.listdir(os.environ.get('HOME_OUTSIDE', '/home'))",
    "reading the password file": "open('/etc/passwd')",
    "reading the tests of this project": f"open({__file__!r})",
    "running a shell": "open('/bin/sh')",
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_what_a_program_asks_for_beyond_its_share_is_refused(attempt: str, level: Level) -> None:
    """The deed raises; the same source without it passes, so that nothing else is what failed."""
    assert judge(RIGHT, level).passed
    verdict = judge(REFUSED[attempt] + RIGHT, level)
    assert verdict.status == "failed"
    assert verdict.detail.startswith(
        ("MemoryError", "OSError", "PermissionError", "FileNotFoundError", "ValueError")
    )
    assert not [
        path for folder in (ROOT / "results", ROOT / "evals", Path("/")) for path in folder.glob("written*")
    ]


def test_nothing_that_a_program_writes_reaches_the_folders_outside(level: Level, tmp_path: Path) -> None:
    """Where the sandbox shows a file, its folder exists inside; that folder is not the one outside."""
    folders = [
        tmp_path,
        ROOT,
        ROOT / "results",
        ROOT / "evals",
        Path.home(),
        Path("/tmp"),
        Path(sys.base_prefix),
    ]
    source = f"""
import os
def f(x):
    for folder in {[str(folder) for folder in folders]!r}:
        try:
            os.makedirs(folder, exist_ok=True)
            open(folder + '/written-by-a-program', 'w').close()
        except OSError: pass
    return os.path.exists('/tmp/written-by-a-program')
"""
    assert judge(source, level, "assert f(0)") == Verdict("passed")
    assert not [folder for folder in folders if (folder / "written-by-a-program").exists()]


def test_a_program_that_sleeps_is_ended_at_the_wall_time(level: Level) -> None:
    limits = Limits(wall_seconds=1.5)
    source = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1000)"
    assert judge(source, level, limits=limits) == Verdict("timeout", "not done after 1.5 s")


def test_a_program_that_closes_its_pipes_and_goes_on_is_ended(level: Level) -> None:
    verdict = judge("import os\nos.closerange(3, 64)\nwhile True: pass", level)
    assert verdict == Verdict("failed", "the program was ended by signal 9")
    assert survivors() == []


def test_the_sandbox_dies_with_the_evaluating_process(level: Level) -> None:
    code = f"""
from evals.sandbox import *
limits = Limits(wall_seconds={LIMITS.wall_seconds})
run([Program("import time; time.sleep(10000)", "", ())], level=Level.{level.name}, limits=limits)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not survivors():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    process.wait()
    assert wait_until_gone() == []


def test_one_interrupt_ends_programs_that_sleep(level: Level) -> None:
    """Four programs for two workers, so that some run and some wait for their turn."""
    code = f"""
from evals.sandbox import *
limits = Limits(wall_seconds={LIMITS.wall_seconds})
programs = [Program(f"import time; time.sleep(10000 + {{i}})", "", ()) for i in range(4)]
try: run(programs, workers=2, limits=limits, level=Level.{level.name})
except KeyboardInterrupt: print("interrupted")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        while len(survivors()) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            out, _ = process.communicate(timeout=LIMITS.wall_seconds / 2)
        finally:
            process.kill()
    assert out == "interrupted\n"
    assert wait_until_gone() == []


# ---- the layer of namespaces alone, without limits and system call filter ----

LOOK = """
import ctypes, json, os, socket, sys
seen = {"environment": sorted(os.environ), "pid": os.getpid(), "uid_is_root": os.getuid() == 0}
def tried(deed):
    try: deed()
    except OSError as error: return type(error).__name__
    return "done"
port = json.loads(sys.argv[1])["cpu_seconds"]
seen["localhost"] = tried(lambda: socket.create_connection(("127.0.0.1", port), 5))
seen["interfaces"] = [name for _, name in socket.if_nameindex()]
libc = ctypes.CDLL(None, use_errno=True)
seen["mount"] = libc.mount(b"x", b"/tmp", b"tmpfs", 0, None), libc.mount(None, b"/", None, 32 | 4096, None)
seen["written"] = []
for folder, _, _ in os.walk("/"):
    path = os.path.join(folder, "written-by-a-program")
    if tried(lambda: open(path, "w")) == "done":
        seen["written"].append(folder)
        os.unlink(path)
seen["top"] = sorted(os.listdir("/"))
seen["daemon"] = os.fork()
if seen["daemon"] == 0:
    os.setsid()
    for fd in range(3): os.close(fd)
    while True: pass
print(json.dumps(seen))
"""


@pytest.fixture
def looked(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What LOOK sees in the checker's place, while a server on this machine's loopback waits for it."""
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    monkeypatch.setattr(sandbox, "CHILD", script)
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    sandbox._visible.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        limits = Limits(cpu_seconds=server.getsockname()[1], wall_seconds=LIMITS.wall_seconds)
        done = subprocess.run(
            sandbox._command(level, limits), env=sandbox.ENVIRONMENT, cwd="/", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(TimeoutError):
            server.accept()
    sandbox._visible.cache_clear()
    yield json.loads(done.stdout)


def test_namespaces_alone_leave_no_network_no_rights_and_only_tmp_to_write(looked: dict[str, Any]) -> None:
    assert looked["localhost"] in ("ConnectionRefusedError", "OSError")
    assert looked["interfaces"] == ["lo"]
    assert looked["mount"] == [-1, -1]
    assert all(folder == "/tmp" or folder.startswith("/tmp/") for folder in looked["written"])
    assert "/tmp" in looked["written"]
    assert looked["pid"] == 1


def test_namespaces_alone_show_no_home_no_processes_and_no_environment(looked: dict[str, Any]) -> None:
    allowed = {
        "dev",
        "etc",
        "lib",
        "lib64",
        "tmp",
        "usr",
        *(p.parts[1] for p in (Path(sys.base_prefix), ROOT, Path(numpy.__file__))),
    }
    assert set(looked["top"]) <= allowed
    assert set(looked["environment"]) <= {*sandbox.ENVIRONMENT, "LC_CTYPE", "PWD"}


def test_a_daemon_dies_with_its_namespace(looked: dict[str, Any]) -> None:
    assert int(str(looked["daemon"])) > 1
    assert wait_until_gone() == []


# ---- levels ----


@pytest.fixture
def nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without bwrap on which namespaces cannot be made."""
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "NAMESPACES", Path("/nowhere/sandbox_namespaces.py"))
    monkeypatch.setattr(sandbox, "_unsandboxed_allowed", False)
    sandbox._probe.cache_clear()
    yield
    sandbox._probe.cache_clear()


def test_bubblewrap_is_preferred_where_it_works() -> None:
    if shutil.which("bwrap") is None or subprocess.run(NEEDS[Level.bubblewrap]).returncode != 0:
        pytest.skip("no bubblewrap here")
    assert sandbox.probe() is Level.bubblewrap and sandbox.probe().name == "bubblewrap"


def test_a_machine_that_isolates_nothing_is_refused(nothing_isolates: None) -> None:
    assert sandbox.probe() is Level.none
    for attempt in (sandbox.require, lambda: sandbox.run([Program(RIGHT, TESTS, ("f",))])):
        with pytest.raises(UserError, match="allow_unsandboxed") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_unsandboxed_programs_run_once_they_are_allowed(nothing_isolates: None) -> None:
    assert sandbox.require(allow_unsandboxed=True) is Level.none
    assert sandbox.run([Program(RIGHT, TESTS, ("f",)), Program(WRONG, TESTS, ("f",))]) == [
        Verdict("passed"),
        Verdict("failed", "AssertionError:"),
    ]


def test_a_sandbox_that_does_not_start_is_an_error_and_no_verdict(nothing_isolates: None) -> None:
    for broken in NEEDS:
        with pytest.raises(UserError):
            judge(RIGHT, broken)


@pytest.mark.parametrize("attempt", ["subprocess", "a socket", "a gigabyte of output", "an endless loop"])
def test_the_level_without_isolation_still_limits(attempt: str) -> None:
    """Only deeds that would do no harm if they succeeded: here nothing else would stop them."""
    assert judge(harming(attempt), Level.none).detail == HARM[attempt][1]
    assert survivors() == []


# ---- load ----


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_load_of_the_machine() -> None:
    """Ten repetitions with three times as many busy processes as CPUs; programs of all kinds of verdict."""
    sources = [RIGHT, WRONG, "while True: pass", "import os; os.fork()", "x = bytearray(10 * 2**30)"]
    sources += [f"for _ in range(10**{n}): pass" + RIGHT for n in (4, 5, 6, 7)]
    programs = [Program(source, TESTS, ("f",)) for source in sources]
    quiet = sandbox.run(programs, limits=LIMITS)
    assert {v.status for v in quiet} == {"passed", "failed", "timeout"}
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        for _ in range(10):
            assert sandbox.run(programs, limits=LIMITS) == quiet
    finally:
        for process in busy:
            process.send_signal(signal.SIGKILL)
            process.wait()
