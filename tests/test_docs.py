"""README and docs: examples run, links have targets, and lists of files are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMED = {"ids": lambda path: path.stem}


def examples(page: Path) -> list[str]:
    """Return the Python blocks of a page, changed to run without a GPU."""
    text = page.read_text().replace(', device="cuda"', "").replace('.to("cuda")', "")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], **NAMED)
def test_the_examples_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    if "onnx" in page.read_text():
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in examples(page):
        if "init_device_mesh" not in example:
            exec(example, names)
    shapes = {"README": ("crops", (8, 3, 96, 96)), "use": ("rois", (3, 256, 7, 7))}
    if page.stem in shapes:
        name, shape = shapes[page.stem]
        assert names[name].shape == shape
    if page.stem == "use":
        assert names["crops"].shape == (4, 3, 256, 7, 7)
        assert names["small"].dtype == torch.uint8
    assert (tmp_path / "warp.onnx").exists() == (page.stem == "pytorch")


@pytest.mark.full
def test_the_example_of_two_processes_runs(tmp_path):
    (example,) = (e for e in examples(ROOT / "docs" / "pytorch.md") if "init_device_mesh" in e)
    check = "assert crops.shape == (8, 3, 32, 32) and crops.to_local().shape == (4, 3, 32, 32)\n"
    file = tmp_path / "example.py"
    file.write_text(example + check + "torch.distributed.destroy_process_group()\n")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, **NAMED)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_internals_name_every_module():
    text = (ROOT / "docs" / "internals.md").read_text()
    named = set(re.findall(r"`(?!tools/)(?:\w+/)?(\w+)\.py`", text))
    folders = [ROOT / "stn_triton", *(ROOT / "stn_triton" / name for name in ("kernels", "transforms", "nn"))]
    modules = {path.stem for folder in folders for path in folder.glob("*.py")}
    assert {name for name in modules if not name.startswith("__")} == named - {"oracle"}
