"""A checkpoint as an ONNX graph, in each precision."""
