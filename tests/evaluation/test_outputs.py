"""What commands write: whole or not at all, not what is there already, and never what they read."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripletloss.base import files, outputs
from tripletloss.base.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_text("weights")
    (tmp_path / "old").write_text("old")
    return tmp_path


def test_what_is_there_is_refused_unless_force(here):
    outputs.check_outputs(["new"], ["weights"])
    with pytest.raises(InputError, match=r"^old exists already: move it away, write elsewhere, or replace it with --force$"):
        outputs.check_outputs(["new", "old"], ["weights"])
    outputs.check_outputs(["new", "old"], ["weights", "", None], force=True)


@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_written_whatever_its_name(here, force):
    os.symlink("weights", "link")
    os.link("weights", "twin")
    for path in ("weights", "link", "twin", "./weights", str(here / "weights")):
        with pytest.raises(InputError, match="is an input of this command, so it is not replaced"):
            outputs.check_outputs([path], ["old", "nowhere", "weights"], force)


def test_only_regular_files_are_replaced(here):
    os.mkfifo("pipe")
    (here / "folder").mkdir()
    for path in ("pipe", "folder", "/dev/null"):
        with pytest.raises(InputError, match="is not a regular file, so it is not replaced"):
            outputs.check_outputs([path], (), force=True)
    os.symlink("nowhere", "dangling")
    with pytest.raises(InputError, match="dangling exists already"):
        outputs.check_outputs(["dangling"])


def test_a_folder_that_is_not_there_is_refused_before_any_work(here):
    with pytest.raises(InputError, match="no/where cannot be written, because no is not a folder"):
        outputs.check_outputs(["no/where"])
    with pytest.raises(InputError, match="old/x cannot be written, because old is not a folder"):
        outputs.check_outputs(["old/x"])


def make_folder(path, *names, force=False):
    with files.whole_folder(path, force) as part:
        for name in names:
            os.makedirs(os.path.dirname(os.path.join(part, name)), exist_ok=True)
            with open(os.path.join(part, name), "w") as file:
                file.write(name)


def test_a_folder_is_replaced_only_where_a_command_wrote_all_that_is_in_it(here):
    make_folder("out", "a", "b/c")
    assert files.files_in("out") == {"a", "b/c"}
    with pytest.raises(InputError, match="out exists already"):
        outputs.check_folder("out")
    outputs.check_folder("out", ["weights"], force=True)
    make_folder("out", "d", force=True)
    assert files.files_in("out") == {"d"} and sorted(os.listdir()) == ["old", "out", "weights"]
    (here / "out" / "mine").write_text("a person's own file")
    with pytest.raises(InputError, match="out is not replaced, because this command did not write mine in it"):
        outputs.check_folder("out", (), force=True)
    (here / "home").mkdir()
    (here / "home" / "diary").write_text("")
    with pytest.raises(InputError, match="did not write diary in it"):
        outputs.check_folder("home", (), force=True)
    with pytest.raises(InputError, match="old is not a folder"):
        outputs.check_folder("old", (), force=True)


def test_a_folder_that_holds_an_input_is_not_replaced(here):
    make_folder("out", "images/1.jpg", "list")
    os.symlink("out/images", "link")
    for name in ("out", "out/list", "out/images", "link", here / "out" / "images" / "1.jpg"):
        with pytest.raises(InputError, match="out contains an input of this command"):
            outputs.check_folder("out", ["weights", "", name], force=True)
    outputs.check_folder("out", ["weights", "output"], force=True)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), InputError("no")])
def test_what_fails_leaves_nothing_and_keeps_what_was_there(here, failure):
    make_folder("out", "a")
    before = sorted(os.listdir())
    for write in (files.whole_file, files.whole_folder):
        for path in ("old", "new") if write is files.whole_file else ("out", "new/folder"):
            with pytest.raises(type(failure)), write(path) as part:
                if write is files.whole_file:
                    open(part, "x").write("half")
                else:
                    open(os.path.join(part, "half"), "x").write("half")
                raise failure
    os.rmdir("new")
    assert sorted(os.listdir()) == before and (here / "old").read_text() == "old" and files.files_in("out") == {"a"}


def test_several_files_are_all_there_or_none(here):
    (here / "taken").mkdir()
    (here / "taken" / "x").write_text("")
    with pytest.raises(OSError):
        files.write_all({"one": b"1", "taken": b"2", "three": b"3"})
    with pytest.raises(OSError):
        files.write_all({"one": b"1", "no/where": b"2"})
    assert sorted(os.listdir()) == ["old", "taken", "weights"]
    files.write_all({"one": b"1", "old": b"2"})
    assert (here / "one").read_bytes() == b"1" and (here / "old").read_bytes() == b"2"


def test_what_a_killed_command_left_aside_stops_no_other(here):
    """Nor is it written through, if somebody puts a link there."""
    os.symlink("weights", "new.part")
    files.write_whole("new", b"new")
    assert (here / "weights").read_text() == "weights" and (here / "new").read_bytes() == b"new"


@given(st.lists(st.sampled_from(["a.jpg", "A.jpg", "a_2.jpg", "a_3.jpg", "b.png", "b", "B_2", "x/a.jpg"]), max_size=30))
def test_names_become_distinct(names):
    found = outputs.distinct(names)
    assert len({name.casefold() for name in found}) == len(names) == len(found)
    first = {}
    for number, name in enumerate(names):
        first.setdefault(name.casefold(), number)
        assert os.path.splitext(found[number])[1] == os.path.splitext(name)[1]
        assert os.path.dirname(found[number]) == os.path.dirname(name)
    assert all(found[number] == names[number] for number in first.values())
