"""What a user sees of an error: the bundle's own message where there is one, the traceback otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import scripts.errors
from scripts.errors import user_error
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.prepare.configs import intensity_of

BUNDLE = Path(scripts.errors.__file__).parents[1]


def caught(function) -> Exception:
    with pytest.raises(Exception) as info:
        function()
    return info.value


def bundle_error():
    FrozenSAM2("nope")


def wrapped():
    try:
        bundle_error()
    except ValueError as error:
        raise RuntimeError("Failed to instantiate") from error


def wrapped_in_passing():
    try:
        bundle_error()
    except ValueError:
        raise RuntimeError("Failed to instantiate")  # noqa: B904 - raised while another is handled


def hidden():
    try:
        bundle_error()
    except ValueError:
        raise RuntimeError("something else") from None


def foreign():
    raise ValueError("not of this bundle")


def raised_below_the_bundle():
    FrozenSAM2("sam2_nano", image_size=64, checkpoint=object())  # Path() refuses it, inside the standard library


@pytest.mark.parametrize("function", [bundle_error, wrapped, wrapped_in_passing])
def test_the_bundles_own_error_is_found(function):
    found = user_error(caught(function))

    assert isinstance(found, ValueError)
    assert str(found).startswith("Unknown backbone 'nope'")


@pytest.mark.parametrize("function", [foreign, hidden, raised_below_the_bundle])
def test_errors_of_others_are_left_alone(function):
    assert user_error(caught(function)) is None


def test_errors_of_a_package_below_the_scripts_are_found():
    error = caught(lambda: intensity_of("pet"))

    assert user_error(error) is error


def test_no_error_is_no_user_error():
    assert user_error(None) is None


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program whose uncaught errors go through the bundle's hook."""
    program = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.errors import install; install()\n{program}"
    )
    clean = {key: value for key, value in os.environ.items() if key != "DIFFUSAM_TRACEBACK"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={**clean, **environment}, capture_output=True, text=True
    )


# of the bundle's modules, this one imports no torch: quick to start
BUNDLE_ERROR = """
from scripts.data.phantoms import make_phantom
try:
    make_phantom(seed=-1)
except ValueError as error:
    raise RuntimeError("Failed to instantiate") from error
"""


def test_an_uncaught_bundle_error_prints_its_message_alone():
    result = run(BUNDLE_ERROR)

    assert result.returncode == 1
    assert result.stderr.strip() == "error: The seed must be 0 or more, but is -1."


def test_the_traceback_can_be_asked_for():
    result = run(BUNDLE_ERROR, DIFFUSAM_TRACEBACK="1")

    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "RuntimeError: Failed to instantiate" in result.stderr


def test_an_uncaught_foreign_error_keeps_its_traceback():
    result = run("raise ValueError('not of this bundle')")

    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_an_interruption_prints_no_traceback():
    result = run("raise KeyboardInterrupt")

    assert result.returncode != 0
    assert result.stderr.strip() == "interrupted: given again, training and inference go on where they were"
