"""Networks of other formats: an ONNX graph as PyTorch operators, and TensorFlow Lite as an ONNX graph.

Nothing here needs torch or onnx until a model is read.
"""
