"""Handwritten digits of scikit-learn or MNIST, split, and resampled to frames of one size."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_triton import affine_grid_sample
from stn_triton.terminal import UsageError

FRAME = 20
"""Side of an undistorted image in pixels; MNIST's is 28."""
DIGIT = 20 / 28
"""Share of the frame that the digit fills, as in MNIST."""
TEST_SHARE = 0.25
"""Share of the bundled digits for testing; MNIST is already split."""
MAX_BYTES = 2**30
"""Largest number of pixels in a file; MNIST has up to 47 million."""
_PARTS = {"train": "train", "test": "t10k"}
_KINDS = {"images": (3, "idx3"), "labels": (1, "idx1")}


@dataclass(frozen=True)
class Digits:
    """Images of one set, undistorted."""

    frames: Tensor
    """(n, 1, FRAME, FRAME), fp32 from 0 (paper) to 1 (ink)."""
    labels: Tensor
    """(n,), int64 from 0 to 9."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Digits:
        return Digits(self.frames[index], self.labels[index])


@dataclass(frozen=True)
class Source:
    """A set of digits, with a name and a way to split them."""

    name: str
    """Name in tables."""
    fingerprint: str
    """Hash of pixels and labels."""
    everything: Digits
    train_count: int | None
    """How many digits, from the first on, are for training; None: the seed decides."""

    def split(self, seed: int) -> tuple[Digits, Digits]:
        """Split into training and test digits; each seed splits the bundled digits differently."""
        count = len(self.everything)
        if self.train_count is not None:
            order, first = torch.arange(count), self.train_count
        else:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            first = count - round(TEST_SHARE * count)
        return self.everything[order[:first]], self.everything[order[first:]]


def load(folder: Path | None = None) -> Source:
    """Load MNIST's files from ``folder``, or for None the digits bundled with scikit-learn.

    Raises:
        UsageError: a file is missing or damaged.
    """
    return bundled() if folder is None else mnist(folder)


def bundled() -> Source:
    """Load 1797 real digits, 8 x 8 pixels: scikit-learn's copy of the test set of UCI's "Optical Recognition
    of Handwritten Digits" (Alpaydin and Kaynak 1998)."""  # noqa: D205, D209
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    name = f"scikit-learn's digits ({len(labels)} of 8 x 8 pixels, a quarter for testing, split by the seed)"
    return Source(name, _fingerprint(images, labels), Digits(in_frame(images[:, None], DIGIT), labels), None)


def mnist(folder: Path) -> Source:
    """Load MNIST's four IDX files, plain or .gz.

    Raises:
        UsageError: a file is missing or damaged.
    """
    paths = {(part, kind): _find(folder, part, kind) for part in _PARTS for kind in _KINDS}
    missing = [_names(*key)[0] for key, path in paths.items() if path is None]
    if missing:
        where = f"in {folder}" if folder.is_dir() else f"in {folder}, which is no folder"
        raise UsageError(
            f"--data: not found {where}: {', '.join(missing)}; expected MNIST's four files, plain or .gz: "
            f"{', '.join(_names(*key)[0] for key in paths)}"
        )
    images, labels = {}, {}
    for part in _PARTS:
        images[part] = read_idx(paths[part, "images"], 3)
        labels[part] = read_idx(paths[part, "labels"], 1)
        count, expected = len(labels[part]), len(images[part])
        if count != expected or not count:
            raise UsageError(
                f"{paths[part, 'labels']} must have a label for each image of {paths[part, 'images']}, "
                f"got {count} labels for {expected} images"
            )
        if labels[part].max() > 9:
            raise UsageError(f"{paths[part, 'labels']}: labels must be 0 to 9, got {int(labels[part].max())}")
    if images["train"].shape[1:] != images["test"].shape[1:]:
        shapes = " and ".join(str(images[part].shape[1:]) for part in _PARTS)
        raise UsageError(f"{folder}: images for training and testing must have one size, got {shapes}")
    everything = torch.from_numpy(np.concatenate((images["train"], images["test"])))[:, None]
    targets = torch.from_numpy(np.concatenate((labels["train"], labels["test"]))).long()
    # One batch at a time: all images in fp32 at once would take five times the memory.
    frames = torch.cat([in_frame(part.float() / 255, 1) for part in everything.split(4096)])
    name = f"{folder.resolve().name} ({len(labels['train'])} for training, {len(labels['test'])} for testing)"
    return Source(name, _fingerprint(everything, targets), Digits(frames, targets), len(labels["train"]))


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Read the bytes of an IDX file, plain or .gz: (n, H, W) for ``dims`` 3, (n,) for 1.

    Raises:
        UsageError: the file is damaged, or not an IDX file of bytes with ``dims`` dimensions.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            head = file.read(4 + 4 * dims)
            shape = _shape_of(path, head, dims)
            # Reads at most one byte too many: a packed file may unpack to a thousand times its size.
            count = math.prod(shape)
            data = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(data) != count:
        got = f"{len(head) + len(data)}" if len(data) < count else "more"
        raise UsageError(f"{path} is damaged: {shape} takes {len(head) + count} bytes, got {got}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _shape_of(path: Path, head: bytes, dims: int) -> tuple[int, ...]:
    """Read the shape from the head of an IDX file, and check that it is plausible."""
    magic = bytes((0, 0, 8, dims))
    if head[:4] != magic:
        raise UsageError(
            f"{path} is not an IDX file of bytes with {dims} dimensions: expected it to begin with "
            f"{magic.hex()}, got {head[:4].hex() or 'nothing'}"
        )
    if len(head) != 4 + 4 * dims:
        raise UsageError(f"{path} is damaged: its head must have {4 + 4 * dims} bytes, got {len(head)}")
    shape = tuple(int(n) for n in np.frombuffer(head, dtype=">u4", offset=4))
    if math.prod(shape) > MAX_BYTES:
        raise UsageError(f"{path} is damaged or too large: {shape}, expected at most {MAX_BYTES} bytes")
    return shape


def in_frame(images: Tensor, share: float) -> Tensor:
    """Resample images (n, 1, h, w) into the middle ``share`` of a frame, (n, 1, FRAME, FRAME)."""
    theta = torch.eye(2, 3)[None] / share
    is_larger = images.shape[-1] < share * FRAME
    mode = "bicubic" if is_larger else "bilinear"
    frames = affine_grid_sample(images, theta, FRAME, mode=mode, antialias=not is_larger)
    return frames.clamp(0, 1)  # bicubic overshoots


def _names(part: str, kind: str) -> tuple[str, str]:
    stem, (_, suffix) = f"{_PARTS[part]}-{kind}", _KINDS[kind]
    return f"{stem}-{suffix}-ubyte", f"{stem}.{suffix}-ubyte"


def _find(folder: Path, part: str, kind: str) -> Path | None:
    candidates = [folder / f"{name}{end}" for name in _names(part, kind) for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _fingerprint(images: Tensor, labels: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
