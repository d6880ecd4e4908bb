import pytest

from groupdetr_d2.data.nuscenes import catalog
from tests.data.nuscenes.tiny_copy import write_copy


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A small copy of nuScenes that tests only read."""
    root = tmp_path_factory.mktemp("tiny") / "nuscenes"
    write_copy(root)
    return root


@pytest.fixture(autouse=True)
def nothing_is_open(monkeypatch):
    """Sets are opened anew in each test, in the copy itself."""
    monkeypatch.setattr(catalog, "_FRAMES", {})
    monkeypatch.delenv("GROUPDETR_CACHE", raising=False)


@pytest.fixture
def copy(tmp_path):
    """Writes a small copy of nuScenes whose tables a function changes before."""

    def write(edit=None, **named):
        write_copy(tmp_path / "nuscenes", edit=edit, **named)
        return tmp_path / "nuscenes"

    return write
