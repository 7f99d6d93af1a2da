"""``python -m stn_triton check``: a correct operator passes, and each defect fails the rows listed for it."""

import contextlib
import io
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stn_triton import environment, launch, ops, reference
from stn_triton.check import cases, command, engine, judge, properties, rows
from stn_triton.check.rows import ROWS
from stn_triton.command_line import main

ROOT = Path(__file__).resolve().parents[1]
# The plain PyTorch path, on machines with a GPU too, because defects are planted in it.
CPU = ("--device", "cpu")
TITLES = [
    "images, bilinear: output",
    "images, bilinear: gradients",
    "images, nearest: output",
    "images, nearest: gradients",
    "identity: output",
    "identity: gradients",
    "adjoint in fp64",
    "derivatives in fp64",
    "determinism: output",
    "determinism: gradients",
]
ONLY = (
    "--only",
    "images, bilinear",
    "images, nearest",
    "identity",
    "adjoint in fp64",
    "derivatives",
    "determ",
)


def check(capsys, *arguments):
    """Run the check; return its exit code, its JSON, and the titles of rows by status."""
    code = main(["check", "--quick", *CPU, *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    titles = {"PASS": [], "FAIL": [], "SKIP": []}
    for row in found["rows"]:
        titles[row["status"]].append(f"{row['name']}: {row['of']}" if row["of"] else row["name"])
    return code, found, titles


@pytest.mark.full
def test_this_machine_passes(capsys):
    assert main(["check", "--quick", *CPU]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for row in ROWS:
        own = [line for line in lines if line.startswith(row.name)]
        assert own, row.name
        assert all(line.endswith("PASS") for line in own)
    assert lines[-1].startswith("PASS: ")
    assert "plain PyTorch path" in printed.out
    assert max(map(len, lines)) <= 80 or "/" in max(lines, key=len), "a path may be longer"


@pytest.mark.full
def test_all_of_it_passes_in_less_than_a_minute_of_a_cpu():
    """The README and ``--help`` promise this. CPU time, because other processes may be busy."""
    before = os.times()
    command_line = [sys.executable, "-m", "stn_triton", "check", "--json", *CPU]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT, env=environment)
    after = os.times()
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert not found["quick"]
    assert len({(row["section"], row["name"]) for row in found["rows"]}) == len(ROWS)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 60


@pytest.mark.gpu
def test_this_gpu_passes(capsys):
    assert main(["check", "--quick"]) == 0
    assert "the kernels on" in capsys.readouterr().out


def test_names_are_unique_and_quick_has_fewer_cases(monkeypatch):
    """Count cases without running them."""
    assert len({(row.section, row.name) for row in ROWS}) == len(ROWS)
    monkeypatch.setattr(rows, "against_truth", lambda *a, **k: [])
    here = engine.choose("cpu", False)
    for row in ROWS:
        if row.name in ("images, bilinear", "projective", "uint8", "huge, infinite, NaN"):
            quick, full = (sum(1 for _ in row.find(here, quick)) for quick in (True, False))
            assert 0 < 3 * quick <= full, row.name


def forward_of(change):
    """Plant a defect: change the output of the plain path."""
    right = reference.forward
    return "forward", lambda *tensors, **given: change(right(*tensors, **given))


def backward_of(change):
    """Plant a defect: change the gradients of input, theta and fill."""
    right = reference.backward
    return "backward", lambda *tensors, **given: change(*right(*tensors, **given))


def sign_of_grad_theta(grad_input, grad_theta, grad_fill):
    return grad_input, None if grad_theta is None else -grad_theta, grad_fill


def sign_of_one_row(grad_input, grad_theta, grad_fill):
    if grad_theta is not None:
        grad_theta = grad_theta.clone()
        grad_theta[..., -1, :] *= -1
    return grad_input, grad_theta, grad_fill


def without_last_fill(grad_input, grad_theta, grad_fill):
    if grad_fill is not None:
        grad_fill = grad_fill.clone()
        grad_fill[-1] = 0
    return grad_input, grad_theta, grad_fill


def by_chance(grad_input, grad_theta, grad_fill):
    """Change the last bit at random, as sums in changing order would."""
    if grad_theta is not None:
        step = torch.finfo(grad_theta.dtype).eps * torch.randint(-1, 2, grad_theta.shape)
        grad_theta = (grad_theta * (1 + step)).to(grad_theta.dtype)
    return grad_input, grad_theta, grad_fill


def in_bfloat16(grad_input, grad_theta, grad_fill):
    return *(None if g is None else g.bfloat16().to(g.dtype) for g in (grad_input, grad_theta)), grad_fill


def without_mask(*tensors, size, options):
    """Replace zeros outside by the border."""
    if options.padding_mode == "zeros":
        options = options._replace(padding_mode="border")
    return RIGHT_FORWARD(*tensors, size=size, options=options)


RIGHT_FORWARD = reference.forward
DEFECTS = {
    "the sign of grad_theta": (
        backward_of(sign_of_grad_theta),
        {"images, bilinear: gradients", "derivatives in fp64"},
    ),
    "the sign of a row of grad_theta": (
        backward_of(sign_of_one_row),
        {"images, bilinear: gradients", "derivatives in fp64"},
    ),
    "an image shifted by a pixel": (
        forward_of(lambda output: output.roll(1, -1)),
        {
            "images, bilinear: output",
            "images, nearest: output",
            "identity: output",
            "adjoint in fp64",
            "derivatives in fp64",
        },
    ),
    "a dropped mask": (
        ("forward", without_mask),
        {"images, bilinear: output", "images, nearest: output", "adjoint in fp64", "derivatives in fp64"},
    ),
    "the last channel's fill gradient left out": (
        backward_of(without_last_fill),
        {"images, bilinear: gradients", "images, nearest: gradients", "derivatives in fp64"},
    ),
    "gradients summed in bfloat16": (
        backward_of(in_bfloat16),
        {
            "images, bilinear: gradients",
            "images, nearest: gradients",
            "identity: gradients",
            "adjoint in fp64",
            "derivatives in fp64",
        },
    ),
    "a last bit that varies": (backward_of(by_chance), {"determinism: gradients"}),
    "an element left NaN": (
        forward_of(
            lambda output: (
                output.index_fill(-1, torch.tensor([0]), math.nan) if output.is_floating_point() else output
            )
        ),
        {*TITLES} - {title for title in TITLES if "gradients" in title},
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.sample(2)
def test_a_planted_defect_fails_its_rows_and_no_others(name, capsys, monkeypatch):
    (function, wrong), expected = DEFECTS[name]
    monkeypatch.setattr(reference, function, wrong)
    code, found, titles = check(capsys, *ONLY)
    assert code == 1
    assert not found["passed"]
    assert set(titles["FAIL"]) == expected
    assert set(titles["PASS"]) == {*TITLES} - expected


def test_a_lost_memory_format_fails_its_row(capsys, monkeypatch):
    monkeypatch.setattr(reference, *forward_of(lambda output: output.contiguous()))
    code, found, titles = check(capsys, "--only", "channels_last", "images, nearest", "sliced")
    assert (code, titles["FAIL"]) == (1, ["channels_last: output"])
    texts = [row["text"] for row in found["rows"] if row["status"] == "FAIL"]
    assert "expected channels_last as the input" in texts[0]


def test_a_call_that_raises_fails_its_row_and_the_others_go_on(capsys, monkeypatch):
    def wrong(*tensors, size, options):
        if options.mode == "nearest":
            raise RuntimeError("out of luck\nand more")
        return RIGHT_FORWARD(*tensors, size=size, options=options)

    monkeypatch.setattr(reference, "forward", wrong)
    code, found, titles = check(capsys, "--only", "images, bilinear", "images, nearest")
    assert code == 1
    assert titles["FAIL"] == ["images, nearest"]
    (row,) = [row for row in found["rows"] if row["status"] == "FAIL"]
    assert row["text"] == "raised RuntimeError: out of luck"
    assert row["error"] is None
    assert "mode='nearest'" in row["call"][0]


def test_a_failure_says_how_to_reproduce_it_and_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(reference, *backward_of(sign_of_grad_theta))
    assert main(["check", "--quick", *CPU, "--only", "bilinear"]) == 1
    printed = capsys.readouterr().out
    foot = printed[printed.index("\nFAIL: ") :]
    joined = " ".join(foot.split())
    assert "images, bilinear: gradients: " in foot
    assert "grad_theta[" in joined
    assert "affine_grid_sample(input, theta, (5, 3), mode='bilinear', padding_mode=" in joined
    assert "input: float32 (2, 2, 4, 7) on cpu, contiguous, strides (56, 28, 7, 1)" in joined
    assert "theta: float32 [[[" in joined
    assert "Do not rely on the operator's results on this machine" in joined
    (again,) = [line for line in foot.splitlines() if "again: " in line and "images" in line]
    words = shlex.split(again.partition("again: ")[2])
    assert words[:3] == ["python", "-m", "stn_triton"]
    assert main(words[3:]) == 1
    monkeypatch.undo()
    assert main(words[3:]) == 0


def test_of_many_failures_the_arguments_of_the_first_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(reference, *backward_of(sign_of_grad_theta))
    assert main(["check", "--quick", *CPU, "--only", "images"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("again: ") > 3
    assert printed.count("  input: ") == 3


def test_what_is_allowed_is_little():
    """Values are about 1, in fp32, so that a large tolerance would hide errors."""
    here = engine.choose("cpu", False)
    for row in ROWS:
        if row.name in ("images, bilinear", "images, bicubic", "volumes, bilinear", "splines"):
            for finding in (f for findings in row.find(here, True) for f in findings):
                if finding.part in ("output", "grad_input"):
                    assert finding.allowed < 5e-5, (row.name, finding)


class TestJson:
    @pytest.mark.full
    def test_output_is_json_alone(self):
        """Run in a process of its own, as a user would redirect its output."""
        command_line = [sys.executable, "-m", "stn_triton", "check", "--quick", "--json", *CPU, "--only"]
        done = subprocess.run(
            [*command_line, "identity"], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["passed"] is True
        assert found["engine"] == "plain PyTorch"
        assert {"torch", "triton", "python", "cpu", "gpu", "system"} <= set(found["environment"])
        assert [row["name"] for row in found["rows"]] == ["identity", "identity"]
        for row in found["rows"]:
            assert row["status"] == "PASS"
            assert 0 <= row["error"] <= row["allowed"]
            assert row["checks"] > row["failed"] == 0

    def test_pytorch_s_own_error_is_in_it(self, capsys):
        code, found, _ = check(capsys, "--only", "volumes in fp32")
        assert code == 0
        for row in found["rows"]:
            assert 0 < 2 * row["pytorch_error"] <= row["allowed"]


class TestProgress:
    def test_a_line_every_ten_seconds_where_there_is_no_terminal(self, capsys, monkeypatch):
        now = iter(range(0, 10_000, 4))
        monkeypatch.setattr("stn_triton.check.printing.time.monotonic", lambda: next(now))
        assert main(["check", "--quick", *CPU, "--only", "volumes, bilinear"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert all(line.startswith("1 of 1: volumes, bilinear, ") for line in lines)

    def test_in_a_terminal_one_line_that_changes(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        now = iter(range(0, 10_000, 4))
        monkeypatch.setattr("stn_triton.check.printing.time.monotonic", lambda: next(now))
        with contextlib.redirect_stderr(Terminal()) as err, contextlib.redirect_stdout(io.StringIO()):
            assert main(["check", "--quick", *CPU, "--only", "volumes, bilinear"]) == 0
        assert "\n" not in err.getvalue()
        assert err.getvalue().endswith("\r\x1b[K")


class TestInterpreted:
    """One row only, because the interpreter is slow."""

    pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is chosen at import")

    def test_the_kernels_copy_bit_for_bit(self, capsys):
        code, found, _ = check(capsys, "--interpret", "--only", "whole-pixel")
        assert code == 0
        assert found["engine"] == "interpreted kernels"
        assert [row["allowed"] for row in found["rows"]] == [0, 0]
        assert ops.reference is reference

    def test_a_defect_of_the_kernels_fails_there_alone(self, capsys, monkeypatch):
        right = launch.forward
        monkeypatch.setattr(
            launch, "forward", lambda *a, **k: torch.nextafter(right(*a, **k), torch.tensor(9))
        )
        assert check(capsys, "--only", "whole-pixel")[0] == 0
        code, _, titles = check(capsys, "--interpret", "--only", "whole-pixel")
        assert (code, titles["FAIL"]) == (1, ["whole-pixel shifts: output"])


def test_nothing_is_tuned_and_the_settings_come_back(monkeypatch):
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    threads = torch.get_num_threads()
    with engine.running(engine.choose("cpu", False)):
        assert os.environ["STN_TRITON_AUTOTUNE"] == "0"
        assert torch.get_num_threads() == 1
    assert os.environ["STN_TRITON_AUTOTUNE"] == "1"
    assert torch.get_num_threads() == threads


def test_a_gpu_without_bfloat16_skips_it_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    gpu = engine.Engine(torch.device("cuda", 0), engine.KERNELS)
    reasons = {row.name: row.unavailable(gpu) for row in ROWS}
    assert reasons["bfloat16"] == "this GPU (compute capability 7.5) has no bfloat16"
    assert reasons["float16"] is None
    monkeypatch.setattr(command, "ROWS", [row._replace(unavailable=lambda e: "no luck") for row in ROWS])
    code, found, titles = check(capsys, "--only", "uint8")
    assert (code, titles["SKIP"]) == (0, ["uint8"])
    assert found["rows"][0]["reason"] == "no luck"
    assert main(["check", *CPU, "--only", "uint8"]) == 0
    assert "1 skipped" in capsys.readouterr().out


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Make an engine that has the name of a GPU and runs on the CPU."""
    gpu = engine.Engine(torch.device("cuda", 0), engine.KERNELS)
    monkeypatch.setattr(engine.torch.cuda, "get_device_capability", lambda device: (7, 5))
    return gpu


def test_the_identity_leaves_out_an_emulated_bfloat16_too(pretended_gpu, monkeypatch):
    """`torch.cuda.is_bf16_supported` counts emulation."""
    seen = set()

    def make(device, *args, dtype, **kwargs):
        seen.add(dtype)
        return rows.make(torch.device("cpu"), *args, dtype=dtype, **kwargs)

    monkeypatch.setattr(properties, "make", make)
    monkeypatch.setattr(properties, "results", lambda case, input_only: judge.oracle.Truth(*[None] * 4))
    for _ in properties.identity(pretended_gpu, False):
        pass
    assert seen == {torch.float32, torch.float16, torch.float64, torch.uint8}
    monkeypatch.setattr(engine.torch.cuda, "get_device_capability", lambda device: (8, 0))
    for _ in properties.identity(pretended_gpu, False):
        pass
    assert torch.bfloat16 in seen


def test_a_late_error_of_a_gpu_is_reported_with_its_call(monkeypatch):
    class OnAGpu(torch.Tensor):
        is_cuda = True

    def illegal(device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand advice")

    monkeypatch.setattr(judge.torch.cuda, "synchronize", illegal)
    case = rows.make(torch.device("cpu"))
    judge.results(case)
    with pytest.raises(judge.CallError) as raised:
        judge.results(case._replace(input=case.input.as_subclass(OnAGpu)))
    text, call = raised.value.args
    assert text == "raised AcceleratorError: CUDA error: an illegal memory access was encountered"
    assert call[0].startswith("affine_grid_sample(input, theta, (5, 3)")


def test_after_a_gpu_is_lost_no_row_is_run_and_it_says_so(capsys, monkeypatch):
    asked = []

    def is_lost(self):
        asked.append(self)
        return True

    monkeypatch.setattr(engine.Engine, "is_lost", is_lost)
    only = ("--only", "images, bilinear", "images, nearest", "uint8")
    assert check(capsys, *only)[0] == 0
    assert not asked, "nothing failed"
    monkeypatch.setattr(reference, *forward_of(lambda output: 1 / 0))
    code, found, titles = check(capsys, *only)
    assert (code, titles) == (
        1,
        {"PASS": [], "FAIL": ["images, bilinear"], "SKIP": ["images, nearest", "uint8"]},
    )
    assert found["rows"][-1]["reason"] == command.LOST
    assert main(["check", "--quick", *CPU, *only]) == 1
    printed = capsys.readouterr().out
    assert "FAIL: 1 of 3 rows, 2 skipped" in printed
    assert command.LOST in printed


def test_a_gpu_is_lost_if_it_cannot_be_waited_for(pretended_gpu, monkeypatch):
    monkeypatch.setattr(engine.torch.cuda, "synchronize", lambda device: None)
    assert not pretended_gpu.is_lost()

    def raises(device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.torch.cuda, "synchronize", raises)
    assert pretended_gpu.is_lost()
    assert not engine.Engine(torch.device("cpu"), engine.REFERENCE).is_lost()


@pytest.mark.parametrize("value", ["1", "true", "ON", "y", "0", "", "false", None])
def test_kernels_interpreted_on_a_gpu_are_refused(value, monkeypatch, capsys):
    """Interpreted kernels would pass although no kernel was compiled."""
    monkeypatch.setattr(engine.environment, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(command, "ROWS", ())
    monkeypatch.setattr(command.environment, "facts", lambda device: {})
    monkeypatch.setattr(engine.torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if value is not None:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    if value in ("0", "", "false", None):
        assert engine.choose(None, False).name == engine.KERNELS
        return
    with pytest.raises(SystemExit) as stop:
        main(["check"])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "TRITON_INTERPRET: expected it unset on a GPU (unset TRITON_INTERPRET)" in printed
    assert f"got {value!r}" in printed


def test_only_takes_a_row_by_its_name_else_all_that_contain_the_word():
    chosen = lambda *words: [row.name for row in command.chosen(words)]  # noqa: E731
    assert chosen("float16") == ["float16"]
    assert chosen("loat16") == ["bfloat16", "float16", "images in bfloat16", "images in float16"]
    assert chosen("uint8", "identity") == ["uint8", "identity"]
    assert command.chosen(None) == list(ROWS)


def test_a_row_that_compares_nothing_fails(capsys, monkeypatch):
    monkeypatch.setattr(command, "ROWS", [row._replace(find=lambda *a: iter([[], []])) for row in ROWS])
    code, found, titles = check(capsys, "--only", "uint8")
    assert (code, titles["FAIL"]) == (1, ["uint8"])
    assert found["rows"][0]["text"] == "there was nothing to compare"


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "many", "index"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_no_pixel_near_a_kink_has_a_gradient_in_any_layout(layout, kind, dim, monkeypatch):
    """Pixels that share memory with a pixel near a kink have no gradient either."""

    def by_chance(matrices, size_in, size, options):
        generator = torch.Generator().manual_seed(dim)
        return torch.rand(len(matrices), *size, generator=generator) < 0.1, 1.0

    monkeypatch.setattr(cases, "_kinks", by_chance)
    case = cases.make(torch.device("cpu"), kind=kind, dim=dim, layout=layout)
    grad = case.grad.flatten(0, 1) if kind == "many" else case.grad
    found = grad.abs().sum(1)
    assert case.skipped.any(0).any()
    assert not case.skipped.all(0).any()
    assert (found[case.skipped] == 0).all()
    assert (found > 0).any()


class TestCompare:
    CASE = rows.make(torch.device("cpu"))
    HERE = engine.choose("cpu", False)

    def find(self, actual, exact, budget=0.0):
        tensors = [torch.as_tensor(t).view(1, 1, 1, -1) for t in (actual, exact)]
        return judge.compare(self.CASE, self.HERE, "output", tensors[0], tensors[1].double(), budget)

    def test_rounding_to_the_dtype_is_allowed_and_no_more(self):
        exact = [1 + 2**-9]  # halfway between two numbers of bf16
        assert self.find(torch.tensor([1.0]).bfloat16(), exact).passed()
        assert not self.find(torch.tensor([1.0 - 2**-8]).bfloat16(), exact).passed()

    def test_bytes_may_round_either_way_at_a_half(self):
        for byte, passes in ((2, True), (3, True), (4, False), (1, False)):
            assert self.find(torch.tensor([byte], dtype=torch.uint8), [2.5]).passed() == passes
        assert self.find(torch.tensor([255], dtype=torch.uint8), [300.0]).passed()

    @pytest.mark.parametrize(("actual", "exact"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
    def test_what_is_not_finite_fails(self, actual, exact):
        finding = self.find([actual, 1.0], [exact, 1.0], 1e3)
        assert not finding.passed()
        assert finding.share() == math.inf

    @pytest.mark.parametrize("budget", [0.0, 1e3, math.inf, math.nan])
    @pytest.mark.parametrize("beyond", [math.inf, -math.inf, math.nan])
    def test_what_is_expected_not_to_be_finite_allows_nothing(self, beyond, budget):
        for actual in ([1.0, 0.0], [1.0, 3e38], [1.0, -beyond if beyond == beyond else math.inf]):
            finding = self.find(actual, [1.0, beyond], budget)
            assert not finding.passed()
            assert finding.share() == math.inf
        assert not self.find([0.0, 0.0], [1.0, beyond], math.inf).passed()
        same = self.find([beyond, 1.0], [beyond, 1.0], budget)
        assert same.passed() == math.isfinite(budget)
        assert not self.find([beyond, 1.0], [beyond, 1e9], budget).passed()

    def test_one_infinite_element_does_not_widen_what_is_allowed_of_others(self):
        exact = torch.tensor([1.0, math.inf, -3.0, math.nan], dtype=torch.float64)
        assert judge._size("output", exact, torch.ones(4)) == 3
        assert judge._size("output", exact[1::2], torch.ones(4)) == 1
        assert judge._size("output", exact[:0], torch.ones(4)) == 1

    def test_the_worst_is_named(self):
        finding = self.find([1.0, 2.5, 3.0], [1.0, 2.0, 3.0])
        assert finding.text == "output[0, 0, 0, 1] is 2.5, expected 2"
        assert finding.error == 0.5


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "code", "stream", "text"),
        [
            (["--help"], 0, "out", "exit codes, of every command:"),
            (["check", "--help"], 0, "out", "examples:"),
            (["info", "--help"], 0, "out", "examples:"),
            ([], 2, "err", "examples:"),
            (["chek"], 2, "err", "invalid choice: 'chek'"),
            (["check", "--fast"], 2, "err", "unrecognized arguments: --fast"),
        ],
    )
    def test_help_and_wrong_arguments(self, capsys, arguments, code, stream, text):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == code
        assert text in getattr(capsys.readouterr(), stream)

    @pytest.mark.full
    def test_importing_the_package_imports_no_check(self):
        script = "import stn_triton, sys; print([m for m in sys.modules if m.startswith('stn_triton.check')])"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == "[]\n"

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                ["--only", "spline", "nonsense"],
                "check: error: --only: no row has 'nonsense' in its name; there are:",
            ),
            (["--device", "tpu"], "check: error: --device: no device 'tpu' here; available: "),
        ],
    )
    def test_wrong_values_are_named(self, capsys, arguments, text):
        with pytest.raises(SystemExit) as stop:
            main(["check", *arguments])
        assert stop.value.code == 2
        assert text in capsys.readouterr().err

    def test_the_interpreter_needs_numpy(self, capsys, monkeypatch):
        monkeypatch.setattr(environment.util, "find_spec", lambda name: None if name == "numpy" else name)
        with pytest.raises(SystemExit) as stop:
            main(["check", "--interpret"])
        assert stop.value.code == 2
        assert "--interpret: numpy not installed" in capsys.readouterr().err

    def test_an_interruption_has_its_own_code(self, monkeypatch, capsys):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(reference, "forward", interrupt)
        assert main(["check", "--quick", *CPU]) == 130
        assert "interrupted" in capsys.readouterr().err
