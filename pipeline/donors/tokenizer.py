"""The tokeniser of the micro base, and the turns that its chat template writes."""

import json
from typing import TYPE_CHECKING, Any

from evals import micro

if TYPE_CHECKING:  # transformers takes seconds to import: only training pays
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_tokenizer(examples: list[micro.Example], size: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of `size` tokens with Qwen2.5's splitting rule, special tokens and turn markers."""
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    special: dict[str, Any] = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>"],
    }
    backend = Qwen2Tokenizer(**special).backend_tokenizer
    trainer = BpeTrainer(vocab_size=size - 3, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    texts = []
    for example in examples[:20000]:
        turns = [f"{turn['role']}\n{turn['content']}" for turn in example.messages()]
        texts += [
            *turns,
            f"assistant\n{example.prefix}{example.answer}",
            "system\nYou are a helpful assistant.",
        ]
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]
    vocab = {token: index for token, index in learned["vocab"].items() if token not in SPECIAL}
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, **special)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer
