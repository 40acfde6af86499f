"""An engine that was steered back answers as its record says, or the run ends with one line and status 2."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.schema import Config, EngineConfig
from pipeline.evaluate import runner
from pipeline.evaluate.again import AnswersMoved, check_answers
from pipeline.files import ROOT
from tests import synthetic
from tests.processes import Run, command, finished

EXACT = (EngineConfig(), EngineConfig(dtype="bfloat16", batch_invariant=True))


def samples(**changes: Any) -> list[Any]:
    """Eight samples, the fourth of which is changed."""
    made: list[Any] = synthetic.samples([True] * 8, {})
    made[3] |= changes
    return made


@pytest.mark.parametrize("engine", EXACT, ids=["float32", "batch invariant"])
@pytest.mark.parametrize(
    "change",
    [{"output": "5"}, {"finish": "length"}, {"tokens": 3}, {"prompt": "?"}, {"loglikelihoods": [0.0, -0.01]}],
)
def test_one_answer_that_moved_is_refused_where_none_may(
    change: dict[str, Any], engine: EngineConfig
) -> None:
    before = samples(loglikelihoods=[0.0, -0.02])
    with pytest.raises(AnswersMoved) as refused:
        check_answers(
            "micro · Baseline · gsm8k",
            before,
            samples(loglikelihoods=[0.0, -0.02])[:3] + [before[3] | change],
            engine,
            9,
        )
    line = str(refused.value)
    assert "1 of 4 documents" in line and "(document 3)" in line and "9 cells" in line and "\n" not in line


def test_the_same_answers_pass_whether_all_or_some_were_asked_again() -> None:
    before = samples(loglikelihoods=[0.0, -0.02])
    for asked in (8, 4, 1):
        check_answers("cell", before, samples(loglikelihoods=[0.0, -0.0203])[:asked], EXACT[0], 9)


def test_in_bf16_half_of_the_answers_may_move_with_the_batch() -> None:
    before, after = samples(), samples()
    for sample in after[:4]:
        sample["output"] = "another"
    check_answers("cell", before, after, EngineConfig(dtype="bfloat16"), 9)
    after[4]["output"] = "another"
    with pytest.raises(AnswersMoved, match="5 of 8 documents"):
        check_answers("cell", before, after, EngineConfig(dtype="bfloat16"), 9)


STAYS = """
import sys
from pipeline import __main__
from pipeline.engine.engine import Engine
steer, seen = Engine.steer, []
def sometimes(self, target, terms=(), **options):
    if (target, terms) not in seen:  # the way back is not taken
        seen.append((target, terms))
        steer(self, target, terms, **options)
Engine.steer = sometimes
if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("sound", [True, False], ids=["steered back", "not steered back"])
def test_an_engine_that_cannot_be_steered_back_fails_the_run(
    tmp_path: Path, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a script looks beside itself
    (tmp_path / "stays.py").write_text("" if sound else STAYS)
    arguments = command(
        tmp_path, "tasks=[gsm8k]", "conditions=sweep", "alpha=[1]", "stages=[extract,evaluate]"
    )
    script = [sys.executable, "-m", "pipeline"] if sound else [sys.executable, str(tmp_path / "stays.py")]
    run = Run(tmp_path, arguments=[*script, *arguments[3:]])
    assert run.ends() == (0 if sound else 2), run.output()[-3000:]
    last = run.output().rstrip().splitlines()[-1]
    assert last.startswith("done in") if sound else "documents differently than in the record" in last
    assert len(finished(tmp_path)) >= 2


@pytest.mark.parametrize("ended", [False, True])
def test_an_engine_is_asked_again_before_another_takes_its_place(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a cluster goes from one target to the next whenever there is more to do there."""
    happened: list[str] = []
    target = SimpleNamespace(source="b", path=Path("b"))
    other: Any = SimpleNamespace(
        architecture="b", target=target, engine=lambda config: config, config=SimpleNamespace(template=None)
    )

    class Stands:
        def __init__(self, *_: Any) -> None:
            happened.append("started")

        def ended(self) -> bool:
            return ended

        def gpu(self) -> None: ...

        def close(self) -> None:
            happened.append("closed")

    monkeypatch.setattr(runner, "Engine", Stands)
    monkeypatch.setattr(runner.Runner, "check_again", lambda self: happened.append("asked again"))
    holds = runner.Runner(SimpleNamespace(config=Config()), lambda line: None)  # type: ignore[arg-type]
    holds._engine(other)
    other.architecture = "c"
    holds._engine(other)
    again = [] if ended else ["asked again"]
    assert happened == ["started", *again, "closed", "started"]
