"""The linear probe: it finds what lies in a direction of the embedding, by shares of places, and nothing in noise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.baselines.linear_probe import fit_probe

ORGANS = 2


def write(path, seed: int, signal: float):
    """Two slices whose places hold organs in the left and in the upper half of a quarter, and what shows them."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(2, 64, 64, dtype=torch.uint8)
    label[0, :32, :24] = 1
    label[1, 32:, 40:] = 2
    shares = F.adaptive_avg_pool2d(F.one_hot(label.long(), 3).permute(0, 3, 1, 2).float(), 8)
    embedding = 100 + torch.randn(2, 6, 8, 8, generator=generator)
    embedding[:, :2] += signal * shares[:, 1:]
    torch.save({"embedding": embedding.half(), "label": label}, path)
    return embedding, shares


def test_organs_are_found_in_another_volume(tmp_path):
    write(tmp_path / "a.pt", 0, 20.0)
    embedding, shares = write(tmp_path / "b.pt", 1, 20.0)
    probe = fit_probe([tmp_path / "a.pt"], ORGANS)
    assert not probe.training
    assert torch.equal(probe(embedding).argmax(1), shares.argmax(1))


def test_where_nothing_shows_them_each_class_has_its_share(tmp_path):
    embedding, shares = write(tmp_path / "a.pt", 0, 0.0)
    found = fit_probe([tmp_path / "a.pt"], ORGANS, penalty=1e3)(embedding).softmax(1).mean((0, 2, 3))
    assert found.tolist() == pytest.approx(shares.mean((0, 2, 3)).tolist(), abs=1e-3)
