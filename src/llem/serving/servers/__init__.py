"""Backends that are servers: vLLM, TensorRT-LLM and whatever speaks OpenAI's interface."""
