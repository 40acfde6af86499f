"""Greedy tokens and prompt log-probabilities of one or more engines, as JSON; run as a program, apart from the tests.

    python -m tests.probe CONFIG.json

CONFIG: {"engines": [{"model": folder, "steps": [{"target": folder, "terms": [[vector, alpha, seed]]} or {} for no swap,
         or {"target": folder, "fault": name}; with "device": name, torch makes the sums on it]}],
         "options": {further options of the engine}, "out": file}
"""

import json
import sys
from pathlib import Path
from typing import Any

PROMPTS = [
    [3, 14, 15, 9, 26, 5],
    [35, 8, 9, 7, 9, 3, 2, 38, 46],
    [2, 7, 18, 28],
    [31, 41, 59, 26, 53, 58, 9, 79],
]


def answers(llm: Any) -> list[dict[str, Any]]:
    """For each of PROMPTS, 24 greedy tokens and the log-probability of every prompt token after the first."""
    from vllm import SamplingParams, TokensPrompt

    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=p) for p in PROMPTS]
    generated = llm.generate(prompts, greedy, use_tqdm=False)
    scored = llm.generate(prompts, scoring, use_tqdm=False)
    return [
        {
            "tokens": list(g.outputs[0].token_ids),
            "logprobs": [
                entry[token].logprob
                for entry, token in zip(s.prompt_logprobs[1:], s.prompt_token_ids[1:], strict=True)
            ],
        }
        for g, s in zip(generated, scored, strict=True)
    ]


def refusal(engine: Any, fault: str, target: Path) -> str:
    """The message with which the engine refuses a swap that goes wrong in this way; empty if it does not."""
    from pipeline.engine.engine import SteeringError

    stock = engine.lm.model.reset_prefix_cache
    if fault == "prefix cache kept":
        engine.lm.model.reset_prefix_cache = lambda: False
    else:
        engine.lm.model.collective_rpc("plant", args=(fault,))
    try:
        engine.steer(target)
    except SteeringError as e:
        return str(e)
    finally:
        engine.lm.model.reset_prefix_cache = stock
        engine.lm.model.collective_rpc("plant", args=("",))
    return ""


def main(config: dict[str, Any]) -> None:
    from pipeline.config.schema import EngineConfig, Swap
    from pipeline.engine.engine import Engine
    from pipeline.weights.steer import Term

    Engine.extension = "tests.faults.FaultyExtension"
    options = {
        "max_model_len": 128,
        "max_num_seqs": 8,
        "kv_cache_gb": 1,
        "in_process": True,
        "enforce_eager": True,
        "threads": 1,
        **config.get("options", {}),
    }
    found = []
    for engine_steps in config["engines"]:
        options["swap"] = Swap(options.get("swap", "in_place"))
        engine = Engine(EngineConfig(**options), Path(engine_steps["model"]))
        for step in engine_steps["steps"]:
            if "fault" in step:
                found.append(refusal(engine, step["fault"], Path(step["target"])))
                continue
            if "device" in step:
                engine.lm.model.collective_rpc("sum_on", args=(step["device"],))
            if step:
                engine.steer(Path(step["target"]), [Term(*term) for term in step["terms"]])
            if "device" in step:
                engine.lm.model.collective_rpc("sum_on", args=(None,))
            found.append(answers(engine.lm.model))
        engine.close()
    Path(config["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
