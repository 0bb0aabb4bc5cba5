"""Makes a .pt2 file safe to hand to `torch.export.load`: writes a fresh archive of only what contract.pt2 has judged.

torch never opens the file that was uploaded, so it does not matter what zipfile and torch's own reader might see differently.
Sample inputs, which are a pickle and not needed here, are left out.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from forebay.contract.pt2.archive import CONSTANTS_CONFIG, FORMAT, PROGRAM, SAMPLE_INPUTS, VERSION, WEIGHTS_CONFIG, Pt2

_BLOCK = 16 * 2**20


def write_safe_copy(path: Path, facts: Pt2, copy: Path) -> None:
    """Writes to `copy` an archive with the judged program and the raw tensors it names, and nothing else."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
        texts = {
            FORMAT: "pt2",
            VERSION: "0",
            "byteorder": "little",
            ".data/version": "6\n",
            PROGRAM: json.dumps(facts.program),
            WEIGHTS_CONFIG: json.dumps(facts.configs[WEIGHTS_CONFIG]),
            CONSTANTS_CONFIG: json.dumps(facts.configs[CONSTANTS_CONFIG]),
            SAMPLE_INPUTS: "",
        }
        for name, text in texts.items():
            target.writestr(f"model/{name}", text)
        for name in facts.payloads:
            with source.open(facts.root + name) as raw, target.open(f"model/{name}", "w", force_zip64=True) as out:
                shutil.copyfileobj(raw, out, _BLOCK)
