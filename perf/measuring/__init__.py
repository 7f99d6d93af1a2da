"""The parts of `bench`: workloads, passes, providers, the gate, the clock and the byte model."""
