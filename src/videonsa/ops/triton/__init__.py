"""The kernels of the forward pass. Import `attention` where Triton is installed; see README.md."""
