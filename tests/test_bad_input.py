"""Bad input through the real command line: one line that names the thing and the remedy, status 2, nothing changed.

Every case starts from a sound run on tiny models and a few documents, and spoils one thing. Engines must not
start, and no file may appear, change or go; the one exception is results/.cache, which holds fingerprints of
files by path and time and is no result.
"""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.__main__ import main
from pipeline.evaluate import runner
from tests import tiny
from tests.documents import PROGRAM, SCIQ, sums

SUMS = sums(4, 5)
BBH = {"examples": [{"input": "Is it?\nOptions:\n- Yes\n- No", "target": "No"}]}
BENCHMARK = {
    "label": "Mine",
    "form": "none",
    "task": "gsm8k",
    "dataset": {"id": "my/own", "files": {"test": "gsm8k/test.jsonl"}},
    "metric": "exact_match,flexible-extract",
}


@dataclass
class Place:
    """A folder with everything that a run reads; `overrides` is the command."""

    root: Path
    overrides: list[str]

    def __getattr__(self, part: str) -> Path:  # target, sft, grpo, data, conf
        return self.root / part

    def json(self, path: str, change: Callable[[Any], Any]) -> None:
        """Replace the content of a JSON file by what `change` returns, or by what it made of it."""
        file = self.root / path
        content = json.loads(file.read_text())
        changed = change(content)
        file.write_text(json.dumps(content if changed is None else changed))

    def tensors(self, part: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        file = self.root / part / "model.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file, metadata={"format": "pt"})

    def header(self, path: str, change: Callable[[Any], Any]) -> None:
        """Change the JSON header of a safetensors file, its length too."""
        file = self.root / path
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        changed = change(header)
        text = json.dumps(header if changed is None else changed).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    def benchmark(self, content: Any = None, **changes: Any) -> list[str]:
        """A benchmark file of the user's own (JSON is YAML), and what adds it to the run."""
        text = content if isinstance(content, str) else json.dumps(BENCHMARK | changes)
        (self.root / "conf" / "benchmark").mkdir(parents=True)
        (self.root / "conf" / "benchmark" / "mine.yaml").write_text(text)
        return [f"hydra.searchpath=[{self.root / 'conf'}]", "+benchmark@benchmarks.mine=mine", "tasks=[mine]"]

    def conditions(self, rows: dict[str, Any]) -> list[str]:
        (self.root / "conf" / "conditions").mkdir(parents=True)
        text = "# @package conditions\n" + json.dumps(rows)
        (self.root / "conf" / "conditions" / "mine.yaml").write_text(text)
        return [f"hydra.searchpath=[{self.root / 'conf'}]", "conditions=mine", "alpha=[]"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny models, a few documents of each form, and the vector as a finished stage 'extract' leaves it."""
    root = tmp_path_factory.mktemp("sound")
    settings = tiny.config()
    target = tiny.weights(settings, 0)
    for seed, part in enumerate(("target", "sft", "grpo")):
        tiny.write(root / part, tiny.moved(target, seed) if seed else target)
    files = {"gsm8k/test.jsonl": SUMS, "gsm8k/train.jsonl": SUMS, "sciq/test.json": [SCIQ]}
    for name, rows in files.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "data" / "humaneval").mkdir()
    (root / "data/humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(PROGRAM).encode()))
    (root / "data" / "bbh" / "bbh").mkdir(parents=True)
    (root / "data/bbh/bbh/navigate.json").write_text(json.dumps(BBH))
    assert main([*command(root), "stages=[extract]"]) == 0
    return root


def command(root: Path) -> list[str]:
    family = [f"families.micro.{part}.id={root / part}" for part in ("target", "sft", "grpo")]
    return [
        *("experiment=micro", "tasks=[gsm8k]", "stages=[extract,evaluate]", "data.generator=null"),
        "engine.max_model_len=256",
        *("families.micro.base.id=''", "benchmarks.bbh.subtasks=[navigate]", f"data.folder={root / 'data'}"),
        *(f"results={root / 'results'}", f"tables={root / 'tables'}", *family),
    ]


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    root = Path(shutil.copytree(sound, tmp_path / "place"))
    monkeypatch.chdir(root)
    monkeypatch.setenv("RV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(runner, "Engine", no_engine)
    return Place(root, command(root))


def no_engine(*_: Any) -> None:
    raise AssertionError("an engine was started")


def files(root: Path) -> dict[str, str]:
    """Every file and folder under `root`, with the sha256 of a file."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not name.startswith("results/.cache"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


Spoil = Callable[[Place], list[str] | None]
CASES: dict[str, tuple[Spoil, str]] = {}


def case(name: str, message: str) -> Callable[[Spoil], Spoil]:
    def add(spoil: Spoil) -> Spoil:
        assert name not in CASES
        CASES[name] = (spoil, message)
        return spoil

    return add


def given(name: str, message: str, *overrides: str) -> None:
    """A case that is wrong by its command alone."""
    case(name, message)(lambda place: list(overrides))


# Configurations

given("an unknown experiment", "did you mean 'micro'?", "experiment=micr")
given("a misspelt key", "engine.dtyp'; did you mean 'dtype'?", "engine.dtyp=float32")
given("a misspelt group", "did you mean 'engine'?", "engin=cpu")
given("a word for a number", "limit: Value 'many'", "limit=many")
given("half a document", "limit: Value '1.5'", "limit=1.5")
given("no documents", "limit: expected a positive number, found 0", "limit=0")
given("fewer than no documents", "limit: expected a positive number, found -3", "limit=-3")
given("no perturbed documents", "variant_limit: expected a positive number", "variant_limit=0")
given(
    "an α that is no number", "alpha: expected a finite number, or a list of them, found nan", "alpha=[nan]"
)
given("an infinite α", "alpha: expected a finite number, or a list of them, found inf", "alpha=[inf]")
given(
    "a condition's infinite α",
    "expected a finite number, or a list of them, found -inf",
    "conditions.vector.alpha=-inf",
)
given("a list that is not closed", "override not understood", "alpha=[1")
given("a key without a value", "override not understood", "alpha")
given("an interpolation of nothing", "'nothing' not found", "name=${nothing}")
given("an interpolation of no variable", "'NO_SUCH_VARIABLE' not found", "name=${oc.env:NO_SUCH_VARIABLE}")
given("an unknown task", "tasks: 'gsm' is unknown; did you mean 'gsm8k'?", "tasks=[gsm]")
given("no tasks", "nothing to run", "tasks=[]")
given("no families", "nothing to run", "families=[]")
given("an unknown size", "families: '7b' is unknown; known: micro", "families=[7b]")
given("an unknown stage", "Invalid value 'extrakt'", "stages=[extrakt]")
given("a row asked again that does not say how", "role=again goes with order", "conditions.vector.role=again")
given("another order of a row that is not asked again", "found one of them", "conditions.vector.order=1")
given(
    "a seed of an order below zero",
    "conditions.vector.order: expected a seed from 0",
    "conditions.vector.role=again",
    "conditions.vector.order=-1",
)
given(
    "no documents at once",
    "conditions.vector.at_once: expected a positive number, found 0",
    "conditions.vector.role=again",
    "conditions.vector.at_once=0",
)
given(
    "a sweep that is asked again",
    "one row is asked again, not several",
    "conditions.alpha.role=again",
    "conditions.alpha.order=1",
)
given(
    "nothing but rows asked again of an exact engine",
    "no answer moves with order or batch",
    "conditions=[baseline_again]",
)
given("a form of itself", "found itself", "benchmarks.gsm8k.form_of=gsm8k")
given(
    "a reason that is empty", "cannot_think: expected text on one line", "benchmarks.gsm8k.cannot_think=' '"
)
given("no tokens", "answer_tokens: expected a positive number", "benchmarks.gsm8k.answer_tokens=0")
given(
    "a variant that keeps nothing",
    "dataset.kept.larger_numbers: expected a positive number, found 0",
    "benchmarks.gsm8k.dataset.kept.larger_numbers=0",
)
given("an unknown prompt", "'thnk' is unknown; did you mean 'think'?", "conditions.vector.prompt=thnk")
given("an unknown kind of weights", "Invalid value 'vectr'", "conditions.vector.start=vectr")
given("a vector without α", "nothing is added to the target", "conditions.vector.alpha=null")
given("noise without a seed", "expected a seed for each random vector", "conditions.random.seeds=[]")
given("a null family", "families.micro", "families.micro=null")
given("a null benchmark", "benchmarks.gsm8k", "benchmarks.gsm8k=null")
given("a null condition", "conditions.vector", "conditions.vector=null")
given("a null engine", "engine: an option is required; set it to one of cpu, gpu", "engine=null")
given(
    "a family without a target",
    "families.micro.target.id: a value is required",
    "families.micro.target.id=''",
)
given("a vector without donors", "needs this checkpoint; set it", "families.micro.sft.id=''")
given("a folder that is not there", "no folder no/such/folder", "families.micro.sft.id=no/such/folder")
given("a hub id that climbs", "no folder ../../x", "families.micro.sft.id=../../x")
given("a hub id that climbs on", "no folder a/../../b", "families.micro.sft.id=a/../../b")
given("a hub id of dots", "is neither a folder nor a hub id", "families.micro.sft.id=nothere/..")
given(
    "a revision that climbs",
    "families.micro.sft.revision",
    "families.micro.sft.id=a/b",
    "families.micro.sft.revision=../../../x",
)
given(
    "a data set's id that climbs",
    "benchmarks.gsm8k.dataset.id",
    "data.folder=null",
    "benchmarks.gsm8k.dataset.id=../../x",
)
given(
    "a data set's revision that climbs",
    "dataset.revision",
    "data.folder=null",
    "benchmarks.gsm8k.dataset.revision=../x",
)
given(
    "a data set that the hub has not",
    "set data.folder to use local files",
    "data.folder=null",
    "benchmarks.gsm8k.dataset.id=no/such",
    "benchmarks.gsm8k.dataset.revision=null",
)
given("a folder of documents that is not there", "no such folder; make it", "data.folder=no/such/folder")
given("a file for the folder of documents", "no such folder; make it", "data.folder=data/gsm8k/test.jsonl")
given("an unknown generator", "data.generator: expected 'micro'", "data.folder=null", "data.generator=macro")
given("a folder and a generator", "folder and generator are both set", "data.generator=micro")
given("a file for the folder of results", "expected a folder, found a file", "results=data/gsm8k/test.jsonl")
given("a name that climbs", "name: expected up to 100 letters", "name=../x")
given("an unknown dtype", "engine.dtype: expected one of", "engine.dtype=int4")
given("no room for tokens", "engine.max_model_len: expected 16 or more", "engine.max_model_len=0")
given(
    "more memory than there is",
    "engine.gpu_memory_utilization: expected",
    "engine.gpu_memory_utilization=1.5",
)
given("less cache than nothing", "engine.kv_cache_gb: expected", "engine.kv_cache_gb=-1")
given("more tokens than the model has positions", "engine.max_model_len", "engine.max_model_len=100000")
given("no workers", "launcher.workers: expected a positive number", "launcher=ray", "launcher.workers=0")
given("shards of nothing", "launcher.shard_documents: expected a positive", "launcher.shard_documents=0")
given("an address without a cluster", "launcher.address: expected launcher=ray", "launcher.address=auto")
given("workers without a cluster", "found auto; add launcher=ray", "launcher.workers=2")
given("workers for one engine", "found local; add launcher=ray", "launcher=local", "launcher.workers=2")
given("a key without its part", "'address'; did you mean 'launcher.address'?", "launcher=ray", "address=auto")
given("an added key without its part", "did you mean 'data.seed' or 'engine.seed'?", "+seed=1")
given("a GPU where there is none", "no GPU on this machine", "engine=gpu")
given("a cluster on a machine without a GPU", "run `make demo` here", "engine=gpu", "launcher=ray")
given("no room to answer", "max_gen_toks: expected a positive number", "benchmarks.gsm8k.max_gen_toks=0")
given("a chance above one", "benchmarks.gsm8k.chance: expected", "benchmarks.gsm8k.chance=25")
given("no answers", "benchmarks.gsm8k.samples: expected a positive number", "benchmarks.gsm8k.samples=0")
given(
    "the same answer eight times",
    "benchmarks.gsm8k.samples=8: at temperature 0 every answer is the likeliest; set benchmarks.gsm8k.temperature",
    "benchmarks.gsm8k.samples=8",
)
given("a nucleus without sampling", "top_p=0.9: at temperature 0 every answer", "benchmarks.gsm8k.top_p=0.9")
for temperature in ("-1", "0.001", "nan", "inf", "9"):
    given(
        f"a temperature of {temperature}",
        "benchmarks.gsm8k.temperature: expected 0 (greedy), or 0.01 to 2, found",
        f"benchmarks.gsm8k.temperature={temperature}",
    )
for top_p in ("0", "1.5", "nan"):
    given(
        f"a nucleus of {top_p}",
        "benchmarks.gsm8k.top_p: expected a share above 0 and at most 1",
        "benchmarks.gsm8k.temperature=0.6",
        f"benchmarks.gsm8k.top_p={top_p}",
    )
given("a misspelt key of sampling", "did you mean 'temperature'?", "benchmarks.gsm8k.temperatur=0.6")
given("fewer than no examples", "num_fewshot: expected 0 or more", "benchmarks.gsm8k.num_fewshot=-1")
given("more examples than there are", "has 5 examples; lower it", "benchmarks.gsm8k.num_fewshot=9")
given("examples without a split", "names no split of examples", "tasks=[bbh]", "benchmarks.bbh.num_fewshot=2")
given("a task that lm-eval has not", "lm-eval has no task 'gsm9k'", "benchmarks.gsm8k.task=gsm9k")
given("a metric that the task has not", "has no metric 'acc,none'", "benchmarks.gsm8k.metric='acc,none'")
given("a metric without its filter", "has no metric 'exact_match'", "benchmarks.gsm8k.metric=exact_match")
given("a further metric that is none", "has no metric 'f1,none'", "benchmarks.gsm8k.also=['f1,none']")
given("a split that is not asked", "asks the split 'test'", "benchmarks.gsm8k.dataset.split=train")
given("an unknown variant", "smaller_numbers", "benchmarks.gsm8k.variants=[smaller_numbers]")
given(
    "a variant of another form", "larger_numbers", "tasks=[sciq]", "benchmarks.sciq.variants=[larger_numbers]"
)
given(
    "a variant twice",
    "variants: 'larger_numbers' is listed twice",
    "benchmarks.gsm8k.variants=[larger_numbers,larger_numbers]",
)
given(
    "a subtask twice",
    "subtasks: 'navigate' is listed twice",
    "tasks=[bbh]",
    "benchmarks.bbh.subtasks=[navigate,navigate]",
)
given("a subtask that climbs", "subtasks: ", "tasks=[bbh]", "benchmarks.bbh.subtasks=[../navigate]")
given("an unknown form", "gsm9k", "benchmarks.gsm8k.form=gsm9k", "benchmarks.gsm8k.variants=[]")
given(
    "a file outside the folder of documents",
    "benchmarks.gsm8k.dataset.files.test",
    "benchmarks.gsm8k.dataset.files.test=../conf/x",
)
given(
    "an absolute file of documents",
    "benchmarks.gsm8k.dataset.files.test",
    "benchmarks.gsm8k.dataset.files.test=/etc/passwd",
)
given(
    "a placeholder that is none",
    "{subtak}",
    "tasks=[bbh]",
    "benchmarks.bbh.dataset.files.test='bbh/{subtak}.json'",
)
given(
    "a placeholder that looks inside",
    "{subtask.__class__}",
    "tasks=[bbh]",
    "benchmarks.bbh.task='bbh_{subtask.__class__}'",
)
given("two conditions of one label", "label 'Baseline' is listed twice", "conditions.vector.label=Baseline")
given("online without a key", "no W&B API key", "stages=[track]", "tracking.mode=online")


@case("a misspelt key in a benchmark's file", "benchmarks.mine.num_fewshots'; did you mean 'num_fewshot'?")
def _(place: Place) -> list[str]:
    return place.benchmark(num_fewshots=3)


@case("a benchmark without a metric", "benchmarks.mine.metric: a value is required")
def _(place: Place) -> list[str]:
    return place.benchmark(json.dumps({k: v for k, v in BENCHMARK.items() if k != "metric"}))


@case("a list for a label", "label")
def _(place: Place) -> list[str]:
    return place.benchmark(label=["a", "b"])


@case("a text for the data set", "benchmark/mine")
def _(place: Place) -> list[str]:
    return place.benchmark(dataset="my/own")


@case("a benchmark's file that is a list", "mine")
def _(place: Place) -> list[str]:
    return place.benchmark("- label: Mine\n")


@case("a benchmark's file that is empty", "benchmarks.mine.label: a value is required")
def _(place: Place) -> list[str]:
    return place.benchmark("# nothing\n")


@case("a benchmark's file with a bracket too few", "mine.yaml")
def _(place: Place) -> list[str]:
    return place.benchmark("label: [Mine\nform: none\n")


@case("a benchmark's file with a tab", "mine.yaml")
def _(place: Place) -> list[str]:
    return place.benchmark("label: Mine\ndataset:\n\tid: x\n")


@case("a key that is listed twice", "metric")
def _(place: Place) -> list[str]:
    return place.benchmark(json.dumps(BENCHMARK)[:-1] + ', "metric": "exact_match,strict-match"}')


@case("a benchmark's file in Latin-1", "mine.yaml")
def _(place: Place) -> list[str]:
    overrides = place.benchmark("label: Mine\n")
    (place.conf / "benchmark" / "mine.yaml").write_bytes("label: Müller\n".encode("latin-1"))
    return overrides


@case("a search path that is not there", "no/such")
def _(place: Place) -> list[str]:
    return ["hydra.searchpath=[no/such]", "+benchmark@benchmarks.mine=mine"]


@case("a benchmark whose name is a path", "benchmarks: expected up to 100 letters")
def _(place: Place) -> list[str]:
    header = "# @package benchmarks\n"
    place.benchmark(header + json.dumps({"../x": BENCHMARK}))
    return [f"hydra.searchpath=[{place.conf}]", "+benchmark=mine", "tasks=null"]


@case("a condition whose name is a path", "conditions: expected up to 100 letters")
def _(place: Place) -> list[str]:
    return place.conditions({"../x": {"label": "X"}})


@case("a condition named as a seed of another", "conditions: 'random-s0' is listed twice")
def _(place: Place) -> list[str]:
    random = {"label": "R", "alpha": 1.0, "seeds": [0]}
    return place.conditions({"random": random, "random-s0": {"label": "X"}})


@case(
    "a condition on a base that is not there",
    "families.micro.base.id: the condition 'bare' needs this checkpoint",
)
def _(place: Place) -> list[str]:
    return place.conditions({"bare": {"label": "Base", "start": "base"}})


# Task files and what a benchmark changes in them


@case("an unknown key of a task", "benchmarks.mine.changes: 'doc_to_txt' is no key")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"doc_to_txt": "{{question}}"})


@case("a prompt that is no template", "unexpected end of template")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"doc_to_text": "{{question"})


@case("a prompt of a field that is not there", "'query' is undefined")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"doc_to_text": "{{query}}"})


@case("a target of a field that is not there", "'solution' is undefined")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"doc_to_target": "{{solution}}"})


@case("a filter that is no expression", "mine")
def _(place: Place) -> list[str]:
    filters = [{"name": "flexible-extract", "filter": [{"function": "regex", "regex_pattern": "(["}]}]
    return place.benchmark(changes={"filter_list": filters})


@case("a filter that lm-eval has not", "nope")
def _(place: Place) -> list[str]:
    filters = [{"name": "flexible-extract", "filter": [{"function": "nope"}]}]
    return place.benchmark(changes={"filter_list": filters})


@case("a kind of output that is none", "output_type")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"output_type": "generate"})


@case("a metric that lm-eval does not know", "mine")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"metric_list": [{"metric": "no_such_metric"}]})


@case("stop words that are a number", "benchmarks.mine")
def _(place: Place) -> list[str]:
    return place.benchmark(changes={"generation_kwargs": 7})


@case("sampling where decoding is greedy", "generation_kwargs")
def _(place: Place) -> list[str]:
    return place.benchmark(
        changes={"generation_kwargs": {"do_sample": True, "temperature": 0.7, "until": []}}
    )


@case("a task of several rounds", "benchmarks.mine: 'wikitext'")
def _(place: Place) -> list[str]:
    return place.benchmark(task="wikitext", metric="word_perplexity,none")


@case("a group for a task", "lm-eval has no task 'mmlu'")
def _(place: Place) -> list[str]:
    return place.benchmark(task="mmlu")


# Checkpoints


@case("a model without a configuration", "config.json does not exist")
def _(place: Place) -> None:
    (place.sft / "config.json").unlink()


@case("a configuration that is cut", "config.json is not valid JSON")
def _(place: Place) -> None:
    (place.sft / "config.json").write_text('{"model_type": "qwen2"')


@case("a configuration that is a list", "config.json is not valid JSON, or not an object")
def _(place: Place) -> None:
    place.json("target/config.json", lambda c: [c])


@case("a configuration in Latin-1", "config.json is not valid JSON")
def _(place: Place) -> None:
    (place.target / "config.json").write_bytes(b'{"model_type": "\xff"}')


@case("text for a number", "num_attention_heads is '2' (input should be a valid integer)")
def _(place: Place) -> None:
    place.json("target/config.json", lambda c: c.update(num_attention_heads="2"))


@case("an object for a number", "rms_norm_eps is {")
def _(place: Place) -> None:
    place.json("grpo/config.json", lambda c: c.update(rms_norm_eps={}))


@case("JSON nested 100,000 deep", "config.json is not valid JSON")
def _(place: Place) -> None:
    (place.target / "config.json").write_text("[" * 100_000 + "]" * 100_000)


@case("a pipe for a configuration", "config.json is a pipe; expected a file")
def _(place: Place) -> None:
    (place.target / "config.json").unlink()
    os.mkfifo(place.target / "config.json")


@case("a pipe for weights", "model.safetensors is a pipe; expected a file")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").unlink()
    os.mkfifo(place.sft / "model.safetensors")


@case("a pipe for a chat template", "chat_template.jinja is a pipe; expected a file")
def _(place: Place) -> None:
    os.mkfifo(place.target / "chat_template.jinja")


@case("a pipe for the stop tokens", "generation_config.json is a pipe; expected a file")
def _(place: Place) -> None:
    (place.target / "generation_config.json").unlink()
    os.mkfifo(place.target / "generation_config.json")


@case("the same donor twice", "have the same weights, so that v is 0; name two checkpoints")
def _(place: Place) -> list[str]:
    return [f"families.micro.grpo.id={place.sft}"]


@case("donors that are exchanged", "was trained by GRPO and GRPO donor")
def _(place: Place) -> None:
    for part, stage in (("sft", "grpo"), ("grpo", "sft")):
        (place.root / part / "training.json").write_text(json.dumps({"stage": stage}))


@case("a donor with another pre-tokenizer", "differ in their pre-tokenizer")
def _(place: Place) -> None:
    place.json("grpo/tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "Whitespace"}))


@case("a model that needs code of its own", "needs code of its own")
def _(place: Place) -> None:
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/config.json", lambda c: c.update(code))


@case("a quantized model", "quantiz")
def _(place: Place) -> None:
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))


@case("a model without weights", "holds neither model.safetensors")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").unlink()


@case("pickled weights", "pickled weights")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "pytorch_model.bin")


@case("an adapter", "holds an adapter")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "adapter_model.safetensors")


@case("weights that are cut", "is truncated")
def _(place: Place) -> None:
    file = place.sft / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@case("weights with a tail", "is truncated or not a safetensors file")
def _(place: Place) -> None:
    file = place.sft / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"tail")


@case("weights that are empty", "is truncated")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").write_bytes(b"")


@case("a header longer than the file", "is truncated")
def _(place: Place) -> None:
    file = place.sft / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


@case("a header that is no JSON", "its header cannot be read")
def _(place: Place) -> None:
    file = place.sft / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:8] + b"#" + raw[9:])


@case("a header that is a list", "its header cannot be read")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: [h])


@case("metadata that are a number", "its header cannot be read")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: h.update(__metadata__=3))


@case("a dtype that is none", "convert it")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: h["model.norm.weight"].update(dtype="F8_E4M3"))


@case("a shape of words", "its header cannot be read")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: h["model.norm.weight"].update(shape=["many"]))


@case("a shape below zero", "its header cannot be read")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: h["model.norm.weight"].update(shape=[-8, -8]))


@case("offsets that overlap", "offsets")
def _(place: Place) -> None:
    place.header("sft/model.safetensors", lambda h: h["model.norm.weight"].update(data_offsets=[0, 128]))


@case("a tensor of another shape", "model.layers.0.mlp.up_proj.weight")
def _(place: Place) -> None:
    def cut(state: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        state[name] = state[name][:-1].contiguous()

    place.tensors("sft", cut)


@case("a tensor too few", "model.layers.1.mlp.up_proj.weight")
def _(place: Place) -> None:
    place.tensors("grpo", lambda s: s.pop("model.layers.1.mlp.up_proj.weight"))


@case("a weight that is no number", "NaN or infinity in model.norm.weight")
def _(place: Place) -> None:
    place.tensors("target", lambda s: s["model.norm.weight"].__setitem__(0, float("nan")))


@case("donors that are not one shape with the target", "hidden_size")
def _(place: Place) -> None:
    shutil.rmtree(place.target)
    tiny.write(place.target, hidden_size=128)


@case("an index that names a file elsewhere", "names ../sft/model.safetensors; expected")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "../sft/model.safetensors"}}
    (place.sft / "model.safetensors.index.json").write_text(json.dumps(index))


@case("an index that names a missing shard", "which is missing")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (place.sft / "model.safetensors.index.json").write_text(json.dumps(index))


@case("an index whose map is a list", "index.json")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "other.safetensors")
    (place.sft / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')


@case("an index of numbers", "index.json")
def _(place: Place) -> None:
    (place.sft / "model.safetensors").rename(place.sft / "other.safetensors")
    (place.sft / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": 3}}')


@case("a model without a tokenizer", "has no tokenizer.json")
def _(place: Place) -> None:
    (place.target / "tokenizer.json").unlink()


@case("a tokenizer that is cut", "tokenizer.json is not valid JSON")
def _(place: Place) -> None:
    (place.target / "tokenizer.json").write_text("{")


@case("a tokenizer without a vocabulary", "tokenizer.json")
def _(place: Place) -> None:
    place.json("target/tokenizer.json", lambda t: t.__delitem__("model"))


@case("a tokenizer that transformers cannot read", "its tokenizer cannot be read")
def _(place: Place) -> None:
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/tokenizer.json", lambda t: t.update(pre_tokenizer={"type": "NoSuch"}))


@case("a donor with other tokens", "token")
def _(place: Place) -> None:
    place.json("sft/tokenizer.json", lambda t: t["model"]["vocab"].update({"5": 6, "6": 5}))


@case("a tokenizer in Latin-1", "tokenizer.json is not valid JSON")
def _(place: Place) -> None:
    (place.target / "tokenizer.json").write_bytes(b'{"model": "\xff"}')


@case("more tokens than the embedding has rows", "rows")
def _(place: Place) -> None:
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/tokenizer.json", lambda t: t["model"]["vocab"].update({"far": 4000}))


@case("two tokens with one id", "both have the id 5")
def _(place: Place) -> None:
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/tokenizer.json", lambda t: t["model"]["vocab"].update({"twin": 5}))


def configured(place: Place, **changes: Any) -> None:
    """The same change in the configurations of all three models."""
    for part in ("target", "sft", "grpo"):
        place.json(f"{part}/config.json", lambda c: c.update(changes))


@case("a model without heads", "num_attention_heads is 0 (input should be greater than 0)")
def _(place: Place) -> None:
    configured(place, num_attention_heads=0)


@case("a number of layers that is a text", "num_hidden_layers is 'two' (input should be a valid integer)")
def _(place: Place) -> None:
    configured(place, num_hidden_layers="two")


@case(
    "key-value heads that do not divide the heads",
    "num_attention_heads 2 is not a multiple of its num_key_value_heads 3",
)
def _(place: Place) -> None:
    configured(place, num_key_value_heads=3)


@case(
    "a vocabulary unlike the rows",
    "its vocab_size is 97, but model.embed_tokens.weight has the shape [96, 64]",
)
def _(place: Place) -> None:
    configured(place, vocab_size=97)


@case("more tensor-parallel workers than the heads can be shared out among", "engine.tensor_parallel_size=3")
def _(place: Place) -> list[str]:
    return ["engine.tensor_parallel_size=3"]


@case(
    "no room for an answer beside its prompt",
    "engine.max_model_len=160: 'gsm8k' lets an answer have 160 tokens",
)
def _(place: Place) -> list[str]:
    return ["engine.max_model_len=160"]


@case("a model without a chat template", "expected a chat template, found none")
def _(place: Place) -> None:
    place.json("target/tokenizer_config.json", lambda t: t.__delitem__("chat_template"))


@case("a chat template that raises", "chat template")
def _(place: Place) -> None:
    raising = "{{ raise_exception('only on Sundays') }}"
    place.json("target/tokenizer_config.json", lambda t: t.update(chat_template=raising))


@case("a chat template that is no template", "chat template")
def _(place: Place) -> None:
    place.json("target/tokenizer_config.json", lambda t: t.update(chat_template="{% for %}"))


@case("a chat template that leaves the question out", "chat template")
def _(place: Place) -> None:
    place.json("target/tokenizer_config.json", lambda t: t.update(chat_template="Hello."))


@case("a chat template that is a number", "chat template")
def _(place: Place) -> None:
    place.json("target/tokenizer_config.json", lambda t: t.update(chat_template=7))


@case("a generation_config that is cut", "generation_config.json is not valid JSON")
def _(place: Place) -> None:
    (place.target / "generation_config.json").write_text("{")


@case("a generation_config that is a list", "generation_config.json")
def _(place: Place) -> None:
    (place.target / "generation_config.json").write_text("[]")


@case("a revision of a folder", "is a folder and has no revision")
def _(place: Place) -> list[str]:
    return ["families.micro.sft.revision=main"]


# Vectors, which the stage 'extract' would make anew and the stage 'evaluate' cannot

FIRST = len(CASES)


def vector(place: Place) -> Path:
    (folder,) = (place.results / "vectors").iterdir()
    return folder


@case("a vector that is cut", "vector.safetensors")
def _(place: Place) -> None:
    file = vector(place) / "vector.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


@case("a vector with one bit changed", "not the one that was extracted")
def _(place: Place) -> None:
    file = vector(place) / "vector.safetensors"
    raw = bytearray(file.read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little") + 8] ^= 1  # past the header and the counts of the first piece
    file.write_bytes(raw)


@case("a model for a vector", "is not a task vector")
def _(place: Place) -> None:
    shutil.copy(place.sft / "model.safetensors", vector(place) / "vector.safetensors")


@case("a vector without its fingerprint", "no whole vector; remove the folder")
def _(place: Place) -> None:
    (vector(place) / "fingerprint.json").unlink()


@case("a vector's fingerprint that is cut", "no whole vector; remove the folder")
def _(place: Place) -> None:
    (vector(place) / "fingerprint.json").write_text('"abc')


def describe(place: Place, change: Callable[[Any], Any]) -> None:
    """Change a vector's description."""

    def header(content: Any) -> None:
        description = json.loads(content["__metadata__"]["task_vector"])
        changed = change(description)
        text = json.dumps(description if changed is None else changed)
        content["__metadata__"]["task_vector"] = text

    place.header(str((vector(place) / "vector.safetensors").relative_to(place.root)), header)


@case("a vector's description that is no JSON", "vector.safetensors")
def _(place: Place) -> None:
    path = str((vector(place) / "vector.safetensors").relative_to(place.root))
    place.header(path, lambda h: h["__metadata__"].update(task_vector="{"))


@case("a vector's description that is a list", "vector.safetensors")
def _(place: Place) -> None:
    describe(place, lambda d: [d])


@case("a vector's description without shapes", "vector.safetensors")
def _(place: Place) -> None:
    describe(place, lambda d: d.__delitem__("shapes"))


@case("a vector with shapes of its own", "vector.safetensors")
def _(place: Place) -> None:
    describe(place, lambda d: d["shapes"].update({"model.norm.weight": [10**9]}))


@case("a vector in a form that is none", "vector.safetensors")
def _(place: Place) -> None:
    describe(place, lambda d: d.update(form="thin"))


@case("a compact vector said to be dense", "vector.safetensors")
def _(place: Place) -> None:
    describe(place, lambda d: d.update(form="dense"))


VECTORS = list(CASES)[FIRST:]


# Data sets


def write(path: str, content: str | bytes) -> Spoil:
    def spoil(place: Place) -> None:
        raw = content if isinstance(content, bytes) else content.encode()
        (place.data / path).write_bytes(raw)

    return spoil


def rows(path: str, *documents: Any) -> Spoil:
    return write(path, "".join(json.dumps(row) + "\n" for row in documents))


TEST = "gsm8k/test.jsonl"
for name, message, spoil in (
    ("documents that are none", "the file is empty", write(TEST, "")),
    ("blank lines", "the file is empty", write(TEST, "\n\n\n")),
    ("documents that are no JSON", "cannot be read as JSON rows", write(TEST, "{not json}")),
    ("a last line that is cut", "cannot be read as JSON rows", write(TEST, json.dumps(SUMS[0]) + '\n{"que')),
    ("documents in Latin-1", "cannot be read as JSON rows", write(TEST, b'{"question": "\xfc"}')),
    ("documents that are numbers", "expected a list of JSON objects", write(TEST, "[1, 2]")),
    ("a list of nothing", "the file is empty", write(TEST, "[]")),
    ("a number alone", "expected a list of JSON objects", write(TEST, "7")),
    ("documents without a question", "document 0", rows(TEST, *({"answer": "#### 1"} for _ in range(3)))),
    ("one document without an answer", "document 2", rows(TEST, SUMS[0], SUMS[1], {"question": "Why?"})),
    ("a question that is null", "document 1", rows(TEST, SUMS[0], SUMS[1] | {"question": None})),
    ("a question that is a number here and a text there", "test.jsonl", rows(TEST, SUMS[0], SUMS[1] | {"question": 7})),
    ("a question that is a list", "document 0", rows(TEST, SUMS[0] | {"question": ["a", "b"]})),
    ("a number that no column holds", "test.jsonl", rows(TEST, SUMS[0] | {"n": 10**30})),
    ("half a character", "test.jsonl", rows(TEST, SUMS[0] | {"question": "\ud800"})),
    ("documents nested too deep", "test.jsonl", write(TEST, "[" * 100_000)),
    ("a file of documents that is not there", "no such file", lambda place: (place.data / TEST).unlink()),
):  # fmt: skip
    case(name, message)(spoil)


@case("examples that are cut", "train.jsonl")
def _(place: Place) -> list[str]:
    write("gsm8k/train.jsonl", '{"que')(place)
    return ["benchmarks.gsm8k.num_fewshot=2"]


@case("examples without an answer", "document 0 of the split 'train'")
def _(place: Place) -> list[str]:
    rows("gsm8k/train.jsonl", *({"question": f"{n}?"} for n in range(5)))(place)
    return ["benchmarks.gsm8k.num_fewshot=2"]


HUMANEVAL = "humaneval/HumanEval.jsonl.gz"
for name, message, content in (
    ("an archive that is cut", "cannot be read", gzip.compress(json.dumps(PROGRAM).encode())[:-12]),
    ("an archive that is none", "cannot be read", json.dumps(PROGRAM).encode()),
    ("an archive with one bit changed", "cannot be read", None),
    ("a program without its tests", "document 0", {k: v for k, v in PROGRAM.items() if k != "test"}),
    ("a program without a name", "document 0", {k: v for k, v in PROGRAM.items() if k != "entry_point"}),
    ("a prompt that is no Python", "document 0", PROGRAM | {"prompt": "def one(:\n"}),
    ("tests that are no Python", "document 0", PROGRAM | {"test": "def check(candidate:\n"}),
    ("a zero byte in a prompt", "document 0", PROGRAM | {"prompt": 'def one():\n    """\0"""\n'}),
):

    def spoil(place: Place, content: Any = content) -> list[str]:
        if content is None:
            raw = bytearray(gzip.compress(json.dumps(PROGRAM).encode()))
            raw[20] ^= 255
            content = bytes(raw)
        raw = content if isinstance(content, bytes) else gzip.compress(json.dumps(content).encode())
        (place.data / HUMANEVAL).write_bytes(raw)
        return ["tasks=[humaneval]"]

    case(name, message)(spoil)


@case("a choice too few", "document 0")
def _(place: Place) -> list[str]:
    rows("sciq/test.json", {k: v for k, v in SCIQ.items() if k != "distractor2"})(place)
    return ["tasks=[sciq]"]


@case("a choice that is null", "document 0")
def _(place: Place) -> list[str]:
    rows("sciq/test.json", SCIQ | {"distractor2": None})(place)
    return ["tasks=[sciq]"]


@case("a file without its list of examples", "navigate.json: cannot be read as JSON rows")
def _(place: Place) -> list[str]:
    write("bbh/bbh/navigate.json", '{"rows": []}')(place)
    return ["tasks=[bbh]"]


@case("examples that are a table", "navigate.json: expected a list of JSON objects")
def _(place: Place) -> list[str]:
    write("bbh/bbh/navigate.json", '{"examples": {"input": "a"}}')(place)
    return ["tasks=[bbh]"]


@case("a field of sources that is not there", "seed_question")
def _(place: Place) -> list[str]:
    return ["benchmarks.gsm8k.dataset.source_field=seed_question", "benchmarks.gsm8k.variants=[]"]


@case("documents that no variant fits", "fits no document")
def _(place: Place) -> None:
    rows(TEST, *({"question": "Why?", "answer": f"#### {n}"} for n in range(3)))(place)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_changes_nothing(
    name: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = CASES[name]
    overrides = spoil(place) or []
    if name in VECTORS:
        overrides = ["stages=[evaluate]"]
    before = files(place.root)
    capsys.readouterr()
    status = main([*place.overrides, *overrides])
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert message in said, said
    assert status == 2
    assert files(place.root) == before


def test_the_sound_run_would_start_an_engine(place: Place) -> None:
    for task in ("gsm8k", "humaneval", "sciq", "bbh"):
        with pytest.raises(AssertionError, match="an engine was started"):
            main([*place.overrides, f"tasks=[{task}]"])
    with pytest.raises(AssertionError, match="an engine was started"):
        main([*place.overrides, *place.benchmark(max_gen_toks=64)])
