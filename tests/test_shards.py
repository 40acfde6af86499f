"""Shards of a cell: cut by documents, kept until the cell is joined, and joined into the record of an undivided cell."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.model import LM

from pipeline import shards, stages
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.evaluate.jobs import make_jobs
from pipeline.evaluate.joining import join, take
from pipeline.evaluate.narrow import spans
from pipeline.evaluate.progress import Progress
from pipeline.evaluate.runner import Runner
from pipeline.files import MARK
from pipeline.lock import held
from pipeline.plan.plan import Cell, Plan
from pipeline.records import cell_folder, read_record
from pipeline.shards import Shard, ShardRecord, read_shard, shard_folder, write_shard
from tests import synthetic

KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize("documents", [0, 1, 4, 5, 100, 1319])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_shards_are_contiguous_cover_every_document_once_and_differ_by_one_at_most(
    documents: int, count: int
) -> None:
    cut = [Shard(number, count).span(documents) for number in range(1, count + 1)]
    assert [document for span in cut for document in span] == list(range(documents))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (range(0, 9), [range(0, 2), range(0, 3), range(0, 4)]),
        (range(1, 6), [range(1, 2), range(0, 3), range(0, 1)]),
        (range(3, 4), [range(1, 0), range(1, 2), range(0, 0)]),
    ],
)
def test_a_span_of_documents_is_shared_out_among_the_subtasks(span: range, expected: list[range]) -> None:
    assert list(map(list, spans([2, 3, 4], span))) == list(map(list, expected))


# --- the store


def shard_record(shard: Shard, documents: int = 10) -> ShardRecord:
    samples: list[Any] = synthetic.samples([True, False] * (documents // 2), None)
    cost: Any = {"seconds": 1.0, "generated_tokens": 1, "prompt_tokens": 1, "requests": 1}
    provenance: Any = {
        "family": {"target": {"id": "x", "revision": None}},
        "engine": {"device": "cpu", "tensor_parallel_size": 1},
        "versions": {},
        "host": "here",
        "started": "2026-01-01T00:00:00+00:00",
        "command": "python -m pipeline",
        "git": None,
    }
    return ShardRecord(documents, cost, provenance, [samples[n] for n in shard.span(documents)])


def write(results: Path, *which: Shard, key: str = KEY) -> None:
    for shard in which:
        write_shard(results, key, shard, shard_record(shard))


def there(results: Path) -> list[str]:
    return sorted(path.name for path in (results / "shards").glob("*"))


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    shard = Shard(2, 3)
    assert read_shard(tmp_path, KEY, shard) is None
    write(tmp_path, shard)
    assert read_shard(tmp_path, KEY, shard) == shard_record(shard)


def test_finished_shards_of_cells_that_are_to_do_are_taken_over_and_others_removed(tmp_path: Path) -> None:
    other = "f" * 64
    write(tmp_path, Shard(1, 3), Shard(3, 3), Shard(1, 2))
    write(tmp_path, Shard(2, 2), key=other)
    assert shards.take_over(tmp_path, {KEY}) == {KEY: [Shard(1, 3), Shard(3, 3)]}, (
        "most of it is done in thirds"
    )
    assert there(tmp_path) == [f"{KEY}.1-of-3", f"{KEY}.3-of-3"]
    assert shards.take_over(tmp_path, set()) == {}
    shards.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["shard.json", "samples.jsonl"])
def test_a_damaged_shard_is_computed_again(file: str, tmp_path: Path) -> None:
    write(tmp_path, Shard(1, 2), Shard(2, 2))
    path = shard_folder(tmp_path, KEY, Shard(1, 2)) / file
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    assert shards.take_over(tmp_path, {KEY}) == {KEY: [Shard(2, 2)]}
    assert there(tmp_path) == [f"{KEY}.2-of-2"]


def test_a_shard_under_the_name_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path, Shard(1, 2))
    folder = shard_folder(tmp_path, KEY, Shard(1, 2))
    folder.rename(shard_folder(tmp_path, KEY, Shard(2, 2)))
    (tmp_path / "shards" / f"{KEY}.2-of-2" / MARK).write_text(f"{KEY}.2-of-2")
    assert shards.take_over(tmp_path, {KEY}) == {} and there(tmp_path) == []


def test_only_what_carries_our_mark_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    write(elsewhere, Shard(1, 2), Shard(2, 2))
    (results / "shards").mkdir(parents=True)
    (results / "shards" / f"{KEY}.1-of-2").symlink_to(shard_folder(elsewhere, KEY, Shard(1, 2)))
    (results / "shards" / f"{KEY}.2-of-2").mkdir()
    (results / "shards" / f"{KEY}.2-of-2" / "thesis").write_text("ten years")
    (results / "shards" / "notes").mkdir()
    write(results, Shard(1, 4))
    (shard_folder(results, KEY, Shard(1, 4)) / "thesis").write_text("ten years")
    before = there(results)
    assert shards.take_over(results, set()) == {}
    shards.remove(results, KEY)
    assert there(results) == before and there(elsewhere) == [f"{KEY}.1-of-2", f"{KEY}.2-of-2"]
    assert [path.name for path in shard_folder(results, KEY, Shard(1, 4)).iterdir()] == ["thesis"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "shards").symlink_to(elsewhere / "shards")
    assert shards.take_over(linked, {KEY}) == {} and len(there(elsewhere)) == 2


def test_half_a_shard_that_a_killed_worker_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "shards" / f".tmp-rv.{KEY}.1-of-2.ab12cd34").mkdir(parents=True)
    half = tmp_path / "shards" / f".tmp-rv.{KEY}.1-of-2.ab12cd34"
    (half / MARK).write_text(f"{KEY}.1-of-2")
    (half / "new").mkdir()
    (half / "new" / "samples.jsonl").write_text("half")
    with held(tmp_path, "next", lambda line: None):
        assert there(tmp_path) == []


# --- cells, through lm-eval and an engine's stand-in


class Echo(LM):
    """Answers each prompt by a digest of it, so that a wrong prompt, number or seed shows in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = SimpleNamespace(chat_template="x")
        self.reset()

    def reset(self) -> None:
        self.generations: dict[tuple[str, int], list[Any]] = {}
        self.generated_tokens = self.prompt_tokens = self.requests = 0

    @property
    def tokenizer_name(self) -> str:
        return "echo"

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool = True) -> str:
        return json.dumps(turns, ensure_ascii=False)

    def _count(self, request: Any, tokens: int) -> None:
        self.requests += 1
        self.prompt_tokens += len(request.args[0])
        self.generated_tokens += tokens

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        from pipeline.engine.lm import Generation  # vLLM, which other processes of the tests go without

        answers = []
        for request in requests:
            known = self.generations.setdefault((request.task_name, request.doc_id), [])
            number = int(digest_of(f"{request.args[0]} {request.doc_id} {len(known)}")[:6], 16)
            known.append(Generation(len(request.args[0]), number % 50, "stop" if number % 7 else "length"))
            self._count(request, number % 50)
            answers.append(f"The answer is {number % 20}. True" if number % 2 else f"{number % 20} False")
        return answers

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        for request in requests:
            self._count(request, 0)
        return [(-int(digest_of(" ".join(r.args))[:6], 16) / 1e6, False) for r in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        raise NotImplementedError


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Cells of four kinds: subtasks, scored options, several answers to a document, and examples drawn at random."""
    root = tmp_path_factory.mktemp("plan")
    config = compose(
        [
            "experiment=micro",
            "tasks=[gsm8k,sciq,bbh]",
            "conditions=[baseline]",
            "limit=11",
            f"results={root}",
            "benchmarks.gsm8k.samples=3",
            "benchmarks.gsm8k.temperature=0.7",
            "benchmarks.gsm8k.num_fewshot=2",
            "benchmarks.gsm8k.variants=[]",
            "benchmarks.sciq.variants=[]",
            "benchmarks.bbh.variants=[]",
        ]
    )
    return stages.prepare(config)


def at(plan: Plan, results: Path) -> Plan:
    """The plan with its records elsewhere."""
    config = replace(plan.config, results=str(results))
    return replace(plan, config=config)


def run(plan: Plan, cell: Cell, *parts: Shard | None) -> Runner:
    """Evaluate a cell, or shards of it."""
    runner = Runner(plan, lambda line: None)
    engine: Any = SimpleNamespace(lm=Echo(), arrange=lambda a: None, steer=lambda *a, **k: None)
    for part in parts:
        runner._run(engine, cell, part)
    return runner


@pytest.fixture(params=["gsm8k", "sciq", "bbh"])
def cell(request: pytest.FixtureRequest, plan: Plan) -> Iterator[Cell]:
    (found,) = [c for c in plan.unique() if c.benchmark.name == request.param]
    yield found


@pytest.mark.parametrize("count", [2, 5, 60])
def test_a_joined_record_is_that_of_an_undivided_cell(
    count: int, cell: Cell, plan: Plan, tmp_path: Path
) -> None:
    whole, cut = at(plan, tmp_path / "whole"), at(plan, tmp_path / "cut")
    run(whole, cell, None)
    for number in reversed(range(1, count + 1)):  # in any order, each by a worker of its own
        run(cut, cell, Shard(number, count))
    assert read_record(cut.results, cell.key) is None
    joined = join(cut, cell, count)
    expected, found = (read_record(p.results, cell.key) for p in (whole, cut))
    assert expected is not None and found is not None and joined is not None
    folders = [cell_folder(p.results, cell.key) for p in (whole, cut)]
    texts = [(folder / "samples.jsonl").read_bytes() for folder in folders]
    assert texts[0] == texts[1], "the same documents, examples, answers and scores, in the same order"
    assert (found.inputs, found.metrics) == (expected.inputs, expected.metrics)
    tokens = ("generated_tokens", "prompt_tokens", "requests")
    assert [found.cost[t] for t in tokens] == [expected.cost[t] for t in tokens]  # type: ignore[literal-required]
    named = found.provenance["shards"]
    assert [s["first"] for s in named] == [
        Shard(n, count).span(found.metrics["n"]).start for n in range(1, count + 1)
    ]
    assert sum(s["documents"] for s in named) == found.metrics["n"]
    assert "shards" not in expected.provenance and "notes" not in found.provenance
    assert there(cut.results) == [], "shards are removed with the join"


def test_a_record_in_bf16_says_that_its_documents_were_shared_out(plan: Plan, tmp_path: Path) -> None:
    cell = plan.unique()[0]
    bf16 = replace(
        at(plan, tmp_path),
        config=replace(
            plan.config, results=str(tmp_path), engine=replace(plan.config.engine, dtype="bfloat16")
        ),
    )
    run(bf16, cell, Shard(1, 2), Shard(2, 2))
    join(bf16, cell, 2)
    record = read_record(tmp_path, cell.key)
    assert record is not None
    (note,) = record.provenance["notes"]
    assert "in 2 shards; in bfloat16 an answer can move with the batch" in note


def test_the_next_run_does_what_is_left_in_the_same_cutting_whatever_its_workers(
    cell: Cell, plan: Plan, tmp_path: Path
) -> None:
    here = at(plan, tmp_path)
    run(here, cell, Shard(1, 4), Shard(3, 4))
    for workers in (1, 2, 8):
        jobs = make_jobs(here, [cell], workers)
        assert [job.shard for job in jobs.waiting] == [Shard(2, 4), Shard(4, 4)] and not jobs.whole
    assert not jobs.finished(jobs.waiting[0]) and jobs.finished(jobs.waiting[1])
    run(here, cell, Shard(2, 4), Shard(4, 4))
    jobs = make_jobs(here, [cell], 2)
    assert not jobs.waiting and jobs.whole == [cell], "killed before it joined them"
    assert join(here, cell, 4) is not None and join(here, cell, 4) is None


def test_a_cell_is_given_up_once_however_many_of_its_shards_are(
    cell: Cell, plan: Plan, tmp_path: Path
) -> None:
    here = at(plan, tmp_path)
    run(here, cell, Shard(1, 4))
    jobs = make_jobs(here, [cell], 2)
    progress = Progress(1, jobs.seconds(), lambda line: None)
    first, second, third = jobs.waiting
    jobs.give_up(first, progress)
    jobs.give_up(second, progress)
    take(here, jobs, third, None, 1.0, progress)
    assert (progress.skipped, progress.computed) == (1, 0), "not joined either"
    assert there(tmp_path) == [f"{cell.key}.1-of-4"], "what is finished is there for the next run"


def test_shards_that_were_left_behind_by_a_joined_cell_are_removed(plan: Plan, tmp_path: Path) -> None:
    here, cell = at(plan, tmp_path), plan.unique()[0]
    run(here, cell, None, Shard(1, 2))
    make_jobs(here, [], 2)
    assert there(tmp_path) == []


def test_a_folder_of_the_user_in_the_place_of_a_shard_is_named_and_stays(plan: Plan, tmp_path: Path) -> None:
    here, cell = at(plan, tmp_path), plan.unique()[0]
    folder = shard_folder(tmp_path, cell.key, Shard(2, 2))
    folder.mkdir(parents=True)
    (folder / "thesis").write_text("ten years")
    run(here, cell, Shard(1, 2), Shard(2, 2))
    with pytest.raises(UserError, match="2-of-2: expected a shard that a worker has written; remove it"):
        join(here, cell, 2)
    assert (folder / "thesis").read_text() == "ten years"


@pytest.mark.parametrize("joined", [False, True])
def test_the_first_documents_of_a_shard_can_be_asked_again_before_and_after_its_cell_is_joined(
    joined: bool, cell: Cell, plan: Plan, tmp_path: Path
) -> None:
    here, second = at(plan, tmp_path), Shard(2, 3)
    runner = run(here, cell, Shard(1, 3), second, Shard(3, 3))
    if joined:
        join(here, cell, 3)
    before = runner._recorded(cell, second)
    assert before is not None and runner.computed == [(cell, Shard(n, 3)) for n in (1, 2, 3)]
    engine: Any = SimpleNamespace(lm=Echo(), arrange=lambda a: None)
    assert runner._ask(engine, cell, second, most=3).samples == before[:3]
