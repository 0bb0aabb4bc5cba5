"""Archives made to run code when loaded. Each is a real export with one part replaced; none may leave a trace.

Controls load the same archives, but for STOPPED_BY_TORCH, with torch alone and see the trace: the attacks are real.
"""

import contextlib
import copy
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from forebay.contract.errors import InvalidInput, ModelRefused
from forebay.contract.pt2.archive import read_pt2, read_pt2_signature
from support import hostile_archives as attacks
from support.hostile_archives import CONSTANTS, PROGRAM, WEIGHTS, edited, load, load_with_torch_alone, rebuilt


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "small.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(attacks.Small().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), path
    )
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


HOSTILE = [
    (attacks.pickled_weight, "'linear.weight' in entry 'data/weights/weight_0' is pickled"),
    (attacks.pickled_constant, "'constant' in entry 'data/constants/tensor_0' is pickled"),
    (attacks.opaque_constant, "entry 'data/constants/opaque_obj_0' is a pickled Python object; export"),
    (attacks.custom_constant, "entry 'data/constants/custom_obj_0' is a pickled custom object; export"),
    (attacks.legacy_weights, "entry 'data/weights/model.pt' is weights in a pickled form; save again"),
    (attacks.legacy_constants, "entry 'data/constants/model.pt' is constants in a pickled form; save again"),
    (attacks.evaluated_shape, "symbolic size"),
    (attacks.shape_of_a_tensor_named_metadata, "symbolic size"),
    (attacks.operator_of_the_operating_system, "the graph calls 'torch.os.system'"),
    (attacks.name_that_is_code, "only plain identifiers"),
    (attacks.parameter_path_that_is_code, "a parameter's path"),
    (attacks.enum_that_is_imported, "keys other than plain names"),
]
# With torch alone these payloads fail early (the verifier, or a pickle of the wrong kind); refused all the same.
STOPPED_BY_TORCH = {
    attacks.custom_constant,
    attacks.operator_of_the_operating_system,
    attacks.name_that_is_code,
    attacks.parameter_path_that_is_code,
}
RUN_BY_TORCH = [attack for attack, _ in HOSTILE if attack not in STOPPED_BY_TORCH]


@pytest.mark.parametrize(("attack", "message"), HOSTILE, ids=[attack.__name__ for attack, _ in HOSTILE])
def test_an_archive_that_would_run_code_is_refused_on_both_ends(small, tmp_path, trace, attack, message, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = rebuilt(small, tmp_path, attack(trace))
    with pytest.raises(ModelRefused, match=re.escape(message)):
        read_pt2(path)
    with pytest.raises(ModelRefused, match=re.escape(message)):
        load(path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the attack leaves its file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # which pytest reports in its own words
@pytest.mark.parametrize("attack", RUN_BY_TORCH, ids=lambda attack: attack.__name__)
def test_control_torch_alone_runs_the_same_code(small, tmp_path, trace, attack, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    load_with_torch_alone(rebuilt(small, tmp_path, attack(trace)))
    assert trace.exists()


@pytest.mark.parametrize(
    "attack", [attacks.guard_that_is_code, attacks.pickled_samples], ids=lambda attack: attack.__name__
)
def test_guards_that_are_code_and_pickled_samples_are_left_behind(small, tmp_path, trace, attack):
    model = load(rebuilt(small, tmp_path, attack(trace)))
    assert len(model.predict([torch.zeros(4).numpy()] * 3)) == 3
    assert not trace.exists()
    assert os.listdir(tmp_path) == ["hostile.pt2"]  # nor is the copy left behind # noqa: PTH208


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "attack", [attacks.guard_that_is_code, attacks.pickled_samples], ids=lambda attack: attack.__name__
)
def test_control_torch_alone_runs_guards_and_unpickles_samples(small, tmp_path, trace, attack):
    load_with_torch_alone(rebuilt(small, tmp_path, attack(trace)))
    assert trace.exists()


STRANGE = {
    "machine code": ("data/aotinductor/model/model.so", "compiled machine code"),
    "a GPU kernel": ("data/aotinductor/model/kernel.cubin", "compiled machine code"),
    "a second program": ("models/other.json", "more than one program"),
    "an unknown entry": ("data/executorch/model.pte", "not a known part"),
    "Python": ("data/weights/setup.py", "in a pickled form"),
    "a climbing path": ("data/../../../../etc/cron.d/x", "outside the archive's own folder"),
    "another folder": ("!elsewhere/x", "outside the archive's own folder"),
}


@pytest.mark.parametrize(("entry", "message"), STRANGE.values(), ids=STRANGE.keys())
def test_an_entry_that_belongs_to_no_exported_program_is_refused(small, tmp_path, entry, message):
    path = rebuilt(small, tmp_path, lambda entries: entries.update({entry: b"x"}))
    with pytest.raises(ModelRefused, match=re.escape(message)):
        load(path)


def test_a_compressed_archive_is_refused_so_a_small_file_stays_small(small, tmp_path):
    with pytest.raises(ModelRefused, match="compressed"):
        load(rebuilt(small, tmp_path, lambda entries: None, zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile warns of what this test makes
def test_an_entry_named_twice_is_refused(small, tmp_path):
    path = rebuilt(small, tmp_path, lambda entries: None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"small/{PROGRAM}", b"{}")
    with pytest.raises(ModelRefused, match="twice"):
        load(path)


def test_a_table_of_contents_that_points_out_of_the_file_is_refused(small, tmp_path):
    path = rebuilt(small, tmp_path, lambda entries: None)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x05\x06") + 16  # where the table starts; the entries are looked for relative to it
    data[start : start + 4] = (int.from_bytes(data[start : start + 4], "little") + 1000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=f"{path.name}: .*points out of the file"):
        read_pt2(path)


@pytest.mark.parametrize("size", [10**6, -1])
def test_a_tensor_that_reaches_out_of_its_payload_is_refused(small, tmp_path, size):
    grow = edited(WEIGHTS, lambda c: c["config"]["linear.weight"]["tensor_meta"]["sizes"][0].update(as_int=size))
    with pytest.raises(ModelRefused):
        load(rebuilt(small, tmp_path, grow))


def test_a_payload_that_is_empty_cannot_stand_for_a_huge_tensor(small, tmp_path):
    def change(entries):
        edited(WEIGHTS, lambda c: c["config"]["linear.weight"]["tensor_meta"]["sizes"][0].update(as_int=2**40))(entries)
        entries["data/weights/weight_0"] = b""

    with pytest.raises(ModelRefused, match="claims"):
        load(rebuilt(small, tmp_path, change))


def test_a_weight_outside_the_weights_folder_is_refused(small, tmp_path):
    climb = edited(WEIGHTS, lambda c: c["config"]["linear.weight"].update(path_name="../constants/tensor_0"))
    with pytest.raises(ModelRefused, match="not a payload of this archive"):
        load(rebuilt(small, tmp_path, climb))


def test_an_archive_of_the_old_pickled_form_is_refused(tmp_path):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.5")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", b"x")
    with pytest.raises(ModelRefused, match=r"torch 2\.7 or older.*save it again"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"no zip at all", pickle.dumps({"a": 1}), b"PK\x05\x06" + b"\0" * 18])
def test_a_file_that_is_no_archive_is_refused_in_words(tmp_path, content):
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with pytest.raises((InvalidInput, ModelRefused), match=r"x\.pt2"):
        read_pt2_signature(path)


@pytest.mark.parametrize("program", [b"{}", b"[]", b"[" * 100_000, b"null", b'{"graph_module": 3}', b"\xff"])
def test_a_broken_program_is_refused_in_words(small, tmp_path, program):
    with pytest.raises(InvalidInput, match="broken"):
        read_pt2_signature(rebuilt(small, tmp_path, lambda entries: entries.update({PROGRAM: program})))


# Cut off by 200 bytes, what remains ends like a zip: that of the pickled sample inputs within.
@pytest.mark.parametrize("length", [1, 200, 5000])
def test_a_cut_off_archive_is_refused_in_words(small, tmp_path, length):
    path = tmp_path / "cut.pt2"
    path.write_bytes(small.read_bytes()[:-length])
    with pytest.raises((InvalidInput, ModelRefused), match=r"cut\.pt2"):
        load(path)


def test_forcing_weights_only_is_undone_after_the_load(small, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    load(small)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("entry", [PROGRAM, WEIGHTS, CONSTANTS])
def test_no_json_value_replaced_by_another_kind_escapes_the_error_tree(small, tmp_path, entry):
    """Walks every leaf of the JSON and puts something else there: refused, or loaded, but never a stray exception."""
    with zipfile.ZipFile(small) as archive:
        original = json.loads(archive.read(f"small/{entry}"))
    for path in list(_leaves(original))[::7]:
        for odd in (None, "'", -1, [], {}):
            changed = copy.deepcopy(original)
            _put(changed, path, odd)
            hostile = rebuilt(small, tmp_path, lambda e, c=changed: e.update({entry: json.dumps(c).encode()}))
            with contextlib.suppress(InvalidInput, ModelRefused):
                read_pt2(hostile)


def _leaves(value: Any, path: tuple[Any, ...] = ()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _leaves(item, (*path, key))


def _put(value: Any, path: tuple[Any, ...], item: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = item
