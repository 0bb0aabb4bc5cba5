"""Generated text: the runtime's tokens per second to those of a hand-written loop with the same batches, and of rows one by one.

A two-layer Llama with random weights on the CPU, with one thread: what is measured is all that is not the model.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import networks
from bench.stack import temporary_folder
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.worker.runtimes import get_runtime

PROMPTS, LONGEST, TOKENS, BATCH, VOCABULARY = 128, 200, 64, 16, 600
NO_END = 1  # is never the likeliest: all rows generate as many tokens

Prompts = Sequence[Sequence[int]]


def to_loop(rounds: int) -> list[float]:
    """Its rate to that of the loop."""
    return _measure(rounds, _loop)


def to_one_by_one(rounds: int) -> list[float]:
    """Its rate to that of transformers' `generate`, row by row."""
    return _measure(rounds, _one_by_one)


def _measure(rounds: int, other: Callable[[Any, Prompts], list[list[int]]]) -> list[float]:
    chance = random.Random(networks.SEED)
    prompts = [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, LONGEST))] for _ in range(PROMPTS)]
    torch.set_num_threads(1)
    with temporary_folder() as folder:
        model, tokenizer = _write(folder)
        version = ModelVersion("llama", 1, "text-generation", "", "folder", 0, Signature(), max_batch_size=BATCH)
        ours: Any = get_runtime("text-generation").load(folder, "cpu", version)

        def run() -> list[str]:
            rows = [ours.preprocess({"prompt": prompt, "max_tokens": TOKENS}) for prompt in prompts]
            return [result["text"] for result in ours.predict(rows)]

        ratios = []
        for i in range(rounds + 1):  # the first warms up
            took, made = _timed(run)
            took_other, tokens = _timed(lambda: other(model, prompts))
            if made != [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]:
                raise SystemExit("generation: a text is not what the model generates alone")
            ratios += [took_other / took] if i else []
    return ratios


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """The processor time, of one thread: it is steadier than the clock."""
    started = time.process_time()
    made = run()
    return time.process_time() - started, made


@torch.inference_mode()
def _loop(model: Any, prompts: Prompts) -> list[list[int]]:
    """Static batches of rows of like length, padded on the left."""
    from transformers import DynamicCache

    made: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = len(prompts[rows[0]])
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + list(prompts[i]) for i in rows])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache(config=model.config)
        for _ in range(TOKENS):
            out = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )  # fmt: skip
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
            positions = positions[:, -1:] + 1
            for i, token in zip(rows, ids[:, 0].tolist(), strict=True):
                made[i].append(token)
    return made


@torch.inference_mode()
def _one_by_one(model: Any, prompts: Prompts) -> list[list[int]]:
    made = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        made.append(out[0, len(prompt) :].tolist())
    return made


def _write(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, written there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters[:26] for b in letters[:26]][: VOCABULARY - 3 - len(letters)]
    words = ["<s>", "</s>", "<pad>", *letters, *(a + b for a, b in pairs)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = dict(zip(("bos_token", "eos_token", "pad_token"), words[:3], strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(networks.SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=0, eos_token_id=NO_END, pad_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[NO_END] = 0  # its logit is 0, and others are well above
    model.save_pretrained(folder)
    return model, tokenizer
