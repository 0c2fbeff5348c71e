"""Run frozen foundation models once, keep their tensors, distil small students from them."""

__version__ = "0.1.0"
