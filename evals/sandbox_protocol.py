"""How the checker and the candidate speak: frames of JSON over two pipes.

A frame is 8 bytes of length, then text. None, booleans, text, floats and integers of 64 bits stand for
themselves; every other value is an array that begins with the name of its kind:

    ["list", 1, 2]    ["dict", "key", 1.5]    ["bytes", "c3bc"]    ["fractions.Fraction", 1, 3]    ["object", 7]

The format is closed. Whoever reads a frame makes each value anew, of exactly the type that is named, from
numbers, text and values made before: a frame can name nothing else, let alone change or call it. What has no
such form stays with its owner and travels as the number of an object. Standard library only.
"""

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

FRAME_BYTES = 64 * 2**20  # the largest frame that is read
DEPTH = 100  # how deep a value may be nested; what contains itself is deeper than that
WORD = 2**63  # from here on an integer travels as hexadecimal text: Python limits decimal text

PLAIN = (type(None), bool, int, float, str)
# An instance of a subclass travels as one of these: its own methods would decide what it equals.
BASES: tuple[Any, ...] = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
TYPES = {kind.__name__: kind for kind in (bool, range, *BASES)}


def send(fd: int, frame: bytes, wait: Callable[[], None] = lambda: None) -> None:
    """Write one frame; `wait` is called before each write. Raises BrokenPipeError if the other side has ended."""
    data = memoryview(struct.pack("Q", len(frame)) + frame)
    while data:
        wait()
        data = data[os.write(fd, data) :]


def receive(fd: int, wait: Callable[[], None] = lambda: None) -> bytes:
    """One frame; `wait` is called before each read.

    Raises:
        EOFError: if the other side has ended.
        ValueError: if the frame is too long.
    """

    def read(count: int) -> bytes:
        parts = []
        while count:
            wait()
            part = os.read(fd, min(count, 2**20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    (length,) = struct.unpack("Q", read(8))
    if length > FRAME_BYTES:
        raise ValueError(f"a value of {length} bytes")
    return read(length)


def encode(value: Any, number_of: Callable[[Any], int]) -> bytes:
    """The frame of a value; `number_of` gives the number of an object that has no other form.

    Raises:
        ValueError: if the value is nested too deep.
    """

    def node(value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in PLAIN and (kind is not int or -WORD <= value < WORD):
            return value
        if depth == DEPTH:
            raise ValueError(f"a value nested deeper than {DEPTH}")
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        if name in KINDS and (kind is not type or TYPES.get(value.__name__) is value):
            return [name, *(node(part, depth + 1) for part in KINDS[name].parts(value))]
        if kind.__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__"):
            return node(value.item(), depth + 1)  # a scalar
        for base in BASES:
            if isinstance(value, base):
                # str() of a member of an enumeration is its name.
                return node(str.__str__(value) if base is str else base(value), depth + 1)
        return ["object", number_of(value)]

    return json.dumps(node(value, 0), ensure_ascii=False).encode("utf-8", "surrogatepass")


def decode(frame: bytes, object_of: Callable[[int], Any]) -> Any:
    """The value of a frame, whoever wrote it; `object_of` gives the object of a number.

    Raises:
        ValueError: if the frame holds no value.
    """

    def made(node: Any, depth: int) -> Any:
        if type(node) in PLAIN:
            return node
        if type(node) is not list or depth == DEPTH:
            raise ValueError(f"no array, or one nested deeper than {DEPTH}")
        name, *parts = [made(part, depth + 1) for part in node]
        kind = Kind(iter, (int,), object_of) if name == "object" else KINDS[name]
        if kind.types is not None and kind.types != tuple(map(type, parts)):
            raise ValueError(f"{name} of other parts")
        return kind.build(*parts)

    try:
        return made(json.loads(frame.decode("utf-8", "surrogatepass")), 0)
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


class Kind(NamedTuple):
    """How a value is taken apart, of what types its parts are (None: of any number and type), how it is made."""

    parts: Callable[[Any], Iterable[Any]]
    types: tuple[type, ...] | None
    build: Callable[..., Any]


def _dict(*parts: Any) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _from(module: str, *names: str) -> Callable[..., Any]:
    """A function of a module that few programs need, imported when it is called."""

    def build(*parts: Any) -> Any:
        found: Any = __import__(module)
        for name in names:
            found = getattr(found, name)
        return found(*parts)

    return build


KINDS: dict[str, Kind] = {
    "list": Kind(iter, None, lambda *parts: list(parts)),
    "tuple": Kind(iter, None, lambda *parts: parts),
    "set": Kind(iter, None, lambda *parts: set(parts)),
    "frozenset": Kind(iter, None, lambda *parts: frozenset(parts)),
    "collections.deque": Kind(iter, None, lambda *parts: deque(parts)),
    "dict": Kind(lambda v: (part for pair in v.items() for part in pair), None, _dict),
    "int": Kind(lambda v: (hex(v),), (str,), lambda digits: int(digits, 16)),
    "complex": Kind(lambda v: (v.real, v.imag), (float, float), complex),
    "bytes": Kind(lambda v: (v.hex(),), (str,), bytes.fromhex),
    "bytearray": Kind(lambda v: (v.hex(),), (str,), bytearray.fromhex),
    "range": Kind(lambda v: (v.start, v.stop, v.step), (int, int, int), range),
    "type": Kind(lambda v: (v.__name__,), (str,), TYPES.__getitem__),
    "fractions.Fraction": Kind(
        lambda v: (v.numerator, v.denominator), (int, int), _from("fractions", "Fraction")
    ),
    "decimal.Decimal": Kind(lambda v: (str(v),), (str,), _from("decimal", "Decimal")),
    "datetime.date": Kind(lambda v: (v.isoformat(),), (str,), _from("datetime", "date", "fromisoformat")),
    "datetime.time": Kind(lambda v: (v.isoformat(),), (str,), _from("datetime", "time", "fromisoformat")),
    "datetime.datetime": Kind(
        lambda v: (v.isoformat(),), (str,), _from("datetime", "datetime", "fromisoformat")
    ),
    "datetime.timedelta": Kind(
        lambda v: (v.days, v.seconds, v.microseconds), (int, int, int), _from("datetime", "timedelta")
    ),
}
