"""lm-eval's vLLM model, with what each answer cost kept beside it.

Only `engine` imports this module, after the environment that vLLM reads at import has been set.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.vllm_causallms import VLLM

from pipeline.engine.arrangement import Arrangement
from pipeline.errors import UserError


@dataclass(frozen=True)
class Generation:
    """Length and end of one answer: `finish` is vLLM's finish reason, "stop" or "length"."""

    prompt_tokens: int
    tokens: int
    finish: str


class SteeredLM(VLLM):
    """`VLLM` that records token counts and finish reasons, by (task name, document index), of each answer in its turn.

    `generations` and the counters cover the requests since the last `reset`. Answers that are sampled have each a seed
    of its own, made from the engine's.
    """

    batch_size: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = int(kwargs.get("seed", 0))
        self.arrangement = Arrangement()
        self.reset()

    def reset(self) -> None:
        """Forget the counts of earlier requests."""
        self.generations: dict[tuple[str, int], list[Generation]] = {}
        self.requests = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self._ends: dict[tuple[tuple[int, ...], int | None], Generation] = {}  # by prompt and seed
        self._encoded: dict[tuple[str, ...], Any] = {}

    def take_template(self, checkpoint: Path) -> None:
        """Apply the chat template of another checkpoint in place of the model's own, if it has one."""
        from transformers import AutoTokenizer

        other = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=False)
        self.tokenizer.chat_template = self.hf_chat_template = other.chat_template

    def tok_encode(self, string: Any, add_special_tokens: Any = None, **kwargs: Any) -> Any:
        """As in lm-eval; the last batch is remembered, because `generate_until` needs its lengths again."""
        if isinstance(string, str):
            return super().tok_encode(string, add_special_tokens, **kwargs)
        key = tuple(string)
        if key not in self._encoded:
            self._encoded = {key: super().tok_encode(list(string), add_special_tokens, **kwargs)}
        return self._encoded[key]

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        auto = self.batch_size
        self.batch_size = 0  # "auto" would ask vLLM for a progress bar, which divides by zero
        try:
            outputs = self._arranged(requests, generate, sampling_params)
        finally:
            self.batch_size = auto
        self.requests += len(outputs)
        for number, output in enumerate(outputs):
            self.prompt_tokens += len(output.prompt_token_ids)
            if generate:
                answer = output.outputs[0]
                self.generated_tokens += len(answer.token_ids)
                self._ends[tuple(output.prompt_token_ids), sampling_params[number].seed] = Generation(
                    len(output.prompt_token_ids), len(answer.token_ids), answer.finish_reason or "stop"
                )
        return outputs

    def _arranged(self, requests: Any, generate: bool, sampling_params: Any) -> list[Any]:
        """The outputs in the order of the requests, which are asked in the order and the batches of `arrangement`."""
        found: dict[int, Any] = {}
        for batch in self.arrangement.batches(len(requests)):
            asked = [requests[i] for i in batch]
            listed = isinstance(sampling_params, list)
            params = [sampling_params[i] for i in batch] if listed else sampling_params
            found |= zip(batch, super()._model_generate(asked, generate, params), strict=True)
        return [found[i] for i in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        requests = seeded(requests, self.seed)
        encoded = self.tok_encode([r.args[0] for r in requests])
        for request, tokens in zip(requests, encoded, strict=True):
            _, _, room = self.modify_gen_kwargs(dict(request.args[1]), default_max_gen_toks=self.max_gen_toks)
            self._must_fit(len(tokens) + room, f"{len(tokens)} of prompt and {room} to answer", request)
        answers = super().generate_until(requests, disable_tqdm=disable_tqdm)
        for request, tokens in zip(requests, encoded, strict=True):
            end = self._ends[tuple(tokens), request.args[1].get("seed")]
            self.generations.setdefault((request.task_name or "", request.doc_id or 0), []).append(end)
        self._ends.clear()
        return answers

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        encoded = self.tok_encode([r.args[0] + r.args[1] for r in requests])
        for request, tokens in zip(requests, encoded, strict=True):
            self._must_fit(len(tokens) + 1, f"{len(tokens)} of prompt and option", request)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _must_fit(self, tokens: int, what: str, request: Instance) -> None:
        """lm-eval would cut the prompt from the left with a warning: the answer would be to another question."""
        if tokens > self.max_length:
            raise UserError(
                f"{request.task_name}, document {request.doc_id}: needs {tokens} tokens ({what}), the engine has"
                f" {self.max_length}; raise engine.max_model_len or lower the benchmark's max_gen_toks"
            )


def seeded(requests: Sequence[Instance], seed: int) -> list[Instance]:
    """The requests, each of those that sample with a seed of its own.

    It is made from `seed`, the task, the document and the number of the answer among the document's, so that an answer
    depends neither on the others nor on their order.
    """
    found, answers = [], Counter[tuple[str | None, int | None]]()
    for request in requests:
        prompt, options = request.args
        if options.get("do_sample"):
            document = (request.task_name, request.doc_id)
            origin = f"{seed} {request.task_name} {request.doc_id} {answers[document]}"
            own = int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8]) >> 1  # vLLM takes 63 bits
            request = replace(request, arguments=(prompt, options | {"seed": own}))
            answers[document] += 1
        found.append(request)
    return found
