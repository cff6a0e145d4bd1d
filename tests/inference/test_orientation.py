"""What is said of how a scan lies, and where it is said."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from scripts.inference.orientation import OrientationCheck, orientation_flags, slice_spacing, verdicts
from scripts.networks.orientation import Evidence, OrientationHead, save_head
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.segmentation.views import View

from tests.helpers.workflows import SIZE, run, write_overlay, write_prior

LIMITS = {
    **{"left_right": [-1.0, 1.0], "front_back": [-1.0, 1.0], "upside_down": [-8.0, 8.0]},
    **{"abdomen": 0.0, "extent": 40.0},
}
FINE = Evidence(-2.0, -2.0, -20.0, 3.0, 120.0, 12)


@pytest.mark.parametrize(
    "change, side, verdict",
    [
        ({}, "left_right", "as stated"),
        ({"left_right": 1.2}, "left_right", "exchanged"),
        ({"left_right": 0.8}, "left_right", "cannot tell"),
        ({"front_back": 1.2}, "front_back", "exchanged"),
        ({"upside_down": 9.0}, "upside_down", "exchanged"),
        ({"upside_down": 9.0, "extent": 30.0}, "upside_down", "cannot tell"),
        ({"left_right": 1.2, "abdomen": -0.1}, "left_right", "cannot tell"),
    ],
)
def test_evidence_becomes_a_verdict(change, side, verdict):
    assert verdicts(FINE._replace(**change), LIMITS)[side] == verdict


def test_what_looks_exchanged_is_one_flag_that_turns_nothing():
    (flag,) = orientation_flags(verdicts(FINE._replace(left_right=2.0, upside_down=20.0), LIMITS))

    assert (flag["organ"], flag["flag"]) == (None, "orientation")
    assert flag["message"].startswith("left and right, and head and feet look exchanged")
    assert "Nothing was turned" in flag["message"]


def test_no_abdomen_is_a_flag_of_its_own():
    (flag,) = orientation_flags(verdicts(FINE._replace(left_right=2.0, abdomen=-3.0), LIMITS))
    assert flag["flag"] == "no abdomen"


@pytest.mark.parametrize("found", [None, verdicts(FINE, LIMITS), verdicts(FINE._replace(extent=10.0), LIMITS)])
def test_nothing_is_said_of_what_lies_as_stated_or_is_not_known(found):
    assert orientation_flags(found) == []


def test_spacing_is_that_of_the_third_axis_of_an_oblique_image():
    turn = np.array([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.5, 1.5, 4.0])
    assert slice_spacing(affine) == pytest.approx(4.0)


def write_head(path, backbone_file, left_right: float, abdomen: float = 4.0):
    """A head that finds sides exchanged by how far a channel of the left half's embedding exceeds the right half's, and
    says the same of every slice else.
    """
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    head = OrientationHead(backbone.embedding_channels)
    last = head.layers[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.0, -3.0, 0.0, abdomen])
    # GELU(x) - GELU(-x) is x
    columns = torch.zeros(backbone.embedding_channels, 4, 4)
    columns[0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    columns = columns.flatten()
    head.layers[2].weight.data[:2] = torch.stack([columns, -columns])
    head.layers[2].bias.data[:2] = 0
    last.weight.data[0, :2] = torch.tensor([left_right, -left_right])
    save_head(head, path, backbone=backbone, about={"limits": {**LIMITS, "extent": 10.0}})
    return path


@pytest.mark.parametrize("uncertainty", [0, 2])
def test_an_inference_records_and_says_it(tmp_path, tiny_dataset, backbone_file, caplog, uncertainty):
    """Of two heads that say the opposite of each other, one finds left and right exchanged."""
    image, found = str(tiny_dataset / "image_c.nii.gz"), {}
    for name, left_right in (("one", 1000.0), ("other", -1000.0)):
        head = write_head(tmp_path / f"{name}.pt", backbone_file, left_right)
        overlay = write_overlay(
            tmp_path / name,
            tiny_dataset,
            backbone_file,
            input=image,
            orientation_file=str(head),
            uncertainty=uncertainty,
        )
        write_prior(overlay)
        with caplog.at_level(logging.WARNING, "scripts.inference.quality"):
            run("inferring", overlay)
        results = json.loads((tmp_path / name / "inference/results.json").read_text())
        found[name] = results["cases"]["image_c"]["quality"]

    assert {each["orientation"]["left_right"] for each in found.values()} == {"exchanged", "as stated"}
    assert all(each["orientation"]["front_back"] == "as stated" for each in found.values())
    numbers = [each["orientation"]["evidence"]["left_right"] for each in found.values()]
    assert numbers[0] == pytest.approx(-numbers[1], abs=0.02)
    (wrong,) = (name for name, each in found.items() if each["orientation"]["left_right"] == "exchanged")
    assert found[wrong]["flags"][0]["flag"] == "orientation"
    assert sum("left and right look exchanged" in message for message in caplog.messages) == 1
    report = (tmp_path / wrong / "inference/report.html").read_text()
    assert "left and right look exchanged" in report


class SomeSlices:
    """Eleven slices whose embeddings are all alike; notes which are encoded together, and how."""

    view = View()

    def __init__(self, channels: int) -> None:
        self.embedding = torch.zeros(1, channels, 4, 4)
        self.asked: list[int] = []
        self.autocast: set[bool] = set()

    def seen_in(self, view):
        assert view == View(mirrored=True)
        return self

    def features(self, indices):
        self.asked.append(len(indices))
        self.autocast.add(torch.is_autocast_enabled("cpu"))
        return SimpleNamespace(embedding=self.embedding.expand(len(indices), -1, -1, -1))


@pytest.mark.parametrize("amp", [False, True])
def test_slices_are_mirrored_as_the_walk_encodes_them(tmp_path, backbone_file, amp):
    """Which takes as many at a time as fit into memory; and in the same precision."""
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    check = OrientationCheck(write_head(tmp_path / "head.pt", backbone_file, 1.0), backbone)
    assert check.head is not None
    slices = SomeSlices(backbone.embedding_channels)
    check.add(slices, range(11), SimpleNamespace(embedding=slices.embedding.expand(11, -1, -1, -1)))
    check.mirror(SimpleNamespace(amp=amp, amp_kwargs={}))

    assert slices.asked == [6] and slices.autocast == {amp}
    assert check.judge(5.0)["evidence"]["slices"] == 11


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_case_without_memory_for_mirrored_slices_is_segmented_and_a_note_says_so(
    tmp_path, tiny_dataset, backbone_file, monkeypatch, error
):
    def fail(outputs):
        raise error

    monkeypatch.setattr("scripts.inference.orientation.to_mirror", fail)
    head = write_head(tmp_path / "head.pt", backbone_file, 1.0)
    image = str(tiny_dataset / "image_c.nii.gz")
    overlay = write_overlay(tmp_path, tiny_dataset, backbone_file, input=image, orientation_file=str(head))
    write_prior(overlay)
    run("inferring", overlay)

    case = json.loads((tmp_path / "inference/results.json").read_text())["cases"]["image_c"]
    assert case["status"] == "done" and "orientation" not in case["quality"]
    (note,) = (note for note in case["warnings"] if "how it lies" in note)
    assert note.startswith("how it lies is not checked: out of memory (")


def test_other_errors_of_mirrored_slices_are_not_taken_for_want_of_memory(tmp_path, backbone_file):
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    check = OrientationCheck(write_head(tmp_path / "head.pt", backbone_file, 1.0), backbone)
    assert check.head is not None
    slices = SomeSlices(backbone.embedding_channels)
    check.add(slices, range(2), SimpleNamespace(embedding=slices.embedding.expand(2, -1, -1, -1)))
    slices.features = lambda indices: torch.zeros(2, 3) @ torch.zeros(2, 3)

    with pytest.raises(RuntimeError, match="shape"):
        check.mirror(SimpleNamespace(amp=False, amp_kwargs={}))


def test_the_volume_of_a_case_that_failed_is_not_kept(tmp_path, backbone_file):
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    check = OrientationCheck(write_head(tmp_path / "head.pt", backbone_file, 1.0), backbone)
    assert check.head is not None

    def failed(engine, batch):
        slices = SomeSlices(backbone.embedding_channels)
        check.add(slices, range(2), SimpleNamespace(embedding=slices.embedding.expand(2, -1, -1, -1)))
        return ref(slices)

    engine = Engine(failed)
    engine.register_events(*IterationEvents)
    check.attach(engine)
    engine.inferer = None
    engine.run([0])

    assert engine.state.output() is None


def test_a_head_of_another_backbone_is_left_out(tmp_path, backbone_file):
    other = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    other.model.no_mem_embed.data += 1
    check = OrientationCheck(write_head(tmp_path / "head.pt", backbone_file, 3.0), other)

    assert check.head is None and check.judge(5.0) is None
    assert check.described() == {"head": None}


def test_a_missing_head_is_left_out(tmp_path, backbone_file):
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    assert OrientationCheck(tmp_path / "none.pt", backbone).described() == {"head": None}
    assert OrientationCheck(None, backbone).head is None


def test_another_head_is_another_setting(tmp_path, backbone_file):
    backbone = FrozenSAM2("sam2_nano", SIZE, checkpoint=backbone_file)
    files = [write_head(tmp_path / f"{number}.pt", backbone_file, number) for number in (1.0, 2.0)]
    first, second = (OrientationCheck(file, backbone).described() for file in files)
    assert first != second and first["head"] is not None
