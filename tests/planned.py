"""Script of `test_plans.py`: calls through launch plans and Triton's launcher, on a driver that does nothing.

Runs in its own process without Triton's interpreter, and prints its observations as a JSON object.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import torch

from perf.kernels import stub_driver

STUB = stub_driver.install()

import triton  # noqa: E402

from stn_triton import launch, policy, tuning  # noqa: E402
from stn_triton.kernels import backward, forward  # noqa: E402

CHANNELS_LAST = torch.channels_last
THETA = torch.eye(2, 3)[None]


def compiled(kernel):
    """List the kernels that Triton has compiled for a function, in order."""
    return list(kernel.device_caches[0][0].values())


def launches(call):
    before = STUB.stub_launches()
    call()
    return STUB.stub_launches() - before


def repeated():
    """Count the launches of three equal calls, and the uses of Triton's binder."""
    image = torch.zeros(1, 3, 8, 8)
    run = triton.runtime.jit.JITFunction.run
    counts, bound = [], []
    triton.runtime.jit.JITFunction.run = lambda *args, **kwargs: bound.append(1) or run(*args, **kwargs)
    for _ in range(3):
        counts.append(launches(lambda: launch.backward(image, image, THETA)))
    triton.runtime.jit.JITFunction.run = run
    return {"launches": counts, "bound": len(bound)}


def addresses():
    """Check that launches get the addresses of new tensors, also where memory is used again."""
    seen, kept, used = [], [], set()
    for number in range(6):
        image, theta = torch.zeros(1, 3, 8, 8), THETA.clone()
        output = launch.forward(image, theta, size=(8, 8))
        expected = [t.data_ptr() for t in (output, image, theta)]
        seen.append([STUB.stub_last(i) for i in (1, 2, 3)] == expected)
        used.add(tuple(expected))
        if number < 3:  # freed from the third on, so that later tensors can take the memory
            kept.append((image, theta, output))
        else:
            del image, theta, output
    return {"right": seen, "different": len(used)}


def numbers():
    """List the sizes and strides that reach the driver in a first and in a repeated launch."""
    image, theta, seen = torch.zeros(2, 3, 20, 24)[:, :, 1:20, 1:23], torch.zeros(2, 2, 4)[..., :3], []
    STUB.stub_watch(18)
    for _ in range(2):
        launch.forward(image, theta, size=(7, 9))
        seen.append([STUB.stub_last(i) for i in range(4, 19)])
    STUB.stub_watch(3)
    return seen


def alignments():
    """Count the kernels compiled for views at offsets of 0 and 4 bytes, each called twice."""
    memory = torch.zeros(3 * 8 * 8 + 1)
    even, odd = (memory[i : i + 192].view(1, 3, 8, 8) for i in (0, 1))
    counts, first = [], len(compiled(forward.forward_kernel))
    for image in (even, odd, even, odd):
        launch.forward(image, THETA, size=(8, 8))
        counts.append(len(compiled(forward.forward_kernel)) - first)
    return counts


def streams():
    from triton.runtime.driver import driver

    seen = []
    for stream in (0, 77, 5, 0):
        driver.active.get_current_stream = lambda device, stream=stream: stream
        launch.forward(torch.zeros(1, 1, 6, 6), THETA, size=(6, 6))
        seen.append(STUB.stub_last(0))
    return seen


def threads():
    """Count the launches of calls that eight threads begin at once, before there is a plan."""
    image = torch.zeros(1, 2, 24, 24)
    with ThreadPoolExecutor(8) as pool:
        return launches(
            lambda: list(pool.map(lambda _: launch.forward(image, THETA, size=(9, 9)), range(32)))
        )


def configurations():
    """List the block sizes that launches use before and after these change."""
    image = torch.zeros(1, 4, 32, 32)
    real, seen = tuning.configuration, []
    for tile in (8, 16):
        tuning.configuration = lambda bucket, device, run, tile=tile: {
            **policy.default(bucket),
            "BLOCK_H": tile,
            "BLOCK_W": tile,
        }
        tuning._found["of a test", tile] = None
        for _ in range(2):
            launch.forward(image, THETA, size=(32, 32))
        seen.append(compiled(forward.forward_kernel)[-1].src.constants[named("K")].BLOCK_H.value)
    tuning.configuration = real
    return seen


def named(name, kernel=forward.forward_kernel):
    return (kernel.arg_names.index(name),)


def layouts():
    """Run the backward on gradients as PyTorch makes them, for images of either memory format.

    Returns:
        For each pair: whether the gradient was copied, the stride of its pixels in the kernel (1 if compiled
        in), and the number of channels in neighbouring lanes.
    """
    kernel, seen = backward.backward_kernel, {}
    shape = (4, 64, 16, 16)
    nchw = torch.zeros(shape)
    last = nchw.contiguous(memory_format=CHANNELS_LAST)
    grads = {
        "flatten": nchw,
        "convolution": last,
        "sum": torch.ones(()).expand(shape),
        "mean": torch.ones(4, 64, 1, 1).expand(shape),
    }
    for name, image in {"nchw": nchw, "channels_last": last}.items():
        for source, grad in grads.items():
            kernel.device_caches.clear()
            launch.backward(grad, image, THETA.expand(4, 2, 3), output_mask=(True, False, False))
            constants = compiled(kernel)[-1].src.constants  # fails if it took the plan of another
            seen[f"{name} {source}"] = {
                "copied": grad.data_ptr() not in [STUB.stub_last(i) for i in (1, 2, 3)],
                "run": constants[named("K", kernel)].RUN_C.value,
                "stride_w": constants.get((*named("grad_output_strides", kernel), 1)),
            }
    return seen


CHECKS = (repeated, addresses, numbers, alignments, streams, threads, configurations, layouts)
if __name__ == "__main__":
    print(json.dumps({check.__name__: check() for check in CHECKS}))
