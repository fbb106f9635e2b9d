"""Makes the assertions of the shipped contract as readable as those of a test module."""

import pytest

pytest.register_assert_rewrite("adk_adapter.testing")
