"""Real exports with one part replaced, for test_hostile_archives.py: how each attack is built."""

import copy
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forebay.contract.model import ModelVersion
from forebay.contract.signature import Signature
from forebay.worker.runtimes import get_runtime

PROGRAM, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, SAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
Entries = dict[str, bytes]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return (open, (self.trace, "w"))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.constant = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x):
        return self.linear(x) + self.constant


def rebuilt(small: Path, tmp_path: Path, change: Callable[[Entries], Any], compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(small) as archive:
        entries = {name.removeprefix("small/"): archive.read(name) for name in archive.namelist()}
    change(entries)
    path = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in entries.items():
            archive.writestr(name if name.startswith("!") else f"small/{name}", content)
    return path


def edited(entry: str, change: Callable[[Any], Any]) -> Callable[[Entries], None]:
    def apply(entries: Entries) -> None:
        loaded = json.loads(entries[entry])
        change(loaded)
        entries[entry] = json.dumps(loaded).encode()

    return apply


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def load(path: Path):
    spec = ModelVersion("m", 1, "torch-export", "", "file", 0, Signature())
    return get_runtime("torch-export").load(path, "cpu", spec)


def load_with_torch_alone(path: Path) -> None:
    try:
        torch.export.load(path).module()(torch.zeros(2, 4))
    except Exception as error:  # noqa: BLE001 - whether it then fails is no matter; the trace is
        print(error)  # noqa: T201


def pickled(trace: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Touch(trace), buffer)
    return buffer.getvalue()


# Each makes a change of the archive's entries from the path of the file that hostile code would make.
def pickled_weight(trace):
    def change(entries):
        edited(WEIGHTS, lambda c: c["config"]["linear.weight"].update(use_pickle=True))(entries)
        entries["data/weights/weight_0"] = pickled(trace)

    return change


def pickled_constant(trace):
    def change(entries):
        edited(CONSTANTS, lambda c: c["config"]["constant"].update(use_pickle=True))(entries)
        entries["data/constants/tensor_0"] = pickled(trace)

    return change


def opaque_constant(trace):
    def change(entries):
        edited(CONSTANTS, lambda c: c["config"]["constant"].update(use_pickle=True, path_name="opaque_obj_0"))(entries)
        entries["data/constants/opaque_obj_0"] = pickle.dumps(Touch(trace))

    return change


def custom_constant(trace):
    def change(entries):
        edited(CONSTANTS, lambda c: c["config"]["constant"].update(use_pickle=True, path_name="custom_obj_0"))(entries)
        entries["data/constants/custom_obj_0"] = pickled(trace)

    return change


def legacy_weights(trace):
    return lambda entries: entries.update({"data/weights/model.pt": pickled(trace)})


def legacy_constants(trace):
    return lambda entries: entries.update({"data/constants/model.pt": pickled(trace)})


def evaluated_shape(trace):
    expression = f"__import__('os').system('touch {trace}') or 2"
    size = {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}
    return edited(PROGRAM, lambda p: graph(p)["tensor_values"]["linear"]["sizes"].__setitem__(0, size))


def shape_of_a_tensor_named_metadata(trace):
    """The one key that is not looked into, `metadata`, used as a tensor's name."""

    def change(program):
        values = graph(program)["tensor_values"]
        values["metadata"] = copy.deepcopy(values["linear"])
        values["metadata"]["sizes"][0]["as_expr"]["expr_str"] = f"__import__('os').system('touch {trace}')"
        text = json.dumps(program).replace('"name": "linear"', '"name": "metadata"')
        program.clear()
        program.update(json.loads(text))

    return edited(PROGRAM, change)


def operator_of_the_operating_system(trace):
    def change(program):
        node = graph(program)["nodes"][0]
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {trace}"}, "kind": 1}]

    return edited(PROGRAM, change)


def name_that_is_code(trace):
    name = f"x=open({str(trace)!r},'w')"
    return lambda entries: entries.update(
        {PROGRAM: entries[PROGRAM].replace(b'"name": "x"', f'"name": "{name}"'.encode())}
    )


def parameter_path_that_is_code(trace):
    path = f'linear.a") or open({str(trace)!r},"w") or ("'

    def change(program):
        program["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = path

    return edited(PROGRAM, change)


def enum_that_is_imported(trace):
    module = trace.parent / "imported_by_a_pytree.py"
    module.write_text(f"open({str(trace)!r}, 'w').close()\n")
    context = json.dumps([{"__enum__": True, "fqn": "imported_by_a_pytree:X", "name": "x"}])

    def change(program):
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": "builtins.dict", "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, tree])

    return edited(PROGRAM, change)


def guard_that_is_code(trace):
    return edited(PROGRAM, lambda p: p.update(guards_code=[f"__import__('os').system('touch {trace}') == 0"]))


def pickled_samples(trace):
    return lambda entries: entries.update({SAMPLES: pickled(trace)})
