"""The dual encoder for other runtimes: ONNX files, `torch.export` archives, and an engine that runs ONNX files."""
