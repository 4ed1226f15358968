"""Stands in for vLLM where SGLang takes a kernel from it on CPU."""
