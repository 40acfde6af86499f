"""A run removes what killed runs of ours left half written, and nothing else: no link is followed."""

import os
from pathlib import Path

import pytest

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import new_folder, replacing, write_file
from pipeline.lock import held
from tests.writers import STOP, WRITERS, left, writing


def content(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder: the bytes of a file, the target of a link, None for a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in folder.rglob("*")
    }


def run(results: Path) -> None:
    """A run that fails before it has written anything."""
    with pytest.raises(ZeroDivisionError), held(results, "mine", lambda line: None):
        raise ZeroDivisionError


@pytest.mark.parametrize("place", [".", "cells", "vectors/abc", ".cache"])
@pytest.mark.parametrize("name", [".tmp-", ".tmp-notes", ".tmp-rv.thesis", ".tmp-out.ab12cd34"])
def test_a_file_or_folder_of_the_user_stays_whatever_it_is_called(
    place: str, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    (folder / f"{name}x").mkdir()
    (folder / f"{name}x" / "thesis").write_text("ten years")
    before = content(tmp_path)
    run(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("place", [".", "cells", "vectors/abc", ".cache", "runs"])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_a_killed_writer_left_is_removed(writer: str, place: str, tmp_path: Path) -> None:
    left(writer, tmp_path / place / "out")
    run(tmp_path)
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob("half"))


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_what_a_living_process_writes_is_left_to_it(writer: str, tmp_path: Path) -> None:
    out = tmp_path / "cells" / "out"
    out.parent.mkdir()
    with writing(writer, out) as process:
        before = content(tmp_path)
        run(tmp_path)
        assert content(tmp_path) == before
        process.communicate("x")
        assert process.returncode == 0
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_linked_folder_is_not_entered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    left(WRITERS["folder"], elsewhere / "out")
    (elsewhere / ".tmp-notes").write_text("mine")
    before = content(elsewhere)
    results = tmp_path / "results"
    (results / "vectors").mkdir(parents=True)
    (results / "cells").symlink_to(elsewhere)
    (results / "vectors" / "abc").symlink_to(elsewhere)
    run(results)
    assert content(elsewhere) == before
    assert (results / "cells").is_symlink()


def test_results_that_are_a_link_are_cleaned_where_they_are(tmp_path: Path) -> None:
    left(WRITERS["folder"], tmp_path / "disk" / "cells" / "out")
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    run(tmp_path / "results")
    assert content(tmp_path) == {"results": str(tmp_path / "disk"), "disk": None, "disk/cells": None}


def test_a_link_with_the_name_of_a_leftover_is_left_with_its_target(tmp_path: Path) -> None:
    results = tmp_path / "results"
    left(WRITERS["folder"], results / "out")
    (leftover,) = results.glob(".tmp-*")
    leftover.rename(tmp_path / "moved")
    leftover.symlink_to(tmp_path / "moved")
    before = content(tmp_path)
    run(results)
    assert content(tmp_path) == before


def test_a_link_inside_of_a_leftover_is_removed_and_its_target_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("ten years")
    results = tmp_path / "results"
    left(WRITERS["folder"], results / "out")
    (leftover,) = results.glob(".tmp-*")
    (leftover / "link").symlink_to(precious)
    run(results)
    assert not leftover.exists() and (precious / "thesis").read_text() == "ten years"


@pytest.mark.parametrize("mark", ["link", "pipe", "folder"])
def test_a_folder_whose_mark_is_no_file_is_not_ours(mark: str, tmp_path: Path) -> None:
    leftover = tmp_path / ".tmp-rv.out.ab12cd34"
    leftover.mkdir()
    (leftover / "thesis").write_text("ten years")
    (tmp_path / "named").write_text("out")
    place = leftover / ".reasoning-vectors"
    {
        "link": lambda: place.symlink_to(tmp_path / "named"),
        "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir,
    }[mark]()
    run(tmp_path)
    assert (leftover / "thesis").read_text() == "ten years" and (tmp_path / "named").read_text() == "out"


def test_a_writer_that_was_killed_before_it_marked_its_folder_leaves_nothing(tmp_path: Path) -> None:
    early = f"def stop(*_): {STOP}\nfiles.fcntl.flock = stop\nfiles.write_file(out, b'half')"
    left(early, tmp_path / "out")
    (tmp_path / ".tmp-rv.out.ab12cd34").mkdir()  # a moment earlier still
    run(tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("moment", ["marked", "locked"])
def test_a_writer_whose_new_folder_is_taken_for_a_leftover_makes_another(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run removes leftovers just before the folder is marked, or just before it is locked."""
    module, name = {"marked": (files.os, "open"), "locked": (files.fcntl, "flock")}[moment]
    original, taken = getattr(module, name), []

    def too_late(*arguments: object) -> object:
        if not taken and list(tmp_path.iterdir()):
            taken.extend(tmp_path.iterdir())
            files.remove_leftovers(tmp_path)
            assert not taken[0].exists()
        return original(*arguments)

    monkeypatch.setattr(module, name, too_late)
    write_file(tmp_path / "file", b"x")
    assert len(taken) == 1 and content(tmp_path) == {"file": b"x"}


def test_an_earlier_result_survives_a_writer_that_was_killed_while_it_was_replaced(tmp_path: Path) -> None:
    out = tmp_path / "steered" / "out"
    out.mkdir(parents=True)
    (out / "weights").write_text("earlier")
    between = (
        "rename = Path.rename\n"
        f"def stop(self, to):\n  rename(self, to)\n  if self == out: {STOP}\n"
        "Path.rename = stop\n"
        "with files.replacing(out, lambda out: None) as new:\n  new.mkdir(); (new / 'weights').write_text('later')"
    )
    left(between, out)
    assert not out.exists()
    run(tmp_path)
    assert (out / "weights").read_text() in ("earlier", "later") and list(out.parent.iterdir()) == [out]


def test_an_earlier_result_stays_when_the_new_one_cannot_be_put_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "weights").write_text("earlier")
    rename = Path.rename

    def refuses(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(UserError, match="Input/output error"), replacing(out, lambda out: None) as new:
        new.mkdir()
    assert content(tmp_path) == {"out": None, "out/weights": b"earlier"}


def test_an_empty_results_folder_of_the_user_stays(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    run(tmp_path / "results")
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_folders_that_the_run_itself_made_are_removed_when_it_wrote_nothing(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    run(tmp_path / "here" / "new" / "results")
    assert content(tmp_path) == {"here": None}


def test_folders_that_the_run_made_stay_with_what_it_wrote(tmp_path: Path) -> None:
    with held(tmp_path / "new" / "results", "mine", lambda line: None):
        write_file(tmp_path / "new" / "results" / "runs" / "a.json", b"{}")
    assert content(tmp_path)["new/results/runs/a.json"] == b"{}"


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(there: bool, tmp_path: Path) -> None:
    precious, results = tmp_path / "precious.txt", tmp_path / "results"
    if there:
        precious.write_text("ten years")
    results.mkdir()
    (results / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock is not a lock file .* remove it"):
        run(results)
    assert precious.exists() == there and (results / ".lock").is_symlink()
    assert not there or precious.read_text() == "ten years"


def test_a_lock_that_is_a_second_name_of_a_file_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("ten years")
    os.link(tmp_path / "precious.txt", tmp_path / ".lock")
    with pytest.raises(UserError, match=r"\.lock is not a lock file .* remove it"):
        run(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "ten years"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_refused(make: object, tmp_path: Path) -> None:
    make(tmp_path / ".lock")  # type: ignore[operator]
    with pytest.raises(UserError, match=r"\.lock is not a lock file .* remove it"):
        run(tmp_path)
    assert (tmp_path / ".lock").exists()


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    name = "ü" * 127  # 254 bytes
    write_file(tmp_path / name, b"x")
    with new_folder(tmp_path / "folder" / name):
        pass
    assert (tmp_path / name).read_bytes() == b"x" and (tmp_path / "folder" / name).is_dir()


def test_files_and_folders_have_the_modes_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"x")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")] == [0o640, 0o750]
