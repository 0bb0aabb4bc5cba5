"""A model, 1,797 jobs and their results. Start the stack with `forebay up --detach` in the same folder, then run this."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from forebay import Client, as_completed

digits = load_digits()
images = (digits.data / 16).astype(np.float32)  # (1797, 64), grey values from 0 to 1

# Any torch module with a free batch dimension will do. This one finds the nearest of the ten classes' mean images.
means = torch.from_numpy(np.stack([images[digits.target == digit].mean(0) for digit in range(10)]))  # (10, 64)
net = torch.nn.Linear(64, 10)
net.load_state_dict({"weight": means, "bias": -(means**2).sum(1) / 2})
program = torch.export.export(net, (torch.zeros(2, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
torch.export.save(program, "digits.pt2")

with Client() as client:  # finds the stack that runs here; FOREBAY_BROKER and FOREBAY_DATABASE name another
    model = client.models.register("digits", "digits.pt2", max_batch_size=256)
    client.models.set_alias("digits", "champion", model.version)

    job = client.predict("digits@champion", images[0])  # one image; the job is durable when this returns
    print(f"the first image shows a {job.result(timeout=60).argmax()}")

    jobs = client.predict_many("digits@champion", images)  # one job per image, in one transaction
    for done, finished in enumerate(as_completed(jobs, timeout=60), start=1):
        if done % 600 == 0:
            print(f"{done} of {len(jobs)} have ended, the last one {finished.state}")
    right = sum(job.result().argmax() == digit for job, digit in zip(jobs, digits.target, strict=True))
    print(f"{right} of {len(jobs)} are right")
