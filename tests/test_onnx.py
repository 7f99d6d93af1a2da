"""ONNX export: results of onnxruntime against those of the library."""

import doctest
import io
import itertools

import onnxruntime
import pytest
import torch
from test_export import (
    KINDS,
    LAYERS,
    SHAPES,
    Warp,
    affine,
    arguments,
    dynamic_shapes,
    inputs_of,
    options,
)
from variants import Variant, case

import stn_triton.onnx
from stn_triton import (
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
    transforms,
)
from stn_triton.options import MODES, PADDINGS

EXPORTED = [name for name, padding in PADDINGS.items() if padding.sampler is not None]


def to_onnx(model, args, **options):
    return torch.onnx.export(
        model.eval(),
        args,
        dynamo=True,
        custom_translation_table=stn_triton.onnx.translation_table(),
        verbose=False,
        **options,
    )


def session(model):
    """Load a model into onnxruntime, and return it as a function of tensors."""
    if not isinstance(model, bytes):
        model = model.model_proto.SerializeToString()
    running = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(*args):
        arrays = [t.numpy() for t in args if t is not None]
        names = [i.name for i in running.get_inputs()]
        outputs = [torch.from_numpy(o) for o in running.run(None, dict(zip(names, arrays, strict=True)))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def by_trace(model, args, dynamic_shapes=None, **options):
    """Export by the older exporter, and load the model into onnxruntime."""
    given = [a for a in args if a is not None]
    names = [f"input{i}" for i in range(len(given))]
    axes = {}
    if dynamic_shapes is not None:
        shapes = [s for s, a in zip(dynamic_shapes, args, strict=True) if a is not None]
        axes = {n: {a: f"{n}_{a}" for a in s} for n, s in zip(names, shapes, strict=True) if s}
    file = io.BytesIO()
    last = max(i for i, a in enumerate(args) if a is not None)
    torch.onnx.export(
        model.eval(), args[: last + 1], file, dynamo=False, input_names=names, dynamic_axes=axes, **options
    )
    return session(file.getvalue())


def check_onnx(model, args, others=(), **options):
    run = session(to_onnx(model, args, **options))
    for each in (args, *others):
        torch.testing.assert_close(run(*each), model(*each))


class Product(torch.nn.Module):
    """A module with all modes, paddings and corner conventions."""

    def __init__(self, variant, size):
        super().__init__()
        modes = MODES if variant.dim == 2 else MODES[:2]
        self.options = [
            dict(zip(("mode", "padding_mode", "align_corners"), choice, strict=True))
            for choice in itertools.product(modes, EXPORTED, (False, True))
        ]
        self.size, self.projective = size, variant.kind == "projective"

    def forward(self, images, theta, fill, index=None):
        return tuple(
            affine(
                images,
                theta,
                self.size,
                fill_value=fill if options["padding_mode"] == "fill" else None,
                image_index=index,
                projective=self.projective,
                **options,
            )
            for options in self.options
        )


class Constant(torch.nn.Module):
    """Matrices that are part of the model."""

    def __init__(self, theta):
        super().__init__()
        self.register_buffer("theta", theta)

    def forward(self, images):
        return affine_grid_sample(images, self.theta, (6, 7), align_corners=True)


class Inputs(torch.nn.Module):
    """Images of one dtype, theta of another. Inputs and outputs are not bf16, which NumPy lacks."""

    DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

    def forward(self, images, theta):
        options = {"mode": "bicubic", "padding_mode": "fill"}
        outputs = [
            affine_grid_sample(
                images.to(dtype), theta.to(other), fill_value=images[0, :, 0, 0].to(other), **options
            )
            for dtype, other in itertools.product(self.DTYPES, self.DTYPES)
        ]
        return tuple(o.float() if o.dtype == torch.bfloat16 else o for o in outputs)


def check_dtypes(export):
    """Compare ``Inputs`` with its exported model; ``export`` returns a function of tensors."""
    images, theta, *_ = arguments("plain", *SHAPES[0])
    outputs = export(Inputs(), (images, theta))(images, theta)
    pairs = itertools.product(Inputs.DTYPES, Inputs.DTYPES)
    for (dtype, _), actual, expected in zip(pairs, outputs, Inputs()(images, theta), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.to(dtype), expected.to(dtype))


def operators(program):
    return [node.op_type for node in program.model.graph]


class TestOnnx:
    @pytest.mark.parametrize(
        ("dim", "kind", "dtype"),
        [
            *itertools.product((2, 3), ("plain", "many", "index"), (torch.float32,)),
            (2, "plain", torch.float64),
            # Next to the horizon fp32 is inaccurate in onnxruntime and in the library alike.
            (2, "projective", torch.float64),
        ],
    )
    @pytest.mark.sample(3)
    def test_every_mode_padding_and_corner_convention(self, dim, kind, dtype):
        variant = Variant(dim, "bilinear", "fill", kind, False)
        args = case(variant).to("cpu", dtype)
        theta = args.theta.unflatten(0, (2, 2)) if kind == "many" else args.theta
        check_onnx(Product(variant, args.size), (args.input, theta, args.fill, args.image_index))

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "antialias"])
    @pytest.mark.sample(2)
    def test_dynamic_shapes(self, kind):
        """Includes sizes of one pixel along an axis with aligned corners."""
        args, *others = (arguments(kind, *shape) for shape in SHAPES)
        warp = Warp(**{**options(kind), "align_corners": True})
        others.append(arguments(kind, 5, 4, 6, 2, 9, 2))  # the size is 1 where it was 2
        check_onnx(warp, args, others, dynamic_shapes=dynamic_shapes(args, kind))

    def test_one_pixel_with_aligned_corners(self):
        check_onnx(Warp((1, 5), align_corners=True), arguments("plain", *SHAPES[0])[:2])

    def test_dtypes(self):
        check_dtypes(lambda model, args: session(to_onnx(model, args)))

    def test_bytes(self):
        images, theta, fill, _ = arguments("fill", *SHAPES[0])
        images = images.round().mul(255).byte()  # contrasts so high that bicubic overshoots
        model, args = (
            Product(Variant(2, "bilinear", "fill", "plain", False), (6, 7)),
            (images, theta, 99 * fill),
        )
        torch.testing.assert_close(session(to_onnx(model, args))(*args), model(*args), rtol=0, atol=0)

    def test_bytes_round_half_to_even(self):
        images = torch.tensor([[0, 1], [1, 2], [2, 3]], dtype=torch.uint8).view(3, 1, 1, 2)
        args = images, torch.eye(2, 3).expand(3, 2, 3)
        assert session(to_onnx(Warp((1, 1)), args))(*args).flatten().tolist() == [0, 2, 2]

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64], ids=str)
    @pytest.mark.sample(1)
    def test_labels(self, dtype):
        images, theta, *_ = arguments("fill", *SHAPES[0])
        labels = (images * 2**20).round().to(dtype) * (1 if dtype == torch.bool else 101)
        warp = Warp((6, 7), mode="nearest", padding_mode="fill")
        args = labels, theta, labels[0, :, 0, 0]
        torch.testing.assert_close(session(to_onnx(warp, args))(*args), warp(*args), rtol=0, atol=0)

    def test_infinite_fill_values_do_not_leak(self):
        """If all taps lie inside, no fill value is added, although the sum of the weights rounds."""
        images, theta, *_ = arguments("plain", *SHAPES[0])
        fill = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
        args, warp = (images, 0.6 * theta, fill), Warp(padding_mode="fill")
        expected = warp(*args)
        assert 0 < expected.isfinite().float().mean() < 1
        torch.testing.assert_close(session(to_onnx(warp, args))(*args), expected, equal_nan=True)

    @pytest.mark.parametrize("padding_mode", ["zeros", "border", "fill"])
    @pytest.mark.sample(1)
    def test_far_away(self, padding_mode):
        """Coordinates overflow the integers to which onnxruntime alone would convert them."""
        images = arguments("plain", *SHAPES[0])[0][:1]
        fill = torch.tensor([3.0, -torch.inf, torch.inf, 0.0]) if padding_mode == "fill" else None
        args = [
            (images, torch.tensor([[[scale, 0.0, scale / 8], [0.0, 1.0, 0.0]]]), fill)
            for scale in (1e8, 1e20, -1e20)
        ]
        check_onnx(Warp((4, 6), padding_mode=padding_mode), args[0], args[1:])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.sample(1)
    def test_constant_matrices(self, dtype):
        """The exporter may precompute the grid, always in fp32, which is too coarse for fp64 images."""
        images, theta, *_ = arguments("one matrix", *SHAPES[0])
        model = Constant(theta)
        check_onnx(model, (images.to(dtype),), optimize=dtype == torch.float32)

    @pytest.mark.parametrize("opset_version", [20, 22])
    @pytest.mark.full
    def test_opset_versions(self, opset_version):
        args = arguments("fill", *SHAPES[0])
        program = to_onnx(Warp(**options("fill")), args, opset_version=opset_version)
        assert program.model.opset_imports[""] == opset_version
        torch.testing.assert_close(session(program)(*args), Warp(**options("fill"))(*args))

    def test_matrices_share_their_image(self):
        program = to_onnx(Warp((6, 5)), arguments("many", *SHAPES[0])[:2])
        (sampler,) = (node for node in program.model.graph if node.op_type == "GridSample")
        assert sampler.inputs[0] in program.model.graph.inputs

    @pytest.mark.full
    def test_one_call_is_few_nodes(self):
        program = to_onnx(Warp((6, 5)), arguments("plain", *SHAPES[0])[:2])
        assert operators(program) == ["AffineGrid", "Clip", "GridSample"]
        program = to_onnx(Warp((6, 5), padding_mode="reflection"), arguments("plain", *SHAPES[0])[:2])
        assert operators(program) == ["AffineGrid", "GridSample"]

    @pytest.mark.parametrize(
        ("warp", "opset_version", "message"),
        [
            (Warp(antialias=True), 20, "antialias must be False for ONNX export, got True"),
            (Warp(padding_mode="wrap"), 20, r"padding_mode must be one of \['zeros', .* export, got 'wrap'"),
            (Warp(), 18, "opset_version must be at least 20 for stn_triton, got 18"),
        ],
    )
    @pytest.mark.sample(1)
    def test_errors_name_the_argument(self, warp, opset_version, message):
        with pytest.raises(torch.onnx.OnnxExporterError, match=message):
            to_onnx(warp, arguments("plain", *SHAPES[0])[:2], opset_version=opset_version)

    def test_the_table_is_the_callers_own(self):
        stn_triton.onnx.translation_table().clear()
        assert list(stn_triton.onnx.translation_table()) == [torch.ops.stn_triton.affine_grid_sample.default]

    def test_the_example_runs(self):
        result = doctest.testmod(stn_triton.onnx)
        assert result.attempted > 0
        assert result.failed == 0


class Spline(torch.nn.Module):
    def forward(self, images, offsets):
        return thin_plate_spline_grid_sample(images, offsets, padding_mode="border")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
class TestOlderExporter:
    """``dynamo=False``: the operator exports its own graph and needs no registration."""

    @pytest.mark.parametrize(("dim", "kind"), [(2, "plain"), (2, "many"), (3, "index")])
    @pytest.mark.sample(1)
    def test_every_mode_padding_and_corner_convention(self, dim, kind):
        variant = Variant(dim, "bilinear", "fill", kind, False)
        args = case(variant).to("cpu", torch.float32)
        theta = args.theta.unflatten(0, (2, 2)) if kind == "many" else args.theta
        model, args = Product(variant, args.size), (args.input, theta, args.fill, args.image_index)
        torch.testing.assert_close(by_trace(model, args)(*args), model(*args))

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "antialias"])
    @pytest.mark.sample(2)
    def test_dynamic_shapes(self, kind):
        args, *others = (arguments(kind, *shape) for shape in SHAPES)
        others.append(arguments(kind, 5, 4, 6, 2, 9, 2))  # the size is 1 where it was 2
        warp = Warp(**{**options(kind), "align_corners": True})
        run = by_trace(warp, args, dynamic_shapes(args, kind))
        for each in (args, *others):
            torch.testing.assert_close(run(*each), warp(*each))

    @pytest.mark.full
    def test_a_batch_exported_with_one_image(self):
        args, others = (arguments("plain", n, *SHAPES[0][1:])[:2] for n in (1, 5))
        run = by_trace(Warp((6, 7)), args, [{0: "n"}] * 2)
        torch.testing.assert_close(run(*others), Warp((6, 7))(*others))

    def test_dtypes(self):
        check_dtypes(by_trace)

    def test_bytes(self):
        images, theta, fill, _ = arguments("fill", *SHAPES[0])
        args = images.round().mul(255).byte(), theta, 99 * fill
        model = Product(Variant(2, "bilinear", "fill", "plain", False), (6, 7))
        torch.testing.assert_close(by_trace(model, args)(*args), model(*args), rtol=0, atol=0)

    def test_an_older_opset(self):
        args = arguments("fill", *SHAPES[0])[:3]
        warp = Warp(**options("fill"))
        torch.testing.assert_close(by_trace(warp, args, opset_version=16)(*args), warp(*args))

    def test_a_spline(self):
        cases = [(arguments("plain", *shape)[0], 0.2 * torch.randn(shape[0], 9, 2)) for shape in SHAPES]
        run = by_trace(Spline(), cases[0], [{0: "n", 2: "h", 3: "w"}, {0: "n"}])
        for each in cases:
            torch.testing.assert_close(run(*each), Spline()(*each))

    @pytest.mark.full
    def test_thetas_of_the_sizes_of_images(self):
        """Builders, boxes and converted matrices of pixels, with dynamic sizes and batches."""

        class Thetas(torch.nn.Module):
            def forward(self, images, matrices):
                size, numbers = images.shape[2:], matrices[:, :2, 2]
                affine = transforms.compose(
                    transforms.boxes(torch.cat((numbers, numbers + 3), -1), size),
                    transforms.shear(0.1 * numbers, aspect=size[1] / size[0]),
                    transforms.from_torchvision_affine(size, angle=9 * numbers[:, 0]),
                )
                found = transforms.from_cv2(matrices, size)
                return perspective_grid_sample(
                    images, transforms.compose(found, affine), padding_mode="border"
                )

        matrix = torch.tensor([[1.1, 0.1, 2.0], [0.05, 0.9, 1.0], [0.001, 0.002, 1.0]])
        cases = [(torch.rand(n, 2, h, w), matrix.expand(n, 3, 3)) for n, h, w in ((2, 9, 7), (3, 6, 8))]
        run = by_trace(Thetas(), cases[0], [{0: "n", 2: "h", 3: "w"}, {0: "n"}])
        for each in cases:
            torch.testing.assert_close(run(*each), Thetas()(*each), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["affine", "similarity", "tps", "series"])
    @pytest.mark.sample(1)
    def test_layers(self, name):
        module = LAYERS[name]()
        images, other, *_ = inputs_of(module)
        run = by_trace(module, (images,), [{0: "n", 2: "h", 3: "w"}])
        for each in (images, other):
            torch.testing.assert_close(run(each), module(each), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("warp", "message"),
        [
            (Warp(antialias=True), "antialias must be False for ONNX export, got True"),
            (Warp(padding_mode="wrap"), r"padding_mode must be one of \['zeros', .* export, got 'wrap'"),
        ],
    )
    def test_errors_name_the_argument(self, warp, message):
        with pytest.raises(NotImplementedError, match=message):
            by_trace(warp, arguments("plain", *SHAPES[0])[:2])
