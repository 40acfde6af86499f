"""The configuration: what is there composes, and what is not declared is refused by name."""

import dataclasses
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import pytest

from evals import micro
from pipeline.config.compose import changed, compose
from pipeline.config.explain import CONF
from pipeline.config.schema import CheckpointConfig, PartConfig
from pipeline.errors import UserError

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
ONE_SUITE = ("micro_seeds", "authors")  # a condition of theirs names a benchmark
NEEDS = {"model": ["families.model.target.id=some/folder"]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    config = compose([f"experiment={name}", *NEEDS.get(name, [])])
    assert config.name == name
    assert config.families and config.benchmarks and config.conditions


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_begins_with_the_command_that_runs_it(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#") and not line.startswith("# @package")]
    assert f"python -m pipeline experiment={name}" in comments[0]


@pytest.mark.parametrize(
    "group", ["family", "benchmark", "suite", "conditions", "engine", "tracking", "prompts"]
)
def test_every_option_says_what_it_is(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        comments = [
            line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line
        ]
        assert comments, path


def numbers(node: Any, path: str = "") -> Iterator[str]:
    """The keys of a configuration that take one number; of a group with names, those of its first entry."""
    kinds = get_type_hints(type(node))
    for name in (f.name for f in dataclasses.fields(node)):
        value, key = getattr(node, name), f"{path}{name}"
        options = get_args(kinds[name]) if isinstance(kinds[name], UnionType) else [kinds[name]]
        if {int, float} & set(options):
            yield key
        elif isinstance(value, dict) and value:
            first, inner = next(iter(value.items()))
            yield from numbers(inner, f"{key}.{first}.") if dataclasses.is_dataclass(inner) else ()
        elif dataclasses.is_dataclass(value):
            yield from numbers(value, f"{key}.")


def test_no_number_of_the_configuration_may_be_negative() -> None:
    """α alone may, and it is a list."""
    keys = list(numbers(compose(["experiment=micro"])))
    assert {"limit", "engine.threads", "benchmarks.gsm8k.chance", "families.micro.target.size_gb"} <= set(
        keys
    )
    for key in keys:
        with pytest.raises(UserError) as refused:
            compose(["experiment=micro", f"{key}=-1"])
        assert str(refused.value).startswith(f"{key}: expected ") and "found -1" in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=micr"], "experiment=micr: no such option; did you mean 'micro'?"),
        (["engine=gpuu"], "did you mean 'gpu'?"),
        (["suite=papr"], "did you mean 'paper'?"),
        (["enginee.dtype=float16"], "unknown configuration key 'enginee'; did you mean 'engine'?"),
        (["engine.dtyp=float16"], "unknown configuration key 'engine.dtyp'; did you mean 'dtype'?"),
        (["benchmarks.gsm8k.limt=3"], "'benchmarks.gsm8k.limt'; did you mean 'limit'?"),
        (["families.micro.target.idd=x"], "'families.micro.target.idd'; did you mean 'id'?"),
        (["conditions.vector.alfa=1"], "'conditions.vector.alfa'; did you mean 'alpha'?"),
        (["+foo=1"], "unknown configuration key 'foo'"),
        (["+engine.foo=1"], "unknown configuration key 'engine.foo'"),
        (["alpha=abc"], "alpha[0]: Value 'abc'"),
        (["alpha=[1,x]"], "alpha[1]: Value 'x'"),
        (["alpha=[inf]"], "alpha: expected a finite number"),
        (["alpha=1e39"], "alpha: expected a finite number"),
        (["conditions.vector.alpha=null"], "nothing is added to the target, and 'baseline' is that already"),
        (["conditions.vector.alpha=true"], "expected a finite number, or a list of them, found True"),
        (["conditions.vector.alpha=[1,x]"], "expected a finite number, or a list of them, found 'x'"),
        (["conditions.vector.alpha={a:1}"], "expected a finite number, or a list of them, found {'a': 1}"),
        (["conditions.baseline.seeds=[1]"], "part and seeds say what α is multiplied with"),
        (["conditions.random.seeds=[]"], "expected a seed for each random vector, found none"),
        (["conditions.random.seeds=[-1]"], "expected whole numbers from 0"),
        (["conditions.alpha.alpha=null"], "conditions.alpha.role: a sweep runs along its alpha"),
        (["conditions.vector.start=vectr"], "Invalid value 'vectr'"),
        (["conditions.vector.weights=vector"], "is of an earlier version; write start"),
        (["conditions.vector.variant.trim=0.1"], "is of an earlier version; write part"),
        (["+conditions.vector.plus={micro:1}"], "is of an earlier version; write terms"),
        (["conditions.baseline.part.trim=0.1"], "part and seeds say what α is multiplied with"),
        (["conditions.vector.part.trim=1.5"], "expected the share of entries to keep"),
        (["conditions.vector.part.layers=[1]"], "expected the first and the last layer"),
        (["conditions.vector.part.layers=[2,1]"], "expected the first and the last layer"),
        (["prompts.think.prefix=null"], "prompts.think.prefix: expected a value, found null; set one"),
        (["alpha=[0.5,null]"], "alpha[1]: expected a number, found None"),
        (["tasks=[null]"], "tasks[0]: expected text, found None"),
        (["conditions.vector.terms=[{alpha:1}]"], "alpha, part and seeds are the short form of one term"),
        (["+conditions.sum={label:S,terms:[{alpha:1,family:othr}]}"], "'othr' is no family of this run"),
        (
            ["+conditions.sum={label:S,terms:[{family:micro}]}"],
            "conditions.sum.terms[0].alpha: a value is required",
        ),
        (["conditions.vector=null"], "conditions.vector: expected a value, found null"),
        (["families.micro.base=null", "families.micro.base.id=x"], "a key below a value that is null"),
        (["conditions.vector.prompt=thnk"], "'thnk' is unknown; did you mean 'think'?"),
        (["families=[]"], "nothing to run: families is empty"),
        (["sizes=[micro]"], "'sizes' is of an earlier version; write families=[…]"),
        (["conditions=[]"], "nothing to run: conditions is empty"),
        (["conditions=[vectr]"], "conditions: 'vectr' is unknown; did you mean 'vector'?"),
        (["tasks=[]"], "nothing to run: tasks is empty"),
        (["families=[2b]"], "families: '2b' is unknown; known: micro"),
        (["families=2b"], "families: '2b' is unknown; known: micro"),
        (["tasks=[gsm]"], "tasks: 'gsm' is unknown; did you mean 'gsm8k'?"),
        (["conditions.alpha.benchmarks=[sciqq]"], "did you mean 'sciq'?"),
        (["sweep.benchmarks=[sciq]"], "is of an earlier version; write conditions.alpha"),
        (["engine.threads=100000"], "engine.threads: expected at most 1024"),
        (["engine.max_num_seqs=1000000000"], "engine.max_num_seqs: expected at most"),
        (["engine.seed=-1"], "engine.seed: expected 0 or more"),
        (["engine.seed=4294967296"], "engine.seed: expected at most 4294967295"),  # numpy's
        (["conditions.vector.benchmarks=[]"], "conditions.vector.benchmarks: expected at least one"),
        (
            ["conditions.vector.benchmarks=[gsm8k,gsm8k]"],
            "conditions.vector.benchmarks: 'gsm8k' is listed twice",
        ),
        (["limit=99999999999999999999"], "limit: "),
        ([f"name={'n' * 300}"], "name: expected up to 100 letters"),
        (["families.micro.label='a\nb'"], "families.micro.label: expected text on one line"),
        (["families.micro.group='a\nb'"], "families.micro.group: expected text on one line"),
        (["tables=README.md"], "tables=README.md: expected a folder, found a file"),
        (["results=README.md/new/x"], "README.md/new/x: expected a folder, found the file "),
        (["stages=[extrct]"], "Invalid value 'extrct'"),
        (["stages=[]"], "stages: expected at least one"),
        (["limit=0"], "limit: expected a positive number"),
        (["benchmarks.gsm8k.limit=-1"], "benchmarks.gsm8k.limit: expected a positive number"),
        (["engine.device=tpu"], "engine.device: Invalid value 'tpu', expected one of [cpu, gpu]"),
        (["experiment=model"], "families.model.target.id: a value is required"),
        (["name=../../evil"], "name: expected up to 100 letters"),
        (["results="], "results: expected a folder"),
        (["engine.dtype=float33"], "engine.dtype: expected one of"),
        (["engine.max_model_len=1"], "engine.max_model_len: expected 16 or more"),
        (["benchmarks.gsm8k.max_gen_toks=0"], "benchmarks.gsm8k.max_gen_toks: expected a positive number"),
        (["benchmarks.gsm8k.num_fewshot=-1"], "num_fewshot: expected 0 or more"),
        (["no equals sign"], "override not understood"),
        (["limit=1", "limit=3 alpha=[1]"], "(expected key=value): 'limit=3 alpha=[1]': mismatched input"),
        # what Hydra says in its own words, which do not help
        (["suite.x=1"], "'suite' is a group; choose one of its options: suite=authors|extended|math|"),
        (["suite="], "suite: an option is required; set it to one of authors, extended, math"),
        (["engine=null"], "engine: an option is required; set it to one of cpu, gpu"),
        (["+suite=micro"], "is in the composition already; write suite=micro without '+'"),
        (["benchmark=gsm8k"], "name it: benchmark@benchmarks.bbh=gsm8k; to run some"),
        (["family=micro"], "name it: family@families.micro=micro"),
        (["conditions=vector"], "rows are chosen in brackets: conditions=[vector]"),
        (["experiment=micro,paper"], "experiment=micro,paper: expected one value"),
        (["tasks@x=gsm8k"], "'tasks' is a key, no group"),
        (["tasks={a:1}"], "tasks: expected a list, found {a:1}"),
        (["+tasks=gsm8k"], "tasks: expected a list, found gsm8k; write it in brackets: tasks=[gsm8k]"),
        (["conditions.random.seeds=3"], "write it in brackets: conditions.random.seeds=[3]"),
        (
            ["conditions.vector.part=mlp"],
            "expected keys of its own (modules, layers, trim, dare, seed), found mlp",
        ),
        (["+conditions.v={label:V,terms:[{alpha:1,prt:{}}]}"], "'prt'; did you mean 'part'?"),
        (["+families.second=micro"], "found micro; write +family@families.second=micro"),
        (["conditions.v.label=V"], "'conditions.v'; to add an entry, write +conditions.v.label=V"),
        (["hydra.searchpath=conf"], "expected a list; write hydra.searchpath=[conf]"),
        (["benchmark='a\nb'"], "name it: benchmark@benchmarks.bbh='a b'"),
        (["+preset=[{a: b}]"], "override not understood: can only concatenate"),
        (["+hydra.searchpath=[conf]"], "write hydra.searchpath=[FOLDER], without '+'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_override_away(tmp_path: Path) -> None:
    config = compose(
        ["families=micro", "alpha=[-1,0,1]", "tasks=gsm8k", "conditions=[baseline,vector]", "limit=5"]
    )
    assert list(config.chosen_families()) == ["micro"] and list(config.chosen_benchmarks()) == ["gsm8k"]
    assert list(config.chosen_conditions()) == ["baseline", "vector"]
    assert (list(config.alpha), config.limit) == ([-1.0, 0.0, 1.0], 5)
    assert list(compose(["alpha=0.5"]).alpha) == [0.5]


def test_an_entry_is_added_key_by_key() -> None:
    keys = [
        "label=Second",
        "target.id=models/micro/target",
        "sft.id=models/micro/sft",
        "grpo.id=models/micro/grpo",
    ]
    config = compose([f"+families.second.{key}" for key in keys])
    assert config.families["second"].target.id == "models/micro/target"
    assert list(config.families) == ["micro", "second"]
    masked = compose(
        ["+conditions.masked.label=M", "+conditions.masked.alpha=1", "+conditions.masked.part.trim=0.5"]
    )
    assert masked.conditions["masked"].part == PartConfig(trim=0.5)


def test_options_of_ones_own_folder_appear_in_errors(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "mine.yaml").write_text("")
    with pytest.raises(UserError, match="suite=min: no such option; did you mean 'mine'"):
        compose(["suite=min", f"hydra.searchpath=[{tmp_path}]"])


def test_a_pipe_among_ones_own_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    os.mkfifo(tmp_path / "experiment" / "pipe.yaml")
    with pytest.raises(UserError, match="pipe.yaml: expected a file, found a pipe or device"):
        compose(["experiment=pipe", f"hydra.searchpath=[{tmp_path}]"])


def test_a_composed_configuration_does_not_change() -> None:
    config = compose(["experiment=micro"])
    for change in (
        lambda: setattr(config, "name", "other"),
        lambda: setattr(config.engine, "seed", 1),
        lambda: setattr(config.conditions["vector"].part or config.data, "seed", 1),
        lambda: config.families.pop("micro"),
        lambda: config.benchmarks["gsm8k"].dataset.files.update(test="x"),
        lambda: config.stages.append("x"),
    ):
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            change()
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own: workers of a cluster get it so
    other = changed(config, name="other")
    assert (other.name, config.name) == ("other", "micro") and other.families is config.families


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ONE_SUITE])
@pytest.mark.parametrize("suite", sorted(path.stem for path in (CONF / "suite").glob("*.yaml")))
def test_a_suite_has_the_same_benchmarks_and_documents_in_every_experiment(
    suite: str, experiment: str
) -> None:
    config = compose([f"experiment={experiment}", f"suite={suite}", *NEEDS.get(experiment, [])])
    alone = compose(["experiment=model", f"suite={suite}", *NEEDS["model"]])
    assert config.benchmarks == alone.benchmarks
    assert config.data.generator == ("micro" if suite == "micro" else None)
    published = [b.published for b in config.benchmarks.values() if b.published]
    assert sorted(published) == (
        [] if suite in ("micro", "math", "authors") else ["BBH", "GSM8K", "HumanEval", "SciQ"]
    )


def test_overlap_was_checked_against_every_document_that_the_seeds_are_asked() -> None:
    assert compose(["experiment=micro_seeds"]).data.sizes == micro.TEST_SIZES
    assert all(micro.SIZES[name] <= size for name, size in micro.TEST_SIZES.items())


@pytest.mark.parametrize(
    "form", ["conditions.vector.part.modules=[mlp]", "conditions.vector.part={modules:[mlp]}"]
)
def test_a_part_of_the_vector_can_be_given_on_the_command_line(form: str) -> None:
    conditions = compose(["experiment=micro", form]).conditions
    part = conditions["vector"].part
    assert part is not None and list(part.modules or ()) == ["mlp"]
    assert conditions["vector_think"].part is None, "the whole vector where nothing is said"


def test_another_id_leaves_the_revision_of_the_configured_one_behind() -> None:
    def target(*overrides: str) -> CheckpointConfig:
        return compose(["experiment=paper", *overrides]).families["qwen1_5b"].target

    assert None not in (target().revision, target().size_gb)
    other = "families.qwen1_5b.target.id=me/other"
    assert target(other) == CheckpointConfig("me/other")
    assert target(other, "families.qwen1_5b.target.revision=v2").revision == "v2"
    dataset = (
        compose(["experiment=paper", "benchmarks.gsm8k.dataset.id=me/gsm8k"]).benchmarks["gsm8k"].dataset
    )
    assert (dataset.id, dataset.revision) == ("me/gsm8k", None)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: &a [*a]\n", "mine.yaml: an alias stands for what it is in"),
        (f"name: {'[' * 3000}{']' * 3000}\n", "mine.yaml: nested"),
        (BOMB, "mine.yaml: its aliases stand for 1"),
        ("defaults: [{/experiment: mine}]\n", "nested too deep, or refers to itself"),
        ("name: [\n", "mine.yaml: cannot be read as YAML"),
    ],
)
def test_a_file_that_stands_for_too_much_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
    with pytest.raises(UserError) as caught:
        compose(["experiment=mine", f"hydra.searchpath=[{tmp_path}]"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["conditions.mlp.part.modules=[q_proj]"], "+Vector (MLP) [part.modules=[q_proj]]"),
        (
            ["conditions.mlp.part={modules: [mlp],  layers: [0, 1]}"],
            "+Vector (MLP) [part={modules: [mlp], layers: [0, 1]}]",
        ),
        (
            ["conditions.mlp.part.trim=0.1", "conditions.mlp.alpha=2"],
            "+Vector (MLP) [part.trim=0.1, alpha=2]",
        ),
        (["conditions.mlp.part.modules=[q_proj]", "conditions.mlp.label=queries"], "queries"),
        (["conditions.mlp.prompt=think", "conditions.attention.alpha=2"], "+Vector (MLP)"),
    ],
)
def test_a_row_that_an_override_makes_another_says_so_in_its_label(overrides: list[str], label: str) -> None:
    config = compose(["experiment=micro", "conditions=parts", *overrides])
    assert config.conditions["mlp"].label == label
    assert config.conditions["alpha_mlp"].label == "MLP, α"


def test_a_mistake_under_a_debugger_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """OmegaConf then raises errors from themselves."""
    monkeypatch.setenv("OC_CAUSE", "1")
    with pytest.raises(UserError) as refused:
        compose(["+conditions.sft.order=gsm8k"])
    assert "\n" not in str(refused.value) and "gsm8k" in str(refused.value)
