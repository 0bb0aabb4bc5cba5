"""A model is trained, judged and served. Start the stack with `forebay up --detach` in the same folder, then run this."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

from forebay import Client

digits = load_digits()
images = (digits.data / 16).astype(np.float32)  # (1797, 64), grey values from 0 to 1
pq.write_table(pa.table({"image": images[:1500].tolist(), "label": digits.target[:1500]}), "learn.parquet")
pq.write_table(pa.table({"image": images[1500:].tolist(), "label": digits.target[1500:]}), "later.parquet")

with Client() as client:
    run = client.train(
        "reader",
        recipe="image-classifier",
        dataset="learn.parquet",
        target="label",
        params={"epochs": 5, "early_stopping_epochs": 2},
        alias="champion",
    )
    run.wait(progress=True)  # a bar and sparklines on a terminal; the run goes on without this program
    version = run.result()
    print(f"{version.ref}: {version.metadata['metrics']['accuracy']:.1%} right on held-out rows; {run.run.verdict}")

    found = client.evaluate("reader@champion", "later.parquet", target="label").result()
    print(f"{found.metrics['accuracy']:.1%} right on {found.rows} rows that came later")

    image = images[1500].reshape(version.signature.inputs[0].shape)
    answer = client.predict("reader@champion", image).result(timeout=60)
    print(f"the next image shows a {answer['label']} (it is a {digits.target[1500]})")
