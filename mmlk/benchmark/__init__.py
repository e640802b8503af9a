"""Latency, throughput and memory of one model in every form in which it can run."""
