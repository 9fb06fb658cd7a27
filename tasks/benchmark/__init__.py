"""Export every model to ONNX and measure how long it takes, in ONNX Runtime and in PyTorch."""
