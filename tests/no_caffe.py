"""A plugin, `pytest -p tests.no_caffe`: files that import Caffe are left out, and tests that train with it skipped."""

import sys

sys.modules["caffe"] = None


def pytest_ignore_collect(collection_path):
    """Leave out test files that import Caffe; None leaves all others to pytest."""
    is_test = collection_path.suffix == ".py" and collection_path.stem.startswith("test_")
    return True if is_test and "\nimport caffe\n" in collection_path.read_text() else None
