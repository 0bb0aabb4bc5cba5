"""What a model version may name and have imported."""

import sys
from pathlib import Path

import pytest

from forebay.contract.errors import ModelLoadFailed, ModelRefused
from forebay.worker.allowed import import_allowed


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "operators_models"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "digits.py").write_text(
        "from os import system\nimport os\nLIMIT = 3\nclass Digits: pass\ndef make(): pass\n"
    )
    (tmp_path / "operators_models_evil.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\nclass X: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield str(tmp_path)
    for name in [name for name in sys.modules if name.startswith("operators_models")]:
        del sys.modules[name]


@pytest.mark.parametrize("entry", ["operators_models.digits:Digits", "operators_models.digits", "operators_models.*"])
def test_a_listed_class_is_imported(package, entry):
    assert import_allowed("operators_models.digits:Digits", [entry]).__name__ == "Digits"


@pytest.mark.parametrize(
    "entry", ["operators_models", "operators_models.digits:make", "operators.*", "operators_models.dig", "*", "", ".*"]
)
def test_what_is_not_listed_is_refused_and_the_message_names_the_setting(package, entry):
    with pytest.raises(ModelRefused, match=r"allowed_python_models.*FOREBAY_ALLOWED_PYTHON_MODELS"):
        import_allowed("operators_models.digits:Digits", [entry])


def test_a_refused_module_is_not_even_imported(package):
    for allowed in ([], ["operators_models.*"], ["operators_models_evil:Y"]):
        with pytest.raises(ModelRefused):
            import_allowed("operators_models_evil:X", allowed)
    assert not (Path(package) / "imported").exists()
    assert "operators_models_evil" not in sys.modules


def test_what_an_allowed_module_merely_imported_is_refused(package):
    with pytest.raises(ModelRefused, match="comes from 'posix'"):
        import_allowed("operators_models.digits:system", ["operators_models.*"])


def test_a_name_from_elsewhere_may_be_listed_itself(package):
    assert import_allowed("operators_models.digits:system", ["operators_models.digits:system"])


@pytest.mark.parametrize("name", ["os", "LIMIT"])
def test_modules_and_plain_values_are_refused(package, name):
    with pytest.raises(ModelRefused, match="not a class or function"):
        import_allowed(f"operators_models.digits:{name}", ["operators_models.*"])


@pytest.mark.parametrize(
    "target",
    ["", "os", "os.system", "os:path.join", "a b:c", "os:__builtins__", "os:_exit", "os:", ":x", "../x:y", None],
)
def test_a_target_that_is_no_dotted_module_and_name_is_refused(target):
    with pytest.raises(ModelRefused, match=r"package\.module:name"):
        import_allowed(target, ["os", "os.*"])


def test_a_listed_module_that_is_missing_says_so():
    with pytest.raises(ModelLoadFailed, match="cannot import 'nowhere_to_be_found'"):
        import_allowed("nowhere_to_be_found:X", ["nowhere_to_be_found"])


def test_a_listed_name_that_is_missing_says_so(package):
    with pytest.raises(ModelLoadFailed, match="has no 'Nobody'"):
        import_allowed("operators_models.digits:Nobody", ["operators_models.*"])
