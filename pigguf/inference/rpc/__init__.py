"""Layers on other machines, through llama.cpp's RPC backend.

client             connect to workers, whose devices take a model's layers
worker_connection  the connections to one worker, with a heartbeat
loopback_proxy     where llama.cpp's RPC client connects to: a port of this process, forwarded to a worker
worker             `pigguf worker`: this machine's devices, for one client at a time
weight_cache       a worker's cache of weights on disk
"""
