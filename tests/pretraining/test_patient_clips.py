"""Clips of painted patients: what a batch holds, that it follows the seed, and that greys differ where they should."""

from __future__ import annotations

import pytest
import torch
from scripts.data.phantom_anatomy import ORGANS
from scripts.pretraining.anatomy import write_patients
from scripts.pretraining.contrasts import Draw, _mottled, draw_means
from scripts.pretraining.patient import LABEL_INDEX, SHAPE, SPACING, TISSUE_INDEX, TISSUES
from scripts.pretraining.patient_clips import CLASSES, AnatomyClips, PatientPool

STAGES = [{"epochs": 1, "image_size": 64, "frames": 3, "clips": 4}]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return PatientPool(write_patients(tmp_path_factory.mktemp("patients"), 2))


def test_a_batch_holds_images_and_the_masks_of_named_organs(pool):
    batch = AnatomyClips(pool, STAGES, extra_objects=2).batch(0)

    assert batch["image"].shape == (4, 3, 1, 64, 64)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1 and batch["image"].isfinite().all()
    assert batch["mask"].shape == (4, len(ORGANS) + 2, 3, 64, 64)
    assert batch["classes"].shape == (4, 3, 64, 64) and batch["classes"].max() < len(CLASSES)
    for index, organ in enumerate(ORGANS):  # the masks are where the classes say the organ is
        assert torch.equal(batch["mask"][:, index], batch["classes"] == CLASSES.index(organ))


def test_fewer_organs_say_which_they_are(pool):
    batch = AnatomyClips(pool, STAGES, organs_per_clip=2).batch(0)

    assert batch["organ"].shape == (4, 2)
    for clip in range(4):
        for place, organ in enumerate(batch["organ"][clip].tolist()):
            assert torch.equal(batch["mask"][clip, place], batch["classes"][clip] == organ)


def test_batches_follow_seed_epoch_and_index(pool):
    clips = AnatomyClips(pool, STAGES, seed=1)
    first, again, other = clips.batch(0), clips.batch(0), clips.batch(1)
    clips.set_epoch(2)
    later = clips.batch(0)

    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"]) and not torch.equal(first["image"], later["image"])


def test_a_curriculum_changes_the_size(pool):
    clips = AnatomyClips(pool, [STAGES[0], {"epochs": 1, "image_size": 32, "frames": 1, "clips": 2}])
    clips.set_epoch(2)

    assert clips.batch(0)["image"].shape == (2, 1, 1, 32, 32)


def test_the_left_of_the_patient_is_on_the_right_of_the_picture(pool):
    position = torch.linspace(-200, 200, 81)
    x, y = position.view(1, 1, -1), position.view(1, -1, 1)
    levels = torch.linspace(-100, 100, 41)

    _, label = pool.sample(torch.tensor([0]), levels.view(1, -1, 1, 1), y[:, None], x[:, None])

    columns = torch.arange(81.0)
    left, right = (
        (columns * (label == LABEL_INDEX[organ]).sum((0, 1, 2))).sum() / (label == LABEL_INDEX[organ]).sum()
        for organ in ("left kidney", "right kidney")
    )
    assert right < 40 < left


def test_most_contrasts_tell_touching_organs_apart():
    means, _ = draw_means(Draw(0, "cpu"), 4000)

    apart = (means[:, TISSUE_INDEX["renal cortex"]] - means[:, TISSUE_INDEX["liver"]]).abs() > 0.05
    assert means.shape == (4000, len(TISSUES)) and means.min() >= 0
    assert 0.75 < apart.float().mean() < 0.99  # and some do not


def test_stool_is_mottled_and_what_lies_beside_it_is_not():
    tissue = torch.full((64, 1, 64, 64), TISSUE_INDEX["liver"])
    tissue[..., 32:] = TISSUE_INDEX["stool"]
    means = torch.full((64, len(TISSUES)), 0.6)
    means[:, TISSUE_INDEX["gas"]] = 0.0

    image = _mottled(torch.full(tissue.shape, 0.6), tissue, means, Draw(0, "cpu"))

    stool = image[..., 32:].flatten(1)
    assert torch.equal(image[..., :32], torch.full_like(image[..., :32], 0.6))
    assert 0.5 < (stool.std(1) > 0.05).float().mean() < 0.95  # in most of the clips, and not in all
    assert stool.min() < 0.1  # bubbles are as dark as gas


def test_objects_of_some_clips_alone_are_followed(pool):
    stage = {**STAGES[0], "clips": 6, "followed": 2}

    batch = AnatomyClips(pool, [stage], organs_per_clip=2, extra_objects=1).batch(0)

    assert batch["image"].shape[0] == batch["classes"].shape[0] == 6
    assert batch["mask"].shape[:2] == (2, 3) and batch["organ"].shape == (2, 2)
    for place in range(2):
        assert torch.equal(batch["mask"][:, place], batch["classes"][:2] == batch["organ"][:, place, None, None, None])


def test_frames_in_context_lie_between_the_slices_beside_them(pool):
    wide = AnatomyClips(pool, [{**STAGES[0], "frames": 4}], spacing=(9.0, 9.0)).batch(0)
    inner = AnatomyClips(pool, [{**STAGES[0], "frames": 2, "context": True}], spacing=(9.0, 9.0)).batch(0)

    image = wide["image"][:, :, 0]
    expected = torch.stack([image[:, :2], image[:, 1:3], image[:, 2:]], 2)
    assert torch.equal(inner["image"], expected)
    assert torch.equal(inner["classes"], wide["classes"][:, 1:3])


def test_a_tilted_slice_meets_front_and_back_at_different_heights(pool):
    def slopes(**tilt):
        clips = AnatomyClips(pool, [{**STAGES[0], "clips": 16}], **tilt)
        z, y = (each[:, 0].flatten(1) for each in clips._positions(Draw(0, "cpu"), clips.stages[0])[2:4])
        z, y = z - z.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return ((z * y).sum(1) / y.square().sum(1)).std()

    assert slopes(tilt=(0.5, 0.0)) > 3 * slopes(tilt=(0.0, 0.0))
    assert slopes(tilt=(0.0, 0.0), slide=60.0) > 3 * slopes(tilt=(0.0, 0.0))


def test_clips_from_anywhere_show_pelvis_and_chest(pool):
    def heights(**anywhere):
        clips = AnatomyClips(pool, [{**STAGES[0], "clips": 64}], **anywhere)
        return clips._positions(Draw(0, "cpu"), clips.stages[0]).z.mean((1, 2, 3))

    whole = SHAPE[2] * SPACING[2]
    usual, anywhere = heights(), heights(anywhere=1.0)

    assert anywhere.max() - anywhere.min() > 0.8 * whole > usual.max() - usual.min()
    assert torch.equal(heights(anywhere=0.0), usual)


def test_some_fields_of_view_show_as_much_air_as_body(pool):
    clips = AnatomyClips(pool, [{**STAGES[0], "clips": 400}])
    patient = torch.zeros(400, dtype=torch.long)

    x = clips._plane(patient, 8, Draw(0, "cpu"))[1]

    left, right = pool.box[0, 1]
    shown = (x.amax((1, 2)) - x.amin((1, 2))) / (right - left)
    assert shown.median() < 1.3 and shown.min() < 1  # most are filled, some cut
    assert 0.05 < (shown > 1.6).float().mean() < 0.3


def test_breathing_displaces_slices_in_their_plane(pool):
    """Of slices that lie close, one that breathing moved looks like the other elsewhere."""

    def rows(**breathing):
        clips = AnatomyClips(pool, [{**STAGES[0], "clips": 8}], spacing=(0.1, 0.1), **breathing)
        body = clips.batch(0)["classes"] != CLASSES.index("air")
        return body.any(3).float().argmax(2)  # (clips, frames), where the body begins

    still, moved = rows(), rows(breathing=(1.0, 25.0))

    assert (still - still[:, :1]).abs().max() <= 1
    assert (moved - moved[:, :1]).abs().max() >= 4


def test_clips_lie_as_far_beyond_the_organs_as_said(pool):
    def held(beyond):
        clips = AnatomyClips(pool, [{"epochs": 1, "image_size": 64, "frames": 1, "clips": 200}], beyond=beyond)
        return (clips.batch(0)["classes"] < len(ORGANS)).flatten(1).any(1).float().mean()

    assert held((-0.4, -0.4)) > 0.95  # the middle of the organs' height
    assert held((1.5, 0.0)) < held((0.0, 0.0)) - 0.2
