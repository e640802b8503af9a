"""Generated scenes for the detection tests."""

from tests.data.conftest import generated, spoilt  # noqa: F401  (fixtures)
from tests.tools.conftest import one_thread  # noqa: F401  (fixture)
