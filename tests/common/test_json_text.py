"""JSON of others is read, or refused with one kind of error."""

import pytest

from spikegpt.common.json_text import parse_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "two values of the name 'a'"),
        ('[{"b": {"a": 1, "c": 0, "a": 1}}]', "two values of the name 'a'"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ', "Expecting value"),
    ],
)
def test_what_is_ambiguous_or_broken_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_a_name_may_stand_again_in_another_object():
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]
