"""What INPUT and stdin on the command line give to a model of one text."""

import io
import sys
from pathlib import Path

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Signature
from forebay.producer.cli.inputs import read_inputs

TEXT = Signature.parse({"text": {"dtype": "str"}}, None)
DATA = Signature.parse({"data": {"dtype": "bytes"}}, None)


@pytest.mark.parametrize("text", ["bad", '"bad"', "{", '{"other": 1}', "[1]", "3", ""])
def test_a_model_of_one_text_takes_it_as_it_stands(text: str) -> None:
    assert read_inputs(TEXT, text, None, each=False, batched=False).values == [text]


@pytest.mark.parametrize(("signature", "text"), [(TEXT, '{"text": "bad"}'), (DATA, '{"data": {"file": "a.bin"}}')])
def test_json_with_the_inputs_name_is_not_taken_for_its_value(signature: Signature, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"INPUT is taken as it stands.*give its value alone"):
        read_inputs(signature, text, None, each=False, batched=False)


def test_nor_is_a_line_of_such_json_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b'good\n{"text": "bad"}\n'))
    monkeypatch.setattr(sys, "stdin", lines)
    with pytest.raises(InvalidInput, match="stdin is taken as it stands"):
        read_inputs(TEXT, None, Path("-"), each=False, batched=False)


def test_in_a_text_file_every_line_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "bad"}\n', encoding="utf-8")
    assert read_inputs(TEXT, None, tmp_path / "a.txt", each=False, batched=False).values == ['{"text": "bad"}']
