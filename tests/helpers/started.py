"""Programs in interpreters of their own, without the seconds that each would take to import MONAI.

A server imports MONAI once, and nothing of the bundle, and is forked for each program. That goes on at the top level of
the interpreter, so that uncaught errors, hooks and exit codes are what they are of a program that starts by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_SERVER = """
import gc, json, os, runpy, sys, warnings
import monai.bundle
gc.freeze()  # a collection in each child would copy all that is shared
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for descriptor, path in enumerate((os.devnull, asked["out"], asked["err"])):
    os.dup2(os.open(path, os.O_RDONLY if not descriptor else os.O_WRONLY), descriptor)
os.chdir(asked["folder"])
os.environ.clear()
os.environ.update(asked["environment"])
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
kind, *sys.argv = asked["arguments"]
if kind == "-c":
    program, sys.argv[0] = sys.argv[0], kind
elif kind == "-m":
    program, sys.path[0] = sys.argv[0], os.getcwd()
else:
    program, sys.argv = kind, [kind, *sys.argv]
if not asked["warn"]:
    warnings.simplefilter("ignore")
if kind == "-c":
    exec(compile(program, "<string>", "exec"), globals())
elif kind == "-m":
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    runpy.run_path(program, run_name="__main__")
"""


def python(
    arguments: Sequence[str], folder: Path | str = ".", environment: Mapping[str, str] | None = None, warn: bool = True
) -> subprocess.CompletedProcess:
    """``python ARGUMENTS``, with what it prints as text.

    Args:
        arguments: ``-c PROGRAM``, ``-m MODULE`` or the path of a program, and what is given to that.
        folder: in which it runs.
        environment: variables; those of this process by default.
        warn: whether warnings are shown; False is ``python -W ignore``.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place, name) for name in ("out", "err"))
        for path in (out, err):
            path.touch()
        asked = {"arguments": list(arguments), "folder": str(Path(folder).resolve()), "warn": warn}
        asked |= {"environment": dict(os.environ if environment is None else environment)}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({**asked, "out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(asked["arguments"], code, out.read_text(), err.read_text())


@cache
def _server() -> subprocess.Popen:
    """Ends with this process, when nothing more can be asked of it."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # each program has its own
    command = [sys.executable, "-c", _SERVER]
    return subprocess.Popen(command, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
