"""What the orientation head learns from: mirrored patients, other planes, shapes; and where its limits lie."""

from __future__ import annotations

import shutil

import pytest
import torch
from monai.bundle import ConfigWorkflow
from scripts.descriptions import describe
from scripts.networks.orientation import Evidence, OrientationHead, load_head, mirrored_logits
from scripts.networks.sam2_backbone import FrozenSAM2
from scripts.pretraining import orientation
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.orientation import OrientationClips, encode_clips, find_limits, fit_head
from scripts.pretraining.patient import LABEL_INDEX
from scripts.pretraining.patient_clips import AnatomyClips, PatientPool

from tests.helpers.networks import make_backbone
from tests.helpers.workflows import BUNDLE

STAGES = [{"epochs": 1, "image_size": 64, "frames": 3, "clips": 4}]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return PatientPool(write_patients(tmp_path_factory.mktemp("patients"), 2))


@pytest.fixture
def clips(pool):
    return OrientationClips(AnatomyClips(pool, STAGES, spacing=(4, 10)), every=3, length=3)


def clips_of(pool, stages=STAGES, **options) -> OrientationClips:
    return OrientationClips(AnatomyClips(pool, stages, **options), length=1)


def test_batches_are_axial_then_turned_then_shapes(clips):
    batches = [clips.batch(index) for index in range(3)]

    assert [batch["axial"].tolist() for batch in batches] == [[True] * 4, [False] * 4, [False] * 4]
    assert not batches[1]["abdomen"].any() and not batches[2]["abdomen"].any()
    for batch in batches:
        assert batch["image"].shape == (4, 3, 1, 64, 64)
        assert batch["height"].shape == batch["abdomen"].shape == (4, 3)


def test_the_same_index_gives_the_same_clips(clips):
    first, second = clips.batch(0), clips.batch(0)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["image"], clips.batch(1)["image"])


def test_mirrored_clips_are_mirrored(clips, monkeypatch):
    """The liver, painted alone, lies on the side that the batch says."""
    liver = LABEL_INDEX["liver"]

    def painted(tissue, label, draw):
        return (label == liver).float()[:, :, None]

    monkeypatch.setattr(orientation, "render", painted)
    seen = {True: [], False: []}
    for index in range(0, 24, 3):
        batch = clips.batch(index)
        columns = batch["image"].sum((1, 2, 3))
        for clip, where in enumerate(columns):
            if where.sum() > 100:
                side = float(where @ torch.linspace(-1, 1, 64) / where.sum())
                seen[bool(batch["left_right"][clip])].append(side)

    assert len(seen[True]) > 2 and len(seen[False]) > 2
    # the patient's left is the image's right
    assert sum(seen[True]) / len(seen[True]) > 0.1 and sum(seen[False]) / len(seen[False]) < -0.1


def test_encoded_clips_are_found_again(clips, tmp_path, monkeypatch):
    backbone, head = make_backbone(), OrientationHead(128)
    rows = encode_clips(clips, backbone, head, tmp_path)

    assert rows["pooled"].shape == rows["mirrored"].shape == (12, 3, 128, 4, 4)
    assert not torch.equal(rows["pooled"], rows["mirrored"])
    monkeypatch.setattr(OrientationClips, "batch", lambda *_: pytest.fail("encoded again"))
    again = encode_clips(clips, backbone, head, tmp_path)
    assert all(torch.equal(rows[key], again[key]) for key in rows)


def test_clips_that_were_not_mirrored_are_encoded_anew(clips, tmp_path):
    """As they were kept before slices were mirrored as well."""
    backbone, head = make_backbone(), OrientationHead(128)
    rows = encode_clips(clips, backbone, head, tmp_path)
    for file in tmp_path.glob("clips_*.pt"):
        content = torch.load(file, weights_only=True)
        del content["mirrored"]
        identity = describe({"clips": clips, "weights": backbone.fingerprint(), "grid": head.grid})
        torch.save({**content, "identity": identity}, file)

    again = encode_clips(clips, backbone, head, tmp_path)

    assert torch.equal(again["mirrored"], rows["mirrored"])


def test_clips_of_another_backbone_are_encoded_anew(clips, tmp_path):
    first = encode_clips(clips, make_backbone(), OrientationHead(128), tmp_path)
    other = make_backbone()
    other.model.image_encoder.neck.convs[0].conv.bias.data += 1
    assert not torch.equal(first["pooled"], encode_clips(clips, other, OrientationHead(128), tmp_path)["pooled"])


@pytest.mark.parametrize(
    "changed",
    [
        *({"spacing": (1.5, 10)}, {"beyond": (0.5, 0.5)}, {"breathing": (0.5, 6.0)}, {"tilt": (0.3, 0.1)}),
        *({"slide": 20.0}, {"anywhere": 0.3}, {"seed": 1}, {"stages": [{**STAGES[0], "clips": 2}]}),
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_clips_that_are_drawn_otherwise_are_encoded_anew(pool, tmp_path, changed):
    backbone, head = make_backbone(), OrientationHead(128)
    first = encode_clips(clips_of(pool), backbone, head, tmp_path)
    again = encode_clips(clips_of(pool, **changed), backbone, head, tmp_path)

    assert first["pooled"].shape != again["pooled"].shape or not torch.equal(first["pooled"], again["pooled"])


def test_clips_of_other_patients_are_encoded_anew_and_of_the_same_ones_elsewhere_are_not(tmp_path, monkeypatch):
    """As where more patients are painted, so that some of the calibration's would be among those of the training."""
    files = write_patients(tmp_path / "patients", 3)
    moved = shutil.copytree(tmp_path / "patients", tmp_path / "moved")
    backbone, head = make_backbone(), OrientationHead(128)
    first, second = (
        encode_clips(clips_of(PatientPool(each)), backbone, head, tmp_path / "cache") for each in (files[:2], files[1:])
    )
    assert not torch.equal(first["pooled"], second["pooled"])

    monkeypatch.setattr(OrientationClips, "batch", lambda *_: pytest.fail("encoded again"))
    there = PatientPool([moved / each.name for each in files[1:]])
    encode_clips(OrientationClips(AnatomyClips(there, STAGES, length=7), length=1), backbone, head, tmp_path / "cache")


def test_a_head_learns_what_can_be_seen():
    """Sides and height written into the embedding, in as many clips as there are."""
    generator = torch.Generator().manual_seed(0)
    sides, front = (torch.rand(64, generator=generator) < 0.5 for _ in range(2))
    height = 50 * torch.randn(64, 2, generator=generator)
    pooled = 0.3 * torch.randn(64, 2, 8, 4, 4, generator=generator)
    pooled[:, :, 0, :, :2] += 2.0 * sides.float().view(-1, 1, 1, 1) - 1
    pooled[:, :, 1, :2] += 2.0 * front.float().view(-1, 1, 1, 1) - 1
    pooled[:, :, 2] += height[..., None, None] / 50
    mirrored = pooled.clone()
    mirrored[:, :, 0, :, :2] -= 2 * (2.0 * sides.float().view(-1, 1, 1, 1) - 1)
    rows = {"pooled": pooled, "mirrored": mirrored, "left_right": sides, "front_back": front, "height": height}
    rows |= {"axial": torch.ones(64, dtype=torch.bool), "abdomen": torch.ones(64, 2, dtype=torch.bool)}
    head = OrientationHead(8, hidden=16, dropout=0.0)

    fit_head(head, rows, iterations=150, batch_size=64, learning_rate=0.01)

    found, exchanged = head(pooled.flatten(0, 1)), head(mirrored.flatten(0, 1))
    assert torch.equal(mirrored_logits(found, exchanged) > 0, sides.repeat_interleave(2))
    assert torch.equal(found[:, 1] > 0, front.repeat_interleave(2))
    assert torch.corrcoef(torch.stack([found[:, 2], height.flatten()]))[0, 1] > 0.95


def painted(value: float, mirrored: bool = False, extent: float = 100.0):
    return Evidence(value, value, -20.0, 3.0, extent, 10), mirrored, mirrored


def test_limits_are_strict_where_both_kinds_lie_apart():
    """All right ones at -2 or below, mirrored ones from 2: the limit lies among the mirrored ones, not at 0."""
    found = [painted(-2 - 0.01 * index) for index in range(50)]
    found += [painted(2 + 0.01 * index, True) for index in range(50)]

    limits = find_limits(found)

    assert 2.0 <= limits["left_right"][1] <= 2.1
    assert limits["left_right"][0] == -limits["left_right"][1]
    assert limits["abdomen"] == 3.0 and limits["upside_down"] == [-20.0, 20.0]


def test_false_alarms_stay_rare_where_they_do_not():
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(2000, generator=generator) - 0.5).tolist()

    above = find_limits([painted(value) for value in values])["left_right"][1]

    assert sum(value > above for value in values) <= 0.011 * len(values)  # the limit is rounded


def test_limits_need_volumes_that_show_enough():
    with pytest.raises(ValueError, match="No calibration volume shows 40"):
        find_limits([painted(-1.0, extent=20.0)])


@pytest.mark.parametrize("batches", [1, 6])
def test_the_configuration_makes_a_head_for_its_backbone(tmp_path, batches):
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs/pretrain_orientation.json"),
        logging_file=False,
        run_id="pretraining",
        workflow_type="train",
        bundle_root=str(BUNDLE),
        device=torch.device("cpu"),
        patients=1,
        calibration_patients=1,
        patients_dir=str(tmp_path / "patients"),
        output_dir=str(tmp_path),
        image_size=64,
        training_batches=batches,
        calibration_batches=3,
        iterations=5,
        extent=0.0,  # so short a training may see no abdomen anywhere
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()

    backbone = FrozenSAM2("sam2_nano", 64, checkpoint=BUNDLE / "models/sam2_nano.pt")
    head, about = load_head(tmp_path / "sam2_nano_orientation.pt", backbone)
    assert about["limits"].keys() == {"left_right", "front_back", "upside_down", "abdomen", "extent"}
    assert head.pool(torch.rand(1, 128, 4, 4)).shape == (1, 128, 4, 4)
