"""Images: decoding with Pillow to pixels, channels first."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from adapter_export.errors import DataError, MissingExtraError
from adapter_export.interval import Interval
from adapter_export.modalities.modality import FileModality, Step, UnknownStepsError
from adapter_export.safe_io.parsers import parsing
from adapter_export.tables import number_of
from adapter_export.words import quoted

Edge = Annotated[int, Interval(1, 16_384)]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters of Pillow, in the order of its numbers, which `resample` uses."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes with at most 8 bits per channel: converting others to RGB silently clips bright values."""

_FIELDS = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
}

_SIZES = ((70, 90), (110, 60))
"""Height and width of two images; any equal lengths after processing are fixed by the processor."""


@dataclass(frozen=True)
class Resize(Step):
    """Resize an 8-bit image.

    Attributes:
        op: `resize`.
        height: new height.
        width: new width.
        resample: the filter, with wider support when shrinking, as in Pillow's `Image.resize`.
    """

    op: Literal["resize"]
    height: Edge
    width: Edge
    resample: Filter

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the resized image."""
        resized = pillow("Image").fromarray(values).resize((self.width, self.height), RESAMPLING.index(self.resample))
        found: np.ndarray = np.array(resized)
        return found


@dataclass(frozen=True)
class ResizeShortestEdge(Step):
    """Resize an image like `resize`, preserving its aspect ratio.

    Attributes:
        op: `resize_shortest_edge`.
        length: new length of the shorter edge; the longer edge becomes length * longer / shorter, rounded down.
        resample: the filter.
    """

    op: Literal["resize_shortest_edge"]
    length: Edge
    resample: Filter

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the resized image."""
        shorter, longer = sorted(values.shape[:2])
        long = int(self.length * longer / shorter)
        height, width = (long, self.length) if values.shape[0] > values.shape[1] else (self.length, long)
        return Resize("resize", height, width, self.resample).apply(values)


@dataclass(frozen=True)
class CenterCrop(Step):
    """Crop the center of an image, starting at row (H - height) // 2 and column (W - width) // 2.

    Attributes:
        op: `center_crop`.
        height: height of the crop.
        width: width of the crop.
    """

    op: Literal["center_crop"]
    height: Edge
    width: Edge

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Crop the image."""
        if values.shape[0] < self.height or values.shape[1] < self.width:
            found, expected = f"{values.shape[0]} × {values.shape[1]}", f"at least {self.height} × {self.width}"
            raise DataError("an image is smaller than its crop", found=found, expected=expected)
        top, left = (values.shape[0] - self.height) // 2, (values.shape[1] - self.width) // 2
        return values[top : top + self.height, left : left + self.width]


@dataclass(frozen=True)
class Rescale(Step):
    """Multiply all values by a factor, in float64, and round to float32.

    Attributes:
        op: `rescale`.
        factor: such as 1/255.
    """

    op: Literal["rescale"]
    factor: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Multiply the values."""
        return (values.astype(np.float64) * self.factor).astype(np.float32)


@dataclass(frozen=True)
class Normalize(Step):
    """Compute (value - mean) / std for each channel, in float32.

    Attributes:
        op: `normalize`.
        mean: of red, green and blue.
        std: of red, green and blue.
    """

    op: Literal["normalize"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Normalize the values."""
        mean, std = (np.array(numbers, np.float32) for numbers in (self.mean, self.std))
        found: np.ndarray = (values.astype(np.float32) - mean) / std
        return found


class ImageModality(FileModality):
    """8-bit RGB images in upright orientation."""

    name = word = "image"
    inputs = ("image",)
    extra = "image"
    pipeline = "image-classification"
    form = "uint8 [height, width, 3]"
    option = "Image file, such as a PNG. Repeatable."
    steps = (Resize, ResizeShortestEdge, CenterCrop, Rescale, Normalize)
    processor_field = "image_processor_type"
    processor_inputs = ("pixel_values",)

    def is_contents(self, array: np.ndarray) -> bool:
        """Return whether an array has three channels of 8 bits."""
        return array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8

    def size(self, data: bytes, rate: int | None, where: object) -> int:  # noqa: ARG002
        """Return the number of pixels of an image, by its header; errors as of `read`."""
        with parsing(partial(_refusal, where)), _opened(data, where) as image:
            return int(image.width * image.height)

    def read(
        self,
        data: bytes,
        rate: int | None,  # noqa: ARG002
        where: object,
        most: int | None = None,  # noqa: ARG002
    ) -> np.ndarray:
        """Return an image, upright and in RGB, uint8 [height, width, 3].

        Raises:
            DataError: the file is not an image, is truncated, contains several images, has more than 8 bits per
                channel, or exceeds Pillow's limit.
            MissingExtraError: Pillow is not installed.
        """
        upright = pillow("ImageOps")
        with parsing(partial(_refusal, where)), _opened(data, where) as image:
            frames = getattr(image, "n_frames", 1)
            if image.mode not in _MODES or frames > 1:
                found = f"{frames} images" if image.mode in _MODES else f"pixels of the mode `{image.mode}`"
                raise DataError("is not a single 8-bit image", where=where, found=found, fix="save it as PNG in RGB")
            upright.exif_transpose(image, in_place=True)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """Return values channels first."""
        return values.transpose(2, 0, 1)

    def known_fields(self, fields: Mapping[str, Any]) -> set[str]:  # noqa: ARG002
        """Return the fields of image processors."""
        return _FIELDS

    def named_steps(self, fields: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the steps of an image processor."""
        least: tuple[int, ...] = ()
        if fields.get("do_resize"):
            size = {key: value for key, value in fields["size"].items() if value is not None}
            if set(size) not in ({"height", "width"}, {"shortest_edge"}):
                raise UnknownStepsError(f"resizes by {quoted(size)}")
            least = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],)
            resample: Any = RESAMPLING[fields["resample"]]
            one = ResizeShortestEdge("resize_shortest_edge", *least, resample) if len(least) == 1 else None
            yield one or Resize("resize", least[0], least[-1], resample)
        if fields.get("do_center_crop"):
            height, width = fields["crop_size"]["height"], fields["crop_size"]["width"]
            if not least or height > least[0] or width > least[-1]:
                raise UnknownStepsError("crops beyond the image, with padding")
            yield CenterCrop("center_crop", height, width)
        if fields.get("do_rescale"):
            yield Rescale("rescale", float(fields["rescale_factor"]))
        if fields.get("do_normalize"):
            mean, std = (fields[name] for name in ("image_mean", "image_std"))
            if len(mean) != 3 or len(std) != 3:
                raise UnknownStepsError(f"reads images of {number_of(len(mean), 'channel')}")
            yield Normalize("normalize", tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]

    def samples(self, rate: int | None) -> dict[str, bytes]:  # noqa: ARG002
        """Return color, grey and transparent images as PNG, which all readers decode identically."""
        drawn, files = np.random.default_rng(0), {}
        for title, shape in (("wide", (43, 61, 3)), ("high in grey", (70, 31)), ("clear", (29, 29, 4))):
            smooth = np.cumsum(drawn.normal(0, 9, shape), axis=1) + drawn.normal(128, 40, shape)
            file = io.BytesIO()
            pillow("Image").fromarray(np.clip(smooth, 0, 255).astype(np.uint8)).save(file, "PNG")
            files[title] = file.getvalue()
        return files

    def noise(self, number: int, rate: int | None) -> np.ndarray:  # noqa: ARG002
        """Return an image of noise."""
        return np.random.default_rng(number).integers(0, 256, (*_SIZES[number], 3), dtype=np.uint8)


def _refusal(where: object, reason: str) -> DataError:
    expected = "a whole PNG, JPEG or other file that Pillow reads"
    return DataError("is not a readable image", where=where, found=reason.partition(" <_io")[0], expected=expected)


def _opened(data: bytes, where: object) -> Any:
    """Return an image whose pixels are not decoded yet; DataError if it exceeds Pillow's limit."""
    image_of = pillow("Image")

    def too_large(reason: object) -> DataError:
        return DataError("the image is too large", where=where, found=reason, fix="make it smaller")

    with parsing(partial(_refusal, where)):
        try:
            image = image_of.open(io.BytesIO(data))
        except (image_of.DecompressionBombError, image_of.DecompressionBombWarning) as error:
            raise too_large(error) from error
    most = image_of.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        image.close()
        raise too_large(f"{image.width} × {image.height} pixels, more than {most:,}")
    return image


def pillow(module: str) -> Any:
    """Import a module of Pillow, an optional dependency."""
    try:
        return importlib.import_module(f"PIL.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", extra="image", needed_for="reading images") from error


MODALITY = ImageModality()
