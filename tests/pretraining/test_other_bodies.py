"""Bodies that are no abdomen: drawn again by the same seed, of many tissues, in layers, in pairs, cut in any plane."""

from __future__ import annotations

import torch
from scripts.pretraining.contrasts import Draw
from scripts.pretraining.other_bodies import BodyClips, draw_bodies
from scripts.pretraining.patient import LABEL_INDEX, TISSUE_INDEX, TISSUES

STAGES = [{"epochs": 1, "image_size": 64, "frames": 3, "clips": 4}]


def test_batches_hold_no_abdomen():
    batch = BodyClips(STAGES, length=2).batch(0)

    assert batch["image"].shape == (4, 3, 1, 64, 64)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1 and batch["image"].isfinite().all()
    assert batch["abdomen"].shape == batch["height"].shape == batch["place"].shape == (4, 3)
    assert not batch["abdomen"].any() and not batch["axial"].any()


def test_the_same_index_and_seed_give_the_same_clips():
    first, again = (BodyClips(STAGES, seed=5).batch(1) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], BodyClips(STAGES, seed=5).batch(0)["image"])
    assert not torch.equal(first["image"], BodyClips(STAGES, seed=6).batch(1)["image"])


def test_bodies_are_of_many_tissues_and_have_no_organ():
    tissue, label = draw_bodies(Draw(0, "cpu"), clips=60, frames=2, size=64)

    assert tissue.shape == (60, 2, 3, 64, 64) and label.shape == (60, 2, 64, 64)
    assert set(label.unique().tolist()) <= {0, LABEL_INDEX["lung"]}
    counts = torch.bincount(tissue.flatten(), minlength=len(TISSUES))
    assert (counts > 0).sum() > 25
    held = [len(clip.unique()) for clip in tissue]
    assert min(held) <= 3 and max(held) >= 8  # bottles, and heads
    air = (tissue[:, :, 0] == TISSUE_INDEX["air"]).float().mean((1, 2, 3))
    assert air.min() < 0.2 and air.max() > 0.9


def test_slices_differ_along_the_clip_and_samples_within_a_slice():
    tissue, _ = draw_bodies(Draw(1, "cpu"), clips=12, frames=4, size=64)
    changed = (tissue[:, 0, 0] != tissue[:, -1, 0]).float().mean((1, 2))
    assert (changed > 0.01).sum() > 8
    assert ((tissue[:, :, 0] != tissue[:, :, 1]).float().mean((1, 2, 3)) > 0).sum() > 8
