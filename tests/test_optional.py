"""A missing optional package is reported together with the extra that installs it."""

from __future__ import annotations

import sys

import pytest

from lr_gym.optional import check_installed, require, version_of

SAYS = r'^nowhere is missing: pip install "lr-gym\[agents\]"$'


@pytest.mark.parametrize(
    "ask",
    [
        lambda: require("nowhere", "agents"),
        lambda: require("nowhere.inside", "agents"),
        lambda: version_of("nowhere", "agents"),
        lambda: check_installed("agents", "torch", "nowhere"),
    ],
)
def test_a_missing_package_names_its_extra(ask):
    with pytest.raises(ImportError, match=SAYS) as error:
        ask()
    assert error.value.name == "nowhere"


def test_what_an_installed_package_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=SAYS):
        require("half_installed", "agents")


def test_an_installed_package_is_returned_or_left_alone(tmp_path, monkeypatch):
    (tmp_path / "installed_alone.py").write_text("number = 3")
    monkeypatch.syspath_prepend(tmp_path)
    check_installed("agents", "installed_alone")
    assert "installed_alone" not in sys.modules
    assert require("installed_alone", "agents").number == 3
    assert version_of("torch", "agents").count(".") >= 2
