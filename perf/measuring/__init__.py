"""What `bench` measures with: workloads, passes, providers, the gate, the clock and the byte model."""
