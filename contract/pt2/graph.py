"""Checks the graph in a .pt2 file against a grammar, before torch sees it.

Refusing pickles is not enough: torch 2.13 also runs code from the archive's JSON. Symbolic shapes go through `sympy.sympify` (an
`eval`), guards and node names become part of Python source that is `exec`ed, a node's target is looked up by `getattr` from
`torch` (`torch.os.system` resolves; only the verifier stops it later), and a pytree's enum context imports any module. So only
what is known to be harmless passes, and everything else is refused.

Standard library only, because the producer checks with the same code before an upload.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Iterator
from typing import Any

from forebay.contract.errors import InvalidInput, ModelRefused
from forebay.contract.pt2.expressions import SYMBOL, check_expression, check_total, is_guard

Json = Any  # what json.loads returns: the schema is torch's, and is checked key by key

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DOTTED = re.compile(r"[A-Za-z0-9_.@]*\Z")
_TREE_KEY = re.compile(r"[A-Za-z0-9_ .:/@-]{1,200}\Z")
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized_decomposed|torchvision)\.(\w+)\.([A-Za-z0-9]\w*)\Z", re.ASCII
)
_DUNDER_OPERATORS = {"__and__", "__iand__", "__or__", "__ior__", "__xor__", "__ixor__"} | {
    "__lshift__", "__ilshift__", "__rshift__", "__irshift__"
}  # fmt: skip
_FILE_OPERATORS = {"from_file"}  # maps, and with shared=True creates, any file the worker may write
_PLAIN_TARGETS = {
    "_operator.add", "_operator.sub", "_operator.mul", "_operator.floordiv", "_operator.truediv", "_operator.mod",
    "_operator.pow", "_operator.neg", "_operator.pos", "_operator.eq", "_operator.ne", "_operator.lt", "_operator.le",
    "_operator.gt", "_operator.ge", "_operator.and_", "_operator.or_", "_operator.not_", "_operator.getitem",
    "_operator.lshift", "_operator.rshift", "math.ceil", "math.floor", "math.trunc", "math.sqrt", "torch.sym_int",
    "torch.sym_float", "torch.sym_ite", "torch.sym_max", "torch.sym_min", "torch.sym_not", "torch.sym_sum",
    "torch._sym_sqrt", "torch.ops.higher_order.cond", "torch.ops.higher_order.map_impl",
    "torch.ops.higher_order.while_loop", "torch.ops.higher_order.scan", "torch.ops.higher_order.associative_scan",
    "torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast",
}  # fmt: skip
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
# A dict under one of these keys maps names to values.
_MAPS = {"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "as_string_to_argument"}
_MUST_BE_EMPTY = {
    "custom_obj_values": "custom objects",
    "treespec_namedtuple_fields": "named tuples",
}
_FORBIDDEN = {
    "as_custom_obj": "a custom object",
    "custom_obj": "a custom object",
    "class_fqn": "a custom object",
    "constant_input": "an input that is not a tensor",
    "token": "an effect token",
}


def clean_program(program: Json, device: str | None = None) -> Json:
    """A copy of an exported program's JSON that is safe to deserialize; ModelRefused if it cannot be made safe.

    Node metadata (stack traces, module paths) and guards that do more than compare sizes are left out: torch needs neither.
    With `device` ("cpu", "cuda:1") every device in the program is replaced by it.
    """
    cleaned = _clean(
        {k: v for k, v in program.items() if k not in ("guards_code", "range_constraints")}, _device(device)
    )
    check_total(_expressions(cleaned))
    cleaned["guards_code"] = [guard for guard in program.get("guards_code") or () if is_guard(guard)]
    cleaned["range_constraints"] = {_symbol(k): _bounds(v) for k, v in program["range_constraints"].items()}
    return cleaned


def clean_config(config: Json, device: str | None = None) -> Json:
    """The same for the table of which payload holds which parameter or constant."""
    return {"config": {_dotted(name): _clean(item, _device(device)) for name, item in config["config"].items()}}


def _device(device: str | None) -> Json:
    if device is None:
        return None
    kind, _, index = device.partition(":")
    return {"type": kind, "index": int(index) if index else None}


def _clean(value: Json, device: Json) -> Json:
    if isinstance(value, list):
        return [_clean(item, device) for item in value]
    if isinstance(value, dict):
        if value.get("name") in ("train", "training") and value.get("arg") == {"as_bool": True}:
            raise InvalidInput("the program was exported in training mode; call module.eval() before the export")
        if value.get("name") == "dropout_p" and (value.get("arg") or {}).get("as_float"):
            raise InvalidInput("the program drops out at random; call module.eval() before the export")
        return {key: _field(key, item, device) for key, item in value.items()}
    return value


def _expressions(value: Json) -> Iterator[str]:
    """Every symbolic size in the program."""
    if isinstance(value, dict):
        if isinstance(value.get("expr_str"), str):
            yield value["expr_str"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _expressions(item)


def _field(key: str, value: Json, device: Json) -> Json:
    if key in _FORBIDDEN:
        raise ModelRefused(f"the graph holds {_FORBIDDEN[key]} ({key}); export a module of tensors only")
    if key in _MUST_BE_EMPTY and value:
        raise ModelRefused(
            f"the graph holds {_MUST_BE_EMPTY[key]} ({key}); export a module of tensors, lists and dicts"
        )
    if key == "metadata":
        return {}
    if key in ("device", "as_device") and device is not None:
        return device
    if key in _MAPS and value is not None:
        return {_identifier(name): _clean(item, device) for name, item in value.items()}
    if key in _STRINGS:
        return _STRINGS[key](value)
    return _clean(value, device)


def _identifier(name: Json) -> Json:
    if name in (None, ""):
        return name
    if not isinstance(name, str) or not _IDENTIFIER.match(name) or name.startswith("__") or keyword.iskeyword(name):
        raise ModelRefused(f"the graph uses the name {name!r:.80}; only plain identifiers are safe in generated code")
    return name


def _identifiers(names: Json) -> Json:
    return None if names is None else [_identifier(name) for name in names]


def _dotted(name: Json) -> str:
    if not isinstance(name, str) or not _DOTTED.match(name):
        raise ModelRefused(f"the graph holds the path {name!r:.80}; a parameter's path consists of names and dots")
    return name


def _symbol(name: Json) -> str:
    if not isinstance(name, str) or not SYMBOL.match(name):
        raise ModelRefused(f"the graph bounds {name!r:.80}, which is not a symbol such as 's0'")
    return name


def _bounds(value: Json) -> Json:
    bounds = {"min_val": value["min_val"], "max_val": value["max_val"]}
    if not all(bound is None or type(bound) is int for bound in bounds.values()):
        raise ModelRefused(f"the graph holds the range {value!r:.80}; its ends must be whole numbers or null")
    return bounds


def _target(target: Json) -> str:
    if isinstance(target, str) and target in _PLAIN_TARGETS:
        return target
    found = _OPERATOR.match(target) if isinstance(target, str) else None
    if (
        found is None
        or (found[1].startswith("__") and found[1] not in _DUNDER_OPERATORS)
        or found[1] in _FILE_OPERATORS
    ):
        raise ModelRefused(
            f"the graph calls {target!r:.80}, which is not on the list of operators that only compute on tensors; "
            "write it with ATen operators, or register the model with the 'python' runtime"
        )
    return target  # type: ignore[no-any-return]


def _tree(text: Json) -> str:
    protocol, tree = json.loads(text)
    if protocol != 1:
        raise ModelRefused(f"the graph's input or output structure has the unknown protocol {protocol!r:.20}")
    for _ in tree_leaves(tree, ""):
        pass
    return text  # type: ignore[no-any-return]


def tree_leaves(tree: Json, prefix: str) -> Iterator[str]:
    """A name for each leaf of a pytree: dict keys and indices, joined by `_`; ModelRefused for other kinds of tree."""
    if tree["type"] is None:
        yield prefix
        return
    if tree["type"] not in _TREES:
        raise ModelRefused(
            f"the graph takes or returns a {tree['type']!r:.80}; use tensors, tuples, lists and dicts, "
            "because rebuilding any other type would import code that the archive names"
        )
    children = tree["children_spec"]
    for key, child in zip(_tree_keys(tree, len(children)), children, strict=True):
        yield from tree_leaves(child, f"{prefix}_{key}" if prefix else key)


def _tree_keys(tree: Json, count: int) -> list[str]:
    context = json.loads(tree["context"])
    if tree["type"] in ("builtins.tuple", "builtins.list"):
        if context is not None:
            raise ModelRefused(f"a {tree['type']} in the graph carries the context {context!r:.80}")
        return [str(i) for i in range(count)]
    if not all(isinstance(key, str) and _TREE_KEY.match(key) for key in context):
        raise ModelRefused(f"a dict in the graph has keys other than plain names: {context!r:.80}")
    return list(context)


_STRINGS: dict[str, Callable[[Json], Json]] = {
    "name": _identifier,
    "as_name": _identifier,
    "forward_arg_names": _identifiers,
    "fqn": _dotted,
    "parameter_name": _dotted,
    "buffer_name": _dotted,
    "tensor_constant_name": _dotted,
    "custom_obj_name": _dotted,
    "user_input_name": _identifier,
    "target": _target,
    "as_operator": _target,
    "expr_str": check_expression,
    "in_spec": _tree,
    "out_spec": _tree,
}
