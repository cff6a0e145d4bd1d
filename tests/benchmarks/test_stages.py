"""The table of an inference's stages: complete, and no time counted twice or not at all."""

from __future__ import annotations

import json
import time

import pytest
import torch

from benchmarks import stages, timing
from benchmarks.configuration import parse
from tests.helpers.networks import SIZE


class Outer:
    def __init__(self, inner: Inner) -> None:
        self.inner = inner

    def call(self) -> None:
        time.sleep(0.02)
        self.inner.call()


class Inner:
    def call(self) -> None:
        time.sleep(0.05)


def test_a_stage_is_timed_without_the_stages_within():
    outer = Outer(Inner())
    with timing.labelled({(Outer, "call"): "outer", (Inner, "call"): "inner"}) as spent:
        outer.call()
    outer.call()  # is not counted
    assert 20 <= spent["outer"].wall < 50 <= spent["inner"].wall < 90
    assert "wrapped" not in repr(vars(Outer)["call"]) and set(spent) == {"outer", "inner"}


def test_methods_are_what_they_were_after_an_error():
    class Later(Outer):
        """Has the method of its base."""

    before = Outer.call
    with pytest.raises(AttributeError), timing.labelled({(Later, "call"): "later"}) as spent:
        Later(None).call()  # type: ignore[arg-type]
    assert Later.call is before and "call" not in vars(Later) and spent["later"].wall >= 20


def test_stages_make_up_the_whole(bundle, tiny_dataset, tmp_path, monkeypatch, capsys, backbone_file):
    monkeypatch.chdir(bundle)
    options = {
        **{"backbone_checkpoint": str(backbone_file), "image_size": SIZE, "prior_channels": [16, 32]},
        **{"named_memories": True, "skip_absent": False, "neighbours": 1},
        **{"prior_file": str(tmp_path / "model.pt"), "solid_organs": ["liver"]},
    }
    network = parse("configs/inference.json", options).get_parsed_content("network")
    network.prior.fitted.fill_(True)
    torch.save({"model": network.state_dict()}, tmp_path / "model.pt")

    found = stages.stages(str(tiny_dataset / "image_a.nii.gz"), str(tmp_path / "stages.json"), **options)

    assert set(found) == {*stages.NAMES, "whole"}
    missing = {name for name, spent in found.items() if not spent.wall > 0}
    assert missing <= {"orientation head"}  # there is none for a backbone of random weights
    for clock in ("cpu", "wall"):
        rest = [getattr(found[name], clock) for name in stages.NAMES[1:]]
        whole = getattr(found["whole"], clock) - getattr(found[stages.NAMES[0]], clock)
        assert sum(rest) == pytest.approx(whole, rel=0.02, abs=20)  # the clock of the process's start ticks in 10 ms
    said = capsys.readouterr().out
    for name in (*stages.NAMES, "the walk", "all that follows the walk", "whole"):
        assert f" {name} |" in said.replace("*", "").replace("...", "")
    assert "All that follows the walk ÷ the walk: " in said
    assert set(json.loads((tmp_path / "stages.json").read_text())["stages"]) == set(found)
