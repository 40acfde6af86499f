"""The prompt that a model sees: one document of a benchmark under one condition, as an evaluation would ask it.

    python -m pipeline prompt experiment=micro tasks=[gsm8k] condition=vector_think document=3
    python -m pipeline prompt experiment=paper task=gsm8k@larger_numbers families=[1.5b]

`task` is a benchmark or a variant (default: the first of the experiment), `condition` a row of the grid (default: the
first), `document` the `doc_id` of samples.jsonl, counted over the subtasks (default: 0). A variant's document is
followed by the original that it was made from. Reads documents and the target's tokenizer, of the first family; no
weights, no engine. Earlier documents of the subtask are built too, because lm-eval draws few-shot examples from one
random sequence for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config.explain import nearest
from pipeline.config.schema import CheckpointConfig, Config
from pipeline.errors import UserError
from pipeline.evaluate.document import Found, find, requests_of
from pipeline.evaluate.provenance import chat_template_sha
from pipeline.evaluate.tasks import load_task, load_tokenizer, manager_of
from pipeline.plan.family import locate
from pipeline.plan.grid import Benchmark, Condition, asked_of, columns, rows, takes_chat_template
from pipeline.plan.sources import Sources, find_sources

OPTIONS = ("task", "condition", "document")


@dataclass(frozen=True)
class Prompt:
    """What is asked and what is expected; `options` are scored by log-likelihood, else there is `generation`."""

    text: str
    target: str
    options: list[str]
    generation: dict[str, Any] | None  # lm-eval's generation_kwargs
    chat_template_sha: str | None  # None where no template is applied
    original: "Prompt | None" = None  # of the plain document that a perturbed one was made from


def show(config: Config, options: Mapping[str, str]) -> str:
    """The prompt that `options` (see above) name, as text to print.

    Raises:
        UserError: for a benchmark, condition or document that does not exist.
    """
    sources = find_sources(config)
    family = next(iter(config.chosen_families().values()))
    benchmark = asked_of(
        family, sources.benchmark(_named("task", options, {t.name: t for t in columns(config)}))
    )
    condition = _named("condition", options, {c.name: c for c in rows(config)})
    number = options.get("document", "0")
    if not number.isdigit():
        raise UserError(f"document={number}: expected a number from 0")
    prompt = build(config, sources, benchmark, condition, int(number))
    template = f"chat template {prompt.chat_template_sha}" if prompt.chat_template_sha else "no chat template"
    lines = [f"{benchmark.name} · {condition.label} · document {number} · {template}"]
    lines += ["─── prompt", prompt.text, "─── target", prompt.target]
    if prompt.generation is None:
        lines += ["─── options, the likeliest is the answer", *map(repr, prompt.options)]
    else:
        from lm_eval.models.utils import normalize_gen_kwargs

        settings = normalize_gen_kwargs(dict(prompt.generation))
        stops = " ".join(map(repr, settings["until"]))
        lines += [
            f"─── at most {settings['max_gen_toks']} tokens, to the end of text or {stops or 'nothing else'}"
        ]
        if (b := benchmark.config).temperature:
            lines += [f"─── {b.samples} answers, sampled at temperature {b.temperature:g}, top-p {b.top_p:g}"]
    if (plain := prompt.original) is not None:
        lines += ["─── original prompt", plain.text, "─── original target", plain.target]
        lines += ["─── original options", *map(repr, plain.options)] if plain.options else []
    return "\n".join(lines)


def build(
    config: Config, sources: Sources, benchmark: Benchmark, condition: Condition, document: int
) -> Prompt:
    """The prompt of one document.

    Raises:
        UserError: if the document does not exist or the tokenizer cannot be had.
    """
    family = next(iter(config.chosen_families().values()))
    tokenizer = _tokenizer(family.target, sources)
    if family.template is not None:
        tokenizer.chat_template = _tokenizer(family.sources()[family.template], sources).chat_template
    chat = takes_chat_template(family, condition.start)
    manager, prompt, used = (
        manager_of([benchmark]),
        config.prompts[condition.prompt],
        tokenizer if chat else None,
    )
    found = find(lambda subtask: load_task(manager, benchmark, subtask, prompt), benchmark, document)
    asked = _prompt(found, prompt.system, used)
    if benchmark.perturbation is None:
        return asked
    plain = load_task(manager, replace(benchmark, perturbation=None), found.subtask, prompt)
    source = found.doc["source_doc"]
    original = Found(source, found.subtask, plain, source)
    return replace(asked, original=_prompt(original, prompt.system, used))


def _tokenizer(source: CheckpointConfig, sources: Sources) -> Any:
    return load_tokenizer(locate(source), sources.revision(source), source.subfolder)


def _prompt(found: Found, system: str | None, tokenizer: Any) -> Prompt:
    def apply(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        # as in lm-eval's vLLM model
        text: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=None,
        )
        return text

    task = found.task
    requests = requests_of(found, system, apply if tokenizer is not None else None)
    target = task.doc_to_target(requests[0].doc)
    scored = task.OUTPUT_TYPE != "generate_until"
    return Prompt(
        text=requests[0].args[0],
        target=str(task.doc_to_choice(requests[0].doc)[target])
        if scored and isinstance(target, int)
        else str(target),
        options=[request.args[1] for request in requests] if scored else [],
        generation=None if scored else requests[0].args[1],
        chat_template_sha=None if tokenizer is None else chat_template_sha(tokenizer),
    )


def _named(option: str, options: Mapping[str, str], known: dict[str, Any]) -> Any:
    name = options.get(option) or next(iter(known))
    if name not in known:
        raise UserError(f"{option}={name}: no such {option}{nearest(name, list(known))}")
    return known[name]
