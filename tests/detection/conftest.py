"""Generated scenes for the detection tests."""

from tests.data.conftest import generated, spoilt  # noqa: F401  (fixtures)
