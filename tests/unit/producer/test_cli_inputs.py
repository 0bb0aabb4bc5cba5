"""What INPUT on the command line gives to a model."""

import pytest

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Signature
from forebay.producer.cli.inputs import read_inputs

TEXT = Signature.parse({"text": {"dtype": "str"}}, None)


@pytest.mark.parametrize("text", ["bad", '"bad"', "{", '{"other": 1}', "[1]", "3"])
def test_a_model_of_one_text_takes_it_as_it_stands(text: str) -> None:
    assert read_inputs(TEXT, text, None, each=False, batched=False).values == [text]


def test_json_with_the_inputs_name_is_not_taken_for_the_text_itself() -> None:
    with pytest.raises(InvalidInput, match=r"INPUT is taken as text.*'text': give the text alone"):
        read_inputs(TEXT, '{"text": "bad"}', None, each=False, batched=False)
