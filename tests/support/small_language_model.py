"""A language model of two layers with random weights and a tokenizer of bytes, made on the spot; and data to tune it on."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forebay.contract.requests.batch import InputFile

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
COLORS = ("red", "green", "blue", "white")


def write_language_model(folder: Path, context: int = 128) -> Path:
    """A folder as Hugging Face's, about 200 kB."""
    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def conversations(lines: int = 200) -> list[dict[str, Any]]:
    """Questions whose answer follows from the question."""
    made = []
    for i in range(lines):
        color, number = COLORS[i % 4], i % 7
        made.append(
            {"messages": [
                {"role": "user", "content": f"{number} {color}?"},
                {"role": "assistant", "content": f"{color} {number}"},
            ]}
        )  # fmt: skip
    return made


def write_lines(path: Path, rows: list[dict[str, Any]]) -> tuple[InputFile, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (InputFile(str(path), path.stat().st_size),)
