"""Files with which a training begins: what fits is loaded, and what does not is said in words."""

from __future__ import annotations

import io

import pytest
import torch
from scripts.errors import MissingFileError, RefusedError, UnusableFileError
from scripts.weights import begin_from, save_atomically
from torch import nn


def test_a_module_begins_with_a_part_of_a_file(tmp_path):
    before, after = nn.Linear(3, 2), nn.Linear(3, 2)
    save_atomically({"model": before.state_dict(), "other": 1}, tmp_path / "start.pt")

    begin_from(after, tmp_path / "start.pt", part="model", kind="checkpoint")

    assert all(torch.equal(after.state_dict()[key], value) for key, value in before.state_dict().items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"prior": {}}, "is no checkpoint, or damaged .*it has no 'model'"),
        ({"model": [1]}, "it has no 'model'"),
        ({"model": nn.Linear(4, 2).state_dict()}, "it does not fit this Linear: size mismatch for weight"),
        ({"model": {}}, "it does not fit this Linear: Missing key"),
        ({"model": {"weight": "x", "bias": 3}}, "it does not fit this Linear"),
        (
            {"model": {"weight": torch.ones(2, 3), "bias": torch.tensor([1, torch.nan])}},
            r"1 of its tensors hold NaN or infinite numbers \(such as 'bias'\): its training failed",
        ),
        ({"model": {"weight": torch.full((2, 3), torch.inf), "bias": torch.ones(2)}}, r"\(such as 'weight'\)"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, content, words):
    save_atomically(content, tmp_path / "start.pt")
    with pytest.raises(UnusableFileError, match=words) as raised:
        begin_from(nn.Linear(3, 2), tmp_path / "start.pt", part="model", kind="checkpoint")
    assert "start.pt" in str(raised.value) and "null to begin from scratch" in str(raised.value)


def test_a_start_that_is_not_there_or_no_file_of_tensors_is_said(tmp_path):
    with pytest.raises(MissingFileError, match="is not there"):
        begin_from(nn.Linear(3, 2), tmp_path / "start.pt", part="model", kind="checkpoint")
    (tmp_path / "start.pt").write_text("weights")
    with pytest.raises(UnusableFileError, match="is no checkpoint, or damaged"):
        begin_from(nn.Linear(3, 2), tmp_path / "start.pt", part="model", kind="checkpoint")


def test_what_pytorch_cannot_write_to_its_end_names_the_file(tmp_path, monkeypatch):
    save_atomically({"a": 1}, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(content, file: io.IOBase) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nException raised from")

    monkeypatch.setattr(torch, "save", full)

    with pytest.raises(RefusedError, match="model.pt' could not be written to its end .*Is the disk full") as raised:
        save_atomically({"a": 2}, tmp_path / "model.pt")
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.pt": before}
