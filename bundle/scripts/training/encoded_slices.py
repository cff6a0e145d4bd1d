"""The embedding cache: training slices that have been through the frozen SAM2 once, with augmented variants.

SAM2 never changes, so everything before the prior is computed once: for every training volume and every augmented
variant of it, the image features and the true memory ME(y, z_img) of each slice and organ, in half precision. In the
few-shot setting augmentation matters more than anything else, so the cache holds several variants and training draws
among them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import Dataset, WeightedRandomSampler

from ..console import Progress
from ..data.transforms import AugmentedVariant
from ..data.volumes import volume_digest
from ..descriptions import describe
from ..errors import SettingError, UnusableFileError
from ..networks.sam2_backbone import FrozenSAM2
from ..weights import load_tensors, save_atomically

logger = logging.getLogger(__name__)
_LAYOUT = 2  # raise when the content of a cache file changes
_OF = "of"  # what a file was made for, which is its name unless somebody gave it another
_MOST_DRAWN_FROM = 2**24  # categories that torch.multinomial takes
_CONTENT = ("embedding", "high_res_fine", "high_res_coarse", "memory", "label", "present")


class _ManyPairsSampler(WeightedRandomSampler):
    """PyTorch's, of any number of weights; up to :data:`_MOST_DRAWN_FROM` it draws what PyTorch's draws."""

    def __iter__(self) -> Iterator[int]:
        if len(self.weights) <= _MOST_DRAWN_FROM:
            yield from super().__iter__()
            return
        ends = self.weights.cumsum(0)
        drawn = torch.rand(self.num_samples, dtype=ends.dtype, generator=self.generator) * ends[-1]
        yield from torch.searchsorted(ends, drawn, right=True).tolist()  # to the right of those of weight 0


class EncodedSlices(Dataset):
    """(slice, organ) pairs of the training volumes, read from the cache and encoded into it on first use.

    A cache file's name holds a digest of everything that changes its content: the files' own SHA-256, the
    transforms and their parameters, the backbone's weights and size, the organs, seed and variant. A file is written
    under a temporary name and renamed, so an interrupted run loses at most the volume it was encoding. It is read to
    its end once before a training, against its checksums. Of several processes each encodes a share.

    Args:
        data: ``{"image", "label", "case"}`` for each training volume.
        transform: deterministic transforms to ``image`` ``(1, S, S, slices)`` in [0, 1] and ``label`` of the same shape
            with 0 for background and 1...K for the organs.
        backbone: the frozen SAM2, on the device to encode with.
        organs: names, in the order of the label values.
        cache_dir: where the files go.
        augmentation: random transforms for the variants beyond the first, or None.
        variants: augmented variants of each volume, besides the volume itself.
        absent_share: share of pairs drawn whose slice does not hold the organ.
        all_memories: whether an item has the memories of all organs in its slice, ``(K, M, h, w)``, as a
            :class:`~scripts.networks.joint_prior.JointMemoryPrior` is trained on, and not that of its own organ.
        labels: whether an item has the labels of its whole slice, ``(S, S)`` uint8, by which a head is trained to name
            organs.
        images: whether an item has the slice itself as ``image``, ``(1, S, S)``, or between its neighbours,
            ``(3, S, S)``, where the backbone sees it so: for a head with an encoder of its own. The cache is then half
            as large again.
        batch_size: slices encoded at a time.
        seed: of the augmentation.

    Each item is a dictionary of ``embedding``, ``high_res_fine``, ``high_res_coarse``, ``memory`` ``(M, h, w)``, all
    float16, ``mask`` ``(1, S, S)`` bool, ``organ`` (int), ``present`` (bool) and ``case`` (its name).

    Raises:
        ValueError: a volume that does not come out of ``transform`` in the declared shape, or a share out of [0, 1).
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Compose,
        *,
        backbone: FrozenSAM2,
        organs: Sequence[str],
        cache_dir: str | Path,
        augmentation: Compose | None = None,
        variants: int = 0,
        absent_share: float = 0.25,
        all_memories: bool = False,
        labels: bool = False,
        images: bool = False,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        if not 0 <= absent_share < 1:
            raise SettingError(f"absent_share must lie in [0, 1), got {absent_share}.")
        if variants and augmentation is None:
            raise SettingError(f"{variants} augmented variants are asked for, but `augmentation` is None.")
        self.data, self.transform, self.backbone, self.organs = list(data), transform, backbone, list(organs)
        self.cache_dir, self.variants, self.absent_share = Path(cache_dir), variants, absent_share
        self.augment = AugmentedVariant(augmentation, seed) if variants else None
        self.batch_size, self.all_memories, self.labels, self.images = batch_size, all_memories, labels, images
        self.context = backbone.slice_context
        self.files = self._encode_all()
        self._open: dict[int, dict[str, Tensor]] = {}
        self.pairs, self.present = self._list_pairs()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, position, organ = self.pairs[index].tolist()
        case = self.data[file // (self.variants + 1)]["case"]
        return {**self.pair(self._content(file), position, organ), "present": bool(self.present[index]), "case": case}

    def pair(self, content: Mapping[str, Tensor], position: int, organ: int) -> dict[str, Any]:
        """What training sees of a slice and an organ.

        Args:
            content: of :meth:`encode`, for one volume.
            position: of the slice.
            organ: 0 to K - 1.
        """
        item = {key: content[key][position] for key in ("embedding", "high_res_fine", "high_res_coarse")}
        memories = content["memory"][position]
        item["memory"] = memories if self.all_memories else memories[organ]
        item["mask"] = (content["label"][position] == organ + 1)[None]
        if self.labels:
            item["label"] = content["label"][position]
        if self.images:
            last = len(content["image"]) - 1
            shown = [max(position - 1, 0), position, min(position + 1, last)] if self.context else [position]
            item["image"] = content["image"][shown]
        return {**item, "organ": organ}

    def __getstate__(self) -> dict[str, Any]:
        # worker processes open the files themselves and have no use for the backbone
        return {**self.__dict__, "_open": {}, "backbone": None, "transform": None, "augment": None}

    def sampler(self, num_samples: int) -> WeightedRandomSampler:
        """Draws pairs with every organ equally often, ``absent_share`` of them from slices without the organ."""
        organ = self.pairs[:, 2]
        weights = torch.zeros(len(self.pairs), dtype=torch.double)
        for value in range(len(self.organs)):
            shares = ((True, 1 - self.absent_share), (False, self.absent_share))
            groups = [((organ == value) & (self.present == present), share) for present, share in shares]
            drawn = sum(share for group, share in groups if group.any())  # an organ may be in every slice, or in none
            for group, share in groups:
                weights[group] = share / (drawn * group.sum().clamp_min(1)) if drawn else 0.0
        return _ManyPairsSampler(weights, num_samples)

    def statistics_batches(self, batch_size: int = 64):
        """Memories of present organs and their image embeddings, for ``MemoryPrior.fit_statistics``."""
        index = self.present.nonzero()[:, 0]
        for chunk in index.split(batch_size):
            places = [self.pairs[int(index)].tolist() for index in chunk]
            yield (
                torch.stack([self._content(file)["memory"][place, organ].float() for file, place, organ in places]),
                torch.stack([self._content(file)["embedding"][place].float() for file, place, _ in places]),
            )

    def _content(self, file: int) -> dict[str, Tensor]:
        if file not in self._open:  # memory-mapped: only the slices that are drawn are read
            self._open[file] = torch.load(self.files[file], map_location="cpu", mmap=True, weights_only=True)
        return self._open[file]

    def _list_pairs(self) -> tuple[Tensor, Tensor]:
        pairs, present = [], []
        for file in range(len(self.files)):
            held = self._content(file)["present"]
            slices, organs = torch.meshgrid(torch.arange(len(held)), torch.arange(len(self.organs)), indexing="ij")
            pairs.append(torch.stack([torch.full_like(slices, file), slices, organs], -1).reshape(-1, 3))
            present.append(held.reshape(-1))
        return torch.cat(pairs), torch.cat(present)

    def _encode_all(self) -> list[Path]:
        jobs = [(item, variant) for item in self.data for variant in range(self.variants + 1)]
        digests = {item["case"]: [volume_digest(item[key]) for key in ("image", "label")] for item in self.data}
        common = {
            "layout": _LAYOUT,
            "transform": describe(self.transform),
            "augmentation": describe(self.augment.transform) if self.augment else None,
            "backbone": [self.backbone.fingerprint(), self.backbone.image_size, self.backbone.slice_context],
            "organs": self.organs,
            **({"images": True} if self.images else {}),
        }
        paths = []
        for item, variant in jobs:
            key = {**common, "files": digests[item["case"]], "variant": variant}
            if variant == 0:
                key["augmentation"] = None
            else:
                key["seed"] = self.augment.seed
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
            paths.append(self.cache_dir / f"{item['case']}_v{variant:03d}_{digest}.pt")
        missing = [(path, *job) for path, job in zip(paths, jobs) if not _is_whole(path, len(self.organs))]
        if missing:
            logger.info("Encoding %d of %d volume variants into '%s'.", len(missing), len(jobs), self.cache_dir)
        idist.barrier()  # nothing is written before all processes have seen what is missing
        share = missing[idist.get_rank() :: idist.get_world_size()]
        loaded: dict[str, Any] = {}
        progress = Progress(len(share), "encoding", shown=bool(share) and idist.get_rank() == 0)
        for number, (path, item, variant) in enumerate(share):
            progress.to(number, f"encoding {item['case']} ({number + 1} of {len(share)})")
            if loaded.get("case") != item["case"]:
                loaded = {"case": item["case"], "volume": self.transform(dict(item))}
            volume = loaded["volume"]
            if self.augment:
                volume = self.augment(volume, item["case"], variant)
            on_slices = lambda done, total, before=number: progress.to(before + done / total)  # noqa: E731
            save_atomically({**self.encode(volume, item["case"], on_slices), _OF: path.stem}, path)
            progress.to(number + 1)
        progress.close()
        idist.barrier()
        return paths

    @torch.no_grad()
    def encode(
        self, volume: dict[str, Any], case: str = "", on_slices: Callable[[int, int], Any] | None = None
    ) -> dict[str, Tensor]:
        """Everything the prior's training needs of one transformed volume, slice by slice, on the CPU.

        ``on_slices`` is called, as it goes on, with the number of slices encoded so far and the number of all.
        """
        size = self.backbone.image_size
        image, label = (
            convert_to_tensor(volume[key], dtype=torch.float32, track_meta=False) for key in ("image", "label")
        )
        if image.shape != label.shape or image.ndim != 4 or image.shape[:3] != (1, size, size):
            raise SettingError(
                f"Case '{case}': expected image and label of shape (1, {size}, {size}, slices) after the transforms, "
                f"got {tuple(image.shape)} and {tuple(label.shape)}."
            )
        image, label = image.permute(3, 0, 1, 2), label.permute(3, 0, 1, 2).round().to(torch.uint8)
        device = next(self.backbone.parameters()).device
        count = len(self.organs)
        values = torch.arange(1, count + 1).view(1, -1, 1, 1)
        shown = self.backbone.shown(image)
        chunks = []
        for start in range(0, len(image), self.batch_size):
            features = self.backbone.encode_image(shown[start : start + self.batch_size].to(device))
            mask = label[start : start + self.batch_size] == values
            present = mask.flatten(2).any(2)
            memory = self.backbone.encode_memory(features, mask.flatten(0, 1)[:, None].to(device))
            chunk = {
                "embedding": features.embedding,
                "high_res_fine": features.high_res[0],
                "high_res_coarse": features.high_res[1],
                "memory": memory.unflatten(0, (-1, count)),
            }
            chunk = {key: value.to("cpu", torch.float16) for key, value in chunk.items()}
            if self.images:
                chunk["image"] = image[start : start + self.batch_size, 0].half()
            chunks.append({**chunk, "label": label[start : start + self.batch_size, 0], "present": present})
            if on_slices is not None:
                on_slices(min(start + self.batch_size, len(image)), len(image))
        return {key: torch.cat([chunk[key] for chunk in chunks]).contiguous() for key in chunks[0]}


def _is_whole(path: Path, organs: int) -> bool:
    """Whether a cache file is there and can be read to its end; what is damaged, of another case, or something else, is
    made again.
    """
    if not path.is_file():
        return False
    try:
        content = load_tensors(path, "file of encoded slices", remedy="", mmap=True, checked=True)
        slices = len(content["present"])
        whole = all(len(content[key]) == slices for key in _CONTENT) and content["memory"].shape[1] == organs
        whole = whole and content.get(_OF, path.stem) == path.stem  # files of earlier versions do not say it
        # of half precision, so only NaN and infinity make a sum that is not finite
        tensors = (value for value in content.values() if isinstance(value, Tensor))
        whole = whole and all(value.sum(dtype=torch.float32).isfinite() for value in tensors)
    except (UnusableFileError, KeyError, IndexError, TypeError, AttributeError):
        whole = False
    if not whole:
        logger.warning("'%s' is damaged, or something else: made again.", path)
    return whole
