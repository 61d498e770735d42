"""From a Network to a TensorFlow Lite file: tensors, layouts, and one function per operator."""
