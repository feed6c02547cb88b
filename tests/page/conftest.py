import pytest

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
