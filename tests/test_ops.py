"""The two operators as PyTorch sees them: registration, fakes, torch.compile and vmap.

All tests run the CPU implementation, and the kernels too if there is a GPU.
"""

import shutil

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from test_functional import CHANNELS_LAST, LAYOUTS, maps, randn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from stn_triton import affine_grid_sample, launch

FORWARD = torch.ops.stn_triton.affine_grid_sample.default
BACKWARD = torch.ops.stn_triton.affine_grid_sample_backward.default
OPTIONS = ("bilinear", "zeros", False, False, [])
NEITHER = (None, None)  # fill values and image index
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MASKS = [(True, True, False), (True, False, False), (False, True, False), (False, False, False)]
OUTPUT_SIZES = {
    "input's size": None,
    "another size": (7, 11),
    "one row": (1, 7),
    "one pixel": (1, 1),  # contiguous and channels_last at once
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def layout(name, device="cpu", dtype=torch.float32):
    """Make a tensor of a layout, moved to the device with all gaps, and matrices for it."""
    make, _ = LAYOUTS[name]
    input = make(dtype)
    memory = torch.empty(0, dtype=dtype).set_(input.untyped_storage()).to(device)
    input = memory.as_strided(input.shape, input.stride(), input.storage_offset())
    return input, maps(len(input), torch.float32).to(device)


def case(n=3, c=4, size_in=(5, 6), dtype=torch.float64, device="cpu"):
    return randn(n, c, *size_in).to(device, dtype), maps(n, dtype).to(device)


def strides(tensors):
    return [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]


def as_meta(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class TestRegistration:
    @pytest.mark.parametrize("op", [FORWARD, BACKWARD], ids=str)
    def test_operators_are_functional(self, op):
        schema = op._schema
        assert op.namespace == "stn_triton"
        assert not schema.is_mutable
        assert all(a.alias_info is None for a in (*schema.arguments, *schema.returns))
        assert {torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides} <= set(op.tags)

    def test_schemas_are_stable(self):
        """Exported programs contain the schemas."""
        assert str(FORWARD._schema) == (
            "stn_triton::affine_grid_sample(Tensor input, Tensor theta, Tensor? fill, Tensor? image_index, "
            "SymInt[] size, str mode, str padding_mode, bool align_corners, bool antialias, float[] points) "
            "-> Tensor"
        )
        assert str(BACKWARD._schema) == (
            "stn_triton::affine_grid_sample_backward(Tensor grad_output, Tensor input, Tensor theta, "
            "Tensor? fill, Tensor? image_index, str mode, str padding_mode, bool align_corners, "
            "bool antialias, float[] points, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
        )

    @pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta", "Autograd", "FuncTorchBatched"])
    @pytest.mark.parametrize("op", [FORWARD, BACKWARD], ids=str)
    def test_there_is_a_kernel_for_every_key(self, op, key):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("mask", MASKS)
    def test_the_backward_returns_an_empty_tensor_for_a_gradient_that_is_not_wanted(self, mask, device):
        input, theta = case(device=device)
        grad = torch.ones_like(input)
        both = BACKWARD(grad, input, theta, *NEITHER, *OPTIONS, (True, True, False))
        for wanted, actual, expected in zip(
            mask, BACKWARD(grad, input, theta, *NEITHER, *OPTIONS, mask), both, strict=True
        ):
            assert torch.equal(actual, expected) if wanted else actual.shape == (0,)
            assert actual.dtype == expected.dtype

    def test_no_kernel_runs_when_no_gradient_is_wanted(self, monkeypatch, device):
        monkeypatch.setattr(launch.plans, "Launch", lambda *_: pytest.fail("a kernel was launched"))
        input, theta = case(device=device)
        assert launch.backward(input, input, theta, output_mask=[False] * 3) == (None, None, None)


class TestFakes:
    """Fakes predict the shape, dtype and all strides of results, of empty tensors too."""

    def check(self, input, theta, size):
        output = FORWARD(input, theta, *NEITHER, size, *OPTIONS)
        arguments = torch.zeros_like(output), input, theta
        for mask in MASKS:
            real = (output, *BACKWARD(*arguments, *NEITHER, *OPTIONS, mask))
            fakes = [as_meta(t) for t in (output, input, theta)]
            promised = (
                FORWARD(*fakes[1:], *NEITHER, size, *OPTIONS),
                *BACKWARD(*fakes, *NEITHER, *OPTIONS, mask),
            )
            assert strides(promised) == strides(real)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", OUTPUT_SIZES.values(), ids=OUTPUT_SIZES)
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_strides_are_exact(self, name, size, dtype, device):
        input, theta = layout(name, device, dtype)
        self.check(input, theta, size or input.shape[2:])

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(
        shape=st.tuples(*[st.integers(0, 3)] * 2, *[st.integers(1, 3)] * 2),
        gaps=st.tuples(*[st.integers(1, 2)] * 4),
        order=st.permutations(range(4)),
        expanded=st.sampled_from([None, 0, 1, 2, 3]),
        size=st.tuples(*[st.integers(1, 3)] * 2),
    )
    def test_strides_are_exact_for_any_view(self, shape, gaps, order, expanded, size):
        """Covers any order of the axes in memory, gaps, and an expanded axis."""
        dense = torch.zeros([shape[axis] * gaps[axis] for axis in order])
        input = dense.permute(*(order.index(axis) for axis in range(4)))
        input = input[tuple(slice(None, None, gap) for gap in gaps)]
        if expanded is not None and shape[expanded]:
            input = input.narrow(expanded, 0, 1).expand(shape)
        self.check(input, torch.zeros(shape[0], 2, 3), size)

    @pytest.mark.parametrize("size", [(2, 3), (1, 3), (1, 1)])
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_kernels_write_what_the_fake_promises(self, name, size, device):
        """The launcher allocates on its own; without a GPU it runs in Triton's interpreter."""
        input, theta = (t[:1] for t in layout(name, device))  # one image, because interpreting is slow
        real = launch.forward(input, theta, size=size)
        assert strides([FORWARD(as_meta(input), as_meta(theta), *NEITHER, size, *OPTIONS)]) == strides([real])

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_the_public_function_runs_on_fake_and_meta_tensors(self, name):
        input, theta = layout(name)
        real = affine_grid_sample(input, theta, (7, 11))
        meta = affine_grid_sample(as_meta(input), as_meta(theta), (7, 11))
        with FakeTensorMode() as mode:
            fake = affine_grid_sample(mode.from_tensor(input), mode.from_tensor(theta), (7, 11))
        assert strides([meta]) == strides([fake]) == strides([real])
        assert (meta.device.type, fake.device.type) == ("meta", "cpu")

    def test_gradients_of_meta_tensors_have_their_shapes(self):
        leaves = [torch.empty(s, device="meta", requires_grad=True) for s in ((2, 3, 4, 5), (2, 2, 3))]
        grads = torch.autograd.grad(affine_grid_sample(*leaves, 7).sum(), leaves)
        assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]


# One layout of each kind, because opcheck compiles and is slow.
OPCHECK = [
    "NCHW",
    "channels_last",
    "sliced channels_last",
    "transposed, rows innermost",
    "one channel expanded",
]


@pytest.mark.parametrize("device", DEVICES)
class TestOpcheck:
    @pytest.mark.parametrize("name", OPCHECK)
    @pytest.mark.parametrize("needs", [(False, False), (True, True), (True, False), (False, True)])
    @pytest.mark.sample(10)
    def test_forward(self, name, needs, device):
        tensors = [t.requires_grad_(n) for t, n in zip(layout(name, device), needs, strict=True)]
        torch.library.opcheck(FORWARD, (*tensors, *NEITHER, (7, 11), *OPTIONS))

    @pytest.mark.parametrize("name", OPCHECK)
    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.sample(10)
    def test_backward(self, name, mask, device):
        input, theta = layout(name, device)
        grad = torch.ones(*input.shape[:2], 7, 11, device=device)
        torch.library.opcheck(BACKWARD, (grad, input, theta, *NEITHER, *OPTIONS, list(mask)))

    @pytest.mark.parametrize("shape", [(0, 3, 9, 17), (2, 0, 9, 17)], ids=["no images", "no channels"])
    def test_empty(self, shape, device):
        input, theta = torch.empty(shape, device=device), maps(shape[0], torch.float32).to(device)
        torch.library.opcheck(
            FORWARD, (input.requires_grad_(), theta.requires_grad_(), *NEITHER, (7, 11), *OPTIONS)
        )


def loss(input, theta, *size):
    output = affine_grid_sample(input, theta, size or None)
    return output, (output * torch.arange(output.shape[3], device=output.device)).square().sum()


def step(function, input, theta, *size):
    """Compute the output and both gradients."""
    leaves = input.detach().requires_grad_(), theta.detach().requires_grad_()
    output, total = function(*leaves, *size)
    return output.detach(), *torch.autograd.grad(total, leaves)


# Compilers specialise on 0 and 1, and give equal extents of the first call one symbol; theta has 2 and 3.
# So all extents are at least 4, differ within a call, and change in the second call.
DYNAMIC = [((5, 4, 7, 9), (8, 6)), ((6, 5, 9, 7), (4, 8)), ((4, 7, 11, 13), (10, 12)), ((6, 9, 5, 8), (7, 4))]


@pytest.mark.parametrize("device", DEVICES)
class TestCompile:
    @pytest.mark.parametrize("given", ["size", "input's size"])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST], ids=str)
    @pytest.mark.sample(3)
    def test_dynamic_shapes_compile_once(self, memory_format, given, device):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for (n, c, *size_in), size in DYNAMIC:
                input, theta = case(n, c, size_in, device=device)
                arguments = input.to(memory_format=memory_format), theta, *(size if given == "size" else ())
                actual, expected = step(compiled, *arguments), step(loss, *arguments)
                assert strides(actual) == strides(expected)
                torch.testing.assert_close(actual, expected)
        assert counter.frame_count == 1

    def test_a_second_shape_compiles_for_all_shapes(self, device):
        """The compiler specialises on the first shape by default; the second makes shapes dynamic."""
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True)
        for (n, c, *size_in), size in DYNAMIC:
            arguments = *case(n, c, size_in, device=device), *size
            torch.testing.assert_close(step(compiled, *arguments), step(loss, *arguments))
        assert counter.frame_count == 2

    def test_a_batch_may_be_marked_dynamic(self, device):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True)
        for n in (4, 6, 5):
            arguments = case(n, 7, (8, 9), device=device)
            for tensor in arguments:
                torch._dynamo.mark_dynamic(tensor, 0)
            torch.testing.assert_close(compiled(*arguments), loss(*arguments))
        assert counter.frame_count == 1

    def test_static_shapes_compile_once_each(self, device):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=False)
        for _ in range(2):
            for (n, c, *size_in), size in DYNAMIC[:2]:
                arguments = *case(n, c, size_in, device=device), *size
                torch.testing.assert_close(step(compiled, *arguments), step(loss, *arguments))
        assert counter.frame_count == 2

    @pytest.mark.full
    def test_the_default_backend_keeps_values_and_strides(self, device):
        """Inductor plans memory by the strides that the fakes promise."""
        if device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            pytest.skip("needs a C++ compiler")
        arguments = *layout("sliced channels_last", device), 7, 11
        compiled = torch.compile(loss, fullgraph=True, dynamic=True)
        actual, expected = step(compiled, *arguments), step(loss, *arguments)
        assert strides(actual) == strides(expected)
        torch.testing.assert_close(actual, expected)

    def test_vmap_compiles(self, device):
        input, theta = case(device=device)
        compiled = torch.compile(torch.vmap(affine_grid_sample), backend="aot_eager", fullgraph=True)
        arguments = torch.stack((input, -input)), torch.stack((theta, 2 * theta))
        expected = torch.stack([affine_grid_sample(*pair) for pair in zip(*arguments, strict=True)])
        torch.testing.assert_close(compiled(*arguments), expected)


def batched(tensor, size, in_dim):
    """Stack ``size`` scaled copies of a tensor along ``in_dim``; for None, return the tensor."""
    if in_dim is None:
        return tensor
    copies = torch.stack([tensor * (1 + 0.01 * k) for k in range(size)])
    return copies.movedim(0, in_dim).contiguous()


def slices(tensor, size, in_dim):
    return [tensor] * size if in_dim is None else tensor.unbind(in_dim)


def loop(function, tensors, in_dims, size):
    calls = zip(*(slices(t, size, d) for t, d in zip(tensors, in_dims, strict=True)), strict=True)
    return [function(*call) for call in calls]


@pytest.mark.parametrize("device", DEVICES)
class TestVmap:
    SIZE = 7  # unlike any other extent

    @pytest.mark.parametrize(
        "in_dims", [(0, 0), (0, None), (None, 0), (1, 2), (4, None), (-1, -2), (None, 3)]
    )
    def test_equals_a_loop_with_its_gradients(self, in_dims, device):
        tensors = [batched(t, self.SIZE, d) for t, d in zip(case(device=device), in_dims, strict=True)]
        function = lambda input, theta: affine_grid_sample(input, theta, (4, 9))  # noqa: E731
        results = []
        for run in (
            lambda *leaves: torch.vmap(function, in_dims)(*leaves),
            lambda *leaves: torch.stack(loop(function, leaves, in_dims, self.SIZE)),
        ):
            leaves = [t.detach().requires_grad_() for t in tensors]
            output = run(*leaves)
            grad = randn(*output.shape, seed=1).to(device)
            results.append((output.detach(), *torch.autograd.grad(output, leaves, grad)))
        torch.testing.assert_close(*results)

    @pytest.mark.parametrize("mask", MASKS)
    @pytest.mark.parametrize(
        "in_dims", [(0, 0, 0), (0, None, None), (1, None, 3), (None, 4, None), (None, None, 0)]
    )
    def test_the_backward_equals_a_loop(self, in_dims, mask, device):
        input, theta = case(device=device)
        tensors = (randn(3, 4, 8, 9, seed=1).to(device), input, theta)
        tensors = [batched(t, self.SIZE, d) for t, d in zip(tensors, in_dims, strict=True)]
        backward = lambda *tensors: BACKWARD(*tensors, *NEITHER, *OPTIONS, mask)  # noqa: E731
        expected = [
            torch.stack(grads) for grads in zip(*loop(backward, tensors, in_dims, self.SIZE), strict=True)
        ]
        actual = torch.vmap(backward, in_dims)(*tensors)
        torch.testing.assert_close(list(actual), expected)

    def test_nests(self, device):
        """Maps over images outside and matrices inside, so that every matrix samples every image."""
        input, theta = case(n=1, device=device)
        images, matrices = batched(input, 5, 0), batched(theta, 4, 0)
        inner = torch.vmap(affine_grid_sample, in_dims=(None, 0))
        actual = torch.vmap(inner, in_dims=(0, None))(images, matrices)
        expected = torch.stack([torch.stack([affine_grid_sample(i, m) for m in matrices]) for i in images])
        torch.testing.assert_close(actual, expected)

    def test_batched_gradients_equal_a_loop(self, device):
        leaves = [t.requires_grad_() for t in case(device=device)]
        output = affine_grid_sample(*leaves)
        grads = randn(self.SIZE, *output.shape, seed=1).to(device)
        actual = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(output, leaves, grad, retain_graph=True) for grad in grads]
        torch.testing.assert_close(list(actual), [torch.stack(g) for g in zip(*each, strict=True)])

    @pytest.mark.parametrize(("size", "n"), [(7, 0), (0, 3), (0, 0)])
    def test_nothing_to_map_over_gives_nothing(self, size, n, device):
        input, theta = torch.empty(size, n, 4, 5, 6, device=device), torch.empty(size, n, 2, 3, device=device)
        assert torch.vmap(affine_grid_sample)(input, theta).shape == (size, n, 4, 5, 6)
        grads = torch.vmap(lambda *tensors: BACKWARD(*tensors, *NEITHER, *OPTIONS, (True, True, False)))(
            input, input, theta
        )
        assert [g.shape for g in grads[:2]] == [input.shape, theta.shape]
