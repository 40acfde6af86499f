"""Answers that are sampled: they repeat, none depends on the others, and a document's score is the mean of its answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from pipeline.config.compose import compose
from pipeline.config.schema import PromptConfig
from pipeline.errors import UserError
from pipeline.evaluate.answers import joined
from pipeline.evaluate.samples import summarise
from pipeline.evaluate.tasks import check_task, load_task, manager_of
from pipeline.manifest import read_manifest
from pipeline.plan.estimate import describe
from pipeline.plan.grid import columns, make_grid
from pipeline.plan.sources import find_sources
from pipeline.records import Record, Sample, read_record
from tests import warm

SAMPLING = {  # the same questions in three ways, and programs
    "many": ["samples=5", "temperature=1", "top_p=0.9", "limit=12", "max_gen_toks=96", "variants=[]"],
    "few": ["samples=2", "temperature=1", "top_p=0.9", "limit=3", "max_gen_toks=96", "variants=[]"],
    "greedy": ["limit=3", "max_gen_toks=96", "variants=[]"],
    "coded": ["samples=3", "temperature=1", "limit=6", "max_gen_toks=96", "variants=[]"],
}


def evaluated(root: Path, *overrides: str) -> dict[str, Record]:
    """The records of the benchmarks of SAMPLING, by their name, from one engine."""
    command = ["experiment=micro", "name=sampling", "stages=[evaluate]", "conditions=baseline"]
    for name, settings in SAMPLING.items():
        form = "humaneval" if name == "coded" else "gsm8k"
        command += [f"+benchmark@benchmarks.{name}={form}", f"benchmarks.{name}.label={name}"]
        command += [f"benchmarks.{name}.{setting}" for setting in settings]
    command += [f"tasks=[{','.join(SAMPLING)}]", f"results={root / 'results'}", f"tables={root / 'tables'}"]
    ran = warm.run("-m", "pipeline", *command, *overrides, engine=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = {}
    for cell in read_manifest(root / "results" / "runs" / "sampling.json").cells:
        record = read_record(root / "results", cell.key)
        assert record is not None
        found[cell.benchmark] = record
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    return evaluated(tmp_path_factory.mktemp("sampling"))


@pytest.mark.engine
def test_sampled_answers_repeat_in_another_process_with_another_batch(
    records: dict[str, Record], tmp_path: Path
) -> None:
    again = evaluated(tmp_path, "engine.max_num_seqs=3")
    assert {n: r.samples_sha256 for n, r in again.items()} == {
        n: r.samples_sha256 for n, r in records.items()
    }


@pytest.mark.engine
def test_a_sampled_answer_depends_neither_on_other_documents_nor_on_other_answers(
    records: dict[str, Record],
) -> None:
    few, many = (records[name].samples() for name in ("few", "many"))
    assert [s["answers"] for s in few] == [s["answers"][:2] for s in many[:3]]
    texts = [{answer["output"] for answer in sample["answers"]} for sample in many]
    assert max(map(len, texts)) > 1 and len(set.union(*texts)) > len(many)
    assert "answers" not in records["greedy"].samples()[0]


@pytest.mark.engine
@pytest.mark.parametrize("name", ["many", "few", "coded"])
def test_every_answer_is_kept_with_its_score_and_the_document_has_their_mean(
    name: str, records: dict[str, Record]
) -> None:
    record, k = records[name], int(SAMPLING[name][0].split("=")[1])
    samples, metrics = record.samples(), record.metrics
    right = [[answer["score"] for answer in sample["answers"]] for sample in samples]
    assert {len(scores) for scores in right} == {k}
    assert [s["score"] for s in samples] == pytest.approx([sum(scores) / k for scores in right])
    means = [sum(scores) / k for scores in right]
    assert metrics["score"] == metrics["values"][f"avg@{k}"] == pytest.approx(sum(means) / len(means))
    assert metrics["values"][f"pass@{k}"] == pytest.approx(sum(map(max, right)) / len(right))
    assert metrics["n"] == len(samples) and record.cost["requests"] == k * len(samples)
    lengths = [answer["tokens"] for sample in samples for answer in sample["answers"]]
    assert record.cost["generated_tokens"] == sum(lengths)
    assert metrics["mean_tokens"] == pytest.approx(sum(lengths) / len(lengths))
    for sample in samples:
        for answer in sample["answers"]:
            if name == "coded":
                assert answer["score"] == (answer["extracted"]["create_test"] == "passed")
            else:
                assert answer["score"] == (
                    answer["extracted"]["flexible-extract"] == sample["target"].split("#### ")[1]
                )


def test_every_sampled_request_has_a_seed_of_its_own_that_repeats() -> None:
    from pipeline.engine.lm import seeded

    def seeds(seed: int, *asked: tuple[str, int, dict[str, Any]]) -> list[int | None]:
        requests = [Instance("generate_until", {}, ("?", o), 0, (task, doc, 1)) for task, doc, o in asked]
        return [request.args[1].get("seed") for request in seeded(requests, seed)]

    sampled, greedy = {"do_sample": True, "temperature": 0.6}, {"do_sample": False}
    asked = [("a", 0, sampled), ("a", 0, sampled), ("a", 1, sampled), ("b", 0, sampled)]
    first = seeds(0, *asked)
    assert len(set(first)) == 4 and seeds(0, *asked) == first and not set(first) & set(seeds(1, *asked))
    assert all(seed is not None and 0 <= seed < 2**63 for seed in first)
    assert seeds(0, asked[3], asked[0], asked[2], asked[1]) == [first[3], first[0], first[2], first[1]]
    assert seeds(0, ("a", 0, greedy), ("a", 0, sampled)) == [None, first[0]]
    assert sampled == {"do_sample": True, "temperature": 0.6}


def answer(score: float, tokens: int, finish: str = "stop", text: str = "7") -> Sample:
    return Sample(
        doc_id=0, subtask=None, source_doc=0, prompt="?", target="7", output=f"It is {text}.",
        extracted={"flexible-extract": text}, scores={"exact_match,flexible-extract": score, "other,x": 1.0},
        score=score, prompt_tokens=3, tokens=tokens, finish=finish,
    )  # fmt: skip


def test_answers_are_joined_to_their_mean_and_best_and_shares_are_of_answers() -> None:
    mixed = joined([answer(0.0, 4, text="8"), answer(1.0, 8), answer(0.0, 9, "length", "[invalid]")])
    assert mixed["scores"] == {
        "exact_match,flexible-extract": pytest.approx(1 / 3),
        "other,x": 1.0,
        "avg@3": pytest.approx(1 / 3),
        "pass@3": 1.0,
    }
    assert (mixed["score"], mixed["tokens"], mixed["output"]) == (pytest.approx(1 / 3), 7.0, "It is 8.")
    assert [a["finish"] for a in mixed["answers"]] == ["stop", "stop", "length"]
    wrong = joined([answer(0.0, 1), answer(0.0, 1), answer(0.0, 1)])
    metrics = summarise([mixed, wrong], "exact_match,flexible-extract")
    assert (metrics["n"], metrics["score"]) == (2, pytest.approx(1 / 6))
    assert (metrics["values"]["avg@3"], metrics["values"]["pass@3"]) == (pytest.approx(1 / 6), 0.5)
    assert metrics["share_truncated"] == metrics["share_not_extracted"] == pytest.approx(1 / 6)
    assert metrics["mean_tokens"] == pytest.approx(4.0)
    assert metrics["stderr"] == pytest.approx(1 / 6)  # over documents


def loaded(tmp_path: Path, *overrides: str) -> Any:
    """The lm-eval task of the chosen benchmark, on documents of its own."""
    (tmp_path / "gsm8k").mkdir()
    row = {"question": "Tom has 2 nuts and buys 3 more. How many has he?", "answer": "<<2+3=5>>5\n#### 5"}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "sciq").mkdir()
    options = {"correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"}
    (tmp_path / "sciq" / "test.json").write_text(json.dumps([{"question": "?", "support": ""} | options]))
    config = compose(
        ["experiment=micro", "data.generator=null", f"data.folder={tmp_path}", "tasks=[gsm8k]", *overrides]
    )
    task = find_sources(config).benchmark(columns(config)[0])
    made = load_task(manager_of([task]), task, None, PromptConfig())
    check_task(made, task)
    return made


def test_a_benchmark_that_samples_says_so_to_lm_eval(tmp_path: Path) -> None:
    chosen = ["samples=8", "temperature=0.6", "top_p=0.95", "max_gen_toks=99"]
    made = loaded(tmp_path, *(f"benchmarks.gsm8k.{setting}" for setting in chosen))
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_gen_toks": 99}
    assert said.items() <= made.config.generation_kwargs.items() and made.config.repeats == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=[sciq]", "benchmarks.sciq.temperature=0.6"], "temperature: 'sciq' scores options"),
        (
            ["+benchmarks.gsm8k.changes.generation_kwargs={do_sample: true, temperature: 0.7}"],
            "'gsm8k' samples; set benchmarks.gsm8k.temperature, or do_sample: false",
        ),
        (
            [
                "benchmarks.gsm8k.temperature=0.6",
                "+benchmarks.gsm8k.changes.generation_kwargs={do_sample: true, top_k: 20}",
            ],
            "temperature: 'gsm8k' also sets 'top_k', of which a benchmark says nothing",
        ),
        (
            [
                "benchmarks.gsm8k.temperature=0.6",
                "benchmarks.gsm8k.metric='exact_match,vote'",
                "benchmarks.gsm8k.also=[]",
                "+benchmarks.gsm8k.changes.filter_list=[{name: vote, filter: [{function: majority_vote}]}]",
            ],
            "has the filter 'majority_vote', which makes one answer of several",
        ),
    ],
)
def test_sampling_that_a_benchmark_does_not_declare_or_cannot_have_is_one_line(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, *overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_estimate_counts_every_answer() -> None:
    overrides = ["experiment=micro", "engine.device=gpu", "tasks=[gsm8k]", "conditions=baseline"]
    overrides += ["benchmarks.gsm8k.variants=[]", "benchmarks.gsm8k.dataset.documents=90"]
    overrides += ["families.micro.tokens_per_second=10", "benchmarks.gsm8k.max_gen_toks=160"]

    def estimate(*further: str) -> str:
        config = compose([*overrides, *further])
        return describe(config, make_grid(config), {})

    assert "90 documents to answer\n" in estimate() and f"{90 * 160:,} tokens" in estimate()
    sampled = estimate("benchmarks.gsm8k.samples=8", "benchmarks.gsm8k.temperature=0.6")
    assert "90 documents to answer, 720 answers\n" in sampled and f"{720 * 160:,} tokens" in sampled
