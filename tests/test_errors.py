"""What a user sees of an error: the bundle's own message where there is one, the traceback otherwise."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scripts.errors
import torch
from scripts.errors import BundleError, nearest, user_error
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.prepare.configs import intensity_of

from tests.helpers import started

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


def a_shape_bug_below_the_bundle():
    FrozenSAM2("sam2_nano", image_size=64).encode_image(torch.zeros(0, 1, 64, 64, dtype=torch.complex64))


def a_mistake_in_the_bundle():
    exec(compile("raise ValueError('a mistake')", str(BUNDLE / "scripts" / "errors.py"), "exec"), {})


def raised_below_the_bundle():
    FrozenSAM2("sam2_nano", image_size=64, checkpoint=object())  # Path() refuses it, inside the standard library


@pytest.mark.parametrize("function", [bundle_error, wrapped, wrapped_in_passing])
def test_the_bundles_own_error_is_found(function):
    found = user_error(caught(function))

    assert isinstance(found, ValueError)
    assert str(found).startswith("Unknown backbone 'nope'")


@pytest.mark.parametrize(
    "function", [foreign, hidden, raised_below_the_bundle, a_shape_bug_below_the_bundle, a_mistake_in_the_bundle]
)
def test_errors_of_others_are_left_alone(function):
    assert user_error(caught(function)) is None


def test_errors_of_a_package_below_the_scripts_are_found():
    error = caught(lambda: intensity_of("pet"))

    assert user_error(error) is error


def test_no_error_is_no_user_error():
    assert user_error(None) is None


def test_the_nearest_names_come_likeliest_first_and_each_once():
    assert nearest("iteration", ["seed", "iterations", "iterations", "interaction"]) == ["iterations", "interaction"]
    assert nearest("iteration", ["seed", "organs"]) == []


def test_how_like_nearest_names_must_be_can_be_told():
    assert nearest("iteration", ["interaction"], cutoff=0.95) == []


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program whose uncaught errors go through the bundle's hook."""
    program = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.errors import install; install()\n{program}"
    )
    clean = {key: value for key, value in os.environ.items() if key != "DIFFUSAM_TRACEBACK"}
    return started.python(["-c", program], environment={**clean, **environment}, warn=False)


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


INTERRUPTED_IMPORT = """
import sys
from pathlib import Path
folder = Path({folder!r})
(folder / "slow.py").write_text("raise {what}")
sys.path.insert(0, str(folder))
from monai.bundle import ConfigParser
ConfigParser({{"a": {{"_target_": "slow.Nothing"}}}}).get_parsed_content("a")
"""


def test_an_interruption_of_an_import_is_one_line(tmp_path):
    result = run(INTERRUPTED_IMPORT.format(folder=str(tmp_path), what="KeyboardInterrupt"))

    assert result.returncode != 0
    assert result.stderr.strip() == "interrupted: given again, training and inference go on where they were"


def test_a_signal_to_end_during_an_import_prints_no_traceback(tmp_path):
    result = run(INTERRUPTED_IMPORT.format(folder=str(tmp_path), what="SystemExit(143)"))

    assert result.returncode != 0 and result.stderr.strip() == ""


def test_every_error_that_the_bundle_raises_is_meant_for_a_user_or_for_a_program():
    """Those that are raised for a user have the bundle's base class; the others are caught, or show a mistake."""
    raised: dict[str, set[str]] = {}
    for path in sorted((BUNDLE / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised.setdefault(ast.unparse(node.exc.func).split(".")[-1], set()).add(path.name)

    own = {
        name
        for name, value in vars(scripts.errors).items()
        if inspect.isclass(value) and issubclass(value, BundleError)
    }
    own |= {"FailedCases", "UnsuitableSeries", "DecodingError", "FileRefusedError", "RefusedPixelsError", "UsageError"}
    own |= {"LostReportError"}
    assert own & set(raised) > {"DatasetError", "SettingError", "MissingFileError"}
    assert {name: raised[name] for name in raised.keys() - own} == {
        "EOFError": {"itk_files.py"},  # caught where files are read
        "IndexError": {"synthetic_clips.py"},  # ends an iteration
        "SystemExit": {"errors.py"},
        "TypeError": {"descriptions.py", "inert.py", "record_fields.py"},
        # caught where the file is read; a mistake in a program
        "ValueError": {"configurations.py", "files.py", "naming_network.py"},
        "RefusedPixelsError if isinstance(error, FileRefusedError) else DatasetError": {"dicom_pixels.py"},
    }


def test_no_message_names_a_page_that_does_not_come_with_the_bundle():
    """The pages in the repository's docs are in no wheel and no image; docstrings are read where they are."""
    found = []
    for path in sorted((BUNDLE / "scripts").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in statements]
        pages = [name for node in texts for name in re.findall(r"docs/[\w/]+\.md", str(node.value))]
        found += [f"{path.name}: {name}" for name in pages if not (BUNDLE / name).exists()]
    assert found == []


def test_an_interruption_prints_no_traceback():
    result = run("raise KeyboardInterrupt")

    assert result.returncode != 0
    assert result.stderr.strip() == "interrupted: given again, training and inference go on where they were"


MACHINE = {
    "a full disk": (
        "raise OSError(28, 'No space left on device', '/x/a.pt')",
        "'/x/a.pt': no space left on device (OSError). Free",
    ),
    "a folder of others": (
        "raise PermissionError(13, 'Permission denied', '/x')",
        "'/x': permission denied (PermissionError). Ask for permission",
    ),
    "read-only": (
        "raise OSError(30, 'Read-only file system', '/x')",
        "'/x': read-only file system (OSError). Write to another folder.",
    ),
    "a limit of sizes": (
        "raise OSError(27, 'File too large', '/x')",
        "'/x': file too large (OSError). Raise the limit",
    ),
    "a file for a folder": (
        "import pathlib; pathlib.Path('/dev/null').mkdir()",
        "'/dev/null': file exists (FileExistsError). Name a folder in its place",
    ),
    "a library that finds no memory": (
        "raise ImportError('/x/_backend.so: failed to map segment from shared object')",
        "out of memory (/x/_backend.so",
    ),
    "a long name": ("open('n' * 300)", "file name too long (OSError). Choose a shorter name."),
    "wrapped": (
        "try:\n    open('/nowhere/x')\nexcept OSError as error:\n    raise RuntimeError('x') from error",
        "'/nowhere/x': no such file",
    ),
    "numpy's memory": ("import numpy; numpy.empty(1 << 60, 'u1')", "out of memory (Unable to allocate"),
    "torch's memory": ("import torch; torch.empty(1 << 60, dtype=torch.uint8)", "out of memory ("),
    "torch's files": (
        "raise RuntimeError('[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0')",
        "Is the disk full?",
    ),
}


@pytest.mark.parametrize("program, said", MACHINE.values(), ids=MACHINE)
def test_what_the_machine_cannot_do_is_one_line(program, said):
    result = run(program)

    lines = result.stderr.strip().splitlines()
    assert result.returncode == 1 and len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ") and said in lines[0] and "DIFFUSAM_TRACEBACK=1" in lines[0]


CONFIGURATIONS = {
    "a name that is not there": {"a": "$b + 1"},
    "a reference to nothing": {"a": "@nothing"},
    "no Python": {"a": "$1 +"},
    "a wrong argument": {"a": {"_target_": "torch.nn.Linear", "wrong": 1}},
    "a class that is not there": {"a": {"_target_": "torch.nn.Nothing"}},
    "an expression that fails": {"a": "$1 / 0"},
    "a loss of one's own without what is asked of it": {"a": "$@b.trains_prior", "b": {"_target_": "torch.nn.MSELoss"}},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_what_is_wrong_with_a_configuration_is_one_line(configuration):
    result = run(f"from monai.bundle import ConfigParser; ConfigParser({configuration!r}).get_parsed_content('a')")

    lines = [line for line in result.stderr.strip().splitlines() if line]
    assert result.returncode == 2 and len(lines) == 1, result.stderr
    assert lines[0].startswith("error: the configuration cannot be used")


def test_what_a_configuration_calls_keeps_its_traceback():
    configuration = "{'a': '$json.loads(3)'}, globals={'json': 'json'}"
    program = f"from monai.bundle import ConfigParser; ConfigParser({configuration}).get_parsed_content('a')"
    assert "Traceback" in run(program).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_says_that_the_work_goes_on_and_removes_what_is_half_written(tmp_path, number):
    program = (
        "import time; from scripts.files import whole_file\n"
        f"with whole_file({str(tmp_path / 'a.txt')!r}) as temporary:\n"
        "    temporary.touch(); print('ready', flush=True); time.sleep(60)"
    )
    # whoever started the tests may have turned SIGHUP off, as nohup does
    start = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    start += f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.errors import install; install()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)

    assert (
        process.returncode == 128 + number
        and said.strip().startswith("terminated: given again")
        and "Traceback" not in said
    )
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_to_outlive_its_terminal_does():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('on')"
    start = f"import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.path.insert(0, {str(BUNDLE)!r})\n"
    start += "from scripts.errors import install; install()\n"
    result = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True)
    assert result.stdout == "on\n" and result.returncode == 0


def test_names_that_a_terminal_has_no_letters_for_are_escaped():
    program = "import logging; logging.basicConfig(stream=sys.stdout); logging.warning('\u5c71'); print('\u5c71')"
    start = f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.errors import install; install()\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # which Python reads as it starts
    result = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, env=environment)
    assert result.stdout == "WARNING:root:\\u5c71\n\\u5c71\n" and not result.stderr


def test_a_name_breaks_no_line_of_the_log_and_a_reason_may():
    program = (
        "import logging; from pathlib import Path; logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "log = logging.getLogger('scripts.a').warning\n"
        "log('%s: %s', 'a\\nb', 'one\\ntwo'); log(\"The report is '%s'.\", Path('a\\nb')); log('%d of %s', 1, 'a')"
    )
    result = run(program)
    assert result.stdout == "a\\nb: one\n  two\nThe report is 'a\\nb'.\n1 of a\n" and not result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_is_said_once():
    program = (
        "import logging; logging.basicConfig(stream=open('/dev/full', 'w'))\n"
        "for number in range(3): logging.warning('line %d', number)\n"
        "print('done', flush=True); import os; os._exit(0)"
    )
    result = run(program)
    assert result.stdout == "done\n"
    assert result.stderr == "the log cannot be written (No space left on device); the work goes on\n"


# ---- streams that are closed, or that nobody reads

SPEAKS = """
import logging, sys
from scripts.console import Progress
from scripts.errors import install, say
install()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
progress = Progress(2, "at work")
progress._said -= 1000
for number in range(1000):
    logging.info("a line of the log, of which there are many")
progress.to(1)
say("what comes next")
open("done", "w").write(sys.stdin.read())
"""


def speak(folder: Path, redirected: str) -> int:
    program = folder / "program.py"
    program.write_text(SPEAKS)
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE), "DIFFUSAM_TRACEBACK": ""}
    words = ["bash", "-c", f"'{sys.executable}' program.py {redirected}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, timeout=120).returncode


@pytest.mark.parametrize(
    "redirected", ["| true", "2>&1 | true", "2>&1 >/dev/null | true", "> /dev/full", "2> /dev/full"]
)
def test_work_goes_on_where_nobody_listens(tmp_path, redirected):
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no such device")

    assert speak(tmp_path, redirected) in ((0,) if "full" not in redirected else (0, 120))
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("redirected", ["<&- >&- 2>&-", ">&-", "2>&-", "<&-"])
def test_a_program_that_is_started_without_streams_works(tmp_path, redirected):
    assert speak(tmp_path, redirected) == 0
    assert (tmp_path / "done").read_text() == ""  # of what is printed nothing has reached the file
