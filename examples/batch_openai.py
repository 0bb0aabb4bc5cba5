"""Many texts embedded as one batch, through OpenAI's client.

Register an embedding model as `minilm` (`forebay demo` does), start `forebay serve`, and run
`python batch_openai.py [HOST:PORT]`.
"""

import json
import sys
import time

from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
texts = [f"sentence {i} of a thousand" for i in range(1000)]
lines = [
    {"custom_id": f"text-{i}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "minilm", "input": text}}
    for i, text in enumerate(texts)
]

with OpenAI(base_url=f"http://{address}/v1", api_key="a key of forebay keys create, where there are any") as client:
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("texts.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is None:
        sys.exit(f"the batch is {batch.status}: {batch.errors}")
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).iter_lines()]
    vectors = {one["custom_id"]: one["response"]["body"]["data"][0]["embedding"] for one in answers}
    print(f"{batch.status}: {len(vectors)} vectors of {len(vectors['text-0'])} numbers by {batch.model}")
