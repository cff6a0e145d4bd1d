"""What a scanner makes of a phantom's anatomy: CT-like and T2-SPIR-like intensities, texture, blur and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .phantom_shapes import Body, smooth_field


@dataclass(frozen=True)
class Tissue:
    """Mean intensity in each modality, the spread of that mean between patients, and texture (all one unit)."""

    ct: tuple[float, float, float]
    mr: tuple[float, float, float]


# (mean, spread between patients, texture): HU of the portal-venous phase, and arbitrary units of T2-SPIR
TISSUES = {
    "air": Tissue((-1000, 0, 0), (0, 0, 0)),
    "gas": Tissue((-750, 40, 30), (15, 5, 5)),
    "lung": Tissue((-830, 30, 45), (25, 8, 12)),
    "skin": Tissue((20, 10, 8), (170, 30, 10)),
    "fat": Tissue((-103, 5, 7), (110, 25, 12)),
    "muscle": Tissue((56, 5, 7), (185, 25, 14)),
    "liver": Tissue((106, 9, 5), (300, 40, 14)),
    "hepatic vessel": Tissue((152, 10, 4), (330, 120, 14)),
    "spleen": Tissue((119, 9, 4), (560, 70, 18)),
    "renal cortex": Tissue((182, 14, 6), (690, 60, 24)),
    "renal medulla": Tissue((148, 12, 8), (830, 60, 30)),
    "renal sinus": Tissue((5, 25, 22), (420, 60, 60)),
    "renal pelvis": Tissue((22, 10, 8), (1050, 100, 40)),
    "gallbladder": Tissue((12, 6, 3), (1200, 120, 20)),
    "pancreas": Tissue((88, 9, 16), (380, 45, 45)),
    "vein": Tissue((158, 12, 4), (140, 60, 16)),
    "aorta": Tissue((172, 14, 4), (50, 15, 10)),
    "heart": Tissue((135, 12, 10), (170, 40, 30)),
    "bowel wall": Tissue((82, 10, 8), (310, 40, 25)),
    "bowel fluid": Tissue((22, 12, 9), (880, 130, 90)),
    "bowel oral": Tissue((48, 14, 14), (520, 120, 80)),
    "stool": Tissue((10, 25, 85), (260, 70, 80)),
    "stomach content": Tissue((30, 12, 16), (760, 200, 110)),
    "cortical bone": Tissue((480, 70, 60), (35, 10, 8)),
    "marrow": Tissue((215, 40, 35), (125, 25, 18)),
    "disc": Tissue((92, 10, 8), (330, 100, 25)),
    "cartilage": Tissue((125, 25, 25), (140, 25, 15)),
    "canal": Tissue((28, 6, 4), (1120, 100, 30)),
    "cord": Tissue((42, 5, 4), (470, 50, 15)),
}


def render(body: Body, axes: Sequence[np.ndarray], modality: str, rng: np.random.Generator) -> np.ndarray:
    """The image ``(x, y, z)``, int16, of the painted layers."""
    drawn = {}
    for name, tissue in TISSUES.items():
        mean, spread, texture = getattr(tissue, modality)
        drawn[name] = (mean + spread * rng.uniform(-1, 1), texture * rng.uniform(0.7, 1.3))
    image = np.full(body.shape, drawn["air"][0], np.float32)
    texture = np.zeros(body.shape, np.float32)
    for painted, region, alpha in body.layers:
        mean, amplitude = drawn[painted]
        image[region] += alpha * (mean - image[region])
        texture[region] += alpha * (amplitude - texture[region])
    image += texture * _texture(rng, body, axes)
    steps = [axis[1] - axis[0] for axis in axes]
    # the point spread of the scanner, and through-plane the partial volume of thick slices
    width = rng.uniform(0.8, 1.2)
    image = ndimage.gaussian_filter(image, (width / steps[0], width / steps[1], 0.4 * min(1, 5 / steps[2])))
    return _ct_noise(image, rng) if modality == "ct" else _mr_noise(image, axes, rng)


def _texture(rng: np.random.Generator, body: Body, axes: Sequence[np.ndarray]) -> np.ndarray:
    fine = ndimage.gaussian_filter(rng.standard_normal(body.shape, np.float32), (1.2, 1.2, 0.4))
    return 0.7 * fine / fine.std() + 0.7 * smooth_field(rng, axes, 12.0)


def _ct_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reconstruction noise: correlated in plane, independent between slices."""
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), (0.6, 0.6, 0))
    image = image + noise * (rng.uniform(7, 15) / noise.std())
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _mr_noise(image: np.ndarray, axes: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A smooth receive field, Rician noise, and a scale of its own for each scan."""
    field = np.exp(rng.uniform(0.10, 0.22) * np.clip(smooth_field(rng, axes, 130.0), -2.5, 2.5))
    image = np.maximum(image, 0) * field * rng.uniform(0.8, 1.15)
    noise = rng.uniform(12, 26) * rng.standard_normal((2, *image.shape), np.float32)
    return np.clip(np.rint(np.hypot(image + noise[0], noise[1])), 0, 4095).astype(np.int16)
