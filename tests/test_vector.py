"""Task vectors: the arithmetic is exact, what does not fit is refused, and what is written is complete."""

import json
import math
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from peft.utils import merge_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.files import ROOT
from pipeline.weights import noise as noises
from pipeline.weights import packed
from pipeline.weights.checkpoint import Checkpoint
from pipeline.weights.compatibility import check_compatible
from pipeline.weights.parts import Part, derive
from pipeline.weights.safetensors import PIECE, read_header
from pipeline.weights.steer import Term, apply, steered_tensors
from pipeline.weights.tokenizer import Tokenizer
from pipeline.weights.vector import Vector, extract
from tests import tiny

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 4200  # the embedding is then longer than one piece, and its last piece is short
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RV_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(path: Path) -> Checkpoint:
    return Checkpoint.open(str(path))


def family(
    folder: Path, tied: bool = True, rows: int = 96, dtypes=(BF16, BF16, BF16)
) -> dict[str, dict[str, torch.Tensor]]:
    """Writes target, sft and grpo under the folder and returns their weights; shards and order differ."""
    base = tiny.weights(tiny.config(rows, tied), 0, head=not tied, dtype=F32)
    states = {"target": tiny.moved(base, 1, share=1.0), "sft": tiny.moved(base, 2, share=1.0)}
    states["grpo"] = tiny.moved(
        {name: tensor.to(dtypes[1]).float() for name, tensor in states["sft"].items()}, 3
    )
    for shards, (role, dtype) in enumerate(zip(("target", "sft", "grpo"), dtypes, strict=True), start=1):
        states[role] = {name: tensor.to(dtype) for name, tensor in states[role].items()}
        items = list(states[role].items())
        tiny.write(
            folder / role, dict(items if shards == 1 else items[::-1]), shards=shards, tied=tied, rows=rows
        )
    return states


def extracted(folder: Path, name: str = "v", compact: bool = False) -> str:
    extract(opened(folder / "grpo"), opened(folder / "sft"), folder / name, compact=compact)
    return str(folder / name)


def applied(folder: Path, *terms: Term) -> dict[str, torch.Tensor]:
    """The weights that `apply` writes, after checking that `steered_tensors` yields the same bits in layer order."""
    out = apply(opened(folder / "target"), terms, folder / "out")
    written = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    live = dict(steered_tensors(str(folder / "target"), terms))
    assert live.keys() == written.keys()
    for name, tensor in written.items():
        assert same_bits(live[name], tensor), name
    return written


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# Arithmetic


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("tied", [True, False])
def test_the_sum_is_taken_in_fp32_and_rounded_once(tmp_path, tied, alpha):
    states = family(tmp_path, tied, ROWS)
    result = applied(tmp_path, Term(extracted(tmp_path), alpha))
    assert result.keys() == states["target"].keys()
    for name, theta in states["target"].items():
        v = states["grpo"][name].float() - states["sft"][name].float()
        assert torch.equal(result[name], (theta.float() + alpha * v).to(BF16)), name


@pytest.mark.parametrize("dtypes", [(BF16, F32, F32), (F32, BF16, BF16), (F16, BF16, F32), (F16, F16, F16)])
def test_dtypes_may_differ_between_target_and_donors(tmp_path, dtypes):
    states = family(tmp_path, dtypes=dtypes)
    for name, tensor in applied(tmp_path, Term(extracted(tmp_path), 0.7)).items():
        v = states["grpo"][name].float() - states["sft"][name].float()
        assert torch.equal(tensor, (states["target"][name].float() + 0.7 * v).to(dtypes[0]))


def test_dtypes_may_differ_within_a_checkpoint(tmp_path):
    states = family(tmp_path)
    mixed = {n: t.to(F32 if n.endswith("norm.weight") else F16) for n, t in states["target"].items()}
    save_file(mixed, tmp_path / "target" / "model.safetensors")
    result = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    assert {name: tensor.dtype for name, tensor in result.items()} == {n: t.dtype for n, t in mixed.items()}


@pytest.mark.parametrize("terms", [(), (0.0,), (0.0, -0.0)])
def test_alpha_zero_is_the_target_bit_for_bit(tmp_path, terms):
    states = family(tmp_path)
    states["target"]["model.norm.weight"][:8] = -0.0
    states["target"]["model.norm.weight"][8:16] = 1e-40
    save_file(states["target"], tmp_path / "target" / "model.safetensors", metadata={"format": "pt"})
    folder = extracted(tmp_path)
    applied(tmp_path, *(Term(folder, alpha) for alpha in terms))
    files = [(tmp_path / role / "model.safetensors").read_bytes() for role in ("target", "out")]
    assert files[0] == files[1]


def test_several_terms_are_the_sum_that_peft_takes(tmp_path):
    states = family(tmp_path, dtypes=(F32, F32, F32))
    family(tmp_path / "b")
    first, second = extracted(tmp_path), extracted(tmp_path / "b")
    result = applied(tmp_path, Term(first, 1.0), Term(second, -0.5), Term(first, 0.25))
    for name, theta in states["target"].items():
        parts = [Vector.open(path).read(name) for path in (first, second, first)]
        delta = merge_utils.task_arithmetic(parts, torch.tensor([1.0, -0.5, 0.25]))
        torch.testing.assert_close(result[name], theta + delta, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_mergekit_takes_the_same_sum(tmp_path):
    """Where mergekit is installed (not a dependency): task arithmetic with weights α and −α, in fp32."""
    pytest.importorskip("mergekit")
    family(tmp_path, dtypes=(F32, F32, F32))
    weighted = [(tmp_path / "grpo", 0.7), (tmp_path / "sft", -0.7)]
    models = [{"model": str(path), "parameters": {"weight": weight}} for path, weight in weighted]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "target"), "models": models}
    recipe |= {"dtype": "float32", "parameters": {"normalize": False}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [
        sys.executable,
        "-m",
        "mergekit.scripts.run_yaml",
        str(tmp_path / "recipe.yaml"),
        str(tmp_path / "m"),
    ]
    subprocess.run([*command, "--no-copy-tokenizer"], check=True, capture_output=True)
    theirs = load_file(tmp_path / "m" / "model.safetensors")
    ours = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-7)


def test_the_analogy_of_a_vector_with_itself_cancels(tmp_path):
    states = family(tmp_path, dtypes=(F32, F32, F32))
    folder = extracted(tmp_path)
    result = applied(tmp_path, Term(folder, 1.0), Term(folder, -1.0))
    assert all(torch.equal(result[name], theta) for name, theta in states["target"].items())


def test_the_sft_donor_plus_its_vector_is_the_grpo_donor(tmp_path):
    states = family(tmp_path, dtypes=(BF16, BF16, BF16))
    folder = extracted(tmp_path)
    for name, tensor in steered_tensors(str(tmp_path / "sft"), [Term(folder, 1.0)]):
        assert torch.equal(tensor, states["grpo"][name])


def test_tensors_come_in_layer_order(tmp_path):
    tiny.write(tmp_path / "m", num_hidden_layers=11, tied=False, shards=3)
    names = [name for name, _ in steered_tensors(str(tmp_path / "m"), [])]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert (names[0], names[-2:]) == (EMBEDDING, ["model.norm.weight", HEAD])
    assert layers == sorted(layers) and set(layers) == set(range(11))


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_alpha_is_finite(tmp_path, alpha):
    family(tmp_path)
    with pytest.raises(UserError, match="expected a finite number"):
        applied(tmp_path, Term(extracted(tmp_path), alpha))


@pytest.mark.parametrize("alpha", [1e39, -1e39, 3.5e38, 10**400])
def test_alpha_is_a_number_that_fp32_can_hold(tmp_path, alpha):
    with pytest.raises(UserError, match="expected a finite number of at most 3.4e"):
        Term("v", alpha)


@pytest.mark.parametrize("alpha", [3e38, -3e38])
def test_the_largest_alphas_are_taken(tmp_path, alpha):
    states = family(tmp_path)
    for name, tensor in applied(tmp_path, Term(extracted(tmp_path), alpha)).items():
        v = states["grpo"][name].float() - states["sft"][name].float()
        assert torch.equal(tensor, (states["target"][name].float() + alpha * v).to(BF16))


def test_a_sum_that_leaves_the_range_of_fp16_is_refused(tmp_path):
    family(tmp_path, dtypes=(F16, F32, F32))
    with pytest.raises(UserError, match="NaN or infinite in F16"):
        applied(tmp_path, Term(extracted(tmp_path), 1e7))
    assert not (tmp_path / "out").exists()


# The vector as a file


def test_the_same_donors_give_the_same_bytes(tmp_path):
    family(tmp_path)
    files = [Path(extracted(tmp_path, name)) / "vector.safetensors" for name in ("v", "w")]
    assert files[0].read_bytes() == files[1].read_bytes()
    files = [Path(extracted(tmp_path, name, compact=True)) / "vector.safetensors" for name in ("vc", "wc")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_dense_form_is_read_by_the_safetensors_library(tmp_path):
    states = family(tmp_path)
    found = load_file(Path(extracted(tmp_path)) / "vector.safetensors")
    assert found.keys() == states["sft"].keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, states["grpo"][name].float() - states["sft"][name].float())


def test_metadata_names_the_donors_and_nothing_of_this_machine(tmp_path):
    family(tmp_path)
    found = Vector.open(extracted(tmp_path))
    donors = found.description["donors"]
    assert donors["grpo"] == {
        "source": "grpo",
        "revision": None,
        "fingerprint": opened(tmp_path / "grpo").fingerprint,
    }
    assert donors["sft"]["fingerprint"] == opened(tmp_path / "sft").fingerprint
    assert str(tmp_path) not in json.dumps(found.description)


@pytest.mark.parametrize("dtypes", [(BF16, BF16, BF16), (F32, F32, F32), (BF16, F16, F32)])
def test_the_compact_form_holds_the_same_bits(tmp_path, dtypes):
    family(tmp_path, rows=ROWS, dtypes=dtypes)
    dense, packed = Vector.open(extracted(tmp_path, "d")), Vector.open(extracted(tmp_path, "c", compact=True))
    assert dense.shapes.keys() == packed.shapes.keys()
    for name in dense.shapes:
        assert same_bits(dense.read(name), packed.read(name)), name
    assert dense.fingerprint == packed.fingerprint


def test_the_compact_form_is_applied_directly(tmp_path):
    family(tmp_path, rows=ROWS)
    dense = applied(tmp_path, Term(extracted(tmp_path, "d"), 0.7))
    packed = applied(tmp_path, Term(extracted(tmp_path, "c", compact=True), 0.7))
    assert all(same_bits(dense[name], packed[name]) for name in dense)


def test_the_compact_form_is_small_when_a_fifth_has_changed(tmp_path):
    family(tmp_path, rows=ROWS)
    sizes = [Vector.open(extracted(tmp_path, str(c), compact=c)).path.stat().st_size for c in (False, True)]
    assert sizes[1] < 0.2 * sizes[0]


@settings(max_examples=200, deadline=None)
@given(
    arrays(
        np.uint32,
        st.integers(1, 50),
        elements=st.sampled_from([0, 1, 0x80000000, 0x3F800000, 0x3F800001, 0x7F]),
    )
)
def test_packing_any_bits_gives_them_back(tmp_path_factory, bits):
    file = tmp_path_factory.mktemp("p") / "packed"
    content = packed.pack(packed.Changes(None, bits.view(np.float32)), len(bits))
    some = np.flatnonzero(bits != 1)  # as a difference comes: at some positions, zeros among them
    chosen = packed.Changes(some, bits[some].view(np.float32))
    assert packed.pack(chosen, len(bits)) == packed.pack(
        packed.Changes(None, chosen.dense(len(bits))), len(bits)
    )
    save_file({"x": torch.frombuffer(bytearray(content), dtype=torch.uint8)}, file)
    info = read_header(file)[1]["x"]
    (piece,) = packed.unpacked(info, len(bits))
    assert np.array_equal(piece.view(np.uint32), bits)


def test_a_damaged_or_other_file_is_not_a_vector(tmp_path):
    family(tmp_path)
    with pytest.raises(UserError, match="is not a task vector"):
        Vector.open(tmp_path / "target" / "model.safetensors")
    file = Path(extracted(tmp_path)) / "vector.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated"):
        Vector.open(file)
    with pytest.raises(UserError, match="does not exist"):
        Vector.open(tmp_path / "nowhere")


def described(file: Path, change) -> None:
    """Writes a dense vector again with `change` made to its description as it is stored."""
    tensors = load_file(file)
    with safe_open(file, "pt") as stored:
        description = json.loads(stored.metadata()["task_vector"])
    change(description)
    save_file(tensors, file, metadata={"task_vector": json.dumps(description)})


@pytest.mark.parametrize("key", ["identity", "donors", "variants", "notes", "form", "shapes"])
@pytest.mark.parametrize("change", ["removed", "of another type"])
def test_a_vector_whose_description_lacks_something_is_refused_when_it_is_opened(tmp_path, key, change):
    family(tmp_path)
    file = Path(extracted(tmp_path)) / "vector.safetensors"
    described(file, lambda d: d.pop(key) if change == "removed" else d.update({key: 7}))
    named = "parts" if key == "variants" else key
    with pytest.raises(UserError, match=f"its description lacks {named}; extract it again"):
        Vector.open(file)


def test_a_vector_whose_description_names_its_parts_as_parts_is_read(tmp_path):
    family(tmp_path)
    derive(Vector.open(extracted(tmp_path)), Part(trim=0.2), tmp_path / "w", compact=False)
    file = tmp_path / "w" / "vector.safetensors"
    before = Vector.open(file)
    described(file, lambda d: d.update(parts=d.pop("variants")))
    assert Vector.open(file).description == before.description


# Tied and untied heads, padded vocabularies


def untie(folder: Path, state: dict[str, torch.Tensor], tied: bool, head: torch.Tensor) -> None:
    """Writes the checkpoint again with a stored head."""
    save_file(state | {HEAD: head.clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    for other in folder.glob("model-*"):
        other.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.config(tied=tied)))


def test_donors_that_store_their_tied_head_once_more_steer_a_tied_target(tmp_path):
    states = family(tmp_path)
    plain = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    for role, tied in (("sft", True), ("grpo", False)):
        untie(tmp_path / role, states[role], tied, states[role][EMBEDDING])
    stored = applied(tmp_path, Term(extracted(tmp_path, "w"), 0.7))
    assert plain.keys() == stored.keys()
    assert all(same_bits(plain[name], stored[name]) for name in plain)


def test_tied_donors_steer_the_separate_head_of_a_target(tmp_path):
    states = family(tmp_path)
    head = torch.randn_like(states["target"][EMBEDDING])
    untie(tmp_path / "target", states["target"], False, head)
    result = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    v = states["grpo"][EMBEDDING].float() - states["sft"][EMBEDDING].float()
    assert torch.equal(result[HEAD], (head.float() + 0.7 * v).to(BF16))
    notes = check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo")))
    assert any("the head takes the embedding's difference" in note for note in notes)


def test_a_tied_target_that_stores_its_head_keeps_head_and_embedding_equal(tmp_path):
    states = family(tmp_path)
    untie(tmp_path / "target", states["target"], True, states["target"][EMBEDDING])
    result = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    assert torch.equal(result[HEAD], result[EMBEDDING])
    assert not torch.equal(result[HEAD], states["target"][EMBEDDING])


def test_one_donor_with_a_head_of_its_own_is_subtracted_from_the_other_ones_embedding(tmp_path):
    states = family(tmp_path)
    head = torch.randn_like(states["grpo"][EMBEDDING])
    untie(tmp_path / "grpo", states["grpo"], False, head)
    found = Vector.open(extracted(tmp_path))
    assert torch.equal(found.read(HEAD), head.float() - states["sft"][EMBEDDING].float())
    assert "only one of" in found.description["notes"][0]


def test_donors_with_heads_of_their_own_do_not_fit_a_tied_target(tmp_path):
    states = family(tmp_path)
    for role in ("sft", "grpo"):
        untie(tmp_path / role, states[role], False, torch.randn_like(states[role][EMBEDDING]))
    term = Term(extracted(tmp_path), 1.0)
    for attempt in (
        lambda: apply(opened(tmp_path / "target"), [term], tmp_path / "out"),
        lambda: check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo"))),
    ):
        with pytest.raises(UserError, match="has a head of its own, .* has a tied one"):
            attempt()
    with pytest.raises(UserError, match="does not fit"):
        list(steered_tensors(str(tmp_path / "target"), [term]))


def test_a_tied_model_that_stores_another_head_is_refused(tmp_path):
    states = family(tmp_path)
    untie(tmp_path / "grpo", states["grpo"], True, torch.randn_like(states["grpo"][EMBEDDING]))
    with pytest.raises(UserError, match="ties the head, but lm_head.weight differs from the embedding"):
        extracted(tmp_path)


@pytest.mark.parametrize(
    "rows", [{"target": 96, "sft": 90, "grpo": 96}, {"target": 91, "sft": 96, "grpo": 94}]
)
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_padding_may_differ_and_stay_as_they_are(tmp_path, rows, tied):
    base = tiny.weights(tiny.config(96, tied), 0, head=not tied)
    states = {}
    for seed, (role, count) in enumerate(rows.items()):
        states[role] = tiny.moved(base, seed)
        for name in {EMBEDDING, HEAD} & base.keys():
            states[role][name] = states[role][name][:count].clone()
        tiny.write(tmp_path / role, states[role], rows=count, tied=tied)
    models = [opened(tmp_path / role) for role in ("target", "sft", "grpo")]
    notes = check_compatible(*models)
    assert any("equal up to padding" in note and "for 90 tokens" in note for note in notes)
    result = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    common = min(rows.values())
    for name in {EMBEDDING, HEAD} & base.keys():
        v = states["grpo"][name][:common].float() - states["sft"][name][:common].float()
        assert torch.equal(
            result[name][:common], (states["target"][name][:common].float() + 0.7 * v).to(BF16)
        )
        assert torch.equal(result[name][common:], states["target"][name][common:])
    recorded = json.dumps(json.loads((tmp_path / "out" / "steering.json").read_text()), ensure_ascii=False)
    assert "equal up to padding" in recorded


# Compatibility: one line for each problem


def refused(tmp_path: Path, **grpo_differs) -> list[str]:
    """The lines that a GRPO donor written with these differences is refused with, by the check and by extract."""
    states = {role: tiny.weights(tiny.config(), seed) for seed, role in enumerate(("target", "sft"))}
    for role, state in states.items():
        tiny.write(tmp_path / role, state)
    tiny.write(tmp_path / "grpo", **({"state": 2} | grpo_differs))
    models = [opened(tmp_path / role) for role in ("target", "sft", "grpo")]
    with pytest.raises(UserError) as whole:
        check_compatible(*models)
    with pytest.raises(UserError) as pair:
        extract(models[2], models[1], tmp_path / "v")
    assert not (tmp_path / "v").exists()
    assert set(str(pair.value).splitlines()) <= set(str(whole.value).splitlines())
    return str(pair.value).splitlines()


@pytest.mark.parametrize(
    ("difference", "key"),
    [
        ({"rope_theta": 1e6}, "rope"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, "num_attention_heads"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "architectures"),
        ({"model_type": "llama"}, "model_type"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
    ],
)
def test_configurations_that_compute_another_function_are_refused(tmp_path, difference, key):
    assert any(line.startswith(f"{key} is ") and "grpo" in line for line in refused(tmp_path, **difference))


def test_other_spellings_of_one_configuration_are_the_same(tmp_path):
    family(tmp_path)
    settings = json.loads((tmp_path / "grpo" / "config.json").read_text())
    del settings["rope_theta"], settings["torch_dtype"]
    settings |= {
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"},
        "rope_scaling": None,
        "dtype": "bfloat16",
        "head_dim": 32,
        "layer_types": ["full_attention"] * 2,
        "sliding_window": None,
        "max_window_layers": 28,
        "attention_dropout": 0.1,
        "transformers_version": "5.19.0",
        "eos_token_id": 2,
    }
    (tmp_path / "grpo" / "config.json").write_text(json.dumps(settings))
    assert check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo"))) == []


def test_another_context_length_is_noted(tmp_path):
    family(tmp_path)
    (tmp_path / "target" / "config.json").write_text(json.dumps(tiny.config(max_position_embeddings=512)))
    (note,) = check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo")))
    assert note.startswith("max_position_embeddings is 512")


def test_another_vocabulary_is_refused(tmp_path):
    (line,) = refused(tmp_path, tokens=20)
    assert "token-to-id maps" in line and "90 tokens" in line and "20 tokens" in line


def test_a_token_of_another_id_is_refused(tmp_path):
    family(tmp_path)
    file = tmp_path / "grpo" / "tokenizer.json"
    file.write_text(file.read_text().replace('"7":', '"seven":'))
    with pytest.raises(UserError, match="token-to-id maps"):
        check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo")))


@pytest.mark.parametrize("tokens", [88, 93])
def test_of_donors_with_a_few_tokens_more_or_less_what_both_have_is_added(tmp_path, tokens):
    states = family(tmp_path)
    tiny.write_tokenizer(tmp_path / "grpo", tokens)
    notes = check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo")))
    shared = min(tokens, tiny.TOKENS)
    assert any(f"{abs(tokens - tiny.TOKENS)} tokens behind the {shared} of" in note for note in notes)
    vector = extracted(tmp_path)
    assert Vector.open(vector).shapes[EMBEDDING][0] == shared
    result, target = applied(tmp_path, Term(vector, 0.7))[EMBEDDING], states["target"][EMBEDDING]
    v = states["grpo"][EMBEDDING].float() - states["sft"][EMBEDDING].float()
    assert torch.equal(result[:shared], (target.float() + 0.7 * v).to(BF16)[:shared])
    assert torch.equal(result[shared:], target[shared:])


def test_a_donor_that_lacks_tokens_of_the_target_is_not_asked_itself(tmp_path):
    family(tmp_path)
    tiny.write_tokenizer(tmp_path / "grpo", 88)
    target, grpo = opened(tmp_path / "target"), opened(tmp_path / "grpo")
    with pytest.raises(UserError, match="asked in tokens that it does not know"):
        check_compatible(target, grpo, grpo)
    tiny.write_tokenizer(tmp_path / "grpo", 93)
    assert check_compatible(target, more := opened(tmp_path / "grpo"), more)


def with_merges(path: Path, merges=("a b", "b c"), **rules) -> None:
    """Gives a checkpoint a tokenizer of byte pairs, in the spelling of older versions."""
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"] | {t: 90 + n for n, t in enumerate(("a", "b", "c", "ab", "bc"))}
    empty = {"dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    tokenizer["model"] = {"type": "BPE", **empty, "vocab": vocabulary, "merges": list(merges)}
    tokenizer["normalizer"] = {"type": "NFC"}
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    file.write_text(json.dumps(tokenizer | rules))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("merges", {"merges": ("b c", "a b")}),
        ("merges", {"merges": ("a b",)}),
        ("pre-tokenizer", {"pre_tokenizer": {"type": "WhitespaceSplit"}}),
        ("pre-tokenizer", {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}),
        ("pre-tokenizer", {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}),
        ("pre-tokenizer", {"pre_tokenizer": None}),
        ("normalizer", {"normalizer": {"type": "NFKC"}}),
        ("normalizer", {"normalizer": None}),
    ],
)
@pytest.mark.parametrize("role", ["sft", "grpo", "target"])
def test_a_tokenizer_of_other_rules_is_refused_though_its_map_is_the_same(tmp_path, kind, change, role):
    family(tmp_path)
    for each in ("target", "sft", "grpo"):
        with_merges(tmp_path / each, **(change if each == role else {}))
    models = [opened(tmp_path / each) for each in ("target", "sft", "grpo")]
    with pytest.raises(UserError, match=f"tokenizers of .* differ in their {kind}, .*; use models with one"):
        check_compatible(*models)
    if role != "target":
        with pytest.raises(UserError, match=f"differ in their {kind}"):
            extracted(tmp_path)
        assert not (tmp_path / "v").exists()


def test_rules_that_are_spelt_otherwise_are_the_same(tmp_path):
    family(tmp_path)
    for role in ("target", "sft", "grpo"):
        with_merges(tmp_path / role)
    file = tmp_path / "grpo" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    del tokenizer["model"]["byte_fallback"], tokenizer["model"]["dropout"]
    tokenizer["model"] |= {"merges": [["a", "b"], ["b", "c"]], "continuing_subword_prefix": ""}
    tokenizer["pre_tokenizer"] |= {"trim_offsets": False, "use_regex": True}
    tokenizer |= {"truncation": {"max_length": 5}, "padding": None}
    file.write_text(json.dumps(tokenizer))
    assert check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo"))) == []


def test_a_tokenizer_that_transformers_saves_again_has_the_same_rules(tmp_path):
    from transformers import AutoTokenizer

    micro = ROOT / "models" / "micro" / "target"
    AutoTokenizer.from_pretrained(micro).save_pretrained(tmp_path / "again")
    rules = Tokenizer(micro).rules
    assert Tokenizer(tmp_path / "again").rules == rules and rules.keys() >= {"merges", "pre-tokenizer"}


def test_the_same_donor_twice_is_refused(tmp_path):
    family(tmp_path)
    shutil.copytree(tmp_path / "sft", tmp_path / "copy")
    sft = opened(tmp_path / "sft")
    for other in (sft, opened(tmp_path / "sft"), opened(tmp_path / "copy")):
        with pytest.raises(UserError, match="have the same weights, so that v is 0; name two checkpoints"):
            extract(other, sft, tmp_path / "v")
    with pytest.raises(UserError, match="so that v is 0"):
        check_compatible(opened(tmp_path / "target"), sft, opened(tmp_path / "copy"))
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("compact", [False, True])
def test_the_same_donor_in_two_dtypes_is_refused(tmp_path, compact):
    family(tmp_path)
    wide = {
        name: tensor.float() for name, tensor in load_file(tmp_path / "target" / "model.safetensors").items()
    }
    tiny.write(tmp_path / "wide", wide)
    with pytest.raises(UserError, match="have the same weights, so that v is 0; name two checkpoints"):
        extract(opened(tmp_path / "wide"), opened(tmp_path / "target"), tmp_path / "v", compact)
    assert not (tmp_path / "v").exists()


def test_one_checkpoint_may_be_compared_with_a_target(tmp_path):
    family(tmp_path)
    grpo = opened(tmp_path / "grpo")
    assert check_compatible(opened(tmp_path / "target"), grpo, grpo) == []


def staged(tmp_path: Path, sft: str | None, grpo: str | None) -> None:
    for role, stage in (("sft", sft), ("grpo", grpo)):
        if stage is not None:
            (tmp_path / role / "training.json").write_text(json.dumps({"stage": stage}))


def test_exchanged_donors_are_refused(tmp_path):
    family(tmp_path)
    staged(tmp_path, "grpo", "sft")
    for attempt in (
        lambda: extracted(tmp_path),
        lambda: check_compatible(*(opened(tmp_path / role) for role in ("target", "sft", "grpo"))),
    ):
        with pytest.raises(
            UserError, match="was trained by GRPO and GRPO donor .* by SFT, .*; exchange them"
        ):
            attempt()
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    "stages", [("sft", "grpo"), (None, None), ("base", "sft"), ("grpo", "grpo"), ("sft", None)]
)
def test_donors_of_other_stages_are_extracted(tmp_path, stages):
    family(tmp_path)
    staged(tmp_path, *stages)
    assert Vector.open(extracted(tmp_path))


def test_tokens_beyond_the_rows_are_not_padding(tmp_path):
    assert any("model.embed_tokens.weight has shape" in line for line in refused(tmp_path, rows=80))


def test_missing_and_additional_tensors_are_refused(tmp_path):
    state = tiny.weights(tiny.config(), 2)
    state["model.layers.0.extra.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")
    lines = refused(tmp_path, state=state)
    assert any("lacks model.layers.1.mlp.up_proj.weight" in line for line in lines)
    assert any("lacks model.layers.0.extra.weight" in line for line in lines)


def test_other_shapes_are_refused(tmp_path):
    lines = refused(tmp_path, intermediate_size=128)
    assert any(line.startswith("intermediate_size is ") for line in lines)
    assert any("mlp.up_proj.weight has shape [96, 64]" in line and "[128, 64]" in line for line in lines)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_donors_are_refused_by_tensor(tmp_path, value):
    state = tiny.weights(tiny.config(), 2)
    state["model.layers.1.mlp.up_proj.weight"][5, 5] = value
    (line,) = refused(tmp_path, state=state)
    assert "NaN or infinity in model.layers.1.mlp.up_proj.weight" in line


def test_a_target_that_is_not_finite_is_refused(tmp_path):
    states = family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    states["target"]["model.norm.weight"][0] = math.nan
    save_file(states["target"], tmp_path / "target" / "model.safetensors")
    with pytest.raises(UserError, match="NaN or infinity in model.norm.weight"):
        apply(opened(tmp_path / "target"), [term], tmp_path / "out")


def test_a_vector_that_is_not_finite_is_refused(tmp_path):
    family(tmp_path)
    file = Path(extracted(tmp_path)) / "vector.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(UserError, match="NaN or infinite"):
        apply(opened(tmp_path / "target"), [Term(str(file), 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_problem_has_its_line(tmp_path):
    lines = refused(tmp_path, rope_theta=1e6, rms_norm_eps=1e-5, tokens=20)
    assert len(lines) == 3


def test_templates_and_special_tokens_are_noted_and_recorded(tmp_path):
    states = family(tmp_path)
    tiny.write(tmp_path / "other", states["target"], template="{{ messages }}")
    settings = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|pad|>"}))
    notes = check_compatible(opened(tmp_path / "other"), opened(tmp_path / "sft"), opened(tmp_path / "grpo"))
    assert len(notes) == 2
    assert any("chat templates" in note for note in notes)
    assert any("eos_token is '<|pad|>'" in note for note in notes)
    out = apply(opened(tmp_path / "other"), [Term(extracted(tmp_path), 1.0)], tmp_path / "out")
    card = (out / "README.md").read_text()
    assert "chat templates" in card and "eos_token is" in card


def test_a_vector_of_another_model_is_refused_before_anything_is_written(tmp_path):
    family(tmp_path)
    tiny.write(tmp_path / "wide", intermediate_size=128)
    term = Term(extracted(tmp_path), 1.0)
    with pytest.raises(UserError, match="intermediate_size"):
        apply(opened(tmp_path / "wide"), [term], tmp_path / "out")
    with pytest.raises(UserError, match="does not fit"):
        next(steered_tensors(str(tmp_path / "wide"), [term]))
    assert not (tmp_path / "out").exists()


def test_a_target_that_changes_during_the_application_is_noticed(tmp_path):
    states = family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    target = opened(tmp_path / "target")
    assert target.fingerprint
    save_file(
        tiny.moved(states["target"], 9), tmp_path / "target" / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(UserError, match="changed after it was opened"):
        apply(target, [term], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is written


def test_the_written_checkpoint_is_complete(tmp_path):
    family(tmp_path)
    (tmp_path / "target" / "LICENSE").write_text("terms")
    (tmp_path / "target" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "target" / "pytorch_model.bin").write_text("the old weights")
    out = apply(opened(tmp_path / "grpo"), [Term(extracted(tmp_path), 0.7)], tmp_path / "shards")
    expected = {file.name for file in (tmp_path / "grpo").iterdir()}
    assert {file.name for file in out.iterdir()} == expected | {"README.md", "steering.json"}
    out = apply(opened(tmp_path / "target"), [Term(extracted(tmp_path), 0.7)], tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"):
        assert (out / name).read_bytes() == (tmp_path / "target" / name).read_bytes()
    assert not (out / "pytorch_model.bin").exists()


def test_the_model_card_says_what_was_added_to_what(tmp_path):
    family(tmp_path)
    term = Term(extracted(tmp_path), 0.7)
    out = apply(opened(tmp_path / "target"), [term, Term(term.vector, -0.5, random_seed=4)], tmp_path / "out")
    card = (out / "README.md").read_text()
    for part in [
        *(opened(tmp_path / role).fingerprint for role in ("target", "sft", "grpo")),
        "| 0.7 |",
        "seed 4",
    ]:
        assert part in card
    recipe = json.loads((out / "steering.json").read_text())
    assert [(row["alpha"], row["random_seed"]) for row in recipe["terms"]] == [(0.7, None), (-0.5, 4)]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_was_written(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    family(tmp_path, tied)
    result = applied(tmp_path, Term(extracted(tmp_path), 0.7))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    state = model.state_dict()
    for name, tensor in result.items():
        assert torch.equal(state[name], tensor), name
    assert (state[HEAD].data_ptr() == state[EMBEDDING].data_ptr()) == tied
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("1 2")["input_ids"] == [4, 5]


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    before = (tmp_path / "sft" / "config.json").read_bytes()
    with pytest.raises(UserError, match="was not written by apply"):
        apply(opened(tmp_path / "target"), [term], tmp_path / "sft")
    with pytest.raises(UserError, match="holds something else than a vector"):
        extract(opened(tmp_path / "grpo"), opened(tmp_path / "sft"), tmp_path / "sft")
    assert (tmp_path / "sft" / "config.json").read_bytes() == before


@pytest.mark.parametrize("way", ["new/../{}", "link/{}", "{}/deeper/.."])
@pytest.mark.parametrize("place", ["precious", "target", "sft", "v"])
def test_a_foreign_folder_is_left_alone_on_whatever_way_it_is_reached(tmp_path, way, place):
    family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years")
    (tmp_path / "link").symlink_to(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    out = tmp_path / way.format(place)
    with pytest.raises(UserError, match="choose another folder"):
        apply(opened(tmp_path / "target"), [term], out)
    if place != "v":  # a vector may be extracted anew to where it is
        with pytest.raises(UserError, match="choose another folder"):
            extract(opened(tmp_path / "grpo"), opened(tmp_path / "sft"), out)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_steered_checkpoint_does_not_replace_itself(tmp_path):
    family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    out = apply(opened(tmp_path / "target"), [term], tmp_path / "out")
    with pytest.raises(UserError, match="holds the target"):
        apply(opened(out), [term], tmp_path / "new" / ".." / "out")
    with pytest.raises(UserError, match="holds the target"):
        apply(opened(tmp_path / "target"), [term], tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for inside in (tmp_path / "target" / "new", Path(term.vector) / "new" / "er"):
        with pytest.raises(UserError, match="lies in the target"):
            apply(opened(tmp_path / "target"), [term], inside)
    assert sorted(tmp_path.rglob("*")) == before
    assert (out / "steering.json").is_file() and (tmp_path / "target" / "config.json").is_file()


def test_our_own_results_are_replaced(tmp_path):
    family(tmp_path)
    term = Term(extracted(tmp_path), 1.0)
    (Path(term.vector) / "geometry-t.json").write_text("{}")
    assert extracted(tmp_path) == term.vector
    for alpha in (0.5, 1.0):
        out = apply(opened(tmp_path / "target"), [Term(term.vector, alpha)], tmp_path / "out")
    assert json.loads((out / "steering.json").read_text())["terms"][0]["alpha"] == 1.0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grpo", "out", "sft", "target", "v"]


@pytest.mark.parametrize("compact", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, compact):
    family(tmp_path)
    donors = opened(tmp_path / "grpo"), opened(tmp_path / "sft")
    term = Term(extracted(tmp_path), 1.0)
    assert donors[0].scan and donors[1].scan
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*; nothing was left there"):
            extract(*donors, tmp_path / "w", compact=compact)
        with pytest.raises(UserError, match="cannot write .*; nothing was left there"):
            apply(opened(tmp_path / "target"), [term], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("w/*"))
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


# Random controls


def noise(folder: str, name: str, seed: int) -> torch.Tensor:
    return torch.cat([torch.from_numpy(piece) for piece in noises.noise(Vector.open(folder), name, seed)])


def test_noise_has_the_vectors_norm_in_every_tensor(tmp_path):
    family(tmp_path, rows=ROWS)
    folder = extracted(tmp_path)
    for name in Vector.open(folder).shapes:
        norm = Vector.open(folder).read(name).norm().item()
        assert noise(folder, name, 0).norm().item() == pytest.approx(norm, rel=1e-5)
        assert norm > 0


def test_noise_is_gaussian_and_unlike_the_vector(tmp_path):
    from scipy import stats

    family(tmp_path, rows=ROWS)
    folder = extracted(tmp_path)
    draws = noise(folder, EMBEDDING, 0)
    assert stats.kstest((draws / draws.std()).numpy(), "norm").pvalue > 0.001
    v = Vector.open(folder).read(EMBEDDING).flatten()
    assert abs(torch.nn.functional.cosine_similarity(draws, v, dim=0)) < 5 / math.sqrt(len(v))


def test_noise_depends_on_seed_and_name_alone(tmp_path):
    family(tmp_path, rows=ROWS)
    dense, packed = extracted(tmp_path), extracted(tmp_path, "c", compact=True)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", EMBEDDING]
    forward = {name: noise(dense, name, 3) for name in names}
    backward = {name: noise(packed, name, 3) for name in reversed(names)}
    assert all(torch.equal(forward[name], backward[name]) for name in names)
    unit = [noise(dense, name, seed) for name in names[:2] for seed in (3, 4)]
    correlations = torch.corrcoef(torch.stack(unit)).fill_diagonal_(0).abs()
    assert correlations.max() < 0.1
    pieces = forward[EMBEDDING][:PIECE], forward[EMBEDDING][PIECE:]
    assert abs(torch.nn.functional.cosine_similarity(pieces[0][: len(pieces[1])], pieces[1], dim=0)) < 0.1


def test_a_random_term_adds_the_noise(tmp_path):
    states = family(tmp_path)
    folder = extracted(tmp_path)
    plus = applied(tmp_path, Term(folder, 0.7, random_seed=5))
    for name, theta in states["target"].items():
        delta = 0.7 * noise(folder, name, 5).view(theta.shape)
        assert torch.equal(plus[name], (theta.float() + delta).to(BF16))
        assert not torch.equal(plus[name], theta)


# Parts


def taken(folder: str, out: Path, part: Part) -> tuple[Vector, Vector]:
    return Vector.open(folder), Vector.open(derive(Vector.open(folder), part, out))


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_trimming_keeps_what_peft_keeps(tmp_path, share):
    family(tmp_path, rows=ROWS, dtypes=(F32, F32, F32))
    before, after = taken(extracted(tmp_path), tmp_path / "w", Part(trim=share))
    for name in before.shapes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = merge_utils.prune(before.read(name), share, "magnitude")
        assert torch.equal(after.read(name), expected), name


def test_trimming_keeps_the_exact_number_among_equal_magnitudes(tmp_path):
    family(tmp_path, rows=ROWS)
    before, after = taken(extracted(tmp_path), tmp_path / "w", Part(trim=0.1))
    for name in before.shapes:
        expected = merge_utils.prune(before.read(name), 0.1, "magnitude").abs().flatten().sort().values
        assert torch.equal(after.read(name).abs().flatten().sort().values, expected)


def test_dropping_keeps_a_share_and_rescales_it(tmp_path):
    family(tmp_path, rows=ROWS, dtypes=(F32, F32, F32))
    folder = extracted(tmp_path)
    before, after = taken(folder, tmp_path / "w", Part(dare=0.3, seed=1))
    old, new = before.read(EMBEDDING), after.read(EMBEDDING)
    kept = new != 0
    assert torch.equal(new[kept], old[kept] / 0.3)
    assert kept.sum() / (old != 0).sum() == pytest.approx(0.3, abs=0.01)
    again = Vector.open(derive(before, Part(dare=0.3, seed=1), tmp_path / "again"))
    other = Vector.open(derive(before, Part(dare=0.3, seed=2), tmp_path / "other"))
    assert (again.fingerprint == after.fingerprint, other.fingerprint == after.fingerprint) == (True, False)


def test_a_mask_keeps_its_modules_and_layers(tmp_path):
    family(tmp_path)
    before, after = taken(extracted(tmp_path), tmp_path / "w", Part(modules=("mlp", "q_proj"), layers=(1, 1)))
    kept = {name for name in after.shapes if after.read(name).any()}
    assert kept == {
        *(f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        *(f"model.layers.1.self_attn.q_proj.{part}" for part in ("weight", "bias")),
    }
    assert all(torch.equal(after.read(name), before.read(name)) for name in kept)


def test_masks_that_keep_nothing_and_shares_out_of_range_are_refused(tmp_path):
    family(tmp_path)
    found = Vector.open(extracted(tmp_path))
    with pytest.raises(UserError, match="keeps no tensor .* self_attn"):
        derive(found, Part(modules=("attention",)), tmp_path / "w")
    with pytest.raises(UserError, match="keeps no entry .* whose largest tensor has"):
        derive(found, Part(trim=1e-9), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    for bad in ({"trim": 0.0}, {"dare": 1.5}, {"trim": math.nan}):
        with pytest.raises(UserError, match="expected the share of entries to keep"):
            Part(**bad)


def test_a_part_is_a_vector_that_says_what_it_is(tmp_path):
    family(tmp_path)
    folder = extracted(tmp_path)
    before, after = taken(folder, tmp_path / "w", Part(trim=0.2))
    assert after.description["parts"] == [{"trim": 0.2, "seed": 0}]
    assert after.description["donors"] == before.description["donors"]
    result = applied(tmp_path, Term(str(tmp_path / "w"), 1.0))
    target = opened(tmp_path / "target")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(result[name], (target.read(name).float() + after.read(name)).to(BF16))
    assert "trim" in (tmp_path / "out" / "README.md").read_text()
