"""Export of models to files that run without scanlab: AOTInductor packages for torch, graphs for ONNX Runtime."""
