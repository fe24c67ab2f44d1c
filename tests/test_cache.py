"""An entry is made once, whole or not at all, and never met by another toolchain."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebuild import cache as cache_module
from edgebuild.cache import LIBRARIES, Cache, default_root, digest, toolchain


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def fresh_toolchain() -> Iterator[None]:
    """It is found once a process: no test may see another's."""
    toolchain.cache_clear()
    yield
    toolchain.cache_clear()


class Maker:
    """Writes an entry, and counts how often."""

    def __init__(self, text: str = "made") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "file").write_text(self.text)


def names(cache: Cache, kind: str = "kind") -> list[str]:
    """Everything that lies in the store, scratch folders too."""
    return sorted(entry.name for entry in (cache.root / kind).iterdir())


# ---- made once


def test_an_entry_is_made_once(cache: Cache) -> None:
    make = Maker()
    first, second = cache.entry("kind", "key", make), cache.entry("kind", "key", make)
    assert first == second
    assert make.calls == 1
    assert (first / "file").read_text() == "made"
    assert names(cache) == [first.name]


def test_another_key_or_kind_is_another_entry(cache: Cache) -> None:
    make = Maker()
    entries = {
        cache.entry("kind", "key", make),
        cache.entry("kind", "other", make),
        cache.entry("other", "key", make),
    }
    assert len(entries) == make.calls == 3


def test_an_entry_outlives_its_cache_object(cache: Cache) -> None:
    make = Maker()
    cache.entry("kind", "key", make)
    Cache(cache.root).entry("kind", "key", make)
    assert make.calls == 1


def test_makers_may_make_others_inside(cache: Cache) -> None:
    inner = Maker()

    def make(folder: Path) -> None:
        (folder / "inner").write_text((cache.entry("kind", "inner", inner) / "file").read_text())

    assert (cache.entry("kind", "outer", make) / "inner").read_text() == "made"
    assert len(names(cache)) == 2


# ---- adopted under a name that is known only afterwards


def test_a_filled_scratch_folder_is_filed_under_its_key(cache: Cache) -> None:
    with cache.adopt("kind") as (scratch, publish):
        Maker()(scratch)
        final = publish("key")
    assert final == cache.root / "kind" / "key"
    assert names(cache) == ["key"]
    assert (final / "file").read_text() == "made"


def test_a_scratch_folder_that_is_not_filed_is_removed(cache: Cache) -> None:
    with cache.adopt("kind") as (scratch, _):
        Maker()(scratch)
    assert names(cache) == []


def test_the_first_of_two_with_one_key_stays(cache: Cache) -> None:
    for text in ("first", "second"):
        with cache.adopt("kind") as (scratch, publish):
            Maker(text)(scratch)
            assert (publish("key") / "file").read_text() == "first"
    assert names(cache) == ["key"]


# ---- nothing half-made


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_maker_that_fails_leaves_nothing(error: type[BaseException], cache: Cache) -> None:
    def fail(folder: Path) -> None:
        Maker()(folder)
        raise error

    with pytest.raises(error):
        cache.entry("kind", "key", fail)
    assert names(cache) == []
    make = Maker()
    cache.entry("kind", "key", make)
    assert make.calls == 1


MAKE_SLOWLY = """
import sys, time
from pathlib import Path
from edgebuild.cache import Cache

def make(folder):
    (folder / "file").write_text("half")
    print("started", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "file").write_text("whole")

print(Cache(Path(sys.argv[1])).entry("kind", "key", make).name)
"""


def maker_process(cache: Cache, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE_SLOWLY, str(cache.root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def started(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_maker_that_is_killed_leaves_no_entry_and_is_swept_up_after(cache: Cache) -> None:
    process = started(maker_process(cache, 600))
    process.kill()
    process.communicate()
    (left,) = names(cache)
    assert left.startswith(f".part-{process.pid}-")
    make = Maker()
    entry = cache.entry("kind", "key", make)
    assert make.calls == 1
    assert (entry / "file").read_text() == "made"
    assert names(cache) == [entry.name]


def test_a_living_makers_scratch_folder_is_left_alone(cache: Cache) -> None:
    process = started(maker_process(cache, 600))
    try:
        cache.entry("kind", "other", Maker())
        assert any(name.startswith(f".part-{process.pid}-") for name in names(cache))
    finally:
        process.kill()
        process.communicate()


def test_two_makers_of_one_entry_at_once_both_succeed(cache: Cache) -> None:
    processes = [maker_process(cache, 1.0) for _ in range(2)]
    both = [started(process) for process in processes]
    outputs = [process.communicate(timeout=60)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert names(cache) == [outputs[0]]
    assert (cache.root / "kind" / outputs[0] / "file").read_text() == "whole"


def test_an_entry_is_seen_whole_or_not_at_all(cache: Cache) -> None:
    process = started(maker_process(cache, 0.5))
    final = cache.root / "kind" / digest("key", toolchain())
    seen = set()
    while process.poll() is None:
        if final.is_dir():
            seen.add((final / "file").read_text())
        time.sleep(0.01)
    process.communicate()
    assert process.returncode == 0
    assert seen <= {"whole"}
    assert (final / "file").read_text() == "whole"


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Cache(tmp_path / "file").entry("kind", "key", Maker())


# ---- never an entry of before


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_release_of_a_library_never_meets_an_entry_made_before(
    library: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    before = cache.entry("kind", "key", make)
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: real(name) + ".1" * (name == library)
    )
    toolchain.cache_clear()
    assert cache.entry("kind", "key", make) != before
    assert make.calls == 2


def changed_source(folder: Path) -> None:
    with (folder / "samples.py").open("a") as file:
        file.write("# changed\n")


def added_source(folder: Path) -> None:
    (folder / "methods" / "new.py").write_text('"""New."""\n')


def removed_source(folder: Path) -> None:
    (folder / "capture.py").unlink()


@pytest.mark.parametrize("edit", [changed_source, added_source, removed_source])
def test_an_edit_of_our_own_code_never_meets_an_entry_made_before(
    edit: object, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(edit)
    copy = tmp_path / "edgebuild"
    shutil.copytree(Path(cache_module.__file__).parent, copy)
    monkeypatch.setattr(cache_module, "__file__", str(copy / "cache.py"))
    make = Maker()
    before = cache.entry("kind", "key", make)
    edit(copy)
    toolchain.cache_clear()
    assert cache.entry("kind", "key", make) != before
    assert make.calls == 2


def test_the_toolchain_is_the_same_in_every_process() -> None:
    code = "from edgebuild.cache import toolchain; print(toolchain())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == toolchain()


def test_a_digest_depends_on_content_alone() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    values = [digest("a", "b"), digest("ab"), digest(["a", "b"]), digest("b", "a"), digest()]
    assert len(set(values)) == len(values)


# ---- where it lies


def test_the_store_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("EDGEBUILD_CACHE", "/here")
    assert default_root() == Path("/here")
    monkeypatch.delenv("EDGEBUILD_CACHE")
    assert default_root() == Path("/somewhere/edgebuild")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_root() == Path(os.path.expanduser("~/.cache/edgebuild"))
