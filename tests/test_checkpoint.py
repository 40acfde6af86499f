"""Checkpoints: what is opened is whole and what it says it is, and what is written appears whole or not at all."""

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.weights import checkpoint, tensors
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.floats import all_finite
from pipeline.weights.safetensors import PIECE, encode_header, read_header
from pipeline.weights.tensors import pieces
from tests import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RV_CACHE", str(folder))
    return folder


def opened(path: Path) -> Checkpoint:
    return Checkpoint.open(str(path))


def refusal(path: Path) -> str:
    """The one line that opening and reading the checkpoint ends with."""
    with pytest.raises(UserError) as caught:
        whole = opened(path)
        for name in whole.tensors:
            whole.read(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite_header(file: Path, change) -> None:
    """Applies `change` to the text of a safetensors header and keeps the data."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length].decode()).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


# What is read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_tensor_reads_as_the_safetensors_library_reads_it(tmp_path, dtype):
    state = tiny.weights(tiny.config(), 0, dtype=dtype) | {
        "model.long": torch.randn(PIECE + 7).to(dtype),
        "model.number": torch.tensor(2.5).to(dtype),
        "model.empty": torch.empty(0, 3).to(dtype),
    }
    path = tiny.write(tmp_path / "model", state, shards=3)
    ours = opened(path)
    theirs = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert ours.tensors.keys() == theirs.keys() == state.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours.read(name), tensor)
        assert ours.read(name).dtype == tensor.dtype


def test_a_prefix_of_a_tensor_can_be_read(tmp_path):
    whole = torch.randn(PIECE * 2 + 5)
    save_file({"x": whole}, tmp_path / "x.safetensors")
    info = read_header(tmp_path / "x.safetensors")[1]["x"]
    assert torch.equal(torch.cat([piece.clone() for piece in pieces(info, PIECE + 3)]), whole[: PIECE + 3])


def test_headers_that_we_write_are_read_by_the_safetensors_library(tmp_path):
    header = encode_header({"k": "v"}, {"a": ("F32", (2, 3), 24), "b": ("BF16", (5,), 10)}, length=999)
    assert len(header) == 999
    (tmp_path / "x.safetensors").write_bytes(header + bytes(34))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v"}
        assert file.get_tensor("a").shape == (2, 3)
        assert file.get_tensor("b").dtype == torch.bfloat16


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=16), min_size=1, max_size=20), st.sampled_from(sorted(tensors.DTYPES)))
def test_finiteness_by_bits_is_finiteness(values, dtype):
    tensor = torch.tensor(values).to(tensors.DTYPES[dtype])
    assert all_finite(tensors.to_bits(tensor), dtype) == bool(torch.isfinite(tensor).all())


# Fingerprints


def test_the_fingerprint_does_not_depend_on_sharding_or_order(tmp_path):
    state = tiny.weights(tiny.config(), 0)
    whole = opened(tiny.write(tmp_path / "whole", state))
    cut = opened(tiny.write(tmp_path / "cut", dict(reversed(state.items())), shards=4))
    assert whole.fingerprint == cut.fingerprint


@pytest.mark.parametrize("fault", ["bit", "dtype", "shape", "name"])
def test_the_fingerprint_sees_one_changed(tmp_path, fault):
    state = tiny.weights(tiny.config(), 0)
    name = "model.layers.1.mlp.up_proj.weight"
    before = opened(tiny.write(tmp_path / "a", dict(state))).fingerprint
    if fault == "bit":
        state[name].view(torch.int16)[95, 63] ^= 1
    elif fault == "dtype":
        state[name] = state[name].view(torch.float16)
    elif fault == "shape":
        state[name] = state[name].view(64, 96)
    else:
        state["model.layers.1.mlp.up.weight"] = state.pop(name)
    assert opened(tiny.write(tmp_path / "b", state)).fingerprint != before


def test_a_known_fingerprint_is_not_computed_again_until_the_file_changes(tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "model")
    first = opened(path).fingerprint
    monkeypatch.setattr(checkpoint, "scan_tensor", lambda parts: pytest.fail("read again"))
    assert opened(path).fingerprint == first
    monkeypatch.undo()
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    assert opened(path).fingerprint != first


def test_nothing_is_written_beside_the_checkpoint(tmp_path):
    path = tiny.write(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    assert opened(path).fingerprint
    assert sorted(tmp_path.rglob("*")) == before


def test_the_tokenizer_fingerprint_sees_tokens_special_tokens_and_template(tmp_path):
    plain = opened(tiny.write(tmp_path / "a"))
    assert opened(tiny.write(tmp_path / "b")).tokenizer_fingerprint == plain.tokenizer_fingerprint
    other_template = opened(tiny.write(tmp_path / "c", template="{{ messages }}"))
    fewer_tokens = opened(tiny.write(tmp_path / "d", tokens=80))
    other_end = tiny.write(tmp_path / "e")
    settings = json.loads((other_end / "tokenizer_config.json").read_text())
    (other_end / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|pad|>"}))
    every = [plain, other_template, fewer_tokens, opened(other_end)]
    assert len({model.tokenizer_fingerprint for model in every}) == 4
    assert [model.chat_template_hash == plain.chat_template_hash for model in every] == [
        True,
        False,
        True,
        True,
    ]


def test_a_template_file_counts_as_the_template(tmp_path):
    inside, beside = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", template="other")
    (beside / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    assert opened(inside).chat_template_hash == opened(beside).chat_template_hash


# Tied and untied heads


def test_a_head_is_tied_as_the_configuration_says(tmp_path):
    assert opened(tiny.write(tmp_path / "tied", tied=True)).tied
    assert not opened(tiny.write(tmp_path / "untied", tied=False)).tied


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    state = tiny.weights(tiny.config(), 0)
    assert "lm_head.weight is missing" in refusal(tiny.write(tmp_path / "model", state, tied=False))


# Bad input: one line each


def test_a_truncated_shard_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "truncated" in refusal(path) and shard.name in refusal(path)


@pytest.mark.parametrize("size", [0, 5, 20])
def test_a_file_cut_within_its_header_is_refused(tmp_path, size):
    path = tiny.write(tmp_path / "model")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "truncated" in refusal(path)


def test_an_index_that_names_a_missing_file_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, which is missing" in refusal(path)


def test_an_index_that_names_a_missing_tensor_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.layers.7.ghost"] = "model-00001-of-00002.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.layers.7.ghost" in refusal(path)


def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    text = (path / "model.safetensors.index.json").read_text()
    (path / "model.safetensors.index.json").write_text(text.replace("model-00001", "../model-00001"))
    assert "expected the name of a file beside it" in refusal(path)


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.norm.weight, which the index does not name" in refusal(path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    first, second = (load_file(file) for file in sorted(path.glob("*.safetensors")))
    name = next(iter(first))
    save_file(second | {name: first[name]}, path / "model-00002-of-00002.safetensors")
    assert f"{name} is in model-00001" in refusal(path)


def test_a_tensor_twice_in_one_header_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model")
    entry = '"model.norm.weight":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]},'
    rewrite_header(path / "model.safetensors", lambda text: "{" + entry + text[1:])
    assert "'model.norm.weight' is listed twice" in refusal(path)


def test_offsets_that_do_not_fit_the_shape_are_refused(tmp_path):
    path = tiny.write(tmp_path / "model")
    rewrite_header(
        path / "model.safetensors", lambda text: text.replace('"shape":[96,64]', '"shape":[96,63]', 1)
    )
    assert "do not fit" in refusal(path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_and_not_loaded(tmp_path, file):
    path = tiny.write(tmp_path / "model")
    (path / "model.safetensors").unlink()
    (path / file).write_bytes(b"not even a pickle: opening it would raise another error")
    assert "pickled" in refusal(path)


def test_one_file_beside_an_index_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", shards=2)
    save_file({"x": torch.zeros(1)}, path / "model.safetensors")
    assert "holds both" in refusal(path)


def test_other_dtypes_are_refused_by_name(tmp_path):
    state = tiny.weights(tiny.config(), 0) | {"model.mask": torch.ones(3, dtype=torch.bool)}
    message = refusal(tiny.write(tmp_path / "model", state))
    assert "model.mask is BOOL" in message and "BF16, F16, F32" in message


def test_an_adapter_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model")
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    assert "adapter" in refusal(path)


def test_an_empty_folder_and_a_misspelt_name_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json does not exist" in refusal(tmp_path / "empty")
    assert "neither a folder nor a hub id" in refusal(tmp_path / "absent" / "deeper" / "model")


def test_a_folder_has_no_revision(tmp_path):
    path = tiny.write(tmp_path / "model")
    with pytest.raises(UserError, match="has no revision abc"):
        Checkpoint.open(str(path), "abc")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_refused(tmp_path, text):
    path = tiny.write(tmp_path / "model")
    (path / "config.json").write_text(text)
    assert "not valid JSON" in refusal(path)


def test_a_file_that_changes_after_opening_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model")
    whole = opened(path)
    assert whole.read("model.norm.weight").numel()
    tiny.write(tmp_path / "other", 1)
    (tmp_path / "other" / "model.safetensors").replace(path / "model.safetensors")
    with pytest.raises(UserError, match="changed after it was opened"):
        whole.read("model.norm.weight")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tiny.write(tmp_path / "model", {"x": torch.zeros(3 * PIECE)})
    stream = pieces(opened(path).tensors["x"])
    next(stream)
    with open(path / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\1\1\1")
    with pytest.raises(UserError, match="changed after it was opened"):
        list(stream)


# The hub


def hub_cache(folder: Path, source: Path, revision: str) -> None:
    """Lays a checkpoint out as the hub's client keeps downloads."""
    home = folder / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    (home / "snapshots").mkdir()
    source.rename(home / "snapshots" / revision)


def test_a_hub_id_opens_from_the_cache_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    expected = opened(tiny.write(tmp_path / "model")).fingerprint
    hub_cache(tmp_path / "hub", tmp_path / "model", revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = Checkpoint.open("someone/tiny")
    assert (model.source, model.revision, model.fingerprint) == ("someone/tiny", revision, expected)
    assert Checkpoint.open("someone/tiny", revision).path == model.path
    with pytest.raises(UserError, match="someone/absent at main"):
        Checkpoint.open("someone/absent")


# Writing


def anything(out: Path) -> None:
    """What is there may be replaced."""


def test_what_is_replaced_appears_only_at_the_end(tmp_path):
    out = tmp_path / "deep" / "file"
    with replacing(out, anything) as new:
        new.write_text("one")
        assert not out.exists()
    with replacing(out, anything) as new:
        new.write_text("two")
        assert out.read_text() == "one"
    assert out.read_text() == "two"
    assert list(out.parent.iterdir()) == [out]


def test_a_failure_leaves_the_earlier_folder_and_nothing_else(tmp_path):
    out = tmp_path / "folder"
    with replacing(out, anything) as new:
        new.mkdir()
        (new / "a").write_text("one")
    with pytest.raises(ZeroDivisionError), replacing(out, anything) as new:
        new.mkdir()
        (new / "a").write_text("half")
        raise ZeroDivisionError
    assert (out / "a").read_text() == "one"
    assert list(tmp_path.iterdir()) == [out]


def test_what_appears_while_it_is_written_is_asked_about_and_left_alone(tmp_path):
    def empty(out: Path) -> None:
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty")

    out = tmp_path / "folder"
    with pytest.raises(UserError, match="is not empty"), replacing(out, empty) as new:
        new.mkdir()
        out.mkdir()
        (out / "precious").write_text("theirs")
    assert [file.name for file in out.iterdir()] == ["precious"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*: File too large; nothing was left there"):  # noqa: SIM117
            with replacing(tmp_path / "out", anything) as new:
                new.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
