"""The parsers that are ours, fed with spoilt input: each gives a sound value or a `UserError`, nothing else.

    make fuzz                # ten minutes for each parser
    FUZZ_SECONDS=60 python -m pytest tests/test_fuzz.py -s

Covers safetensors headers, vectors (dense and compact), records and manifests, GSM8K's annotations, what is cut
out of answers as a program and what such a program answers its checker. What a long run has found stands here as an `@example`.
"""

import collections
import datetime
import decimal
import fractions
import functools
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evals import code, sandbox
from evals.perturbations import names, perturb
from evals.perturbations.gsm8k import replay
from evals.sandbox import Program
from evals.sandbox_protocol import KINDS, TYPES, decode, encode
from pipeline.errors import UserError
from pipeline.files import digest
from pipeline.manifest import manifest_path, read_manifest
from pipeline.records import read_record
from pipeline.weights import vector as vectors
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.safetensors import read_header
from pipeline.weights.vector import Vector
from tests import synthetic, tiny

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
BATCH = 1000 if SECONDS else 60


def fuzz(property: Any, capsys: pytest.CaptureFixture[str], batch: int = BATCH) -> None:
    """Run a property on one batch of examples, or on batches of `BATCH` until FUZZ_SECONDS are over."""
    judge, examples = property.hypothesis.inner_test, 0

    @functools.wraps(judge)
    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal examples
        examples += 1
        judge(*args, **kwargs)

    property.hypothesis.inner_test = counted
    run = settings(
        max_examples=BATCH if SECONDS else batch,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
    )(property)
    end = time.monotonic() + SECONDS
    run()
    while time.monotonic() < end:
        run()
    if SECONDS:
        with capsys.disabled():
            print(f"\n{property.__name__}: {examples:,} examples in {SECONDS:g} s")


# Spoiling: bytes of a sound file with some changed, cut out or put in, and JSON with values exchanged

EDGES = [0, 1, 7, 8, 255, 256, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
edits = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert"]), st.integers(0, 2**20), st.binary(max_size=9)),
    min_size=1,
    max_size=4,
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([*EDGES, *(-n for n in EDGES)]),
    st.floats(),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
)
swaps = st.lists(st.tuples(st.integers(0, 2**16), st.none() | values, st.booleans()), min_size=1, max_size=3)


def spoilt(raw: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, put in changes:
        at = place % (len(raw) + 1)
        after = at if kind == "insert" else at + len(put)
        raw = raw[:at] + (b"" if kind == "cut" else put) + raw[after:]
    return raw


def exchanged(content: Any, changes: list[tuple[int, Any, bool]]) -> Any:
    """JSON with some of its values replaced, or left out."""
    content = json.loads(json.dumps(content))
    for number, value, leave_out in changes:
        places: list[tuple[Any, Any]] = []
        pending = [content]
        while pending:
            node = pending.pop()
            keys = (
                list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            )
            places += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
        if not places:
            return value
        node, key = places[number % len(places)]
        if leave_out:
            del node[key]
        else:
            node[key] = value
    return content


# Safetensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two donors that differ a little, small enough to be read thousands of times a minute."""
    folder = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "rows": 8, "tokens": 8}
    settings = tiny.config(**{k: v for k, v in small.items() if k != "tokens"})
    state = tiny.weights(settings, 0)
    for seed, part in ((1, "sft"), (2, "grpo")):
        tiny.write(folder / part, tiny.moved(state, seed), **small)
    return folder


def header_and_rest(raw: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def packed(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def check_header(path: Path) -> None:
    try:
        metadata, tensors = read_header(path)
    except UserError:
        return
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items())
    size = path.stat().st_size
    for info in tensors.values():
        assert all(type(n) is int and n >= 0 for n in info.shape)
        assert 8 <= info.start <= info.end <= size
    assert sum(info.end - info.start for info in tensors.values()) <= size


def test_a_header_is_sound_or_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = (models / "sft" / "model.safetensors").read_bytes()
    header, rest = header_and_rest(raw)
    path = tmp_path / "model.safetensors"

    @given(edits, swaps, st.booleans())
    def a_header_is_sound_or_refused(changes: Any, exchanges: Any, by_bytes: bool) -> None:
        path.write_bytes(
            spoilt(raw[:2000], changes) + raw[2000:]
            if by_bytes
            else packed(exchanged(header, exchanges), rest)
        )
        check_header(path)

    fuzz(a_header_is_sound_or_refused, capsys)


@pytest.mark.parametrize("form", ["dense", "compact"])
def test_a_vector_is_sound_or_refused(
    form: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grpo, sft = (Checkpoint.open(str(models / part)) for part in ("grpo", "sft"))
    raw = vectors.extract(grpo, sft, tmp_path, compact=form == "compact").read_bytes()
    header, rest = header_and_rest(raw)
    description = json.loads(header["__metadata__"]["task_vector"])
    path = tmp_path / "spoilt.safetensors"

    def check() -> None:
        try:
            vector = Vector.open(path)
            for name, shape in vector.shapes.items():
                tensor = vector.read(name)
                assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32)
        except UserError:
            return

    @given(edits, edits, swaps, st.sampled_from(["header", "description", "entries", "bytes"]))
    def a_vector_is_sound_or_refused(changes: Any, more: Any, exchanges: Any, what: str) -> None:
        if what == "header":
            path.write_bytes(packed(exchanged(header, exchanges), rest))
        elif what == "description":
            text = json.dumps(exchanged(description, exchanges))
            path.write_bytes(packed(header | {"__metadata__": {"task_vector": text}}, rest))
        elif what == "entries":  # of the same length, so that the header fits
            changed = spoilt(rest, [("set", place, put) for _, place, put in changes])[: len(rest)]
            path.write_bytes(packed(header, changed.ljust(len(rest), b"\0")))
        else:
            path.write_bytes(spoilt(raw, changes + more))
        check()

    fuzz(a_vector_is_sound_or_refused, capsys)


# Records and manifests


def test_a_record_is_what_was_written_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = {"family": "micro", "alpha": 1.0}
    rows = synthetic.samples([True, False, True])
    key = synthetic.write_cell(tmp_path, identity, rows)
    folder = tmp_path / "cells" / key
    sound = {name: (folder / name).read_bytes() for name in ("record.json", "samples.jsonl")}
    record = json.loads(sound["record.json"])

    @given(edits, swaps, st.sampled_from(["record.json", "samples.jsonl", "sealed"]))
    def a_record_is_what_was_written_or_refused(changes: Any, exchanges: Any, what: str) -> None:
        for name, raw in sound.items():
            (folder / name).write_bytes(spoilt(raw, changes) if name == what else raw)
        if what == "sealed":  # with a checksum that fits: what another version or program may have written
            content = exchanged({k: v for k, v in record.items() if k != "sha256"}, exchanges)
            if isinstance(content, dict):
                try:
                    content["sha256"] = digest(content)
                except ValueError:  # NaN
                    return
            (folder / "record.json").write_text(json.dumps(content))
        try:
            found = read_record(tmp_path, key)
            assert found is not None
            samples = found.samples()
        except UserError:
            return
        assert samples == rows
        if what != "sealed":
            assert (found.inputs, found.metrics) == (record["inputs"], record["metrics"])

    fuzz(a_record_is_what_was_written_or_refused, capsys)


def test_a_manifest_is_what_was_written_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: synthetic.CONDITIONS[name] for name in ("baseline", "vector", "random-s0", "alpha=0.5")}
    manifest = synthetic.write_run(tmp_path, conditions=few, documents=3)
    path = manifest_path(tmp_path, manifest.experiment)
    raw = path.read_bytes()

    @given(edits, swaps, st.booleans())
    def a_manifest_is_what_was_written_or_refused(changes: Any, exchanges: Any, by_bytes: bool) -> None:
        content = json.dumps(exchanged(json.loads(raw), exchanges)).encode()
        path.write_bytes(spoilt(raw, changes) if by_bytes else content)
        try:
            found = read_manifest(path)
        except UserError:
            return
        assert found == manifest

    fuzz(a_manifest_is_what_was_written_or_refused, capsys)


# Annotations of GSM8K

numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.floats(0, 1e4, allow_nan=False).map(lambda x: f"{x:.2f}"),
    st.integers(0, 10**9).map(lambda n: f"{n:,}"),
    st.sampled_from(["0", "00", ".5", "1.", "-3", "1e5", "½", "٣", "0x1", "1_000", "9" * 5000, "1/2", "%"]),
)
operators = st.sampled_from(
    ["+", "-", "*", "/", "**", "//", "%", ")", "(", " ", "=", "<<", ">>", "x", "\0", "\n"]
)
expressions = st.lists(st.one_of(numbers, operators), max_size=9).map("".join)
nested = st.builds(
    lambda n, s: "(" * n + s + ")" * n, st.sampled_from([0, 0, 0, 1, 90, 300, 5000]), expressions
)
sound_lines = st.builds(
    lambda a, op, b: f"So {a}{op}{b} = <<{a}{op}{b}={eval(f'{a}{op}{b}')}>>{eval(f'{a}{op}{b}')} nuts.",
    st.integers(2, 500),
    st.sampled_from("+*"),
    st.integers(2, 500),
)
lines = st.one_of(
    sound_lines, st.builds("So <<{}={}>>{} nuts.".format, nested, expressions, numbers), st.text(max_size=20)
)
answers = st.builds(
    lambda parts, final: "\n".join(parts) + f"\n#### {final}",
    st.lists(lines, max_size=4),
    st.one_of(numbers, st.text(max_size=4)),
)
consistent = sound_lines.map(
    lambda line: f"{line}\n#### {line.partition('=')[2].rpartition('>>')[2].split()[0]}"
)
questions = st.builds(
    "{} has {} nuts and buys {} more for ${}. {}How many are there?".format,
    st.sampled_from(["Tom", "Ann", "The shop"]),
    *(numbers,) * 3,
    st.text(max_size=12),
)
problems = st.fixed_dictionaries(
    {
        "question": st.one_of(questions, st.text(max_size=30)),
        "answer": st.one_of(answers, consistent, st.text(max_size=30)),
    }
)


def test_a_problem_is_changed_soundly_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    @given(problems, st.sampled_from(names("gsm8k")), st.integers(0, 3))
    @example({"question": "", "answer": ""}, "sentence_order", 0)
    @example({"question": " ", "answer": ""}, "irrelevant_sentences", 0)
    @example({"question": "", "answer": "So 2+2 = <<2+2=4>>4 nuts.\n#### ."}, "larger_numbers", 0)
    def a_problem_is_changed_soundly_or_left_out(problem: dict[str, str], variant: str, seed: int) -> None:
        try:
            was = replay(problem["answer"])
            made = perturb("gsm8k", variant, [problem, problem], seed=seed)
        except ValueError as e:  # pipeline.documents makes one line of it
            assert "4300 digits" in str(e)
            return
        for document in made:
            now = replay(document["answer"])
            assert document["question"] != problem["question"]
            if variant == "larger_numbers":
                assert was is not None and now is not None and len(now) == len(was) and now[-1] != was[-1]
            elif variant == "more_steps":
                assert was is not None and now is not None and now[:-2] == was
            else:
                assert now == was

    fuzz(a_problem_is_changed_soundly_or_left_out, capsys)


# Programs in answers

pieces = st.one_of(
    st.sampled_from(
        [
            "```",
            "```python\n",
            "``",
            "`",
            "\n",
            "    return 1\n",
            "def one():\n",
            "\0",
            "\ud800",
            "(" * 200,
            "#",
            '"""',
            "\\",
            "\r",
            "\x0c",
            " " * 3000,
        ]
    ),
    st.text(max_size=12),
)
texts = st.lists(pieces, max_size=8).map("".join)


def test_a_program_is_cut_out_of_any_answer(capsys: pytest.CaptureFixture[str]) -> None:
    sound = {
        "prompt": 'def one():\n    """One."""\n',
        "entry_point": "one",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "test_list": ["assert one() == 1"] * 3,
    }

    @given(texts, texts, st.sampled_from(["answer", *sound]))
    def a_program_is_cut_out_of_any_answer(answer: str, content: str, what: str) -> None:
        doc: dict[str, Any] = dict(sound)
        if what != "answer":
            doc[what] = [content] * 3 if what == "test_list" else content
        for build in (code.humaneval_program, code.mbpp_program):
            try:
                program = build(doc, answer)
            except UserError:
                assert what != "answer"
                continue
            assert program is None or isinstance(program, Program)
            if program is not None and build is code.humaneval_program:
                assert (
                    program.source.startswith(doc["prompt"])
                    and "```" not in program.source[len(doc["prompt"]) :]
                )
            if program is not None and build is code.mbpp_program:
                assert program.source in answer and program.source.strip()

    fuzz(a_program_is_cut_out_of_any_answer, capsys)


# What a program answers its checker: frames from a grammar that knows every kind, and their bytes spoilt

texts_of_kinds = st.sampled_from(
    [
        "0x1f",
        "-0x0",
        "00ff",
        "1e5",
        "NaN",
        "sNaN",
        "Infinity",
        "2020-01-02",
        "2020-01-02T03:04:05+01:00",
        "25:00",
    ]
    + ["int", "type", "object", "__eq__", "__class__", "fractions.Fraction"]
)
nodes = st.recursive(
    scalars | texts_of_kinds,
    lambda inner: (
        st.builds(
            lambda kind, parts: [kind, *parts],
            st.sampled_from([*KINDS, *KINDS, "object", "builtins.eval", "module"]) | inner,
            st.lists(inner, max_size=4),
        )
        | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=12,
)


def moments(strategy: Any) -> Any:
    """Without the mark of a repeated hour, which is no part of what they equal."""
    return strategy.map(lambda moment: moment.replace(fold=0))


plain_values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text()),
        *(st.complex_numbers(), st.binary(), st.binary().map(bytearray), st.fractions(), st.decimals()),
        *(st.dates(), moments(st.times()), moments(st.datetimes()), st.timedeltas()),
        st.builds(range, st.integers(), st.integers(), st.integers(1, 2**70)),
        st.sampled_from(list(TYPES.values())),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(collections.deque),
        st.frozensets(st.integers() | st.text(), max_size=3),
        st.sets(st.integers() | st.text(), max_size=3),
        st.dictionaries(st.integers() | st.text(), inner, max_size=3),
    ),
    max_leaves=12,
)
CONTAINERS = (list, tuple, set, frozenset, collections.deque, dict)
RATIONAL = (fractions.Fraction, decimal.Decimal)
TIMES = (datetime.date, datetime.time, datetime.datetime, datetime.timedelta)
SCALARS = {type(None), bool, int, float, complex, str, bytes, bytearray, range, *RATIONAL, *TIMES}


class Thing:
    """What stays with the candidate."""


def no_number(thing: Any) -> int:
    raise AssertionError(f"{thing!r} has a plain form")


def is_plain(value: Any) -> bool:
    if type(value) in CONTAINERS:
        return all(map(is_plain, [*value.keys(), *value.values()] if type(value) is dict else value))
    return type(value) in (*SCALARS, Thing) or (type(value) is type and value in TYPES.values())


def is_same(a: Any, b: Any) -> bool:
    """Equal in type and content; what is not a number, which equals nothing, by its form."""
    if type(a) is not type(b):
        return False
    if type(a) in (set, frozenset):
        return bool(a == b)
    if type(a) is dict:
        a, b = ([part for pair in value.items() for part in pair] for value in (a, b))
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(is_same, a, b))
    return repr(a) == repr(b)


def test_a_frame_is_plain_data_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [kind for kind in (*RATIONAL, *TIMES, *CONTAINERS, Thing)]
    before = [dict(vars(kind)) for kind in kinds]

    @given(nodes, edits, st.booleans())
    def a_frame_is_plain_data_or_refused(node: Any, changes: Any, by_bytes: bool) -> None:
        frame = json.dumps(node).encode()
        try:
            value = decode(spoilt(frame, changes) if by_bytes else frame, lambda number: Thing())
        except ValueError:
            return
        assert is_plain(value), value
        assert [dict(vars(kind)) for kind in kinds] == before

    fuzz(a_frame_is_plain_data_or_refused, capsys)


def test_a_plain_value_arrives_as_it_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    @given(plain_values)
    def a_plain_value_arrives_as_it_was_sent(value: Any) -> None:
        arrived = decode(encode(value, no_number), lambda number: Thing())
        assert is_same(arrived, value), (arrived, value)

    fuzz(a_plain_value_arrives_as_it_was_sent, capsys)


ANSWERING = """
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, {sent!r})
        except OSError: pass
    os._exit(0)
"""
ASKING = """
seen = []
for i in range(3):
    try: seen.append(f(i))
    except Exception: pass
assert 'SECRET' in seen
"""
replies = st.one_of(
    nodes.map(lambda node: ["tuple", "ok", node]),
    st.lists(st.sampled_from(["ValueError", "StopIteration", "SystemExit"]) | nodes, max_size=4).map(
        lambda parts: ["tuple", "error", *parts]
    ),
    nodes,
)


def test_no_stream_of_frames_passes_for_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing: programs that send a stream of frames in the place of an answer, each in a sandbox."""

    @given(st.lists(st.tuples(replies, st.sampled_from([None] * 6 + EDGES)), max_size=4), st.none() | edits)
    def no_stream_of_frames_passes_for_an_answer(frames: Any, changes: Any) -> None:
        sent = b""
        for reply, length in frames:
            text = json.dumps(reply).encode()
            sent += struct.pack("Q", len(text) if length is None else length) + text
        source = ANSWERING.format(sent=sent if changes is None else spoilt(sent, changes))
        (verdict,) = sandbox.run([Program(source, ASKING, ("f",))])
        assert verdict.status == "failed"

    fuzz(no_stream_of_frames_passes_for_an_answer, capsys)
