"""Checkpoints, vectors and geometry files of any content: each is read, or refused with one line; nothing waits."""

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.files import read_bytes, read_json, sha256_of_file
from pipeline.weights import geometry
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.compatibility import check_compatible
from pipeline.weights.geometry_report import read_report
from pipeline.weights.safetensors import read_header
from pipeline.weights.vector import Vector, extract
from tests import tiny

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RV_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "model")


def used(path: Path) -> None:
    """Everything that a run reads of a checkpoint before an engine starts."""
    checkpoint = Checkpoint.open(str(path))
    assert checkpoint.tokenizer_fingerprint and checkpoint.fingerprint
    check_compatible(checkpoint, checkpoint, checkpoint)
    assert checkpoint.stage is None


def refusal(path: Path) -> str:
    """The one line that using the checkpoint ends with."""
    with pytest.raises(UserError) as caught:
        used(path)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1000, line
    return line


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    changed = change(content)
    file.write_text(json.dumps(content if changed is None else changed))


def test_a_sound_checkpoint_is_used(model: Path) -> None:
    used(model)


# config.json

NUMBERS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size")
NUMBERS += ("intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "head_dim")


@pytest.mark.parametrize("value", ["8", [8], {"n": 8}, True, -1, 2**70], ids=repr)
@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_number_where_one_is_expected_is_refused(model: Path, key: str, value: Any) -> None:
    if key in ("rms_norm_eps", "rope_theta") and value == 2**70:
        value = 0
    edit(model / "config.json", lambda c: c.update({key: value}))
    line = refusal(model)
    assert str(model / "config.json") in line and f"{key} is " in line and "fetch it again" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", None),
        ("model_type", 7),
        ("model_type", ["qwen2"]),
        ("architectures", "Qwen2ForCausalLM"),
        ("architectures", [7]),
        ("tie_word_embeddings", "false"),
        ("use_sliding_window", "no"),
        ("rope_scaling", "yarn"),
        ("rope_scaling", [1]),
        ("rope_parameters", 3),
        ("layer_types", "full_attention"),
        ("hidden_act", 3),
        ("torch_dtype", 16),
        ("eos_token_id", "<|im_end|>"),
        ("eos_token_id", [1, "2"]),
    ],
)
def test_what_is_of_another_type_is_refused(model: Path, key: str, value: Any) -> None:
    edit(model / "config.json", lambda c: c.update({key: value}))
    assert f"{key} is " in refusal(model)


def test_a_configuration_without_a_model_type_is_refused(model: Path) -> None:
    edit(model / "config.json", lambda c: c.__delitem__("model_type"))
    assert "model_type is missing" in refusal(model)


def test_no_heads_are_refused(model: Path) -> None:
    edit(model / "config.json", lambda c: c.update(num_attention_heads=0))
    assert "num_attention_heads is 0" in refusal(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 3}, "hidden_size 64 is not a multiple of its num_attention_heads 3"),
        (
            {"num_key_value_heads": 4, "num_attention_heads": 2},
            "is not a multiple of its num_key_value_heads",
        ),
        (
            {"num_attention_heads": 4, "head_dim": 32},
            "num_attention_heads is 4, but model.layers.0.self_attn.q_proj",
        ),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2, but model.layers.0.self_attn.k_proj"),
        ({"intermediate_size": 97}, "intermediate_size is 97, but model.layers.0.mlp.gate_proj"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, its weights have 2 layers"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, its weights have 2 layers"),
        ({"hidden_size": 128}, "hidden_size is 128, but model.embed_tokens.weight has the shape [96, 64]"),
        ({"vocab_size": 100}, "vocab_size is 100, but model.embed_tokens.weight has the shape [96, 64]"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    model: Path, changes: dict[str, Any], said: str
) -> None:
    edit(model / "config.json", lambda c: c.update(changes))
    assert said in refusal(model)


def test_tensors_of_other_names_are_refused(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state["transformer.wte.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, model / "model.safetensors")
    assert "has no model.embed_tokens.weight" in refusal(model)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"a": ' * 990 + "1" + "}" * 990,
        '{"model_type": NaN}',
        '{"model_type": 1e999}',
        '{"model_type": "\\ud800"}',
        f'{{"model_type": {"9" * 5000}}}',
        "[]",
        "7",
        "",
        "\ufeff{}",
    ],
    ids=[
        "deep",
        "nested",
        "NaN",
        "infinite",
        "half a character",
        "long number",
        "list",
        "number",
        "empty",
        "mark",
    ],
)
def test_json_that_is_not_what_others_read_is_refused(model: Path, file: str, text: str) -> None:
    (model / file).write_text(text, encoding="utf-8")
    assert file in refusal(model)


# The tokenizer


@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
)
def test_a_file_of_the_tokenizer_that_is_not_utf8_is_refused(model: Path, file: str) -> None:
    (model / file).write_bytes(b'{"chat_template": "\xff\xfe"}')
    assert file in refusal(model)


@pytest.mark.parametrize("file", ["vocab.json", "added_tokens.json", "merges.txt"])
def test_a_file_of_the_older_tokenizer_that_is_not_utf8_is_refused(model: Path, file: str) -> None:
    older(model)
    (model / file).write_bytes(b"\xff\xfe")
    assert file in refusal(model)


def older(model: Path, merges: str = "#version: 0.2\n1 2\n") -> None:
    """Replaces tokenizer.json by the files that came before it."""
    ids = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(ids))
    (model / "added_tokens.json").write_text(json.dumps({"<|more|>": len(ids)}))
    (model / "merges.txt").write_text(merges)


def test_the_older_files_of_a_tokenizer_are_used(model: Path) -> None:
    older(model)
    used(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["model"].update(vocab=7),
        lambda t: t["model"].update(vocab="words"),
        lambda t: t["model"].update(vocab=[1, 2]),
        lambda t: t["model"].update(vocab=[["a"]]),
        lambda t: t["model"].update(vocab=[[1, 0.5]]),
        lambda t: t["model"]["vocab"].update({"5": "6"}),
        lambda t: t["model"]["vocab"].update({"5": -1}),
        lambda t: t["model"]["vocab"].update({"5": 1.5}),
        lambda t: t["model"]["vocab"].update({"5": True}),
        lambda t: t["model"]["vocab"].update({"5": None}),
        lambda t: t["model"].update(merges=7),
        lambda t: t["model"].update(merges=[7]),
        lambda t: t["model"].update(merges=[[1, 2]]),
        lambda t: t.update(model=[]),
        lambda t: t.update(added_tokens=7),
        lambda t: t.update(added_tokens=["a"]),
        lambda t: t.update(added_tokens=[{"content": 7, "id": 95}]),
        lambda t: t.update(added_tokens=[{"content": ["a"], "id": 95}]),
        lambda t: t.update(added_tokens=[{"content": "a"}]),
        lambda t: t.update(added_tokens=[{"content": "a\nb", "id": "x"}]),
    ],
)
def test_a_tokenizer_of_other_types_is_refused(model: Path, change: Callable[[Any], None]) -> None:
    edit(model / "tokenizer.json", change)
    assert str(model) in refusal(model)


@pytest.mark.parametrize("value", [7, {"content": 7}, {"other": "a"}, ["a"], True])
def test_a_special_token_of_another_type_is_refused(model: Path, value: Any) -> None:
    edit(model / "tokenizer_config.json", lambda t: t.update(eos_token=value))
    assert "its eos_token is" in refusal(model)


@pytest.mark.parametrize("value", [7, {"a": "b"}, True])
def test_a_chat_template_of_another_type_is_refused(model: Path, value: Any) -> None:
    edit(model / "tokenizer_config.json", lambda t: t.update(chat_template=value))
    assert "its chat template is" in refusal(model)


def test_two_tokens_with_one_id_are_refused(model: Path) -> None:
    edit(model / "tokenizer.json", lambda t: t["model"]["vocab"].update({"5": 7}))
    line = refusal(model)
    assert "'4'" in line and "'5'" in line and "both have the id 7" in line


def test_an_added_token_with_the_id_of_another_is_refused(model: Path) -> None:
    edit(model / "tokenizer.json", lambda t: t["added_tokens"].append({"content": "<|more|>", "id": 7}))
    assert "both have the id 7" in refusal(model)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "training.json"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    st.integers(0, 2**16),
)
def test_any_value_in_any_place_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, file: str, value: Any, number: int
) -> None:
    model = tiny.write(tmp_path_factory.mktemp("any") / "model", tokens=12)
    (model / "training.json").write_text('{"stage": "sft", "recipe": {"seed": 1}}')
    content = json.loads((model / file).read_text())
    places: list[tuple[Any, Any]] = []
    pending = [content]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        pending += [node[key] for key in keys]
    node, key = places[number % len(places)]
    node[key] = value
    (model / file).write_text(json.dumps(content))
    try:
        checkpoint = Checkpoint.open(str(model))
        assert checkpoint.tokenizer_fingerprint and checkpoint.stage in (None, "sft", value)
        check_compatible(checkpoint, checkpoint, checkpoint)
    except UserError as refused:
        assert all(line.isprintable() for line in str(refused).split("\n"))


# Headers


def with_header(file: Path, length: int, size: int) -> None:
    """Writes a file of `size` bytes (mostly a hole) whose header claims `length`."""
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(size)


@pytest.mark.parametrize("length", [100_000_001, 3 << 30])
def test_a_header_that_claims_gigabytes_is_refused_unread(
    model: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_header(model / "model.safetensors", length, length + 100)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(UserError, match="a header of .* bytes, expected at most 100,000,000"):
        read_header(model / "model.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a\nb": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 2**72]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_torch_or_a_terminal_cannot_take_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(UserError) as caught:
        read_header(tmp_path / "x.safetensors")
    assert str(caught.value).isprintable()


def test_a_header_nested_too_deep_is_refused(tmp_path: Path) -> None:
    text = DEEP.encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UserError, match="its header cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_tensors_in_an_order_that_cannot_be_sorted_are_read(model: Path) -> None:
    state = load_file(model / "model.safetensors")
    state |= {"model.extra.1.weight": torch.zeros(2), "model.extra.a.weight": torch.zeros(2)}
    state["model.extra.².weight"] = torch.zeros(2)
    save_file(state, model / "model.safetensors")
    sft = Checkpoint.open(str(model))
    grpo = Checkpoint.open(str(tiny.write(model.parent / "grpo", tiny.moved(state, 1))))
    assert Vector.open(extract(grpo, sft, model.parent / "v")).shapes.keys() == state.keys()


# What is no file


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


KINDS = {"pipe": a_pipe, "device": a_device, "folder": Path.mkdir}
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES += ["special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_in_a_checkpoint_is_refused_and_not_waited_for(
    model: Path, file: str, kind: str
) -> None:
    (model / file).unlink(missing_ok=True)
    if file.endswith("index.json"):
        (model / "model.safetensors").unlink()
    KINDS[kind](model / file)
    assert f"{file} is a {kind}; expected a file" in refusal(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_training_that_is_no_file_says_nothing(model: Path, kind: str) -> None:
    KINDS[kind](model / "training.json")
    used(model)


@pytest.mark.parametrize("text", ["[]", "", DEEP, '{"stage": 7}', '{"epochs": 3}', "\xff"])
def test_a_record_of_training_by_another_tool_says_nothing(model: Path, text: str) -> None:
    (model / "training.json").write_bytes(text.encode("latin-1"))
    used(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["vocab.json", "added_tokens.json", "merges.txt"])
def test_what_is_no_file_in_an_older_tokenizer_is_refused(model: Path, file: str, kind: str) -> None:
    older(model)
    (model / file).unlink()
    KINDS[kind](model / file)
    assert f"{file} is a {kind}; expected a file" in refusal(model)


@pytest.mark.parametrize("read", [read_bytes, sha256_of_file, lambda path: read_json(path, "make it again")])
@pytest.mark.parametrize("kind", [*KINDS, "socket"])
def test_what_is_no_file_is_refused_by_every_way_to_read(
    tmp_path: Path, kind: str, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    (KINDS | {"socket": a_socket})[kind](Path("x"))
    with pytest.raises(UserError, match=f"x is a {kind}; expected a file"):
        read(Path("x"))


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes; expected at most 10"):
        read_bytes(tmp_path / "x", 10)


def test_a_configuration_of_a_terabyte_is_refused_unread(model: Path) -> None:
    with open(model / "config.json", "wb") as stream:
        stream.truncate(1 << 40)
    assert "expected at most" in refusal(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_or_geometry_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "v").mkdir()
    KINDS[kind](tmp_path / "v" / "vector.safetensors")
    KINDS[kind](tmp_path / "v" / "geometry-0.json")
    with pytest.raises(UserError, match=f"is a {kind}; expected a file"):
        Vector.open(tmp_path / "v")
    with pytest.raises(UserError, match=f"is a {kind}; expected a file"):
        read_report(tmp_path / "v" / "geometry-0.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_becomes_something_else_after_it_was_opened_is_refused(model: Path, kind: str) -> None:
    whole = Checkpoint.open(str(model))
    (model / "model.safetensors").unlink()
    KINDS[kind](model / "model.safetensors")
    with pytest.raises(UserError):
        whole.read("model.norm.weight")


# The cache of fingerprints


@pytest.mark.parametrize("kind", [*KINDS, "list", "empty", "other names", "numbers", "deep"])
def test_a_remembered_fingerprint_that_cannot_be_read_is_made_anew(
    model: Path, cache: Path, kind: str
) -> None:
    expected = Checkpoint.open(str(model)).fingerprint
    (remembered,) = cache.glob("*.json")
    content = json.loads(remembered.read_text())
    remembered.unlink()
    texts = {
        "list": "[]",
        "empty": "",
        "other names": json.dumps(content | {"digests": {"x": "0"}}),
        "numbers": json.dumps(content | {"digests": dict.fromkeys(content["digests"], 7)}),
        "deep": DEEP,
    }
    KINDS[kind](remembered) if kind in KINDS else remembered.write_text(texts[kind])
    assert Checkpoint.open(str(model)).fingerprint == expected


# Geometry files


@pytest.fixture
def report(tmp_path: Path) -> Path:
    state = tiny.weights(tiny.config(), 0)
    for name, seed in (("sft", 1), ("grpo", 2)):
        tiny.write(tmp_path / name, tiny.moved(state, seed))
    sft, grpo = (Checkpoint.open(str(tmp_path / name)) for name in ("sft", "grpo"))
    data = geometry.report(Vector.open(extract(grpo, sft, tmp_path / "v")), sft, [1.0], base=grpo)
    file = tmp_path / "geometry.json"
    file.write_text(json.dumps(data))
    assert read_report(file) == data
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda g: [g],
        lambda g: g.update(schema=2),
        lambda g: g.__delitem__("total"),
        lambda g: g["total"].__delitem__("norm"),
        lambda g: g["total"].update(norm="1.0"),
        lambda g: g["total"].update(norm=None),
        lambda g: g["total"].update(entries=1.5),
        lambda g: g["total"]["alphas"][0].update(lost_in_rounding="many"),
        lambda g: g["total"]["directions"].update({"target-base": 3}),
        lambda g: g.update(modules={}),
        lambda g: g["modules"][0].__delitem__("module"),
        lambda g: g["layers"][0].update(layer="one"),
        lambda g: g["cells"][0].update(module=7),
    ],
)
def test_a_geometry_file_that_is_not_one_is_refused(report: Path, change: Callable[[Any], Any]) -> None:
    edit(report, change)
    with pytest.raises(UserError, match=r"geometry\.json: .*; run the stage 'extract' again") as caught:
        read_report(report)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "{", DEEP, '{"schema": NaN}'], ids=["empty", "cut", "deep", "NaN"])
def test_a_geometry_file_that_is_no_json_is_refused(report: Path, text: str) -> None:
    report.write_text(text)
    with pytest.raises(UserError, match="cannot be read .*; run the stage 'extract' again"):
        read_report(report)
