"""Language models for tests: a two-layer Llama with random weights and a byte-level tokenizer, made on the spot."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature

CONTEXT = 1024
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)  # fmt: skip


@cache
def tokenizer() -> Any:
    """Byte-level BPE of 600 tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    made.train_from_iterator((Path(__file__).parents[2] / "LICENSE").read_text("utf-8").splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )  # fmt: skip


@cache
def llama(seed: int = 0) -> Any:
    """Two layers of width 64; wide logits, so that its texts are not all alike."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_llama(folder: Path, **generation: Any) -> Path:
    """The folder, as a user has it; `generation` are fields of its generation_config.json."""
    llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if generation:
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return folder


def version(**fields: Any) -> ModelVersion:
    """A version of it that runs by itself, without a registry."""
    signature = Signature.parse({"request": {"dtype": "json"}}, {"completion": {"dtype": "json"}})
    return ModelVersion("llama", 1, "text-generation", "", "folder", 0, signature, **fields)
