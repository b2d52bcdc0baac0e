"""The small trained tokenizer that the data's tests have."""

from tests.data.conftest import bpe  # noqa: F401 - a fixture
