"""devices.toml names boards; what it does not know is refused with the nearest name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild.inputs.device_file import device_url
from edgebuild.inputs.target_file import load_target
from edgebuild.vocabulary.errors import InputError

TARGET = load_target("phone-budget")
LAB = 'shelf = "ssh://pi@192.168.1.7"\nkitchen = "adb://R58M123ABC"\n'


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a lab's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    (tmp_path / "devices.toml").write_text(LAB)
    return tmp_path / "devices.toml"


def test_a_name_stands_for_its_url() -> None:
    assert device_url("shelf", TARGET) == "ssh://pi@192.168.1.7"


@pytest.mark.parametrize("url", ["local", "local:", "ssh://pi@shelf", "adb://X", "twin:64MB"])
def test_a_url_stands_for_itself(url: str) -> None:
    assert device_url(url, TARGET) == url


def test_a_twin_without_a_name_is_that_of_the_target() -> None:
    assert device_url("twin:", TARGET) == "twin:phone-budget"
    own = replace(TARGET, name="of-my-own")
    assert device_url("twin:", own) == f"twin:{TARGET.app_memory}B"


def test_the_users_own_file_serves_where_the_folder_has_none(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "settings" / "edgebuild").mkdir(parents=True)
    lab.rename(tmp_path / "settings" / "edgebuild" / "devices.toml")
    assert device_url("kitchen", TARGET) == "adb://R58M123ABC"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shelv", "no device is called 'shelv'. Did you mean 'shelf'?"),
        ("shh://pi@shelf", "no transport is called 'shh'. Did you mean 'ssh'?"),
        ("lokal", "Did you mean 'local'?"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(name: str, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        device_url(name, TARGET)
    assert reason in str(refused.value)


def test_without_a_file_it_says_so(lab: Path) -> None:
    lab.unlink()
    with pytest.raises(InputError, match="there is no devices.toml here|There is no devices.toml"):
        device_url("shelf", TARGET)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("shelf = 7", "devices.toml: shelf: is not a URL in quotes"),
        ('shelf = "pi@192.168.1.7"', "devices.toml: shelf: no transport is called"),
        ("shelf", "devices.toml: is not TOML"),
    ],
)
def test_a_file_that_names_no_devices_is_refused(text: str, reason: str, lab: Path) -> None:
    lab.write_text(text)
    with pytest.raises(InputError, match=reason):
        device_url("shelf", TARGET)


def test_a_slip_in_the_url_of_another_board_spoils_nothing(lab: Path) -> None:
    lab.write_text('shelf = "ssh://pi@shelf"\nother = "foo://x"\n')
    assert device_url("shelf", TARGET) == "ssh://pi@shelf"
    assert device_url("local", TARGET) == "local"
    with pytest.raises(InputError, match="other: no transport is called 'foo'"):
        device_url("other", TARGET)
