"""Classify images: a small ViT trained on the digits 0 to 4, an adapter for 5 to 9, and answers to image files.

    python examples/images.py --folder demo/images

The 1,797 digits come from scikit-learn (8 × 8 pixels). The base is trained here, in seconds, because no package has
a real one; pass your own Hugging Face folder with `preprocessor_config.json` to `capture`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import adapter_export as ae

KNOWN = 5
"""The base knows the digits below this one, the adapter learns the others."""

Images = list[tuple[Image.Image, int]]


def digits(rows: int | None) -> tuple[Images, Images]:
    """The digits below `KNOWN` and the others."""
    data = load_digits()
    pixels = np.round(data.images * 255 / 16).astype(np.uint8)
    images = [(Image.fromarray(one), int(digit)) for one, digit in zip(pixels, data.target, strict=True)]
    low, high = ([one for one in images if (one[1] < KNOWN) is below] for below in (True, False))
    return low[:rows], high[:rows]


def save_images(images: Images, folder: Path) -> None:
    """A folder for each label: every fifth image in `test`, the others in `train`."""
    for number, (image, digit) in enumerate(images):
        path = folder / ("train" if number % 5 else "test") / str(digit) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def save_base(images: Images, folder: Path, epochs: int) -> None:
    """Train a small ViT on images, and save it with its processor as Hugging Face does."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=KNOWN, **size))
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    values = processor([image.convert("RGB") for image, _ in images], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([digit for _, digit in images])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            model(pixel_values=values[rows], labels=labels[rows]).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo/images"), help="where everything is written")
    parser.add_argument("--epochs", type=int, default=25, help="of the base and of the adapter")
    parser.add_argument("--rows", type=int, help="maximum number of images in each half")
    given = parser.parse_args()
    root = given.folder
    shutil.rmtree(root, ignore_errors=True)
    low, high = digits(given.rows)
    save_base(low, root / "vit", given.epochs)
    save_images(high, root / "data")

    base = ae.capture(root / "vit", root / "model.pt")
    adapter = ae.train(
        base,
        root / "data" / "train",
        root / "high",
        test_data=root / "data" / "test",
        bottleneck=32,
        epochs=given.epochs,
        learning_rate=1e-2,
    )
    bundle = ae.build(base, [adapter], root / "bundle")
    ae.check(bundle, against=base).raise_for_failure()
    found = ae.evaluate(bundle, root / "data" / "test", adapter="high")
    found.raise_for_failure()
    print(found.table())

    files = sorted((root / "data" / "test").rglob("*.png"))[:: max(1, len(high) // 25)]
    for file, answer in zip(files, bundle.files("image").answer(files, "high"), strict=True):
        said = answer.document()
        print(f"{file.relative_to(root)}: {said['label']} ({said['probability']:.2f})")


if __name__ == "__main__":
    main()
