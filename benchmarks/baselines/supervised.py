"""The rows of the supervised networks: MONAI's 2D UNet and UNETR, trained on what the prior is trained on.

Volumes, label map, intensities, slice size and augmented variants are the configuration's; every slice of every variant
is drawn equally often, with all of its organs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.networks.nets import UNETR, UNet
from scripts.data.transforms import AugmentedVariant
from scripts.errors import RefusedError, SettingError
from scripts.training.random_contrasts import RandContrasts
from scripts.weights import check_finite, load_tensors, save_atomically
from torch import Tensor, nn
from tqdm import tqdm, trange

from .evaluation import CHANNELS, Row
from .slicewise import SlicewiseInferer, network_slices, smoothed_along

SLICES_AT_A_TIME = 8
NEW_IN_ABOUT = {"train_files", "training_preprocessing", "augmentation"}  # which earlier versions did not write


def plain_unet(outputs: int, channels: Sequence[int] = CHANNELS, dropout: float = 0.1) -> UNet:
    """The network of the UNet row: ``(B, 1, S, S)`` to ``(B, outputs, S, S)``."""
    return UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=outputs,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        dropout=dropout,
    )


def plain_unetr(
    outputs: int, size: int, *, hidden_size: int = 96, mlp_dim: int = 384, num_heads: int = 6, feature_size: int = 8
) -> UNETR:
    """The network of the UNETR row, for slices of S = ``size`` pixels: ``(B, 1, S, S)`` to ``(B, outputs, S, S)``."""
    width = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_heads": num_heads, "feature_size": feature_size}
    return UNETR(1, outputs, size, spatial_dims=2, **width)


def start_network(network: nn.Module, path: str | Path) -> None:
    """Gives a network the weights that :mod:`.anatomy_unet` has written.

    Raises:
        BundleError: the file is not there, is something else, or holds a network of other widths.
    """
    remedy = "Name a file of `python -m benchmarks.baselines.anatomy_unet` with --start_from."
    state = load_tensors(path, "network of painted patients", remedy=remedy).get("network", {})
    check_finite(path, state, remedy=remedy)
    own = network.state_dict()
    differing = sorted(
        key
        for key in own.keys() | state.keys()
        if getattr(state.get(key), "shape", None) != getattr(own.get(key), "shape", None)
    )
    if differing:
        raise SettingError(
            f"'{path}' holds another network than this {type(network).__name__}: {len(differing)} of its tensors "
            f"differ, such as '{differing[0]}'. {remedy}"
        )
    network.load_state_dict(state)


class AugmentedSlices:
    """All slices of all variants, in files that are read as they are drawn: 3 bytes a voxel would be too much to hold.

    Args:
        parser: the configuration.
        folder: of the files; emptied first.
    """

    def __init__(self, parser: ConfigParser, folder: Path) -> None:
        get = parser.get_parsed_content
        transform = get("train#preprocessing")
        augment = AugmentedVariant(get("train#augmentation"), get("seed"))
        shutil.rmtree(folder, ignore_errors=True)
        self.files: list[dict[str, Tensor]] = []
        for item in tqdm(get("train_data"), desc="augmenting"):
            volume = transform(dict(item))
            for variant in range(get("variants") + 1):
                drawn = augment(volume, item["case"], variant)
                content = {
                    "image": drawn["image"].as_tensor().permute(3, 0, 1, 2).half(),
                    "label": drawn["label"].as_tensor().round().permute(3, 0, 1, 2).to(torch.uint8),
                }
                path = folder / f"{len(self.files):05d}.pt"
                save_atomically({key: value.contiguous() for key, value in content.items()}, path)
                self.files.append(torch.load(path, mmap=True, weights_only=True))
        self.places = torch.tensor(
            [(file, index) for file, content in enumerate(self.files) for index in range(len(content["image"]))]
        )

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Random slices: images ``(count, 1, S, S)`` in [0, 1] and labels of that shape."""
        places = self.places[torch.randint(0, len(self), (count,))].tolist()
        image, label = (
            torch.stack([self.files[file][key][index] for file, index in places]) for key in ("image", "label")
        )
        return image.float(), label


class ResumableSteps:
    """Steps of AdamW, the learning rate falling to zero along a cosine, that go on where they were interrupted.

    Args:
        path: of the checkpoint, which is taken up if it is of the same training.
        identity: of the training, as JSON has it.
        network: on its device.
        learning_rate: at the start.
        steps: of the whole training.

    Attributes:
        seconds: that all steps have taken, those before an interruption too.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], *, network: nn.Module, learning_rate: float, steps: int
    ) -> None:
        self.path, self.identity, self.steps = path, json.dumps(identity, sort_keys=True), steps
        optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self.parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self.first, self.seconds = 0, 0.0
        if path.is_file():
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["identity"] == self.identity:
                for key, part in self.parts.items():
                    part.load_state_dict(saved[key])
                torch.set_rng_state(saved["random"])
                self.first, self.seconds = saved["step"], saved["seconds"]

    def run(self, save_every: int) -> Iterator[int]:
        """Yields the number of each step that is left, from 0; within each, :meth:`step` is called once."""
        start = time.perf_counter() - self.seconds
        for number in (
            progress := trange(self.first, self.steps, desc="training", initial=self.first, total=self.steps)
        ):
            yield number
            if (number + 1) % save_every == 0 or number + 1 == self.steps:
                self.seconds = time.perf_counter() - start
                self._save(number + 1)
                progress.set_postfix(loss=f"{self.loss.item():.3f}")

    def step(self, loss: Tensor) -> None:
        """One step down a loss.

        Raises:
            RefusedError: it is not finite.
        """
        check_loss(loss, "the training")
        self.parts["optimizer"].zero_grad()
        loss.backward()
        self.parts["optimizer"].step()
        self.parts["scheduler"].step()
        self.loss = loss.detach()

    def _save(self, step: int) -> None:
        state = {key: part.state_dict() for key, part in self.parts.items()}
        random = torch.get_rng_state()
        save_atomically(
            {**state, "identity": self.identity, "random": random, "step": step, "seconds": self.seconds}, self.path
        )


def check_loss(loss: Tensor, what: str) -> None:
    """Ends a training, before it changes any weight, whose network would say nothing any more, and have Dice 0.

    Raises:
        RefusedError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise RefusedError(
            f"The loss of {what} is not finite ({loss.item():g}): the network has diverged. Train with a smaller "
            "--learning_rate, or look at the images and labels of the training cases."
        )


def train(row: Row, network: nn.Module, overwrite: bool = False, save_every: int = 200) -> float:
    """Trains a network with AdamW, the learning rate falling to zero along a cosine, and soft Dice plus cross-entropy.

    No step at all leaves the network as it is, and needs no training case. A training that is finished is read from the
    row's file, and one that was interrupted goes on from its last checkpoint, in a folder beside it that is named like
    the file with ".training" behind it; on a CPU it ends with the same weights.

    Args:
        row: of :func:`baselines.evaluation.open_training`, whose settings have those of ``training_settings``. Its file
            gets the weights.
        network: moved to the configuration's device.
        overwrite: whether what is there of this or another training is forgotten; its file stays until there is the
            new one.
        save_every: steps.

    Returns:
        Seconds of all steps, without augmentation.

    Raises:
        ValueError: the row's file holds a network of another training.
        RefusedError: the training has diverged.
        UnusableFileError: that of the row's file had.
    """
    device, steps = row.parser.get_parsed_content("device"), row.settings["steps"]
    network.to(device)
    folder = row.path.with_name(f"{row.path.name}.training")  # and not the name alone, which may be a user's folder
    if overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    elif row.path.is_file():
        return _load(row, network)
    learning_rate, learned = row.settings["learning_rate"], row.settings.get("learned", 1.0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    training = ResumableSteps(
        folder / "checkpoint.pt", row.identity, network=network, learning_rate=learning_rate, steps=steps
    )
    if steps:
        contrasts = RandContrasts(
            row.settings.get("random_contrasts", 0.0), len(row.parser.get_parsed_content("organs"))
        )
        slices = AugmentedSlices(row.parser, folder / "slices")
        by_slice = row.settings["dice_by_slice"]
        loss_function = DiceCELoss(to_onehot_y=True, softmax=True, batch=not by_slice, include_background=by_slice)
        network.train()
        for _ in training.run(save_every):
            image, label = slices.draw(row.settings["slices_per_step"])
            image = contrasts(image, label[:, 0])
            training.step(loss_function(network(image.to(device)), label.to(device)))
    if learned < 1:
        after = network.state_dict()
        network.load_state_dict({key: torch.lerp(before[key], value, learned) for key, value in after.items()})
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    seconds = round(training.seconds, 2)
    save_atomically({"network": state, "identity": row.identity, "seconds_training": seconds}, row.path)
    shutil.rmtree(folder, ignore_errors=True)
    return training.seconds


def _load(row: Row, network: nn.Module) -> float:
    """Reads the weights of a finished training, and returns its seconds."""
    saved = torch.load(row.path, map_location="cpu", weights_only=True)
    then, now = saved["identity"], row.identity
    for key in NEW_IN_ABOUT & (now["about"].keys() - then["about"].keys()):  # files of earlier versions say less
        del now["about"][key]
    if then != now:
        differing = sorted(
            key
            for part in ("settings", "about")
            for key in {**then[part], **now[part]}
            if then[part].get(key) != now[part].get(key)
        )
        raise ValueError(
            f"'{row.path}' holds a network of other settings or data; what differs: {', '.join(differing) or 'row'}. "
            "Give --overwrite True to replace it, or another file."
        )
    check_finite(row.path, saved["network"], remedy="Give --overwrite True to train another, or another file.")
    network.load_state_dict(saved["network"])
    print(f"'{row.path}' is there: the network is not trained again.")
    return saved["seconds_training"]


class NetworkInferer(SlicewiseInferer):
    """A volume through a 2D network of S x S slices with a channel for the background, a few slices at a time.

    Args:
        size: S.
        organs: K.
        smoothing: see :func:`.slicewise.smoothed_along`.
    """

    def __init__(self, size: int, organs: int, *, smoothing: float = 0.0) -> None:
        super().__init__(organs)
        self.size, self.smoothing = size, smoothing

    def segment(self, inputs: Tensor, network: nn.Module, *args) -> Iterator[tuple[list[int], Tensor]]:
        for indices, logits in smoothed_along(self._named(inputs, network), self.smoothing):
            # an organ's own logit is how far it lies above the background
            yield indices, logits[:, 1:] - logits[:, :1]

    def _named(self, inputs: Tensor, network: nn.Module) -> Iterator[tuple[list[int], Tensor]]:
        device = next(network.parameters()).device
        for chunk in torch.arange(inputs.shape[-1]).split(SLICES_AT_A_TIME):
            indices = chunk.tolist()
            yield indices, network(network_slices(inputs, indices, self.size, device))
