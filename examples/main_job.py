"""The main job as a script: register a network, submit 2,000 handwritten digits, check every result, print the counts as JSON.

    forebay up --detach && python examples/main_job.py

It runs on whatever FOREBAY_HOME, FOREBAY_DATABASE and FOREBAY_BROKER name, and ends with 1 when a result is wrong.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from forebay import Client, as_completed

JOBS = 2_000

images = (load_digits().data / 16).astype(np.float32)  # (1797, 64), grey values from 0 to 1
rows = images[np.arange(JOBS) % len(images)]
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()
with torch.inference_mode():
    expected = net(torch.from_numpy(rows)).numpy()  # (2000, 10)

with tempfile.TemporaryDirectory() as folder, Client() as client:
    program = torch.export.export(net, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, Path(folder) / "digits.pt2")
    model = client.models.register("main-job", Path(folder) / "digits.pt2", max_batch_size=256)
    client.predict(model.ref, rows[0]).result(timeout=120)  # the worker loads the model
    started = time.perf_counter()
    jobs = client.predict_many(model.ref, rows)
    states = Counter(str(job.state) for job in as_completed(jobs, timeout=120))
    seconds = time.perf_counter() - started
    equal = sum(np.allclose(job.result(), row, atol=1e-5) for job, row in zip(jobs, expected, strict=True))
    in_ledger = client.jobs(model=model.ref, state="succeeded", limit=10_000)
    print(json.dumps({
        "model": model.ref, "jobs": len(jobs), **states, "equal": equal, "in_ledger": len(in_ledger) - 1,
        "per_second": round(len(jobs) / seconds),
    }))  # fmt: skip
sys.exit(equal != JOBS)
