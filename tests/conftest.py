"""Fixtures that several test files use."""

import os
import signal

import pytest

from tests.browser import Browser
from tests.helpers import make_project, run_train, write_config

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would the programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nets as small as those of tests are fastest with one thread, and two wait for each other where data workers are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def project(tmp_path):
    """A folder of make_project's; files may be changed."""
    return make_project(tmp_path)


@pytest.fixture
def softmax(project):
    """The tiny project after both stages, whose weights the triplet stage starts from again in other folders."""
    write_config(project, FEATURE_CACHE="")
    assert run_train(project).returncode == 0
    return project


@pytest.fixture
def browser(tmp_path_factory):
    """Chromium, which remembers nothing of other tests. Clearing the storage of a running one takes effect too late."""
    started = Browser(tmp_path_factory.mktemp("downloads"))
    yield started
    started.driver.quit()
