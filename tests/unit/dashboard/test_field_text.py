"""A signature's side in words on the Models page."""

from forebay.contract.signature import Signature
from forebay.dashboard.pages.models import field_text


def test_a_side_is_told_field_by_field_and_many_fields_are_cut() -> None:
    few = Signature.parse({"x": {"dtype": "float32", "shape": [3, -1]}, "t": {"dtype": "str"}}, None)
    assert field_text(few.inputs) == field_text(few.inputs, 2) == "x: float32[3, any], t: str"
    assert field_text(few.outputs) == "not declared"
    many = Signature.parse({f"p{i}": {"dtype": "float32", "shape": []} for i in range(64)}, None)
    assert field_text(many.inputs, 2) == "p0: float32[], p1: float32[], and 62 more"
    assert field_text(many.inputs).count("float32") == 64
