"""The floor: the bytes that a pass must move, and how fast the device moves bytes.

A forward reads each input pixel that has a part in the output once, and writes the whole output. A backward
reads these pixels, and grad_output where it reaches the input, and writes the whole grad_input. Theta is too
small to count. Bytes over time, as a share of what a copy of the device's memory moves in that time, is the
fraction of the roofline.
"""

import torch

from perf.measuring import stopwatch
from perf.measuring.providers import eager_stacked
from perf.measuring.workloads import Data

_COPY_BYTES = {"cuda": 2**29, "cpu": 2**27}


def moved_bytes(data: Data) -> tuple[int, int]:
    """Count the bytes of the input that a forward must read, and of grad_output that a backward must read.

    One channel runs through the eager pair and its backward, in fp64. An input pixel counts if its gradient
    is not 0, an output pixel if its value is not 0. The values are random, so that the positive and negative
    weights of bicubic sampling do not add up to 0.
    """
    plane = (1 + torch.rand_like(data.input[:, :1], dtype=torch.float64)).requires_grad_()
    output = eager_stacked(plane, data.theta.double(), data.size, **data.options)
    (weight,) = torch.autograd.grad(output, plane, 1 + torch.rand_like(output))
    bytes_per_pixel = data.input.shape[1] * data.input.element_size()
    return int(weight.count_nonzero()) * bytes_per_pixel, int(output.count_nonzero()) * bytes_per_pixel


def model_bytes(data: Data, touched: int, reached: int) -> dict[str, int]:
    """The least bytes of each pass, of input ``touched`` bytes and of grad_output ``reached`` ones."""
    input, output = data.input.nbytes, data.grad_output.numel() * data.input.element_size()
    model = {
        "forward": touched + output,
        "backward": reached + touched + input,
        "theta": reached + touched,
        "input": reached + input,
    }
    return model | {"forward+backward": model["forward"] + model["backward"]}


def copy_gb_per_s(device: torch.device) -> float:
    """The bytes that a large copy on the device reads and writes, in GB/s; the median of several copies."""
    source = torch.ones(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    samples = stopwatch.sample({"copy": [lambda: target.copy_(source)]}, device, stopwatch.FULL)
    return 2 * source.nbytes / stopwatch.quantiles(samples["copy"])[1] / 1e6
