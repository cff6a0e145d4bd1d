"""The UNet row: MONAI's 2D UNet, trained on the same volumes with the same augmentation and evaluated alike.

Everything but the network comes from the bundle's configuration: cases, label map, intensity, slice size, augmented
variants, inversion to the file's own grid and Dice. Run from the bundle's folder:

    python ../benchmarks/unet.py --config_file "['configs/train.json','configs/evaluate.json','configs/demo.json']"
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import fire
import torch
from configuration import parse
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from monai.inferers import Inferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, Invertd, KeepLargestConnectedComponentd, Resize
from monai.utils import convert_to_dst_type, convert_to_tensor
from tqdm import tqdm, trange


def main(
    config_file,
    output: str | None = None,
    steps: int = 1200,
    slices_per_step: int = 8,
    learning_rate: float = 1e-3,
    channels: tuple[int, ...] = (16, 32, 64, 128, 256),
    **overrides,
) -> None:
    """
    Args:
        config_file: config files as for ``monai.bundle run evaluating``.
        output: JSON file to write the numbers to.
        steps: optimiser steps (AdamW, learning rate falling to zero along a cosine).
        slices_per_step: slices in a step, drawn from all volumes and variants.
        learning_rate: at the start.
        channels: widths of the UNet's levels; two residual units in each.
        overrides: values of the configuration to change, such as ``--variants``.
    """
    parser = parse(config_file, overrides)
    seed, device = parser.get_parsed_content("seed"), parser.get_parsed_content("device")
    torch.manual_seed(seed)
    images, labels = augmented_slices(parser)
    network = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=len(parser.get_parsed_content("organs")) + 1,
        channels=channels,
        strides=(2,) * (len(channels) - 1),
        num_res_units=2,
        dropout=0.1,
    ).to(device)
    start = time.perf_counter()
    train(network, images, labels, steps, slices_per_step, learning_rate, device)
    seconds = time.perf_counter() - start
    evaluate(network, parser, seconds, output)


def augmented_slices(parser: ConfigParser) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices of all variants: images ``(N, 1, S, S)`` float16 and labels ``(N, 1, S, S)`` uint8."""
    from scripts.transforms import AugmentedVariant

    transform = parser.get_parsed_content("train#preprocessing")
    augment = AugmentedVariant(parser.get_parsed_content("train#augmentation"), parser.get_parsed_content("seed"))
    images, labels = [], []
    for item in tqdm(parser.get_parsed_content("train_data"), desc="augmenting"):
        volume = transform(dict(item))
        for variant in range(parser.get_parsed_content("variants") + 1):
            drawn = augment(volume, item["case"], variant)
            images.append(drawn["image"].as_tensor().permute(3, 0, 1, 2).half())
            labels.append(drawn["label"].as_tensor().round().permute(3, 0, 1, 2).to(torch.uint8))
    return torch.cat(images), torch.cat(labels)


def train(network, images, labels, steps, slices_per_step, learning_rate, device) -> None:
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in (progress := trange(steps, desc="training")):
        index = torch.randint(0, len(images), (slices_per_step,))
        optimizer.zero_grad()
        loss = loss_function(network(images[index].float().to(device)), labels[index].to(device))
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


class SliceInferer(Inferer):
    """A volume ``(1, 1, H, W, slices)`` through a 2D network of S x S slices, eight at a time, to a label map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.resize = Resize((size, size), mode="bilinear", anti_aliasing=True)

    def __call__(self, inputs, network, *args, **kwargs):
        volume = convert_to_tensor(inputs[0, 0], track_meta=False)
        output = torch.empty(inputs.shape, dtype=torch.uint8)
        device = next(network.parameters()).device
        for indices in torch.arange(volume.shape[-1]).split(8):
            images = convert_to_tensor(self.resize(volume[..., indices].permute(2, 0, 1)), track_meta=False)
            logits = network(images[:, None].to(device))
            logits = torch.nn.functional.interpolate(logits, volume.shape[:2], mode="bilinear", align_corners=False)
            output[0, 0, ..., indices] = logits.argmax(1).permute(1, 2, 0).to(output)
        return convert_to_dst_type(output, inputs, dtype=torch.uint8)[0]


def evaluate(network, parser: ConfigParser, seconds: float, output: str | None) -> None:
    from scripts.metrics import OrganDice, OrganMetricHandler, mean_of_means
    from scripts.reports import format_table

    network.eval()
    organs = parser.get_parsed_content("organs")
    postprocessing = [Invertd("pred", parser.get_parsed_content("validate#preprocessing"), orig_keys="image")]
    if parser.get_parsed_content("largest_component"):
        postprocessing.append(KeepLargestConnectedComponentd("pred", range(1, len(organs) + 1), is_onehot=False))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=parser.get_parsed_content("validate#dataloader"),
        network=network,
        inferer=SliceInferer(parser.get_parsed_content("image_size")),
        postprocessing=Compose(postprocessing),
        key_val_metric={"dice": OrganMetricHandler(OrganDice(len(organs)), from_engine(["pred", "label"]))},
    )
    evaluator.run()
    cases = [item["case"] for item in parser.get_parsed_content("test_data")]
    values = evaluator.state.metric_details["dice"]
    print(f"\nUNet, native Dice, {seconds:.0f} s of training\n{format_table(values, cases, organs)}")
    if output:
        content = {
            "organs": organs,
            "cases": cases,
            "values": values.tolist(),
            "organ_means": values.nanmean(0).tolist(),
            "mean": mean_of_means(values).item(),
            "training_seconds": seconds,
        }
        Path(output).write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
