"""A twin keeps a target's memory limit, says FITS or OOM_KILLED by the kernel's own counter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgebuild import catalog
from edgebuild.devices._memory_limit import V2, Group, memory_limit
from edgebuild.vocabulary.contracts import Completed, Fit, MemoryTrial
from edgebuild.vocabulary.errors import InputError
from edgebuild.vocabulary.units import Bytes, Seconds

SOON = Seconds(60.0)
TAKE = "taken = b'x' * int(float({!r}) * 1e6); print(len(taken))"


def trial(limit: str, code: str) -> tuple[Completed, MemoryTrial]:
    with catalog.device(f"twin:{limit}") as twin:
        done = twin.run(["python", "-c", code], SOON)
    assert done.memory is not None
    return done, done.memory


@pytest.fixture
def _kept() -> None:
    with memory_limit(Bytes(64_000_000)) as limit:
        if isinstance(limit, MemoryTrial):
            pytest.skip(f"no memory limit can be kept here: {limit.evidence}")


@pytest.mark.usefixtures("_kept")
def test_what_fits_is_measured_against_the_limit() -> None:
    done, memory = trial("200MB", TAKE.format("100"))
    assert done.stdout == "100000000\n"
    assert memory.fit is Fit.FITS
    assert "oom_kill 0 → 0" in memory.evidence
    assert memory.peak is not None
    assert 100_000_000 < memory.peak <= memory.limit


@pytest.mark.usefixtures("_kept")
def test_what_does_not_fit_is_killed_and_the_kernel_says_so() -> None:
    done, memory = trial("64MB", TAKE.format("200"))
    assert (done.returncode, done.stdout) == (-9, "")
    assert memory.fit is Fit.OOM_KILLED
    assert "oom_kill 0 → 1" in memory.evidence


@pytest.mark.usefixtures("_kept")
def test_a_child_that_is_killed_counts_too() -> None:
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {TAKE.format('200')!r}])"
    )
    done, memory = trial("64MB", child)
    assert done.returncode == 0
    assert memory.fit is Fit.OOM_KILLED


@pytest.mark.usefixtures("_kept")
def test_a_failure_of_its_own_is_not_blamed_on_memory() -> None:
    done, memory = trial("64MB", "raise SystemExit(3)")
    assert done.returncode == 3
    assert memory.fit is Fit.FITS


@pytest.mark.usefixtures("_kept")
def test_no_group_is_left_behind() -> None:
    with memory_limit(Bytes(64_000_000)) as limit:
        assert isinstance(limit, Group)
        assert limit.folder.is_dir()
    assert not limit.folder.exists()


def test_a_target_gives_its_memory_and_its_cores(tmp_path: Path) -> None:
    profile = Path(__file__).parents[2] / "targets" / "robot-raspberry-pi-5.toml"
    text = (
        profile.read_text().replace("cores = 4", "cores = 1").replace("threads = 4", "threads = 1")
    )
    (tmp_path / "small.toml").write_text(text)
    cores = "import os; print(len(os.sched_getaffinity(0)))"
    done, memory = trial(str(tmp_path / "small.toml"), cores)
    assert done.stdout == "1\n"
    assert memory.limit == 5_600_000_000


def test_it_has_no_more_cores_than_this_machine() -> None:
    done, _ = trial("car-orin-nx", "import os; print(len(os.sched_getaffinity(0)))")
    assert int(done.stdout) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "needs a target or a size"),
        ("robot-rasberry-pi-5", "Did you mean 'robot-raspberry-pi-5'"),
        ("64", "has no unit"),
    ],
)
def test_an_address_that_is_no_limit_is_refused(address: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        catalog.device(f"twin:{address}")


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("", "no control group for memory is mounted"),
        ("cgroup {0} cgroup rw,memory 0 0", "has no memory controller"),
        ("cgroup2 {0} cgroup2 rw 0 0", "has no memory controller"),
    ],
)
def test_where_no_limit_holds_it_says_so(mount: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    (tmp_path / "mounts").write_text(mount.format(tmp_path / "groups"))
    (tmp_path / "cgroup").write_text("4:memory:/own\n0::/own\n")
    with memory_limit(Bytes(1), processes=tmp_path) as limit:
        assert isinstance(limit, MemoryTrial)
        assert limit.fit is Fit.NOT_ENFORCED
        assert reason in limit.evidence
    assert list((tmp_path / "groups").iterdir()) == []


def test_the_counter_of_version_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n")
    (tmp_path / "memory.peak").write_text("63000000\n")
    found = Group(tmp_path, V2, Bytes(64_000_000)).trial(kills_before=0)
    assert (found.fit, found.peak) == (Fit.OOM_KILLED, 63_000_000)
    assert found.evidence == "memory.events: oom_kill 0 → 1, at most 63 MB of 64 MB"
