import os

import pytest

# Nothing here may leave the machine, the calls to the browser's driver included.
for _name in list(os.environ):
    if _name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
        del os.environ[_name]

from browser import Browser
from pod import Pod


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def pod():
    with Pod() as pod:
        yield pod
