"""A model as files that run without scanlab: packages of AOTInductor for torch, graphs for ONNX Runtime."""
