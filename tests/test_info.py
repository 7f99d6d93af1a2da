"""``python -m stn_triton info``: tables that are used and those that are not, and what is supported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stn_triton import environment, info, tables, tuning
from stn_triton.command_line import main
from stn_triton.options import DEFAULT

ROOT = Path(__file__).resolve().parents[1]
GPU = "Imaginary GPU"
VARIANT = tuning.variant_of(2, False, False, False, DEFAULT)
BUCKETS = [tuning.bucket_of("forward", VARIANT, False, torch.float32, 8, c, 4096) for c in (3, 64)]
ENTRIES = {bucket.name(): tuning.default(bucket) for bucket in BUCKETS}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Where tables are, none of them of this user."""
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned")
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return {"shipped": tmp_path / "tuned", "user": tmp_path / "cache"}


def write(folder, device=GPU, entries=ENTRIES, kernels=None, name=None):
    folder.mkdir(exist_ok=True)
    path = folder / (name or f"{tables.slug(device)}.json")
    path.write_text(tables.dumps(tables.Table(device, kernels or tables.kernels(), entries)))
    return path


def states(gpu=GPU):
    return [(s.origin, s.entries, s.bad_entries, s.is_used, s.reason) for s in info.table_states(gpu)]


def is_known():
    """Whether calls on the GPU would find the entries, by what they ask themselves."""
    return set(tables.known(GPU, tuning.SHIPPED, tuning.checked)) == set(BUCKETS)


def test_no_tables():
    assert states() == []
    assert not is_known()


@pytest.mark.parametrize("origin", ["shipped", "user"])
def test_a_table_that_is_used(folders, origin):
    path = write(folders[origin])
    assert states() == [(origin, 2, 0, True, "")]
    assert info.table_states(GPU)[0].path == str(path)
    assert is_known()


def test_a_table_for_other_kernels_is_used_only_if_shipped(folders):
    write(folders["user"], kernels="old")
    assert states() == [("user", 2, 0, False, "ignored: tuned for other kernels than this version's")]
    assert not is_known()
    write(folders["shipped"], kernels="old")
    reason = "tuned for older kernels: right, perhaps not the fastest"
    assert states()[0] == ("shipped", 2, 0, True, reason)
    assert is_known()


def test_a_damaged_table_is_ignored_and_says_why(folders):
    path = write(folders["user"])
    path.write_text(path.read_text()[:-9])
    assert states() == [("user", 0, 0, False, "ignored: not JSON")]
    path.write_text('{"version": 7}')
    assert states() == [("user", 0, 0, False, "ignored: version 7, expected 1")]


def test_bad_entries_are_counted(folders):
    bad = {**ENTRIES, "../../etc/passwd": {"BLOCK_C": 4}, BUCKETS[0].name(): {"BLOCK_C": 2**40}}
    write(folders["user"], entries=bad)
    told = "2 entries are not good and ignored"
    assert states() == [("user", 1, 2, True, told)]
    assert states(None)[0][4].endswith(f"this device is none; {told}")


def test_a_table_whose_file_has_another_name_is_not_found_and_says_which(folders):
    write(folders["user"], name="tuned-by-hand.json")
    reason = "ignored: a table of this GPU is looked for as imaginary-gpu.json"
    assert states() == [("user", 2, 0, False, reason)]
    assert not is_known()


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_table_that_is_distrusted_is_not_used_and_says_why(folders, what):
    path = write(folders["user"])
    place, mode, subject = {
        "directory": (path.parent, 0o777, "its directory"),
        "file": (path, 0o666, "it"),
    }[what]
    place.chmod(mode)
    reason = f"ignored: everyone may write to {subject}, mode {mode:04o}; chmod o-w {place}"
    assert states() == [("user", 0, 0, False, reason)]
    assert not is_known()
    path = write(folders["shipped"])
    path.chmod(0o666)  # who may write to the package may change its code
    assert states()[0] == ("shipped", 2, 0, True, "")
    assert is_known()


def test_another_gpu_s_table_is_listed_last(folders):
    write(folders["user"], "Another GPU")
    write(folders["user"])
    assert [s[3:] for s in states()] == [(True, ""), (False, f"not used on {GPU}")]
    write(folders["user"], "Another GPU", name=f"{tables.slug(GPU)}.json")
    assert not any(s[3] for s in states())
    assert not is_known()


def test_without_a_gpu_no_table_is_used(folders):
    write(folders["user"])
    assert states(None) == [
        ("user", 2, 0, False, "not used: block sizes are a GPU's, and this device is none")
    ]


def test_it_is_printed(folders, capsys, monkeypatch):
    path = write(folders["user"])
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["info", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"{path} of {GPU}: 2 entries, not used" in " ".join(printed.split())
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
        assert f"\n  {name} " in printed
    assert torch.__version__ in printed


HOSTILE = "\x1b]0;x\x07\r\n\x9b2J\u202e"


@pytest.mark.parametrize("place", ["device", "kernels", "file", "directory", "entry"])
def test_what_is_in_tables_and_paths_does_not_steer_the_terminal(
    folders, tmp_path, capsys, monkeypatch, place
):
    device = HOSTILE + "x" * 10**6 if place == "device" else "Another GPU"
    folder = folders["user"]
    if place == "directory":
        folder = tmp_path / HOSTILE
        monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(folder))
    write(
        folder,
        device,
        {HOSTILE: 1} if place == "entry" else ENTRIES,
        HOSTILE if place == "kernels" else None,
        f"{HOSTILE}\udcff.json" if place == "file" else "another-gpu.json",
    )
    assert main(["info", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(letter.isprintable() for letter in printed.replace("\n", ""))
    assert len(printed) < 10_000
    if place in ("device", "file", "directory"):
        assert r"\x1b]0;x\x07\r\n\x9b2J\u202e" in printed
    assert main(["info", "--json", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_json_is_json_alone_and_tells_nobody_of_tables(folders, tmp_path):
    """In a process of its own; what is wrong with a table is in the output, not on the log."""
    write(folders["user"]).write_text("no table")
    done = subprocess.run(
        [sys.executable, "-m", "stn_triton", "info", "--json", "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["kernels"] == tables.kernels()
    assert found["tables"][0]["reason"] == "ignored: not JSON"
    assert found["environment"]["torch"].startswith(torch.__version__)


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
    [((9, 0), "yes", "uint8"), ((7, 5), "unlikely: Triton supports capability 8.0", "not on this GPU)")],
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


CACHES = {
    "there": (lambda path: path.mkdir(), ", read and written"),
    "not there": (lambda path: None, ", made when it is first needed"),
    "a file": (lambda path: path.write_text(""), " cannot be used: not a directory"),
    "under a file": (lambda path: path.parent.write_text(""), " cannot be used: Not a directory"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), " cannot be used: a link to nothing"),
    "a link to itself": (
        lambda path: path.symlink_to(path),
        " cannot be used: Too many levels of symbolic links",
    ),
}


@pytest.mark.parametrize("case", CACHES)
def test_the_cache_is_named_and_what_is_wrong_with_it(tmp_path, monkeypatch, case):
    make, expected = CACHES[case]
    path = tmp_path / "own" / "cache"
    if case != "under a file":
        path.parent.mkdir()
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(path))
    make(path)
    assert info.cache() == f"{path}{expected}"


@pytest.mark.parametrize(
    ("denied", "expected"),
    [
        (os.W_OK, " cannot be written"),
        (os.R_OK, " cannot be read"),
        (os.X_OK, " cannot be read or written"),
    ],
)
def test_a_cache_whose_mode_forbids_it(tmp_path, monkeypatch, denied, expected):
    """Root, who often runs tests, may do everything: so the answer is replaced."""
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(info.os, "access", lambda path, mode: not mode & denied)
    assert info.cache() == f"{tmp_path}{expected}"
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(tmp_path / "new"))
    if denied != os.R_OK:
        assert info.cache() == f"{tmp_path / 'new'} is not there and cannot be made"


def test_facts_have_the_settings_that_matter(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("UNRELATED", "1")
    found = environment.facts(torch.device("cpu"))
    assert "TRITON_CACHE_DIR=/somewhere" in found["variables"]
    assert "UNRELATED" not in found["variables"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here that is always full")
def test_a_full_disk_is_told_of():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "stn_triton", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: info: the output cannot be written: No space left on device"
    )


def test_a_reader_who_leaves_is_no_failure():
    script = f"set -o pipefail; {sys.executable} -m stn_triton info | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 141)  # 0 if all was written before
    assert "Traceback" not in done.stderr
