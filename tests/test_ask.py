"""Questions to a live model: which rows are asked, how answers are shown, and what is refused before an engine starts."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.ask.choice import choose
from pipeline.ask.columns import plain, side_by_side
from pipeline.ask.desk import Desk
from pipeline.ask.session import Answer, Session
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.evaluate import runner
from pipeline.files import ROOT
from tests import warm
from tests.processes import Run

HUGO = "Question: Hugo has 29 balls. Omar has 34 more balls than Hugo. How many balls do they have together?\nAnswer:"

# which rows


def test_rows_are_asked_in_the_order_of_their_arguments() -> None:
    _, rows = choose(
        compose(["experiment=micro"]),
        alpha=[1, -1, 0],
        conditions=["grpo", "alpha=0.5", "random-s1", "baseline_think"],
        terms=[{"alpha": 0.5, "part": {"modules": ["mlp"]}}, {"alpha": 2, "seed": 3}],
    )
    assert [row.label for row in rows] == [
        *("α = −1", "α = 0", "α = 1", "GRPO donor", "α = 0.5"),
        *("+Random (seed 1)", "Baseline+Think", "terms"),
    ]
    assert [term.alpha for term in rows[-1].terms] == [0.5, 2.0]
    assert rows[-1].terms[0].part is not None and rows[-1].terms[0].part.modules == ("mlp",)
    assert (rows[-1].terms[1].part, rows[-1].terms[1].seed) == (None, 3)


def test_a_condition_stands_for_all_of_its_rows() -> None:
    config = compose(["experiment=micro", "conditions.random.seeds=[3,5]"])
    assert [row.name for row in choose(config, conditions=["random"])[1]] == ["random-s3", "random-s5"]


def test_without_rows_those_of_the_configuration_are_asked_or_the_target_and_the_vector() -> None:
    _, rows = choose(compose(["experiment=micro", "conditions=[vector_think,sft]"]))
    assert [row.name for row in rows] == ["vector_think", "sft"]
    _, rows = choose(compose(["experiment=micro"]))
    assert [row.added() for row in rows][0] == () and rows[1].terms[0].alpha == 1.0


def test_only_the_family_that_is_asked_is_opened() -> None:
    config, _ = choose(compose(["experiment=micro_seeds"]), family="seed3", alpha=[1])
    assert list(config.opened_families()) == ["seed3"]


# what is refused


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must end with one line and status 2, and nothing written; returns the line."""

    def no_engine(*_: Any) -> None:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(runner, "Engine", no_engine)

    def run(*arguments: str) -> str:
        results = tmp_path / "results"
        assert main([*arguments[:1], "experiment=micro", f"results={results}", *arguments[1:]]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and not results.exists()
        return said.err

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ask"], "expected one of prompt=…, task=… and --chat, found none"),
        (["ask", "prompt=a", "task=gsm8k"], "found prompt, task"),
        (["ask", "prompt=a", "document=1"], "add task=NAME"),
        (["ask", "prompt= "], "prompt: expected a text, found none"),
        (["ask", "prompt=a", "alpha=[0,x]"], "alpha=x: expected a number"),
        (["ask", "prompt=a", "alpha=nan"], "expected a finite number, or a list of them, found nan"),
        (["ask", "prompt=a", "alpha=1e39"], "expected a finite number, or a list of them, found 1e+39"),
        (["ask", "prompt=a", "condition=vectr"], "condition=vectr: no such row; did you mean 'vector'?"),
        (["ask", "prompt=a", "family=micr"], "family=micr: no such family; did you mean 'micro'?"),
        (["ask", "prompt=a", "terms=[1]"], "terms=[1]: expected a list such as"),
        (["ask", "prompt=a", "terms=[{"], "terms=[{: expected a list such as"),
        (["ask", "prompt=a", "terms=[{alph: 1}]"], "Key 'alph' not in 'TermConfig'"),
        (["ask", "prompt=a", "terms=[{seed: 1}]"], "a term has alpha"),
        (["ask", "prompt=a", "terms=[{alpha: 1, family: other}]"], "'other' is no family of this run"),
        (["ask", "prompt=a", "temperature=-1"], "temperature=-1.0: expected 0, or from 0.01 to 100"),
        (["ask", "prompt=a", "temperature=nan"], "temperature=nan: expected 0, or from 0.01 to 100"),
        (["ask", "prompt=a", "top_p=0"], "top_p=0.0: expected a share above 0"),
        (["ask", "prompt=a", "max_tokens=0"], "max_tokens=0: expected a number from 1"),
        (["ask", "prompt=a", "seed=-1"], "seed=-1: expected a number from 0"),
        (["ask", "prompt=a", "seed=x"], "seed=x: expected a whole number"),
        (["ask", "prompt=a", "samples=2"], "greedy answers are all the same; set temperature too"),
        (["ask", "--chat", "samples=2", "temperature=1"], "a conversation goes on from one answer"),
        (["ask", "chat=maybe"], "chat=maybe: expected true or false"),
        (["ask", "task=gsm"], "task=gsm: no such task; did you mean 'gsm8k'?"),
        (["ask", "task=gsm8k", "document=x"], "document=x: expected a whole number"),
        (["ask", "promt=a"], "promt"),
        (["playground", "port=x"], "port=x: expected a whole number"),
        (["playground", "port=70000"], "port=70000: expected a number from 0"),
        (["playground", "family=x"], "family=x: no such family"),
        (["playground", "condition=x"], "condition=x: no such row"),
    ],
)
def test_a_mistake_is_one_line_and_starts_no_engine(
    refused: Callable[..., str], arguments: list[str], line: str
) -> None:
    assert line in refused(*arguments)


@pytest.mark.parametrize(
    ("overrides", "arguments", "line"),
    [
        (["families.micro.sft.id=''"], {"alpha": [1]}, "families.micro.sft.id"),
        (["families.micro.grpo.id=nowhere"], {"conditions": ["grpo"]}, "nowhere"),
        (["engine.max_model_len=100000"], {"alpha": [0]}, "engine.max_model_len=100000"),
    ],
)
def test_what_a_model_lacks_is_told_before_an_engine_starts(
    tmp_path: Path, overrides: list[str], arguments: dict[str, Any], line: str
) -> None:
    config = compose(["experiment=micro", f"results={tmp_path}", "families.micro.base.id=''", *overrides])
    with pytest.raises(UserError, match=line):
        Session(config, **arguments)


# how answers are shown


def answer(label: str, text: str, **facts: Any) -> Answer:
    return Answer("row", label, "prompt", text, **({"tokens": 3, "finish": "stop"} | facts))


def test_answers_stand_side_by_side_in_columns_of_one_width() -> None:
    shown = side_by_side([answer("one", "a\n\nb"), answer("two", "word " * 20, score=1.0)], 70)
    lines = shown.split("\n")
    assert lines[0].split() == ["one", "│", "two"]
    assert {line.index("│") for line in lines if "│" in line} == {lines[0].index("│")}
    assert max(map(len, lines)) <= 70 and shown.count("word") == 20
    assert "[3 tokens]" in shown and "[score 1, 3 tokens]" in shown


def test_answers_stand_under_each_other_where_columns_would_be_narrow() -> None:
    shown = side_by_side([answer(str(n), f"answer {n}") for n in range(5)], 80)
    assert [line for line in shown.split("\n") if line.startswith("answer")] == [
        f"answer {n}" for n in range(5)
    ]


def test_an_answer_that_was_cut_says_so_and_a_scored_one_has_no_length() -> None:
    assert "cut at the limit" in side_by_side([answer("one", "a", finish="length")], 80)
    assert "tokens" not in side_by_side([answer("one", "a", finish="scored", score=0.0)], 80)


def test_what_would_steer_the_terminal_is_shown_as_its_code() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\r\u202eevil\x9b1m"
    shown = side_by_side([answer("one", hostile)], 80)
    assert all(c.isprintable() or c == "\n" for c in shown) and "\\x1b[2J" in shown
    assert plain("α\tβ\n") == "α    β\n"


# the desk


def ends() -> None:
    raise KeyboardInterrupt


def served(desk: Desk, asks: Callable[[], None]) -> None:
    """Work at the desk while another thread asks, whose last question ends the work."""
    caller = threading.Thread(target=asks)
    caller.start()
    with pytest.raises(KeyboardInterrupt):
        desk.work()
    caller.join()


def test_work_is_done_in_its_order_by_the_thread_that_works() -> None:
    desk, found = Desk(), []

    def asks() -> None:
        found.extend(desk.do(lambda n=n: (n, threading.current_thread())) for n in range(5))  # type: ignore[misc]
        with pytest.raises(UserError, match="the playground has ended"):
            desk.do(ends)

    served(desk, asks)
    assert found == [(n, threading.current_thread()) for n in range(5)]


def test_an_error_belongs_to_the_one_who_asked_and_the_work_goes_on() -> None:
    desk, found = Desk(), []

    def asks() -> None:
        with pytest.raises(ZeroDivisionError):
            desk.do(lambda: 1 // 0)
        found.append(desk.do(lambda: 7))
        with pytest.raises(UserError):
            desk.do(ends)

    served(desk, asks)
    assert found == [7]


def test_a_desk_that_has_ended_refuses_at_once() -> None:
    desk = Desk()
    desk.close()
    with pytest.raises(UserError, match="start it again"):
        desk.do(lambda: 1)


SIGNALLED = """
import signal, threading, time
from pipeline import interrupt
from pipeline.ask.desk import Desk
interrupt.install()
def send():
    time.sleep(0.2)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(600)
threading.Thread(target=send, daemon=True).start()
try: Desk().work()
except KeyboardInterrupt: print("ended")
"""


def test_a_signal_that_another_thread_gets_ends_the_work() -> None:
    """The system may give a signal to any thread; the wait of the one that works is not interrupted then."""
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert ran.stdout == "ended\n", ran.stderr


def test_a_full_desk_says_so() -> None:
    desk = Desk(most=1)
    first = threading.Thread(target=lambda: pytest.raises(UserError, desk.do, lambda: 1))
    first.start()
    while desk._jobs.empty():
        pass
    with pytest.raises(UserError, match="1 questions wait already"):
        desk.do(lambda: 2)
    desk.close()
    first.join()


# a live model


CONVERSATION = f"""{HUGO.replace(chr(10), " ")}
/new
{HUGO.replace(chr(10), " ")}
and then?
{"balls " * 1200}
/quit
not asked
"""


@pytest.mark.engine
def test_a_conversation_goes_on_from_its_own_answers_until_it_is_left(tmp_path: Path) -> None:
    command = ("-m", "pipeline", "ask", "experiment=micro", f"results={tmp_path}", "--chat")
    ran = warm.run(*command, given=CONVERSATION, engine=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    turns = ran.stdout.split("α = 0")[1:]
    assert (
        len(turns) == 3 and turns[0] == turns[1] != turns[2]
    )  # /new forgets, else the answers are other ones
    assert "the engine has room for 1024" in ran.stderr  # told, and the conversation goes on
    assert not (tmp_path / "cells").exists() and not (tmp_path / "runs").exists()  # nothing is recorded


LIVE = r"""
from pipeline import api as rv
from pipeline.engine.engine import Engine

config = rv.compose(["experiment=micro", "results=results"])
steered, steer = [], Engine.steer
Engine.steer = lambda self, target, terms=(), **how: (
    steered.append([t.alpha for t in terms]), steer(self, target, terms, **how)
)
with rv.Session(config, alpha=[-1, 1], conditions=["vector_think"]) as model:
    plain, think = model.rows["asked=1.0"], model.rows["vector_think"]
    greedy = [model.ask_row(plain, HUGO)[0] for _ in range(2)]
    assert greedy[0] == greedy[1] and greedy[0].score is None and greedy[0].text.endswith("#### 63")
    assert steered == [[1.0]], steered  # the same weights are not swapped again
    assert "Think step by step.\nQuestion: Hugo" in model.ask_row(think, HUGO)[0].prompt
    assert steered == [[1.0]], steered  # another prompt is no other weights
    assert model.ask_row(model.at(0.0), HUGO)[0].text != greedy[0].text and steered[-1] == []
    assert model.ask_row(model.at(0.35), HUGO) and steered[-1] == [0.35]

    drawn = rv.Decoding(temperature=1.0, samples=3, max_tokens=20)
    texts = [a.text for a in model.ask_row(plain, "Question:", drawn)]
    assert len(set(texts)) > 1 and texts == [a.text for a in model.ask_row(plain, "Question:", drawn)]
    other = rv.Decoding(temperature=1.0, samples=3, max_tokens=20, seed=1)
    assert texts != [a.text for a in model.ask_row(plain, "Question:", other)]
    (cut,) = model.ask_row(plain, HUGO, rv.Decoding(max_tokens=3))
    assert (cut.tokens, cut.finish) == (3, "length")

    for benchmark in ("humaneval", "sciq", "bbh"):
        (answer,) = model.ask_row_document(plain, benchmark, 1)
        assert answer.score in (0.0, 1.0) and (answer.finish == "scored") == (benchmark == "sciq"), answer
    answers = model.ask_row_document(plain, "gsm8k", 1, rv.Decoding(temperature=0.7, samples=2))
    assert len(answers) == 2 and all(a.score is not None for a in answers)
    for wrong, line in {
        lambda: model.ask_document("gsm8k", 10**6): "has 600 documents, counted from 0",
        lambda: model.ask_document("gsm8k", -1): "expected a number from 0",
        lambda: model.ask_document("gsm", 0): "did you mean 'gsm8k'",
        lambda: model.ask(" "): "expected a text, found none",
        lambda: model.ask("balls " * 1200): "shorten the prompt",
        lambda: model.ask("a", rv.Decoding(max_tokens=2000)): "shorten the prompt",
        lambda: model.at(1e39): "expected a finite number",
    }.items():
        try:
            wrong()
        except rv.UserError as e:
            assert line in str(e), e
        else:
            raise AssertionError(line)
print("all held")
"""


@pytest.mark.engine
def test_a_session_steers_when_the_weights_change_samples_by_its_seeds_and_scores_documents(
    tmp_path: Path,
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = warm.run("-c", f"HUGO = {HUGO!r}\n{LIVE}", cwd=tmp_path, env=environment, engine=True)
    assert ran.stdout == "all held\n", ran.stderr[-3000:]


DIES = r"""
import os, signal
from pipeline import api as rv

if __name__ == "__main__":  # the engine's processes import this again
    config = rv.compose(["experiment=micro", "results=results", "engine.in_process=false"])
    with rv.Session(config, alpha=[1]) as model:
        (before,) = model.ask(HUGO)
        for process in model._runner.engine.processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert model.ask(HUGO) == [before]
        print("answered again")
"""


@pytest.mark.slow
@pytest.mark.engine
def test_an_engine_that_was_killed_between_two_questions_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(f"HUGO = {HUGO!r}\n{DIES}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "dies.py"], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert ran.stdout == "answered again\n", ran.stderr[-3000:]


KILLED = r"""
import os, signal, sys, threading
from pipeline import api as rv

if __name__ == "__main__":  # the engine's processes import this again
    config = rv.compose(["experiment=micro", f"results={sys.argv[1]}", "engine.in_process=false"])
    with rv.Session(config, alpha=[0, 1]) as model:
        bare, steered = model.rows.values()
        (before,) = model.ask_row(bare, HUGO)
        for row in (bare, steered):  # it waits for an answer; for new weights
            processes = list(model._runner.engine.processes)
            for process in processes:
                os.kill(process.pid, signal.SIGSTOP)  # so that it is asked and has not answered
                threading.Timer(1, os.kill, (process.pid, signal.SIGKILL)).start()
            try:
                model.ask_row(row, HUGO)
            except rv.UserError as e:
                print(e)
            assert not any(process.is_alive() for process in processes)
            assert model.ask_row(bare, HUGO) == [before]
"""


@pytest.mark.slow
@pytest.mark.engine
def test_an_engine_that_is_killed_while_it_is_asked_is_one_line_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed.py").write_text(f"HUGO = {HUGO!r}\n{KILLED}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = Run(tmp_path, arguments=[sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "results")])
    line = "the engine died on this question (EngineDeadError); the next starts another\n"
    assert run.ends() == 0 and run.output() == 2 * line, run.output()[-3000:]
    assert run.is_gone()
