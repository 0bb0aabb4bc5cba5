"""The digits of quickstart.py through Triton's client, which speaks the Open Inference Protocol.

Run quickstart.py first, then `forebay serve` in the same folder, and this: `python quickstart_tritonclient.py [HOST:PORT]`.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from tritonclient.http import InferenceServerClient, InferInput

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
digits = load_digits()
images = (digits.data / 16).astype(np.float32)  # (1797, 64), grey values from 0 to 1

with InferenceServerClient(address) as client:
    model = client.get_model_metadata("digits@champion")
    image, scores = model["inputs"][0]["name"], model["outputs"][0]["name"]

    def infer(rows):  # (n, 64) -> (n, 10)
        values = InferInput(image, list(rows.shape), "FP32").set_data_from_numpy(rows)
        result = client.infer("digits@champion", [values])
        print(f"{len(rows)} in job {result.get_response()['parameters']['job_id']}")
        return result.as_numpy(scores)

    print(f"the first image shows a {infer(images[:1]).argmax()}")
    right = (infer(images).argmax(1) == digits.target).sum()  # all images as one durable job
    print(f"{right} of {len(images)} are right")
