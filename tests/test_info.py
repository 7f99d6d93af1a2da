"""``python -m stn_triton info``: used and unused tables, and supported features."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stn_triton import buckets, environment, info, policy, tables, tuning
from stn_triton.command_line import main
from stn_triton.options import DEFAULT

ROOT = Path(__file__).resolve().parents[1]
GPU = "Imaginary GPU"
VARIANT = buckets.variant_of(2, False, False, False, DEFAULT)
BUCKETS = [buckets.bucket_of("forward", VARIANT, False, torch.float32, 8, c, 4096) for c in (3, 64)]
ENTRIES = {bucket.name(): policy.default(bucket) for bucket in BUCKETS}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Use an empty folder for shipped tables, and return it."""
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned")
    monkeypatch.delenv("STN_TRITON_AUTOTUNE", raising=False)
    return tmp_path / "tuned"


def write(folder, device=GPU, entries=ENTRIES, kernels=None, name=None):
    path = folder / (name or f"{tables.slug(device)}.json")
    tables.write(path, tables.Table(device, kernels or tables.kernels(), entries))
    return path


def states(gpu=GPU):
    return [(s.entries, s.bad_entries, s.is_used, s.reason) for s in info.table_states(gpu)]


def is_known():
    """Whether calls on the GPU would find the entries."""
    tuning.shipped.cache_clear()
    return set(tuning.shipped(GPU)) == set(BUCKETS)


def test_no_tables():
    assert states() == []
    assert not is_known()


def test_a_table_that_is_used(folder):
    path = write(folder)
    assert states() == [(2, 0, True, "")]
    assert info.table_states(GPU)[0].path == str(path)
    assert is_known()


def test_a_table_for_older_kernels_is_used_and_said_to_be(folder):
    write(folder, kernels="old")
    assert states() == [(2, 0, True, "tuned for older kernels: right, perhaps not the fastest")]
    assert is_known()


def test_a_damaged_table_is_ignored_and_says_why(folder):
    path = write(folder)
    path.write_text(path.read_text()[:-9])
    assert states() == [(0, 0, False, "ignored: not JSON")]
    path.write_text('{"version": 7}')
    assert states() == [(0, 0, False, "ignored: version 7, expected 1")]
    assert not is_known()


def test_bad_entries_are_counted(folder):
    bad = {**ENTRIES, "../../etc/passwd": {"BLOCK_C": 4}, BUCKETS[0].name(): {"BLOCK_C": 2**40}}
    write(folder, entries=bad)
    told = "2 entries are not good and ignored"
    assert states() == [(1, 2, True, told)]
    assert states(None)[0][3].endswith(f"this device is none; {told}")
    write(folder, entries={"../../etc/passwd": {"BLOCK_C": 4}})
    assert states() == [(0, 1, False, "ignored: no good entries; 1 entries are not good and ignored")]


def test_a_table_whose_file_has_another_name_is_not_found_and_says_which(folder):
    write(folder, name="tuned-by-hand.json")
    reason = "ignored: a table of this GPU is looked for as imaginary-gpu.json"
    assert states() == [(2, 0, False, reason)]
    assert not is_known()


def test_another_gpu_s_table_is_listed_last(folder):
    write(folder, "Another GPU")
    write(folder)
    assert [s[2:] for s in states()] == [(True, ""), (False, f"not used on {GPU}")]
    write(folder, "Another GPU", name=f"{tables.slug(GPU)}.json")
    assert not any(s[2] for s in states())
    assert not is_known()


def test_without_a_gpu_no_table_is_used(folder):
    write(folder)
    assert states(None) == [(2, 0, False, "not used: block sizes are for GPUs, and this device is none")]


def printed(capsys, *options):
    assert main(["info", *options]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_it_is_printed(folder, capsys, monkeypatch):
    path = write(folder)
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, "--device", "cpu")
    assert f"{path} of {GPU}: 2 entries, not used" in text
    for name in (
        "torch",
        "triton",
        "gpu",
        "GPU kernels",
        "torch.compile",
        "ONNX export",
        "DTensor",
        "dtypes",
    ):
        assert f" {name} " in text
    assert torch.__version__ in text


def test_calls_never_tune_without_a_request(capsys, monkeypatch):
    assert "calls never search unless requested (STN_TRITON_AUTOTUNE=1, stn_triton.autotune())" in printed(
        capsys, "--device", "cpu"
    )
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    assert "calls search for entries that no table has, again in each process" in printed(
        capsys, "--device", "cpu"
    )


def test_on_a_gpu_the_table_in_use_is_named_or_that_defaults_are(folder, capsys, monkeypatch):
    monkeypatch.setattr(environment, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(environment, "facts", lambda device: {})
    monkeypatch.setattr(info, "support", lambda device: {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    assert f"table none for {GPU}: defaults are used" in printed(capsys)
    path = write(folder)
    text = printed(capsys)
    assert f"table {path} of {GPU}: 2 entries, used" in text
    assert "none for" not in text


def test_json_is_alone_and_logs_nothing_of_tables(folder, monkeypatch, capsys, caplog):
    """Faults of a table are in the output, not in the log."""
    write(folder).write_text("no table")
    assert main(["info", "--json", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (captured.err, caplog.records) == ("", [])
    assert found["kernels"] == tables.kernels()
    assert found["calls"].startswith("never search")
    assert found["tables"][0]["reason"] == "ignored: not JSON"
    assert found["environment"]["torch"].startswith(torch.__version__)


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.4.6", True), ("none", "2.4.6", True)],
)
def test_versions_whose_interpreter_fails_are_said_with_what_to_install(monkeypatch, triton, numpy, works):
    monkeypatch.setattr(environment, "version", {"triton": triton, "numpy": numpy}.get)
    problem = environment.interpreter_problem()
    assert (problem == "") == works
    assert works or "pip install 'numpy<2.4'" in problem


def test_what_is_missing_is_said(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(info.util, "find_spec", lambda name: None)
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    found = info.support(cpu)
    assert found["ONNX export"] == "no: onnx and onnxscript not installed"
    assert found["interpreter"] == "no: triton and numpy not installed"
    assert found["torch.compile"] == "backend='aot_eager' alone: no C++ compiler is found"


@pytest.mark.parametrize(
    ("capability", "kernels", "dtypes"),
    [((9, 0), "yes", "int64"), ((7, 5), "unlikely: Triton supports capability 8.0", "not on this GPU)")],
)
def test_of_a_gpu_its_capability_decides(monkeypatch, capability, kernels, dtypes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    found = info.support(torch.device("cuda", 0))
    assert found["GPU kernels"].startswith(kernels)
    assert found["dtypes"].endswith(dtypes)


def test_a_wrong_device_is_a_wrong_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", "--device", "cuda:99"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: python -m stn_triton info ")
    assert "info: error: --device: no device 'cuda:99' here; available: " in told


def test_of_an_unknown_argument_the_command_s_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", "--frobnicate"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: python -m stn_triton info ")
    assert told.endswith("error: unrecognized arguments: --frobnicate\n")


def test_facts_have_the_settings_that_matter(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("UNRELATED", "1")
    found = environment.facts(torch.device("cpu"))
    assert "TRITON_CACHE_DIR=/somewhere" in found["variables"]
    assert "UNRELATED" not in found["variables"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here that is always full")
@pytest.mark.full
def test_a_full_disk_is_reported():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "stn_triton", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: info: the output cannot be written: No space left on device"
    )


@pytest.mark.full
def test_a_reader_who_leaves_is_no_failure():
    script = f"set -o pipefail; {sys.executable} -m stn_triton info | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 141)  # 0 if all was written before
    assert "Traceback" not in done.stderr
