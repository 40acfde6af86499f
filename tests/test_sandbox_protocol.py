"""The frames between checker and candidate: honest values arrive as they are, forged frames change and gain nothing."""

import collections
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import struct
from typing import Any

import numpy
import pytest

from evals import sandbox
from evals.sandbox import Limits, Program, Verdict
from evals.sandbox_protocol import DEPTH, KINDS, decode, encode, receive

TESTS = "assert f(2) == 4\nassert f(3) == 9\nassert f(-5) == 25"
NO_VALUE = "the program returned no plain value: "


def no_object(thing: Any) -> int:
    raise AssertionError(f"{thing!r} travels as an object")


def judge(source: str, tests: str = TESTS) -> Verdict:
    (verdict,) = sandbox.run([Program(source, tests, ("f",))], limits=Limits(cpu_seconds=2))
    return verdict


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def infinite(value: Any) -> Any:
    value.append(value)
    return value


# ---- values ----

VALUES = [
    *(None, True, False, 0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**5000, -(10**5000)),
    *(0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, 2j, complex(-0.0, math.inf)),
    *("", 'ü\0\n"\\', "\ud800", "\ud83d\ude00", "😀", "\u2028", "list", "object"),
    *(b"", bytes(range(256)), bytearray(b"x")),
    *([], [1, [2.5, ["a", None]]], ["list", 1], ["object", 0], (), (1,), ((),), [()], nested(DEPTH)),
    *(set(), {1, "a", (2, frozenset({3}))}, frozenset(), {}, {"k": {1: {None: []}}, (1, 2): 3, 2.5: 4}),
    *(range(3), range(2**70, 0, -2), collections.deque([1, [2]]), int, bool, dict, range),
    *(fractions.Fraction(-1, 3), decimal.Decimal("1.50"), decimal.Decimal("-Infinity")),
    *(datetime.date(2020, 1, 2), datetime.time(1, 2, 3, 4), datetime.timedelta(-1, 2, 3)),
    datetime.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
]


@pytest.mark.parametrize("value", VALUES, ids=[str(i) for i in range(len(VALUES))])
def test_a_value_arrives_as_it_was_sent(value: Any) -> None:
    arrived = decode(encode(value, no_object), no_object)
    assert arrived == value and type(arrived) is type(value)
    if not isinstance(value, set | frozenset | dict) and abs_bits(value) < 10_000:
        assert repr(arrived) == repr(value)


def abs_bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def test_not_a_number_arrives_as_such() -> None:
    assert math.isnan(decode(encode(math.nan, no_object), no_object))


FLATTENED = [
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(list, {1: [2]}), {1: [2]}),
    (collections.namedtuple("Pair", "a b")(1, [2]), (1, [2])),
    (enum.IntEnum("Number", "a b").b, 2),
    (enum.Enum("Text", {"A": "a"}, type=str).A, "a"),  # type: ignore[call-overload]
    (numpy.float64(0.5), 0.5),
    (numpy.float32(0.5), 0.5),
    (numpy.int64(3), 3),
    (numpy.bool_(True), True),
    (numpy.str_("a"), "a"),
    (numpy.complex128(2j), 2j),
]


@pytest.mark.parametrize(("value", "plain"), FLATTENED, ids=[type(value).__name__ for value, _ in FLATTENED])
def test_an_instance_of_a_subclass_arrives_as_plain_content(value: Any, plain: Any) -> None:
    arrived = decode(encode([value], no_object), no_object)
    assert arrived == [plain] and type(arrived[0]) is type(plain)


def test_what_has_no_plain_form_travels_as_a_number() -> None:
    kept: list[Any] = []

    def number(thing: Any) -> int:
        kept.append(thing)
        return len(kept) - 1

    odd = [object(), len, math, Exception, numpy.zeros(2), memoryview(b""), iter([])]
    assert decode(encode(odd, number), lambda n: ("number", n)) == [("number", i) for i in range(len(odd))]
    assert all(a is b for a, b in zip(kept, odd, strict=True))


@pytest.mark.parametrize("value", [nested(DEPTH + 1), infinite([]), infinite([1, [2]])])
def test_a_value_that_is_nested_too_deep_is_refused_by_its_sender(value: Any) -> None:
    with pytest.raises(ValueError, match="nested deeper"):
        encode(value, no_object)


# ---- frames that no honest side would send ----

FORGED = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "half a text": b'["list","a',
    "two values": b"1 2",
    "a pickle": b"\x80\x04cfractions\nFraction\n.",
    "an object of JSON": b'{"__class__":"Fraction"}',
    "an object of JSON inside": b'["list",{"a":1}]',
    "an array without a kind": b"[]",
    "a kind that is no text": b"[1,2]",
    "a kind that is a list": b'[["list"],1]',
    "a kind that is an object": b'[["object",0],1]',
    "a kind that is not there": b'["eval","1"]',
    "a function by its name": b'["builtins.eval","1"]',
    "a class by its name": b'["fractions.Fraction.__new__",1]',
    "a module's name": b'["fractions","Fraction"]',
    "a type that is not listed": b'["type","type"]',
    "a type by its module": b'["type","fractions.Fraction"]',
    "a type that is no text": b'["type",["object",0]]',
    "nothing below a Fraction": b'["fractions.Fraction",1,0]',
    "a Fraction of text": b'["fractions.Fraction","1e999999999",1]',
    "a Fraction of an object": b'["fractions.Fraction",["object",0],1]',
    "a Fraction with a state": b'["fractions.Fraction",1,2,["dict","__eq__",["type","list"]]]',
    "a Decimal of nonsense": b'["decimal.Decimal","nonsense"]',
    "a Decimal of an object": b'["decimal.Decimal",["object",0]]',
    "a set of a signalling NaN": b'["set",["decimal.Decimal","sNaN"]]',
    "a date of nonsense": b'["datetime.date","nonsense"]',
    "a duration without end": b'["datetime.timedelta",1000000000000,0,0]',
    "an integer of nonsense": b'["int","0xzz"]',
    "an integer of a number": b'["int",1]',
    "an integer of 5,000 digits": b"9" * 5000,
    "a complex of integers": b'["complex",1,2]',
    "bytes of nonsense": b'["bytes","0"]',
    "bytes of a number": b'["bytes",1000000000000]',
    "a range of floats": b'["range",0.0,1.0,1.0]',
    "a range of Booleans": b'["range",false,true,true]',
    "a range without step": b'["range",0,1,0]',
    "a set of lists": b'["set",["list"]]',
    "a key that is a list": b'["dict",["list"],1]',
    "a key that holds a list": b'["dict",["tuple",["list"]],1]',
    "a key without value": b'["dict",1,2,3]',
    "an object of no number": b'["object","0"]',
    "an object of a Boolean": b'["object",true]',
    "an object of two numbers": b'["object",0,1]',
    "nested too deep": b'["list",' * (DEPTH + 1) + b"]" * (DEPTH + 1),
    "nested without end": b'["list",' * 10**6,
    "brackets without end": b"[" * 10**6,
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_frame_is_no_value(forged: str) -> None:
    with pytest.raises(ValueError):
        decode(FORGED[forged], lambda number: object())


def test_every_kind_is_of_the_standard_library_and_cannot_be_changed_by_a_frame() -> None:
    """A kind's parts are values made before, so that no frame can hand in anything with a will of its own."""
    before = {kind: dict(vars(kind)) for kind in (fractions.Fraction, decimal.Decimal, datetime.datetime)}
    for name, kind in KINDS.items():
        for parts in ([], [["object", 0]], ["__eq__", ["object", 0]], [["dict", "__eq__", ["object", 0]]]):
            try:
                made = decode(json.dumps([name, *parts]).encode(), lambda number: object())
            except ValueError:
                continue
            assert kind.types is None and type(made) in (list, tuple, set, frozenset, dict, collections.deque)
    assert before == {kind: dict(vars(kind)) for kind in before}


@pytest.mark.parametrize("sent", [b"", b"\0", struct.pack("Q", 3) + b"ab", struct.pack("Q", 2**62) + b"ab"])
def test_a_frame_that_ends_early_or_is_too_long_is_not_waited_for(sent: bytes) -> None:
    out, into = os.pipe()
    os.write(into, sent)
    os.close(into)
    with pytest.raises((EOFError, ValueError)):
        receive(out)
    os.close(out)


# ---- the same, sent by a program in the place of its answer ----

RAW = """
import os, struct
def raw(data, length=None):
    for fd in range(3, 64):
        try: os.write(fd, struct.pack('Q', len(data) if length is None else length) + data)
        except OSError: pass
"""
ANSWERS = {
    **{name: b'["tuple","ok",%s]' % frame for name, frame in FORGED.items() if len(frame) < 10_000},
    "no answer": b'["tuple"]',
    "text for an answer": b'"ok"',
    "a number for an answer": b"4",
    "an answer of three": b'["tuple","ok",4,4]',
    "neither answer nor error": b'["tuple","token",4]',
    "an error without text": b'["tuple","error",1,2,3]',
    "an error of two": b'["tuple","error","ValueError"]',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_program_that_forges_an_answer_fails(answer: str) -> None:
    verdict = judge(f"{RAW}\ndef f(x):\n    raw({ANSWERS[answer]!r})\n    return x * x\n")
    assert verdict.status == "failed" and verdict.detail.startswith(NO_VALUE)


WRONG_ANSWERS = {
    "not a number": b"NaN",
    "infinity": b"Infinity",
    "text of the number": b'"4"',
    "a type": b'["type","int"]',
    "an object that is not there": b'["object",1000]',
    "an object below zero": b'["object",-1]',
    "a set of everything near": b'["set",4,9,25]',
    "a range of everything near": b'["range",0,100,1]',
    "a Decimal that is no number": b'["decimal.Decimal","NaN"]',
    "a Fraction beside it": b'["fractions.Fraction",9,2]',
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS)
def test_a_forged_answer_that_is_a_value_equals_what_it_is(answer: str) -> None:
    frame = b'["tuple","ok",%s]' % WRONG_ANSWERS[answer]
    source = f"{RAW}\ndef f(x):\n    raw({frame!r})\n    return 0\n"
    assert judge(source) == Verdict("failed", "AssertionError:")


CLASSES = [
    *("int", "float", "complex", "str", "bytes", "bytearray"),
    *("list", "tuple", "dict", "set", "frozenset", "object"),
    *("fractions.Fraction", "decimal.Decimal", "datetime.date"),
    *("collections.deque", "collections.Counter", "collections.UserList"),
]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_value_whose_class_claims_to_equal_everything_does_not(kind: str) -> None:
    source = f"""
import collections, datetime, decimal, fractions
class Equal({kind}):
    __eq__ = __ge__ = __le__ = __gt__ = __lt__ = __contains__ = lambda *a: True
    __ne__ = lambda *a: False
    __hash__ = lambda self: 0
    __abs__ = __sub__ = __rsub__ = __round__ = lambda *a: 0
def f(x): return Equal(2020, 1, 2) if {kind!r} == 'datetime.date' else Equal()
"""
    assert judge(source) == Verdict("failed", "AssertionError:")


def test_an_error_cannot_be_one_that_ends_the_tests_quietly() -> None:
    for name in (
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "StopIteration",
        "BaseException",
        "eval",
    ):
        frame = json.dumps(["tuple", "error", name, name, ""]).encode()
        source = f"{RAW}\ndef f(x):\n    raw({frame!r})\n    return 0\n"
        tests = "for _ in (1,):\n    try: f(2)\n    except RuntimeError: raise KeyError('seen')"
        assert judge(source, tests) == Verdict("failed", "KeyError: 'seen'")


def test_answers_sent_before_they_are_asked_for_and_after_the_end_change_no_verdict() -> None:
    early = (
        RAW
        + """
for answer in (b'null', b'["dict","f",["object",0],"check",["object",0],"token",""]', *[b'0'] * 3):
    raw(b'["tuple","ok",%s]' % answer)
"""
    )
    assert judge(early + "def f(x): return 0") == Verdict("failed", "AssertionError:")
    late = (
        RAW
        + """
def f(x):
    raw(b'["tuple","ok",%d]' % (x * x))
    raw(b'["tuple","ok",null]', length=2**40)
"""
    )
    assert judge(late, "assert f(2) == 4") == Verdict("passed")
    assert judge(late, "assert f(2) == 5") == Verdict("failed", "AssertionError:")
    assert judge(late).detail.startswith(NO_VALUE)


def test_half_a_frame_before_the_end_is_a_failure() -> None:
    source = f"{RAW}\ndef f(x):\n    raw(b'[', length=1000)\n    os._exit(0)\n"
    assert judge(source) == Verdict("failed", "the program exited with status 0 before the tests returned")


def test_a_program_that_changes_its_own_side_of_the_protocol_gains_nothing() -> None:
    source = """
import builtins, json, struct, sys
from evals import sandbox_protocol as protocol
def f(x): return 0
for name, kind in protocol.KINDS.items():
    protocol.KINDS[name] = kind._replace(types=None, build=lambda *a: 0, parts=lambda v: ())
protocol.FRAME_BYTES, protocol.DEPTH, protocol.PLAIN = 2**60, 2**60, ()
json.loads = lambda *a, **k: ('call', lambda *a: 4, (), {})
builtins.type = builtins.isinstance = lambda *a: True
builtins.tuple = builtins.int = builtins.ValueError = lambda *a: 4
"""
    assert judge(source).status == "failed"


def test_an_answer_that_is_larger_than_its_limits_is_a_failure() -> None:
    for body in ("'x' * (65 * 2**20)", "[[]] * 10**7", "2**(2**31)"):
        assert judge(f"def f(x): return {body}").status != "passed"
