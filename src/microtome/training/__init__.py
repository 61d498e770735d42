"""Training of any module: one loop for quantization-aware training, distillation, and what else learns by gradient."""
