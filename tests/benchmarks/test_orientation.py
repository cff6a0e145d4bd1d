"""The benchmarks of the flags of a case: flips are those they are called, and volumes without organs hold none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resize
from scripts.data.phantoms import write_phantoms
from scripts.data.stored import WINDOW
from scripts.inference.orientation import verdicts
from scripts.networks.orientation import Evidence, OrientationHead
from scripts.networks.sam2_backbone import FrozenSAM2

from benchmarks import nothing_there, orientation
from benchmarks.configuration import parse
from tests.helpers.workflows import BUNDLE

LIMITS = {
    **{"left_right": [-1.0, 1.0], "front_back": [-1.0, 1.0], "upside_down": [-8.0, 8.0]},
    **{"abdomen": 0.0, "extent": 40.0},
}


def test_verdicts_are_counted_by_what_is_exchanged():
    """A head that always finds left and right, never says front and back, and calls all upside down."""
    evidence = [
        Evidence(2.0 if "left_right" in flip else -2.0, 0.0, 20.0, 3.0, 100.0, 10) for flip in orientation.FLIPS
    ]
    cases = {"a": [verdicts(each, LIMITS) for each in evidence]}

    counted = orientation.count_verdicts(cases)

    assert counted["left_right"]["exchanged"] == {"as stated": 0, "cannot tell": 0, "exchanged": 4}
    assert counted["left_right"]["as stated"]["exchanged"] == 0
    assert counted["front_back"]["exchanged"]["cannot tell"] == 4
    assert counted["upside_down"]["as stated"]["exchanged"] == 4
    assert "| left and right | 0 of 4 | 4 of 4 | 0 | 0 of 8 |" in orientation.as_text(cases)


@pytest.mark.parametrize("side, axis", [("front_back", 0), ("left_right", 1), ("upside_down", 2)])
def test_a_flip_turns_the_axis_of_its_side(side, axis):
    """Volumes lie along posterior, left, superior."""
    volume = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(volume.flip([orientation.AXES[side]]), volume.flip([axis]))


@pytest.mark.parametrize("window", [None, [-125.0, 275.0, 0.0, 1.0, 1.0]], ids=["greys", "Hounsfield units"])
def test_scans_are_encoded_as_an_inference_sees_them(tmp_path, window):
    torch.manual_seed(0)
    backbone = FrozenSAM2("sam2_nano", 64)
    network = SimpleNamespace(backbone=backbone, encode=backbone.encode_image, parameters=backbone.parameters)
    seen = torch.rand(1, 40, 50, 3)
    stored = seen if window is None else seen * 400 - 125
    image = MetaTensor(stored, affine=torch.eye(4), meta={} if window is None else {WINDOW: window})
    content = {"network": network, "encode_batch_size": 2, "inputs": [{"case": "a", "image": "a.nii.gz"}]}
    content["preprocessing"] = lambda item: {**item, "image": image}
    head = OrientationHead(backbone.embedding_channels)

    orientation.encode_cases(SimpleNamespace(get_parsed_content=content.get), tmp_path, head)

    pooled = torch.load(tmp_path / "a.pt", weights_only=True)["pooled"]
    assert len(pooled) == len(orientation.FLIPS)
    resized = Resize((64, 64), mode="bilinear", anti_aliasing=True)(seen[0].permute(2, 0, 1))[:, None]
    expected = head.pool(backbone.encode_image(resized.as_tensor()).embedding)
    torch.testing.assert_close(pooled[0].float(), expected, rtol=1e-2, atol=1e-2)


def test_a_head_has_a_skull_around_a_brain():
    tissue = nothing_there.make_head(0)
    index = nothing_there._INDEX
    middle = tissue[64, 72]  # through the middle of the head, from below

    assert set(np.unique(tissue)) == set(index.values())
    brain = np.flatnonzero(np.isin(middle, [index["white matter"], index["fluid"], index["grey matter"]]))
    above = middle[brain[-1] + 1 :]  # slices of 5 mm may meet the bone's layers or what lies between them
    assert np.isin(above, [index["bone"], index["marrow"]]).any() and above[-1] == index["air"]
    assert not np.array_equal(tissue, nothing_there.make_head(1))


@pytest.mark.parametrize("kind", nothing_there.KINDS)
def test_volumes_are_in_the_units_of_their_modality(kind):
    ct, _ = nothing_there.make_image(kind, 0, "ct")
    mr, _ = nothing_there.make_image(kind, 0, "mr")
    assert ct.min() < -100 and mr.min() >= 0
    with pytest.raises(ValueError, match="as 'pet'"):
        nothing_there.make_image(kind, 0, "pet")


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_what_ships_tells_a_head_from_an_abdomen(tmp_path, modality, monkeypatch):
    monkeypatch.setattr(orientation, "FLIPS", [(), ("left_right",)])  # what a verdict needs
    write_phantoms(tmp_path / "abdomen", 1, modality=modality)
    image, spacing = nothing_there.make_image("head", 1, modality)
    path = tmp_path / "images" / "head.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.diag([*spacing, 1.0])), path)
    (tmp_path / "abdomen" / f"image_{modality}000.nii.gz").rename(path.with_name("abdomen.nii.gz"))
    settings = {"bundle_root": str(BUNDLE), "input": str(path.parent), "output": str(tmp_path / "out")}
    parser = parse([str(BUNDLE / "configs" / name) for name in ("inference.json", f"{modality}.json")], settings)
    check, backbone = (parser.get_parsed_content(name) for name in ("orientation", "backbone"))

    orientation.encode_cases(parser, tmp_path, check.head)
    found = orientation.judge_cases(tmp_path, check.head, check.limits, backbone.fingerprint())

    assert {name: verdict[0]["abdomen"] for name, verdict in found.items()} == {"abdomen": True, "head": False}


def case(volume: float, *flags: str) -> dict:
    flags = [{"organ": None, "flag": flag, "message": ""} for flag in flags]
    return {"quality": {"organs": {"liver": {"volume_ml": volume}, "spleen": {"volume_ml": 0.0}}, "flags": flags}}


def test_what_is_found_and_said_is_counted():
    found = nothing_there.summarise([case(100.0, "volume"), case(100.0, "no abdomen"), case(2.0, "volume")])

    assert found["with_organs"] == 2 and found["with_organs_unflagged"] == 1
    assert found["flags"] == {"no abdomen": 1, "volume": 2}
    assert "| head | 2 of 3 | 1 of 3 | 100 ml |" in nothing_there.as_text({"head": found})


def test_volumes_of_an_earlier_call_are_not_counted(tmp_path, monkeypatch):
    class Workflow:
        """Finds 100 ml in whatever lies in the folder."""

        def __init__(self, input, output, **options):
            self.names = [path.name.removesuffix(".nii.gz") for path in Path(input).glob("*.nii.gz")]
            self.output = Path(output)

        def run(self):
            self.output.mkdir(exist_ok=True)
            content = {"cases": {name: case(100.0) for name in self.names}}
            (self.output / "results.json").write_text(json.dumps(content))

        initialize = finalize = lambda self: None

    monkeypatch.setattr(nothing_there, "ConfigWorkflow", Workflow)
    monkeypatch.setattr(nothing_there, "make_image", lambda *_: (np.zeros((2, 2, 2)), (1.0, 1.0, 1.0)))
    for count in (3, 2):
        nothing_there.main("inference.json", str(tmp_path), count=count)
        found = json.loads((tmp_path / "nothing_there.json").read_text())
        assert {kind: each["volumes"] for kind, each in found.items()} == {"shapes": count, "head": count}
