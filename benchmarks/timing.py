"""What `benchmarks.speed` measures with: clocks, SAM2's own video predictor, and a walk whose masks are given.

Everything that a ratio is made of runs in one process, in turns, so that other work on the machine slows all of it
alike; CPU time is that of the process, so that what other work takes is not counted.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sam2
import sam2.sam2_video_predictor as video
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scripts.networks.diffusam import DiffuSAM
from scripts.networks.logits import MASK_LOGIT, NO_OBJECT_LOGIT, resize_logits
from scripts.networks.sam2_backbone import SAM2
from scripts.networks.sam2_releases import NANO_YAML, SAM2_YAML
from scripts.segmentation.propagation import VolumetricInferer
from scripts.segmentation.walked_slices import VolumeSlices
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """Milliseconds of the process's CPU and on the clock."""

    cpu: float
    wall: float

    def of(self, parts: int) -> Cost:
        return Cost(self.cpu / parts, self.wall / parts)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def cost(function: Callable[[], Any]) -> Cost:
    """What one call costs."""
    cpu, wall = _now()
    function()
    cpu_after, wall_after = _now()
    return Cost(1e3 * (cpu_after - cpu), 1e3 * (wall_after - wall))


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Cost]:
    """The median cost of each function over some rounds, in each of which every function is called once.

    One more round before them is not counted.
    """
    found = [{name: cost(function) for name, function in functions.items()} for _ in range(rounds + 1)][1:]
    return {
        name: Cost(*(statistics.median(getattr(each[name], clock) for each in found) for clock in ("cpu", "wall")))
        for name in functions
    }


@contextmanager
def stages(*methods: tuple[object, str]) -> Iterator[dict[str, Cost]]:
    """What methods of objects, or of all objects of a class, cost while the context lasts, by the methods' names.

    Each without what it calls that is listed itself, so that no time counts twice.
    """
    with labelled({each: each[1] for each in methods}) as spent:
        yield spent


@contextmanager
def labelled(methods: Mapping[tuple[object, str], str]) -> Iterator[dict[str, Cost]]:
    """:func:`stages` by labels, of which several methods may have one."""
    spent: dict[str, Cost] = defaultdict(lambda: Cost(0.0, 0.0))
    within: list[Cost] = []  # for each call that has begun: what of it belongs to others

    def timed(label: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            within.append(Cost(0.0, 0.0))
            before = _now()
            try:
                return function(*args, **kwargs)
            finally:
                whole = Cost(*(1e3 * (after - since) for after, since in zip(_now(), before)))
                spent[label] += whole - within.pop()
                if within:
                    within[-1] += whole

        return call

    own = {(owner, name): name in vars(owner) for owner, name in methods}
    replaced = {(owner, name): getattr(owner, name) for owner, name in methods}
    for (owner, name), label in methods.items():
        setattr(owner, name, timed(label, replaced[owner, name]))
    try:
        yield spent
    finally:
        for (owner, name), function in replaced.items():
            if own[owner, name]:
                setattr(owner, name, function)
            else:
                delattr(owner, name)


class GivenMasks(VolumetricInferer):
    """The whole walk at its cost, but with given masks for what it decodes, and for what a head names in a walk without
    neighbours: networks of random weights find nothing.

    Args:
        masks: ``(K, H, W, slices)`` bool, at any resolution in plane.
        options: see :class:`VolumetricInferer`.
    """

    def __init__(self, masks: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.masks = masks.permute(3, 0, 1, 2).float()
        self._asked: tuple[list[int], list[int]] = ([], [])
        self._at: dict[int, Tensor] = {}  # masks of each size: made once, so that it does not count as a walk's time

    def _walk_independent(self, source: VolumeSlices) -> Iterator[tuple[list[int], Tensor]]:
        if source.network.names is not None:
            named, left = source.masks, iter(range(source.count))  # slices are named in order

            def given(names: Tensor) -> Tensor:
                named(names)  # for its cost
                self._asked = [next(left) for _ in names], []
                return self._of_size(source.network.backbone.image_size)[self._asked[0]].to(names.device)

            source.masks = given
        return super()._walk_independent(source)

    def _decode_step(self, own: Any, indices: list[int], sides: Any) -> Tensor:
        of = own.of

        def recorded(indices: Sequence[int], organs: Sequence[int]) -> Any:
            self._asked = list(indices), list(organs)
            return of(indices, organs)

        own.of = recorded
        try:
            return super()._decode_step(own, indices, sides)
        finally:
            del own.of

    def _decode(self, network: DiffuSAM, *args: Any) -> Tensor:
        logits = super()._decode(network, *args)
        indices, organs = self._asked
        return self._gated(self._of_size(logits.shape[-1])[indices][:, organs], logits)

    def _segment_named(self, network: DiffuSAM, *args: Any) -> Tensor:
        logits = super()._segment_named(network, *args)
        return self._gated(self._of_size(logits.shape[-1])[self._asked[0]], logits)

    def _of_size(self, size: int) -> Tensor:
        """The masks ``(slices, K, size, size)`` bool."""
        if size not in self._at:
            self._at[size] = resize_logits(self.masks, size) > 0.5
        return self._at[size]

    @staticmethod
    def _gated(masks: Tensor, logits: Tensor) -> Tensor:
        """Logits of masks. Those of an absent organ are what the gate of the object score makes of them."""
        masks = masks.to(logits.device)
        given = torch.where(masks, MASK_LOGIT, -MASK_LOGIT).to(logits)
        return torch.where(masks.flatten(2).any(2)[..., None, None], given, NO_OBJECT_LOGIT)


def video_predictor(backbone: SAM2) -> nn.Module:
    """``SAM2VideoPredictor`` with a backbone's architecture, size and weights, as sam2's own factory sets it up."""
    yaml = NANO_YAML
    if backbone.name != "sam2_nano":
        yaml = Path(sam2.__path__[0]) / SAM2_YAML[backbone.name]
    config = OmegaConf.load(yaml).model
    config._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    config.image_size = backbone.image_size
    for attention in (config.memory_attention.layer.self_attention, config.memory_attention.layer.cross_attention):
        attention.feat_sizes = [backbone.embedding_size] * 2
    predictor = instantiate(config, _recursive_=True)
    predictor.load_state_dict(backbone.model.state_dict(), strict=True)
    return predictor.to(next(backbone.parameters()).device).eval()


@torch.no_grad()
def track(predictor: nn.Module, images: Tensor, masks: Tensor) -> int:
    """Tracks K objects from the middle slice through a volume in both directions, as a video.

    Args:
        predictor: of :func:`video_predictor`.
        images: ``(slices, 3, S, S)``, normalised.
        masks: of the middle slice, ``(K, S, S)`` bool.

    Returns:
        The number of frames that have been tracked.
    """
    loaded, keep = video.load_video_frames, _storage(video)
    video.load_video_frames = lambda **_: (images, *images.shape[-2:])
    try:
        state = predictor.init_state(video_path=None)
        middle = len(images) // 2
        for number, mask in enumerate(masks):
            predictor.add_new_mask(state, middle, number, mask)
        return sum(
            1
            for reverse in (False, True)
            for _ in predictor.propagate_in_video(state, start_frame_idx=middle, reverse=reverse)
        )
    finally:
        video.load_video_frames = loaded
        video.torch = keep


def _storage(module: Any) -> Any:
    """Lets the predictor keep memories in float32: it stores them as bfloat16, which its own code then refuses to mix
    with float32 outside autocast. Returns what to put back.
    """
    keep = module.torch

    class Float32:
        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(keep, name)

    module.torch = Float32()
    return keep
