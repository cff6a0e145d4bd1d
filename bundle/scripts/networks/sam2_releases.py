"""SAM2's released networks, and the embedded one: by which name, from which YAML file each is built."""

from __future__ import annotations

from ..files import BUNDLE

SAM2_YAML = {
    f"{release}_hiera_{size}": f"configs/{release}/{release}_hiera_{letter}.yaml"
    for release in ("sam2.1", "sam2")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}

NANO_YAML = BUNDLE / "models" / "sam2_nano.yaml"  # the embedded backbone, beside its weights

BACKBONES = (*SAM2_YAML, "sam2_nano")
