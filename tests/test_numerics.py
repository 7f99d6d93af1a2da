"""``python -m perf numerics``: truth, verdicts, the interpreter's roundings, the documented tables."""

import json
import math
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
from perf import UsageError
from perf.__main__ import main
from perf.accuracy import error_tables, errors, interpreted
from perf.measuring.maps import RANDOM
from stn_triton import launch
from stn_triton.check import oracle

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "perf" / "results" / "numerics-cpu-epyc-2-threads.csv"
CPU = torch.device("cpu")
NAN = (math.nan, math.nan)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(errors, "IMAGES", 2)
    monkeypatch.setattr(errors, "SIZES", (9,))


@pytest.fixture
def one_cell(monkeypatch):
    monkeypatch.setattr(errors, "MAPS", (RANDOM,))
    monkeypatch.setattr(errors, "AUTOCASTS", {torch.float32: (None,)})


@pytest.mark.parametrize("map_name", errors.MAPS)
@pytest.mark.parametrize("dtype", errors.AUTOCASTS, ids=errors.short)
def test_truth_is_the_oracle_s(dtype, map_name):
    case = errors.make(dtype, 9, map_name, CPU)
    assert case.input.dtype == case.theta.dtype == case.grad.dtype == dtype
    expected = oracle.solve(case.input, case.theta, (9, 9), case.grad)
    for quantity, truth, other in zip(errors.QUANTITIES, case.truth, expected, strict=False):
        if not (quantity == "grad_theta" and map_name == errors.IDENTITY):
            assert (truth - other).abs().max() <= 1e-12 * other.abs().max(), quantity
    assert case.truth.grad_theta.abs().max() < torch.finfo(torch.float16).max


@pytest.mark.parametrize(
    ("ours", "theirs", "refusal", "verdict"),
    [
        ((1.0, 2.0), (2.0, 3.0), "", errors.BETTER),
        ((1.0, 2.0), (1.01, 1.5), "", errors.EQUAL),
        ((1.03, 2.0), (1.0, 2.0), "", errors.WORSE),
        ((1.0, 2.1), (2.0, 1.0), "", errors.WORSE),  # few pixels, but far off
        ((0.0, 0.0), (0.0, 0.0), "", errors.EQUAL),
        ((1e-30, 1e-30), (0.0, 0.0), "", errors.WORSE),
        (NAN, (1.0, 1.0), "", errors.WORSE),
        (NAN, NAN, "", errors.EQUAL),
        ((1.0, 1.0), NAN, "", errors.BETTER),
        ((1.0, 1.0), NAN, "it may not run", errors.ALONE),
        (NAN, NAN, "it may not run", errors.WORSE),
    ],
)
def test_verdicts(ours, theirs, refusal, verdict):
    assert errors.judged(ours, theirs, refusal) == verdict


@pytest.mark.full
def test_command(tmp_path):
    assert main(["numerics", "--out", str(tmp_path)]) == 0
    table = error_tables.read(tmp_path / "numerics.csv")
    assert (tmp_path / "numerics.png").stat().st_size > 10_000
    assert set(table["verdict"]) <= {errors.BETTER, errors.EQUAL, ""}
    kernels = table[table["provider"] == errors.KERNELS]
    assert (kernels.loc[kernels["map"] == errors.IDENTITY, "rms"] == 0).all()
    # Seven combinations of dtype and autocast, three quantities under one map and two under the other.
    assert len(kernels) == 7 * (3 + 2)
    # Autocast changes nothing for the operator.
    assert (kernels.groupby(["map", "dtype", "quantity"])["rms"].nunique() == 1).all()


@pytest.mark.usefixtures("one_cell")
def test_json_and_an_earlier_run(tmp_path, capsys):
    assert main(["numerics", "--out", str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["quantity"] for row in rows} == set(errors.QUANTITIES)
    assert all(row["torch"] == torch.__version__ and row["shape"] == "2x1x9x9" for row in rows)
    assert main(["numerics", "--out", str(tmp_path), "--results", str(tmp_path / "numerics.csv")]) == 0
    assert "| fp32 | 9 | " in capsys.readouterr().out


@pytest.mark.usefixtures("one_cell")
@pytest.mark.parametrize(("quantity", "planted"), [(0, 1.0), (1, math.nan), (2, 1.0)])
def test_a_planted_error_fails(quantity, planted, tmp_path, capsys, monkeypatch):
    original = errors.operator

    def wrong(*args):
        result = list(original(*args))
        result[quantity].flatten()[-1] += planted  # a single number of the last image
        return errors.Result(*result)

    monkeypatch.setattr(errors, "operator", wrong)
    assert main(["numerics", "--out", str(tmp_path)]) == 1
    provider = errors.KERNELS if torch.cuda.is_available() else errors.REFERENCE
    rows = [line.split()[:5] for line in capsys.readouterr().out.splitlines()]
    assert [errors.WORSE, provider, errors.QUANTITIES[quantity], "9", "fp32"] in rows


@triton.jit
def _three(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _kernel(out_ptr, x_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    rest = tl.fma(x, x, -(x * x))
    sums = tl.reduce((rest, x, x * 0 + 1), 0, _three)
    for i in tl.static_range(3):
        tl.store(out_ptr + i, sums[i])


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_the_interpreter_rounds_as_a_gpu_and_only_within():
    case = errors.make(torch.bfloat16, 9, RANDOM, CPU)
    x, out = torch.full((8,), 1 + 2**-12), torch.empty(3)
    with interpreted.rounding_as_gpus((9, 9)):
        half, wide = (launch.forward(i, case.theta, size=(9, 9)) for i in (case.input, case.input.float()))
        _kernel[(1,)](out, x, N=8)
    assert torch.equal(half, wide.to(torch.bfloat16))
    assert not torch.equal(launch.forward(case.input, case.theta, size=(9, 9)), half)  # it truncates
    assert out.tolist() == [8 * 2.0**-24, 8 * (1 + 2.0**-12), 8.0]


def test_the_pair_is_not_run_where_it_leaves_its_memory():
    """16-bit planes of more than 32,768 pixels on a CPU, and no others."""
    for dtype in (torch.bfloat16, torch.float16):
        large, small = torch.zeros(1, 1, 256, 256, dtype=dtype), torch.zeros(1, 1, 128, 256, dtype=dtype)
        assert errors.refusal(large, None) == errors.UNADDRESSED
        assert not errors.refusal(small, None)
        assert not errors.refusal(large, dtype)
        assert not errors.refusal(large.float(), None)


def test_the_documented_tables_are_those_of_the_committed_run():
    table = error_tables.read(COMMITTED)
    assert error_tables.markdown(table) in (ROOT / "docs" / "numerics.md").read_text()
    assert set(table["size"]) == {28, 224, 1024, 4096, 8192}
    assert not (table["verdict"] == errors.WORSE).any()
    assert not table["commit"].str.contains("dirty").any()
    assert len(error_tables.chart(table).axes) == 9


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "size,rms,max\nx,1,1\n"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "some.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"--results: .*some\.csv.*expected a CSV that `python"):
        error_tables.read(path)
