"""What Nsight Compute watches: a forward and backward of each workload, by the operator, then the eager pair.

Run as ``ncu ... python -m perf.evidence.profiled WORKLOAD ...``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perf.evidence.stage import Stage
from perf.measuring import providers, workloads
from perf.measuring.passes import PASSES


def main() -> None:
    """Call both once: ncu runs each kernel as often as it needs, from a cold cache."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="+")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    stage = Stage(Path(), 0.0, args.rehearse)
    with stage.kernels():
        for name in args.workloads:
            data = workloads.make(stage.sized(workloads.WORKLOADS[name]), stage.device)
            for sampler in (providers.operator, providers.eager_pair):
                PASSES["forward+backward"](sampler, data)()


if __name__ == "__main__":
    main()
