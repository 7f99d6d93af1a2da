"""The command that runs compute-sanitizer, with a script in its place."""

import sys

import pytest
import sanitize

# Script that records its arguments, writes the report that the test prepared, and exits with a given code.
FAKE = """#!{python}
import os, pathlib, sys
arguments = sys.argv[1:]
tool = arguments[arguments.index("--tool") + 1]
here = pathlib.Path(__file__).parent
settings = [os.environ[name] for name in ("PYTORCH_NO_CUDA_MEMORY_CACHING", "STN_TRITON_SANITIZED")]
(here / f"{{tool}}.called").write_text("\\n".join([*settings, *arguments]))
report = here / f"{{tool}}.report"
if report.exists():
    log = arguments[arguments.index("--log-file") + 1].replace("%p", str(os.getpid()))
    pathlib.Path(log).write_text(report.read_text())
sys.exit(int((here / "exit").read_text()))
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
FOUND = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 3 errors\n"
NO_RACE = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
RACE = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put `FAKE` in the PATH, and pretend that there is a GPU."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sanitize.torch.cuda, "is_available", lambda: True)

    def tell(exit_code=0, **reports):
        (tmp_path / "exit").write_text(str(exit_code))
        for tool, text in reports.items():
            (tmp_path / f"{tool}.report").write_text(text)
        return tmp_path

    return tell


def run(folder, *arguments):
    return sanitize.main(["--logs", str(folder / "logs"), *arguments])


def test_all_tools_that_find_nothing(fake, capsys):
    folder = fake(memcheck=CLEAN, racecheck=NO_RACE, initcheck=CLEAN + CLEAN)
    assert run(folder) == 0
    output = capsys.readouterr().out
    assert [f"{tool}: PASS, 0 errors" in output for tool in sanitize.TOOLS] == [True] * 3
    assert "in 2 processes" in output
    assert len(list((folder / "logs").glob("*.log"))) == 3
    assert (folder / "logs" / "memcheck.txt").exists()


def test_what_is_run(fake):
    folder = fake(memcheck=CLEAN)
    assert run(folder, "--tools", "memcheck", "--", "tests/test_x.py", "-k", "some") == 0
    caching, sanitized, *arguments = (folder / "memcheck.called").read_text().split("\n")
    assert (caching, sanitized) == ("1", "1")
    assert arguments[-3:] == ["tests/test_x.py", "-k", "some"]
    assert arguments[arguments.index(sys.executable) + 1 :][:2] == ["-m", "pytest"]
    assert not (folder / "racecheck.called").exists()


@pytest.mark.parametrize(
    ("tool", "report", "exit_code", "words"),
    [
        ("memcheck", FOUND, sanitize.FOUND, "FAIL, 3 errors"),
        ("memcheck", FOUND, 0, "FAIL, 3 errors"),
        ("racecheck", RACE, sanitize.FOUND, "FAIL, 1 errors"),
        ("initcheck", CLEAN + FOUND, sanitize.FOUND, "FAIL, 3 errors in 2 processes"),
        ("memcheck", CLEAN, 1, "FAIL, 0 errors in 1 processes, and pytest failed (exit code 1)"),
        ("memcheck", "", 0, "FAIL, no report"),
        ("memcheck", "========= killed\n", 137, "FAIL, no report: it did not run (exit code 137)"),
    ],
)
def test_failures(fake, capsys, tool, report, exit_code, words):
    folder = fake(exit_code, **{tool: report})
    assert run(folder, "--tools", tool) == 1
    assert words in capsys.readouterr().out


def test_a_clean_tool_after_one_that_found_something_changes_nothing(fake):
    folder = fake(memcheck=FOUND, racecheck=NO_RACE)
    assert run(folder, "--tools", "memcheck", "racecheck") == 1


def test_reports_of_an_earlier_run_do_not_count(fake):
    folder = fake(memcheck=FOUND)
    assert run(folder, "--tools", "memcheck") == 1
    fake(memcheck=CLEAN)
    assert run(folder, "--tools", "memcheck") == 0


def test_without_a_sanitizer(fake, monkeypatch, capsys):
    monkeypatch.setattr(sanitize.shutil, "which", lambda name, path: None)
    assert run(fake()) == 2
    assert "no compute-sanitizer" in capsys.readouterr().err


def test_without_a_gpu(fake, monkeypatch, capsys):
    folder = fake()
    monkeypatch.setattr(sanitize.torch.cuda, "is_available", lambda: False)
    assert run(folder) == 2
    assert "no GPU" in capsys.readouterr().err


def test_it_is_found_in_a_toolkit_too(fake, monkeypatch, tmp_path):
    folder = fake()
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (folder / "compute-sanitizer").rename(tmp_path / "cuda" / "bin" / "compute-sanitizer")
    assert sanitize.find_sanitizer() is None
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert sanitize.find_sanitizer() == str(tmp_path / "cuda" / "bin" / "compute-sanitizer")
