"""The contract of online stores, and what keeps it. A new adapter's test is a subclass of `contract.SharedStoreContract` and a fixture.

Imported by its full name, `tests.online`, which the processes that the tests start can import too.
"""

import pytest

pytest.register_assert_rewrite("tests.online.contract", "tests.online.state_machine", "tests.online.processes")
