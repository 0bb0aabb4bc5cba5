"""Imports an object that a model version names, when the operator allows it.

What may be imported is the setting `allowed_python_models`; it is checked before anything is imported, since an import runs
code. Runtimes and recipes of other packages are allowed by being installed. Knows no torch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from forebay.contract.errors import InvalidInput, ModelLoadFailed, ModelRefused

_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z]\w*\Z", re.ASCII)
_HOW = "add it to allowed_python_models in forebay.toml, or to FOREBAY_ALLOWED_PYTHON_MODELS, on the worker's machine"


def import_allowed(target: str, allowed: Sequence[str]) -> Any:
    """The class or function `package.module:name`.

    An entry of `allowed` is such a target, a module `package.module`, or a package with all below it, `package.*`.
    ModelRefused for what is not listed, and for a name that a listed module merely imported from elsewhere (list the
    target itself to allow that); ModelLoadFailed when there is no such module or name.
    """
    if not _TARGET.match(str(target)):  # from JSON: it may be anything
        raise ModelRefused(f"{target!r:.200} does not name a Python object; write it as 'package.module:name'")
    module, _, name = target.partition(":")
    if target not in allowed and not _covers(allowed, module):
        raise ModelRefused(f"{target!r} is not on the operator's list; {_HOW}")
    found = _import(module, name)
    if target not in allowed:
        _refuse_foreign(found, target, allowed)
    return found


def find_plugin(group: str, name: str, built_in: Mapping[str, str]) -> Any:
    """What `name` means: `package.module:attribute` of Forebay's own, or what another package offers in an entry-point group.

    InvalidInput, listing the known names, for any other; ModelLoadFailed when it cannot be imported.
    """
    if name in built_in:
        return resolve_name(built_in[name])
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        kind, known = group.rpartition(".")[2].removesuffix("s"), ", ".join(sorted({*built_in, *found}))
        raise InvalidInput(f"no {kind} is called {name!r}; known are {known}")
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ModelLoadFailed(f"{name!r} ({found[name].value}) cannot be imported: {error}") from error


def _covers(allowed: Sequence[str], module: str) -> bool:
    return any(
        module == entry.removesuffix(".*") or (entry.endswith(".*") and module.startswith(entry[:-1]))
        for entry in allowed
    )


def _import(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ModelLoadFailed(f"cannot import {module!r} on this worker: {error}") from error
    except AttributeError as error:
        raise ModelLoadFailed(f"module {module!r} has no {name!r}") from error


def _refuse_foreign(found: Any, target: str, allowed: Sequence[str]) -> None:
    home = getattr(found, "__module__", None)
    if not callable(found) or not isinstance(home, str):
        raise ModelRefused(f"{target!r} is a {type(found).__name__}, not a class or function of an allowed module")
    if not _covers(allowed, home):
        raise ModelRefused(f"{target!r} comes from {home!r}, which is not on the operator's list; {_HOW}")
