"""What a child imports before its first job."""

import subprocess
import sys

import pytest

from forebay.contract.errors import MissingExtra
from forebay.contract.settings import Settings
from forebay.worker.child.process import preload


def test_a_module_that_is_not_here_is_named_with_the_setting() -> None:
    with pytest.raises(MissingExtra, match="setting preload names 'no_such_module', which cannot be imported"):
        preload(Settings.load({"FOREBAY_PRELOAD": "json, no_such_module"}))


@pytest.mark.parametrize(("named", "loaded"), [(",", "False"), ("torch", "True")])
def test_a_child_and_a_model_of_plain_python_load_torch_only_where_the_setting_names_it(
    named: str, loaded: str
) -> None:
    program = (
        "import sys; from forebay.contract.settings import Settings; from forebay.worker.child.process import preload\n"
        f"preload(Settings.load({{'FOREBAY_PRELOAD': {named!r}, 'FOREBAY_TORCH_THREADS': '1'}}))\n"
        "from forebay.worker.runtimes.python import PythonModel\n"
        "made = PythonModel(type('Same', (), {'predict': lambda self, rows: rows})()).predict([1])\n"
        "torch = sys.modules.get('torch')\n"
        "assert made == [1] and (torch is None or torch.get_num_threads() == 1); print(torch is not None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (loaded, "")
