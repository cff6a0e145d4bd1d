"""What stands in the way of a run's results is said before the run begins, for every workflow."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from scripts.errors import RefusedError, user_error
from scripts.overrides import _reached
from scripts.places import Places, check_places, places_of, problems_of, refuse_blocked
from scripts.prepare.targets import Target

from tests.conftest import save_dataset
from tests.helpers.workflows import BUNDLE, nano_checkpoint, new_workflow, run, train, write_overlay

RUNS = {
    "training": ["train.json"],
    "training AutoMedSAM": ["train.json", "automedsam.json"],
    "evaluating": ["train.json", "evaluate.json"],
    "inferring": ["inference.json"],
    "pretraining": ["pretrain_nano.json"],
    "pretraining an encoder": ["pretrain_nano.json", "pretrain_encoder.json"],
    "pretraining anatomy": ["pretrain_anatomy.json"],
    "pretraining memories": ["pretrain_anatomy.json", "pretrain_memories.json"],
    "pretraining a prior": ["train.json", "pretrain_prior.json"],
    "pretraining orientation": ["pretrain_orientation.json"],
}


def parsed(files: list[str], root: Path) -> tuple[ConfigParser, set[str]]:
    """A configuration whose bundle is elsewhere, and what its run needs."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in files])
    parser.update({"bundle_root": str(root), "output": f"{root}/out", "input": f"{root}/in"})
    parser.parse()
    return parser, _reached(parser.get(), ("initialize", "run", "finalize"))


@pytest.mark.parametrize("files", RUNS.values(), ids=RUNS)
def test_a_folder_in_the_place_of_any_file_that_a_run_writes_is_refused(files, tmp_path):
    parser, reached = parsed(files, tmp_path)
    places = places_of(parser, reached)
    assert not list(problems_of(places)) and not list(tmp_path.iterdir())
    blocked = [*places.files, *(folder / pattern.replace("*", "x") for folder, pattern in places.folders)]
    if places.cases_alone:  # of which each fails alone
        blocked = [folder / pattern for folder, pattern in places.folders if "*" not in pattern]
    for path in blocked:
        path.mkdir(parents=True)

    with pytest.raises(RefusedError) as info:
        check_places(parser, reached)

    assert blocked and all(f"'{path}' is a folder, and a file is written there" in str(info.value) for path in blocked)


KINDS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device": lambda path: path.symlink_to(os.devnull),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_written_to(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    KINDS[kind](Path("model.pt"))

    with pytest.raises(RefusedError, match=f"model.pt' is {kind}"):
        refuse_blocked(Places((Path("model.pt"),), ()))


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("elsewhere.pt"), lambda path: None])
def test_a_file_a_link_and_nothing_are_replaced(make, tmp_path):
    (tmp_path / "elsewhere.pt").touch()
    make(tmp_path / "model.pt")
    before = sorted(tmp_path.iterdir())

    refuse_blocked(Places((tmp_path / "model.pt",), ((tmp_path / "new/deep", "*.json"),)))

    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("deep", ["", "a/b"])
def test_a_file_or_a_link_to_nothing_in_the_place_of_a_folder_is_refused(deep, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")

    problems = list(problems_of(Places((), tuple((tmp_path / name / deep, "*") for name in ("file", "link", "pipe")))))

    assert "file' is a file, and a folder is needed there" in problems[0]
    assert "link' is a link to nothing" in problems[1]
    assert "pipe' is a pipe, and a folder is needed there" in problems[2] and len(problems) == 3


@pytest.mark.parametrize(
    "number, said", [(errno.EROFS, "read-only"), (errno.EACCES, "permission"), (errno.ENOSPC, "space")]
)
def test_a_folder_in_which_nothing_can_be_written_is_refused_in_a_line(number, said, tmp_path, monkeypatch):
    def refused(dir):  # root may write anywhere, so that the system is asked to say no
        raise OSError(number, os.strerror(number), f"{dir}/abc")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)

    with pytest.raises(RefusedError) as info:
        refuse_blocked(Places((tmp_path / "out/model.pt",), ()))

    assert said in str(info.value) and str(tmp_path) in str(info.value) and "\n" not in str(info.value)


def test_a_report_that_is_not_wanted_needs_no_place(tmp_path):
    parser, reached = parsed(["train.json"], tmp_path)
    parser["report"] = False
    parser.parse()

    assert not [name for _, name in places_of(parser, reached).folders if name == "report.html"]


@pytest.mark.parametrize("name", ["folder.json", "image/a.nii.gz", "label/a.nii.gz"])
def test_a_preparation_is_refused_before_it_reads_anything(name, tmp_path):
    (tmp_path / name).mkdir(parents=True)

    with pytest.raises(RefusedError, match="is a folder, and a file is written there"):
        Target(str(tmp_path), overwrite=False)


def test_whatever_a_run_has_written_was_looked_at_before(tmp_path):
    """Of the three commands, with all that they can write: so that no writer is forgotten."""
    dataset = save_dataset(tmp_path / "dataset")
    backbone = nano_checkpoint(tmp_path / "backbone/sam2_nano.pt")
    folder = tmp_path / "out"
    write_overlay(folder, dataset, backbone, iterations=1, iterations_per_epoch=1, variants=0)
    (folder / "overlay.json").rename(tmp_path / "overlay.json")
    options = {"uncertainty": 2, "probabilities": True}
    train(overlay := tmp_path / "overlay.json")
    run("evaluating", overlay)
    run("inferring", overlay, **options)
    known: list[Path] = []
    for command in ("training", "evaluating", "inferring"):
        parser = new_workflow(command, overlay, **(options if command == "inferring" else {})).parser
        parser.parse()
        places = places_of(parser, _reached(parser.get(), ("initialize", command, "finalize")))
        known += [*places.files, *(path for below, pattern in places.folders for path in below.glob(pattern))]

    written = {path for path in folder.rglob("*") if path.is_file()}
    assert len(written) > 15 and written - set(known) == set()


@pytest.mark.parametrize(
    "command, name",
    [("training", "checkpoint.pt"), ("training", "inference.json"), ("evaluating", "evaluation/metrics.csv")]
    + [("inferring", "inference/results.json")],
)
def test_a_workflow_ends_before_it_reads_anything(command, name, tmp_path):
    overlay = write_overlay(tmp_path, tmp_path / "nowhere", tmp_path / "nothing.pt")
    (tmp_path / name).mkdir(parents=True)

    with pytest.raises(Exception) as info:
        new_workflow(command, overlay).initialize()

    assert f"{name}' is a folder" in str(user_error(info.value))
