"""What `static` works with: kernels compiled without a GPU, and their machine code."""
