"""Sentences near a question, by embeddings through OpenAI's client.

Register an embedding model as `minilm` (`forebay demo` does), start `forebay serve`, and run
`python embeddings_openai.py [HOST:PORT]`.
"""

import sys

import numpy as np
from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
sentences = ["Water is held behind the dam.", "The cat sleeps on the sofa.", "Turbines turn falling water into power."]

with OpenAI(base_url=f"http://{address}/v1", api_key="a key of forebay keys create, where there are any") as client:
    made = client.embeddings.create(model="minilm", input=[*sentences, "How is electricity made from rivers?"])
    *vectors, question = [np.array(one.embedding) for one in made.data]  # (384,) each, of length 1
    for likeness, sentence in sorted(zip((v @ question for v in vectors), sentences, strict=True), reverse=True):
        print(f"{likeness:.2f}  {sentence}")
    print(f"{made.usage.prompt_tokens} tokens read by {made.model}")
