"""Every command of the README and of the pages in docs/ runs, on synthetic data in the places that it names.

Commands run as they are written, but absolute paths lead into the test's folder, a last overlay makes networks small
and trainings short, four cases stand for many, nothing is downloaded, and tables are only reported, not measured.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from scripts.command import commands as diffusam_commands
from scripts.command import doctor as diffusam_doctor
from scripts.command.program import program
from scripts.data import datalists
from scripts.data.phantom_anatomy import ORGANS

from tests.conftest import save_volume, simple_image, simple_label
from tests.helpers import started
from tests.helpers.archives import zipped
from tests.helpers.workflows import BUNDLE, ROOT, SETTINGS, save_start
from tests.prepare.test_btcv import BTCV_VALUES
from tests.prepare.test_chaos import save_chaos_case

# the second prepares and trains on a folder, and the third prepares BTCV, for the others
PAGES = ["README.md", "docs/three_scans.md", "docs/data.md"]
PAGES += sorted({path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} - set(PAGES))
# what a reader runs in a shell of his own
SHELL = ("pip install", "cd ", "pytest", "ruff ", "git ", "./demo", "./check")
# needs several processes, a browser, a prior that finds organs, painted patients: test_multi_gpu, test_html_report,
# test_uncertainty, test_anatomy_workflows, test_anatomy_unet; minutes: test_many
ELSEWHERE = (
    "torchrun",
    "DIFFUSAM_REPORT=",
    "python -m benchmarks.uncertainty",
    "python -m benchmarks.baselines.anatomy",
    "python -m benchmarks.many",
    "python -m benchmarks.orientation",  # needs scans: tests/benchmarks/test_orientation.py
    "python -m benchmarks.nothing_there",
    # a row of the table phantoms_adaptation, on phantoms of its own: tests/benchmarks/test_baselines_rows.py
    "python -m benchmarks.baselines.run diffusam --memory_samples 4",
    "python -m benchmarks.figures.memories",  # needs the snapshots of a training: tests/benchmarks/test_figures.py
    *(f"python -m benchmarks.speed {each}" for each in ("recipe", "cache", "volume")),  # minutes: test_speed.py
)
PAINTED = ("configs/pretrain_anatomy.json", "configs/pretrain_prior.json")
SMALL = {
    key: SETTINGS[key]
    for key in ("backbone_name", "backbone_sha256", "image_size", "prior_channels", "attention_levels", "batch_size")
} | {"device": "$torch.device('cpu')", "variants": 0, "iterations": 2, "iterations_per_epoch": 2, "phantoms": 4}
SMALL_PRETRAINING = {
    "stages": [{"epochs": 1, "image_size": 64, "frames": 1, "clips": 1}],
    **{"iterations_per_epoch": 1, "schedule_iterations": 2, "num_workers": 0, "device": SMALL["device"]},
}
BTCV_CASES = [f"{number:04d}" for number in [*range(1, 11), *range(21, 41)]]
CHAOS_CASES = "1 2 3 5 8 10 13 15 19 20 21 22 31 32 33 34 36 37 38 39".split()


def commands(page: str) -> list[str]:
    """The commands of a page's bash blocks, lines that end with a backslash joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


# what MONAI takes of every run, and the files' own names beside it
OF_MONAI = {"config_file", "meta_file", "logging_file", "tracking", "bundle_root", "args_file", "bundle_path"}


def options_of(words: list[str]) -> list[str]:
    """Names of a command's options, without the part of a setting that they change."""
    return [word[2:].split("=")[0].split("#")[0] for word in words if word.startswith("--")]


def test_what_every_command_of_every_page_names_is_there():
    """Configurations, modules and options, on the bundle's own pages too, whose commands run nowhere as they are."""
    declared = {key for path in (BUNDLE / "configs").rglob("*.json") for key in json.loads(path.read_text())}
    wrong, seen = [], 0
    for page in [*PAGES, "bundle/docs/README.md", "bundle/models/README.md"]:
        for command in commands(page):
            words = shlex.split(command)
            if words[0] == "torchrun":  # its own options come before those of the module
                words = ["python", *words[words.index("-m") :]]
            if words[:2] != ["python", "-m"]:
                continue
            seen += 1
            files = re.findall(r"(?:\.\./benchmarks|configs)/[\w/]+\.json", command)
            wrong += [f"{page}: {file}" for file in files if not (BUNDLE / file).is_file()]
            module = (ROOT if words[2].startswith("benchmarks") else BUNDLE) / words[2].replace(".", "/")
            known = declared | OF_MONAI
            if words[2] != "monai.bundle":
                wrong += [f"{page}: {words[2]}"] * (not module.is_dir() and not module.with_suffix(".py").is_file())
                # functions that become commands may lie beside
                sources = (module if module.is_dir() else module.parent).glob("*.py")
                known |= set(re.findall(r"\w+", "".join(path.read_text("utf-8") for path in sources)))
            options = [option.removeprefix("source_") for option in options_of(words)]  # adaptation's settings
            wrong += [f"{page}: --{option}" for option in options if option not in known]
    assert wrong == [] and seen > 80


def test_no_overlay_of_an_evaluation_takes_away_what_ends_it():
    ended = json.loads((BUNDLE / "configs/evaluate.json").read_text())["finalize"]
    for page in [*PAGES, "bundle/docs/README.md"]:
        for command in commands(page):
            if " run evaluating " in command and (named := re.findall(r"configs/[\w/]+\.json", command)):
                merged = ConfigParser.load_config_files([str(BUNDLE / each) for each in named])
                assert merged["finalize"][: len(ended)] == ended, f"{page}: {command}"


@pytest.fixture(scope="module")
def place(tmp_path_factory, backbone_file) -> Path:
    """A folder with the bundle, the benchmarks, and what the pages' readers have downloaded or own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "bundle").mkdir()
    for path in (*BUNDLE.iterdir(), ROOT / "benchmarks"):
        if path.name == "models":  # downloads are refused where the way leads out of the bundle
            shutil.copytree(path, folder / "bundle/models")
        elif path.name not in ("data", "runs", "__pycache__", "eval"):
            (folder / ("bundle" if path.parent == BUNDLE else "") / path.name).symlink_to(path)
    small = {**SMALL, "backbone_checkpoint": str(backbone_file), "start_from": str(folder / "start.pt")}
    save_start(folder / "start.pt", backbone_file, organs=ORGANS, prior_channels=SMALL["prior_channels"])
    pretraining = {**SMALL_PRETRAINING, "backbone_file": str(folder / "pretrained.pt")}
    for name, settings in (("small", small), ("pretraining", pretraining)):
        (folder / f"{name}.json").write_text(json.dumps(settings))
    label = simple_label()
    values = np.array([0, 1, 0, 0, 6], np.uint8)[label]
    for seed, case in enumerate(("a", "b", "c", "d")):
        save_volume(folder / f"data/mine/images/{case}.nii.gz", simple_image(label, seed))
        save_volume(folder / f"data/mine/labels/{case}.nii.gz", values)
        session = f"sub-{case}/ses-1/anat/sub-{case}_ses-1"
        save_volume(folder / f"data/bids/{session}_T2w.nii.gz", simple_image(label, seed))
        save_volume(folder / f"data/bids/derivatives/manual/{session}_dseg.nii.gz", values)
    save_volume(folder / "data/new/scan.nii.gz", simple_image(label, 9))
    values = BTCV_VALUES[label].astype(np.uint8)
    values[:3, :3, 1:4], values[-3:, :3, 1:4] = 8, 11  # aorta and pancreas, which docs/organs.md trains
    for seed, case in enumerate(BTCV_CASES):
        save_volume(folder / f"btcv/Training/img/img{case}.nii.gz", simple_image(label, seed))
        save_volume(folder / f"btcv/Training/label/label{case}.nii.gz", values)
    shutil.move(zipped(folder / "btcv"), folder / "bundle/RawData.zip")
    for seed, case in enumerate(CHAOS_CASES):
        save_chaos_case(folder / "chaos/Train_Sets/MR" / case, seed)
    shutil.move(zipped(folder / "chaos"), folder / "bundle/CHAOS_Train_Sets.zip")
    task = folder / "data/Task09_Spleen"
    for case in ("1", "2", "3"):
        save_volume(task / f"imagesTr/spleen_{case}.nii.gz", simple_image(label))
        save_volume(task / f"labelsTr/spleen_{case}.nii.gz", (label == 1).astype(np.uint8))
    pairs = [
        {"image": f"./imagesTr/spleen_{case}.nii.gz", "label": f"./labelsTr/spleen_{case}.nii.gz"} for case in "123"
    ]
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}, "training": pairs}
    (task / "dataset.json").write_text(json.dumps(content))
    for page, name in (("organs", "my_organs"), ("corrections", "corrections")):
        text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
        (folder / f"bundle/{name}.json").write_text(re.search(r"```json\n(.*?)```", text, re.DOTALL)[1])
    larger = np.random.default_rng(0).integers(-100, 200, (150, 120, 20)).astype(np.int16)
    larger[:20] = -1000  # air, which with fat tells CT
    save_volume(folder / "data/new/a04.nii.gz", larger)  # the case that docs/corrections.md corrects
    return folder


def arguments(command: str, place: Path) -> list[str]:
    """What follows ``python``, with absolute paths led into the test's folder, and the last overlay added."""
    words = shlex.split(re.sub(r"(?<=[\s'\"])/data/", f"{place}/data/", command))[1:]
    if "--config_file" in words:
        index = words.index("--config_file") + 1
        files = ast.literal_eval(words[index]) if words[index].startswith("[") else [words[index]]
        small = "pretraining" if "pretraining" in words else "small"
        given = words[words.index("--prior_file") + 1] if "--prior_file" in words else None
        shipped = (
            given == "models/model.pt"
            or given is None
            and files[-1].endswith(
                ("configs/inference.json", "configs/mr.json", "configs/ct.json", "configs/by_modality.json")
            )
        )
        if not shipped:  # the prior that ships is as it is
            files.append(str(place / f"{small}.json"))
        words[index] = str(files)
        if "configs/sf_uda_demo.json" in files:
            words += ["--dataset_dir#count", "1"]  # a phantom takes seconds
    if "run" in words[:3]:
        words += ["--logging_file", "False"]  # it would silence the loggers of other tests
    if words[:2] == ["-m", "benchmarks.tables"]:
        words += ["--only_report", "True"]
    return words


def run_python(words: list[str], monkeypatch) -> None:
    """``python ...`` in this process, which has imported everything already."""
    if words[0] == "-m":
        monkeypatch.setattr(sys, "argv", words[1:])
        run = lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True)  # noqa: E731
    else:
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.syspath_prepend(Path(words[0]).parent.resolve())
        run = lambda: runpy.run_path(words[0], run_name="__main__")  # noqa: E731
    try:
        run()
    except SystemExit as end:
        assert not end.code, end.code


def run_diffusam(command: str, place: Path, monkeypatch) -> None:
    """``diffusam ...`` in this process, and so the bundle's commands that it stands for."""
    words = shlex.split(re.sub(r"(?<=[\s'\"])/data/", f"{place}/data/", command))[1:]

    def run_here(started: list[str], last: bool = False, shared: bool = False) -> int:
        if started[1].endswith("scripts/prepare"):
            started = ["python", "-m", "scripts.prepare", *started[2:]]
        if "torch.distributed.run" in started:  # in this process alone; several are test_many_processes
            started = [started[0], *started[started.index("monai.bundle") - 1 :]]
        run_python(arguments(shlex.join(started), place), monkeypatch)
        return 0

    for module in (diffusam_commands, diffusam_doctor):
        monkeypatch.setattr(module, "run", run_here)
    assert program(words) == 0


def run_page(page: str, place: Path, monkeypatch, fetched: list) -> None:
    """Runs the commands of a page, once in this place."""
    mark = place / f"{page.replace('/', '_')}.done"
    if mark.exists():
        return
    for command in commands(page):
        if command.startswith((*SHELL, *ELSEWHERE)) or any(name in command for name in PAINTED):
            continue
        if command.startswith("diffusam "):
            run_diffusam(command, place, monkeypatch)
            continue
        assert command.startswith("python "), f"not a command that this test knows: {command}"
        words = arguments(command, place)
        if "--tracking" in words and not find_spec("mlflow"):
            continue
        start = time.perf_counter()
        run_python(words, monkeypatch)
        print(f"{time.perf_counter() - start:.1f} s: {command}")
        if "download_large_files" in words:
            assert fetched and "https://" in str(fetched.pop())
    mark.touch()


WITH_COMMANDS = [page for page in PAGES if commands(page)]
RESULTS = [page for page in PAGES if Path(page).parent.name == "results" and Path(page).name != "index.md"]


@pytest.mark.parametrize(
    "page", [WITH_COMMANDS[0], *(pytest.param(page, marks=pytest.mark.slow) for page in WITH_COMMANDS[1:])]
)
def test_every_command_of_a_page_runs(page, place, monkeypatch):
    """Pages go on from what a reader of the first three has prepared and trained."""
    fetched = []
    monkeypatch.setattr("monai.bundle.scripts.download_url", lambda **options: fetched.append(options))
    find_cases = datalists.find_cases
    monkeypatch.setattr(datalists, "find_cases", lambda *args, **options: find_cases(*args, **options)[:4])
    monkeypatch.chdir(place / "bundle")
    for each in dict.fromkeys([*PAGES[: min(PAGES.index(page), 3)], page]):
        run_page(each, place, monkeypatch, fetched)


def test_the_gate_and_the_workflow_run_the_checks_of_the_readme():
    parts = [part.strip() for line in commands("README.md") for part in line.split("&&")]
    checks = [part for part in parts if part.startswith(("ruff ", "mypy", "pytest"))]
    assert "./check" in (ROOT / ".ci/run").read_text(encoding="utf-8").split()
    run = (ROOT / "check").read_text(encoding="utf-8").splitlines()
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    run += re.findall(r"- run: (.+)", workflow)

    assert len(checks) > 3 and ".ci/run" in run
    assert [check for check in checks if check not in run] == []
    least = re.search(r'requires-python = ">=(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert f'python: ["{least}"' in workflow


def test_every_benchmark_starts_in_the_bundles_folder():
    """As an installed package, with the bundle's own scripts found because they lie there."""
    paths = [path for path in (ROOT / "benchmarks").rglob("*.py") if "run_command(" in path.read_text("utf-8")]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    assert len(modules) > 5
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = started.python(["-c", code, *modules], BUNDLE, environment)
    assert run.returncode == 0, run.stderr


def test_no_page_types_a_none_that_monai_leaves_out():
    """Fire makes Python's None of it, and MONAI an option that was not given; `'$None'` arrives."""
    for page in PAGES + BESIDE:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert not re.findall(r"--\w+[ =](?:None|null)\b", text), page


# pages without commands of their own
BESIDE = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bundle/docs/README.md", "bundle/models/README.md"]


def test_the_changelog_has_each_kind_of_change_of_a_version_once():
    for version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        kinds = re.findall(r"^### (.+)$", version, re.MULTILINE)
        assert len(kinds) == len(set(kinds)), kinds


def test_every_file_that_a_page_links_to_is_there():
    for page in PAGES + BESIDE:
        folder = (ROOT / page).parent
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert "://" in target or (folder / target).exists(), f"{page}: {target}"


def test_every_promise_names_tests_that_are_there():
    rows = [line for line in (ROOT / "docs/safety.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [
        row.rstrip("| ").rpartition(" | ")[2] for row in rows if row not in ("| promise | test |", "| --- | --- |")
    ]

    assert len(cells) > 60
    for cell in cells:
        named = re.findall(r"`(tests/[\w/]+\.py)`", cell)
        assert named and all((ROOT / path).is_file() for path in named), cell


def test_every_heading_that_a_page_links_to_is_there():
    for page in PAGES + BESIDE:
        folder = (ROOT / page).parent
        for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            text = ((folder / target) if target else ROOT / page).read_text(encoding="utf-8")
            headings = [
                re.sub(r"[^\w\- ]", "", line.lstrip("# ")).lower().replace(" ", "-")
                for line in text.splitlines()
                if line.startswith("#")
            ]
            assert anchor in headings, f"{page}: {target}#{anchor}"


def test_every_page_is_linked_from_an_index():
    linked = set()
    for index in ("README.md", "docs/index.md", "docs/results/index.md"):
        targets = re.findall(r"\]\(([^)#\s:]+)", (ROOT / index).read_text(encoding="utf-8"))
        linked |= {((ROOT / index).parent / target).resolve() for target in targets}

    pages = [page for page in PAGES if Path(page).parent.name != "tables"]  # linked from what they are the tables of
    assert [page for page in pages if ROOT / page not in linked] == []


@pytest.mark.parametrize("page", RESULTS)
def test_a_page_of_results_has_their_form(page):
    """The question, a table, three remarks, and how it was made."""
    text = (ROOT / page).read_text(encoding="utf-8")
    sections = text.split("\n## ")

    assert text.startswith("# ") and text.splitlines()[0].endswith("?")
    assert "\n| --- |" in sections[0]
    assert len(re.findall(r"^- ", sections[0], re.MULTILINE)) == 3
    assert sections[-1].startswith("How it was made\n") and "`" in sections[-1]
