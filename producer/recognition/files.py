"""What a file is, by what is in it; by its ending where that does not tell.

Nothing is unpickled: of a pickle only the names are read of what it would import.
"""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from forebay.contract.references import shown
from forebay.producer.recognition.known import (
    ARCHIVE,
    BUILD,
    COMPRESSED,
    DATA,
    ENDINGS,
    EXPORT_ADVICE,
    LIBRARIES,
    MAGIC,
    MEMBERS,
    OLD_TORCH,
    REGISTER,
    TEXTS,
    TFLITE,
    TORCHSCRIPT,
    TRUSTED,
    WEIGHT_KEYS,
    Recognized,
)

HEAD = 4096
MAX_HEADER = 100_000_000  # bytes, as safetensors has it
HEADER_READ = 16 << 20  # of a longer one nothing is checked here
PICKLE_READ = 1 << 20  # bytes of a pickle in which names are looked for


def recognize_file(path: Path) -> Recognized | None:
    """What the file is; None for what is not known, by its content or its ending."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return _by_content(path, head) or _by_ending(path)


def _by_content(path: Path, head: bytes) -> Recognized | None:
    if not head:
        return Recognized("an empty file", advice="it was not written to the end, or not copied; write it again")
    for magic, found in MAGIC.items():
        if head.startswith(magic):
            return found
    if head.startswith(b"PK"):
        return _zip(path)
    if head[8:9] == b"{":
        return _safetensors(path)
    if head[4:8] == b"TFL3":
        return TFLITE
    if head[257:262] == b"ustar":
        return ARCHIVE
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        with path.open("rb") as file:
            return _pickle(file.read(PICKLE_READ))
    return _text(head) or _compressed(path, head)


def _safetensors(path: Path) -> Recognized | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            return None
        if length > HEADER_READ:
            return Recognized("a safetensors file", "safetensors")
        try:
            tensors = [value for name, value in json.loads(file.read(length)).items() if name != "__metadata__"]
            end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            end = None
    if end == size:
        return Recognized("a safetensors file", "safetensors")
    wrong = "its header cannot be read" if end is None else f"it has {size:,} bytes in the place of {end:,}"
    return Recognized(
        "a damaged safetensors file", advice=f"{wrong}; it may have been cut off: get it or save it again"
    )


def _zip(path: Path) -> Recognized:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inner = {name.partition("/")[2] for name in names} | {*names}
            if "archive_format" in inner or "serialized_exported_program.json" in names:
                return Recognized("an exported program", "torch-export")
            if "constants.pkl" in inner:
                return TORCHSCRIPT
            pickled = next((name for name in names if name.endswith("/data.pkl") and name.count("/") == 1), None)
            if pickled is not None:
                with archive.open(pickled) as entry:
                    return _pickle(entry.read(PICKLE_READ), torch=True)
    except OSError:
        raise  # the disk's, not the file's
    except Exception as error:  # noqa: BLE001 - whatever zipfile and what it decompresses with raise for a damaged archive
        what = "a damaged zip archive, as which torch and Keras save too"
        return Recognized(what, advice=f"{error}; it may be a download that was cut off: get it or save it again")
    for marks, found in MEMBERS:
        if marks <= inner:
            return found
    if names and all(name.endswith(".npy") for name in names):
        return DATA
    return ARCHIVE


def _pickle(data: bytes, torch: bool = False) -> Recognized:
    """By what a pickle imports and which texts it holds. A file of an older torch.save is several pickles."""
    old = data.startswith(OLD_TORCH)
    stream = io.BytesIO(data)
    imports: list[str] = []
    texts: list[str] = []
    for _ in range(4 if old else 1):
        imports, texts = _names(stream)
    if not old and not torch:
        return _of_library(imports)
    module = next((name for name in imports if _is_class(name)), None)
    if module is not None and (key := next((key for key in WEIGHT_KEYS[:-1] if key in texts), None)) is not None:
        what = f"a checkpoint of training with objects of {shown(module)}, which runs code when it is opened"
        weights = f'torch.load("{{file}}", weights_only=False)["{key}"]'
        return Recognized(what, advice="load it where you trust it, and register the module with its weights", lines=(
            BUILD, f"module.load_state_dict({weights}){TRUSTED}", REGISTER,
        ))  # fmt: skip
    if module is not None:
        what = f"a pickled object of {shown(module)}, which runs code when it is opened"
        return Recognized(what, advice="load it where you trust it, and register the module", lines=(
            f'module = torch.load("{{file}}", weights_only=False){TRUSTED}', REGISTER,
        ))  # fmt: skip
    key = next((key for key in WEIGHT_KEYS if key in texts), None)
    named = [text for text in texts if text not in ("storage", "cpu") and not text.isdigit()]
    if key is None and (not named or "param_groups" in texts):
        return Recognized("a file of torch.save without a module's weights", advice=EXPORT_ADVICE)
    weights = 'torch.load("{file}", weights_only=True)' + (f'["{key}"]' if key else "")
    what = "a checkpoint of training" if key else "a state dict: weights, without the module that they are for"
    return Recognized(what, advice="build the module, and register it with its weights", lines=(
        BUILD, f"module.load_state_dict({weights})", REGISTER,
    ))  # fmt: skip


def _names(stream: io.BytesIO) -> tuple[list[str], list[str]]:
    """What one pickle would import, as `module.name`, and its texts."""
    imports: list[str] = []
    texts: list[str] = []
    try:
        for op, argument, _ in pickletools.genops(stream):
            if op.name == "GLOBAL":
                imports.append(str(argument).replace(" ", ".", 1))
            elif op.name == "STACK_GLOBAL":
                imports.append(".".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except Exception:  # noqa: BLE001, S110 - cut off, or raw arrays among it: what was read has to do
        pass
    return imports, texts


def _is_class(imported: str) -> bool:
    """Whether a name that a file of torch.save imports is neither torch's own way to store tensors nor plain Python."""
    plain = imported.startswith(("collections.", "builtins.", "__builtin__.", "torch._utils.", "_codecs.", "numpy."))
    return not plain and not (imported.startswith("torch.") and imported.count(".") == 1)


def _of_library(imports: Sequence[str]) -> Recognized:
    what = f"a pickled object of {shown(imports[0])}" if imports else "a pickle"
    root = next((name.partition(".")[0] for name in imports if name.partition(".")[0] in LIBRARIES), None)
    if root is None:
        advice = (
            "unpickling runs code, which no worker does; load it yourself, and serve it by a class of runtime 'python'"
        )
        return Recognized(what, advice=advice)
    return Recognized(f"{what}, which runs code when it is opened", None, *LIBRARIES[root])


def _compressed(path: Path, head: bytes) -> Recognized | None:
    """What a compressed file holds, by its first bytes."""
    try:
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                inside = file.read(HEAD)
        else:
            inside = zlib.decompressobj().decompress(head, HEAD) if head.startswith(b"x") else b""
    except (OSError, EOFError, zlib.error):
        return None
    if inside[257:262] == b"ustar":
        return ARCHIVE
    if inside[:1] == b"\x80":
        return _of_library(_names(io.BytesIO(inside))[0])
    return COMPRESSED if inside else None


def _text(head: bytes) -> Recognized | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((found for mark, found in TEXTS if mark(text)), None)


def _by_ending(path: Path) -> Recognized | None:
    return next((found for endings, found in ENDINGS if path.name.lower().endswith(endings)), None)
