"""Small files in the format of MNIST, for the tests of the digits example."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(path, array):
    content = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path) -> Path:
    """Fill a folder with files like MNIST's, two of them compressed."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images, labels = random.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte{'.gz' if part == 'train' else ''}", images)
        write_idx(folder / f"{part}-labels.idx1-ubyte{'.gz' if part == 't10k' else ''}", labels)
    return folder
