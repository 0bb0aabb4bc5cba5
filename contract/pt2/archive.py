"""Reads a .pt2 file, which `torch.export.save` writes, without torch and without unpickling anything.

Finds the exported program's inputs and outputs, so that `register` needs no signature, and refuses an archive that torch could
not load safely: `torch.export.load` unpickles what the archive calls pickled, and runs text from its JSON. The producer checks
before an upload, the worker before a load. contract.pt2.graph checks the graph; worker.runtimes.torch_export makes the copy that
torch opens.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.contract.errors import ForebayError, InvalidInput, ModelRefused
from forebay.contract.pt2.graph import Json, clean_config, clean_program, tree_leaves

FORMAT, VERSION = "archive_format", "archive_version"
PROGRAM = "models/model.json"
WEIGHTS, WEIGHTS_CONFIG = "data/weights/", "data/weights/model_weights_config.json"
CONSTANTS, CONSTANTS_CONFIG = "data/constants/", "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_KNOWN = {FORMAT, VERSION, PROGRAM, WEIGHTS_CONFIG, CONSTANTS_CONFIG, SAMPLE_INPUTS, "byteorder"}
_KNOWN |= {".data/version", ".data/serialization_id"}
_PAYLOAD = re.compile(r"data/(?:weights/weight_\d{1,7}|constants/tensor_\d{1,7})\Z")
_REFUSED = {
    "data/aotinductor/": "compiled machine code; save the exported program itself with torch.export.save",
    "data/constants/custom_obj_": "a pickled custom object; export a module whose constants are plain tensors",
    "data/constants/opaque_obj_": "a pickled Python object; export a module whose constants are plain tensors",
    "models/": "more than one program; save each with its own torch.export.save",
    "data/weights/": "weights in a pickled form; save again with torch.export.save of torch 2.9 or newer",
    "data/constants/": "constants in a pickled form; save again with torch.export.save of torch 2.9 or newer",
}
_MAX_JSON_BYTES = 256 * 2**20
_MAX_ENTRIES = 200_000
_STRIDED = 7
_SHARED = ("parameter", "buffer", "tensor_constant")
_CHANGES = (
    "the program changes its own state when run ({}), so samples would affect each other; call module.eval() before "
    "torch.export.export, and write to no buffer in forward"
)
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, RuntimeError, EOFError)

# torch._export.serde.schema.ScalarType: number -> (NumPy's name, bytes). Types that NumPy lacks are sent as float32.
_DTYPES = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8), 6: ("float16", 2),
    7: ("float32", 4), 8: ("float64", 8), 10: ("complex64", 8), 11: ("complex128", 16), 12: ("bool", 1),
    13: ("float32", 2), 28: ("uint16", 2), 29: ("float32", 1), 30: ("float32", 1), 31: ("float32", 1),
    32: ("float32", 1), 34: ("uint32", 4), 35: ("uint64", 8),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pt2Tensor:
    """One input or output of one sample: -1 for a free dimension; `example` is the shape it was exported with."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    example: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pt2:
    """What a safe archive holds. A batch has from `least` to `most` rows (None: any number); `root` is its top folder."""

    root: str
    program: Json
    configs: dict[str, Json]
    payloads: tuple[str, ...]
    inputs: tuple[Pt2Tensor, ...]
    outputs: tuple[Pt2Tensor, ...]
    least: int
    most: int | None


Described = dict[str, dict[str, Any]]


def read_pt2_signature(path: str | Path) -> tuple[Described | None, Described | None]:
    """The inputs and outputs of one sample, in the JSON form of a signature.

    ModelRefused when the archive cannot be loaded safely; InvalidInput when it is broken or has no batch dimension.
    """
    facts = read_pt2(path)
    return _described(facts.inputs), _described(facts.outputs)


def read_pt2(path: str | Path, device: str | None = None) -> Pt2:
    """All of a safe archive except its tensors. With `device`, the program is rewritten to run there.

    ModelRefused, naming the entry and what to do, for an archive that could run code when it is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, Path(path).stat().st_size, device)
    except ForebayError as error:
        raise type(error)(f"{Path(path).name}: {error}") from error
    except zipfile.BadZipFile as error:
        raise InvalidInput(
            f"{Path(path).name} is not a .pt2 archive ({error}); write it with torch.export.save"
        ) from error
    except _BROKEN as error:
        raise InvalidInput(f"{Path(path).name} is a broken .pt2 archive ({type(error).__name__}: {error})") from error


def _described(tensors: tuple[Pt2Tensor, ...]) -> Described | None:
    return {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in tensors} or None


def _read(archive: zipfile.ZipFile, size: int, device: str | None) -> Pt2:
    root, sizes = _entries(archive.infolist(), size)
    if _text(archive, root + FORMAT, sizes) != "pt2" or _text(archive, root + VERSION, sizes) != "0":
        raise ModelRefused(
            "an archive format that this version cannot check; save it with torch.export.save of torch 2.9+"
        )
    program = clean_program(json.loads(_text(archive, root + PROGRAM, sizes)), device)
    configs, payloads = {}, set()
    bare = {entry.removeprefix(root): length for entry, length in sizes.items()}
    for config, folder in ((WEIGHTS_CONFIG, WEIGHTS), (CONSTANTS_CONFIG, CONSTANTS)):
        configs[config] = clean_config(json.loads(_text(archive, root + config, sizes)), device)
        for name, item in configs[config]["config"].items():
            _check_payload(name, item, folder, bare)
            payloads.add(folder + item["path_name"])
    inputs, outputs, least, most = _interface(program)
    return Pt2(root, program, configs, tuple(sorted(payloads)), inputs, outputs, least, most)


def _entries(infos: list[zipfile.ZipInfo], size: int) -> tuple[str, dict[str, int]]:
    """The top folder and each entry's size; ModelRefused for an entry that is not a plain part of a program."""
    sizes = {info.filename: info.file_size for info in infos}
    if "serialized_exported_program.json" in sizes:
        raise ModelRefused("written by torch 2.7 or older, whose form is all pickles; save it again with torch 2.9+")
    if not infos or len(infos) > _MAX_ENTRIES or len(sizes) != len(infos):
        raise ModelRefused("its table of contents is empty, too long, or names an entry twice")
    root = infos[0].filename.split("/")[0] + "/"
    for info in infos:
        _check_entry(info, root)
    if any(not 0 <= info.header_offset < size for info in infos):
        raise InvalidInput("its table of contents points out of the file; it is damaged")
    if sum(sizes.values()) > size:
        raise ModelRefused("its table of contents claims more bytes than the file has")
    return root, sizes


def _check_entry(info: zipfile.ZipInfo, root: str) -> None:
    name = info.filename.removeprefix(root)
    if not info.filename.startswith(root) or ".." in info.filename.split("/") or "\\" in name or name.startswith("/"):
        raise ModelRefused(f"entry {info.filename!r:.120} lies outside the archive's own folder {root!r:.60}")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ModelRefused(f"entry {name!r:.120} is compressed or encrypted, which torch.export.save never does")
    if name in _KNOWN or name.startswith("extra/") or _PAYLOAD.match(name):
        return
    why = next(
        (why for prefix, why in _REFUSED.items() if name.startswith(prefix)), "not a known part of an exported program"
    )
    raise ModelRefused(f"entry {name!r:.120} is {why}")


def _text(archive: zipfile.ZipFile, name: str, sizes: dict[str, int]) -> str:
    if name not in sizes:
        raise ModelRefused(f"entry {name!r:.120} is missing; write the archive with torch.export.save of torch 2.9+")
    if sizes[name] > _MAX_JSON_BYTES:
        raise ModelRefused(f"entry {name!r:.120} has {sizes[name]} bytes; at most {_MAX_JSON_BYTES} are read")
    return archive.read(name).decode()


def _check_payload(name: str, item: Json, folder: str, sizes: dict[str, int]) -> None:
    where = f"{folder}{item['path_name']}"
    if item["use_pickle"] is not False or item["tensor_meta"] is None:
        raise ModelRefused(f"{name!r:.80} in entry {where!r:.120} is pickled; export a module whose tensors are plain")
    if not _PAYLOAD.match(where) or where not in sizes:
        raise ModelRefused(f"{name!r:.80} points to the entry {where!r:.120}, which is not a payload of this archive")
    meta = item["tensor_meta"]
    needed = _extent(meta) * _DTYPES[meta["dtype"]][1]
    if meta["layout"] != _STRIDED or needed > sizes[where]:
        raise ModelRefused(f"{name!r:.80} claims {needed} bytes of the entry {where!r:.120}, which has {sizes[where]}")


def _extent(meta: Json) -> int:
    """The number of elements of its payload up to a tensor's last one."""
    sizes = [_whole(size) for size in meta["sizes"]]
    strides = [_whole(stride) for stride in meta["strides"]]
    if 0 in sizes:
        return 0
    return _whole(meta["storage_offset"]) + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))


def _whole(value: Json) -> int:
    number = value["as_int"]
    if type(number) is not int or number < 0:
        raise ModelRefused(f"a tensor has the size, stride or offset {number!r:.40}; it must be a whole number from 0")
    return number


def _interface(program: Json) -> tuple[tuple[Pt2Tensor, ...], tuple[Pt2Tensor, ...], int, int | None]:
    module = program["graph_module"]
    _refuse_writes(module)
    call = next(entry for entry in module["module_call_graph"] if entry["fqn"] == "")["signature"]
    given = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    made = [_output(spec) for spec in module["signature"]["output_specs"]]
    inputs = _metas(_input_names(call), given, module["graph"])
    outputs = _metas(_output_names(call), made, module["graph"])
    if not inputs or not outputs:
        raise InvalidInput("the program takes or gives no tensor; export a module that maps tensors to tensors")
    ranges = [_batch_range(name, meta, program["range_constraints"]) for name, meta in inputs.items()]
    for name, meta in outputs.items():
        if not meta["sizes"] or "as_int" in meta["sizes"][0]:
            raise InvalidInput(
                f"output {name!r} does not have the batch as its first dimension; return one row per sample"
            )
    most = [high for _, high in ranges if high is not None]
    least = max(1, *(low for low, _ in ranges))
    return _tensors(inputs), _tensors(outputs), least, min(most) if most else None


def _output(spec: Json) -> Json:
    if "user_output" not in spec:
        raise InvalidInput(_CHANGES.format(", ".join(spec)))
    return spec["user_output"]["arg"]


def _refuse_writes(module: Json) -> None:
    """InvalidInput for an operator that writes in place to what all batches share."""
    specs = module["signature"]["input_specs"]
    shared = {spec[kind]["arg"]["name"] for spec in specs for kind in _SHARED if kind in spec}
    for node in module["graph"]["nodes"]:
        operator = node["target"].rpartition(".")[0]
        if (
            operator.endswith("_")
            and node["inputs"]
            and node["inputs"][0]["arg"].get("as_tensor", {}).get("name") in shared
        ):
            raise InvalidInput(_CHANGES.format(node["target"]))


def _input_names(call: Json) -> list[str]:
    """The parameter names of `forward`; `parameter_key` for what is in a list or dict."""
    positional, by_name = json.loads(call["in_spec"])[1]["children_spec"]
    declared = [*(call.get("forward_arg_names") or ())]
    names = declared[: len(positional["children_spec"])]
    names += [f"arg{i}" for i in range(len(names), len(positional["children_spec"]))]
    leaves = [
        leaf for name, tree in zip(names, positional["children_spec"], strict=True) for leaf in tree_leaves(tree, name)
    ]
    return [*leaves, *tree_leaves(by_name, "")]


def _output_names(call: Json) -> list[str]:
    """A dict's keys; `output_0`, `output_1` … for a tuple or list; `output` for a single tensor."""
    tree = json.loads(call["out_spec"])[1]
    is_dict = tree["type"] in ("builtins.dict", "collections.OrderedDict")
    return list(tree_leaves(tree, "" if is_dict else "output"))


def _metas(names: list[str], arguments: list[Json], graph: Json) -> dict[str, Json]:
    """The tensors' metadata by name, in the order of the flat arguments, without those that are None."""
    metas: dict[str, Json] = {}
    for name, argument in zip(names, arguments, strict=True):
        if "as_none" in argument:
            continue
        if "as_tensor" not in argument:
            raise InvalidInput(
                f"{name!r} is not a tensor ({', '.join(argument)}); export a module that takes and gives tensors"
            )
        if name in metas:
            raise InvalidInput(f"two inputs or outputs are called {name!r}; give them different names")
        metas[name] = graph["tensor_values"][argument["as_tensor"]["name"]]
    return metas


def _batch_range(name: str, meta: Json, ranges: Json) -> tuple[int, int | None]:
    symbol = re.fullmatch(r"Symbol\('(\w+)'.*\)", meta["sizes"][0]["as_expr"]["expr_str"]) if _is_free(meta) else None
    if symbol is None:
        raise InvalidInput(
            f"input {name!r} has no free batch dimension; "
            f"export it with dynamic_shapes={{{name!r}: {{0: torch.export.Dim('batch')}}}}"
        )
    bounds = ranges.get(symbol[1], {"min_val": 0, "max_val": None})
    return bounds["min_val"] or 0, bounds["max_val"]


def _is_free(meta: Json) -> bool:
    return bool(meta["sizes"]) and "as_expr" in meta["sizes"][0]


def _tensors(metas: dict[str, Json]) -> tuple[Pt2Tensor, ...]:
    return tuple(
        Pt2Tensor(
            name,
            _DTYPES[meta["dtype"]][0],
            tuple(size.get("as_int", -1) for size in meta["sizes"][1:]),
            tuple(_example(size) for size in meta["sizes"][1:]),
        )
        for name, meta in metas.items()
    )


def _example(size: Json) -> int:
    if "as_int" in size:
        return int(size["as_int"])
    return int(((size["as_expr"].get("hint") or {}).get("as_int")) or 1)
