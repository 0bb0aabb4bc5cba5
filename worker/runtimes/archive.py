"""Makes a .pt2 file safe to hand to `torch.export.load`: judges it (contract.pt2), then writes a fresh archive of only
what was judged. torch never opens the file that was uploaded, so what zipfile and torch's own reader might see
differently does not matter. Sample inputs, which are a pickle and serve nothing here, do not come along.
"""  # fmt: skip

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from forebay.contract.pt2.archive import (
    CONSTANTS_CONFIG,
    FORMAT,
    PROGRAM,
    SAMPLE_INPUTS,
    VERSION,
    WEIGHTS_CONFIG,
    Pt2,
    read_pt2,
)

ArchiveFacts = Pt2
_BLOCK = 16 * 2**20


def inspect_pt2(path: Path, device: str | None = None) -> ArchiveFacts:
    """What the archive holds; ModelRefused naming the entry that makes it unsafe, InvalidInput when it is broken."""
    return read_pt2(path, device)


def write_safe_copy(path: Path, facts: ArchiveFacts, copy: Path) -> None:
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
