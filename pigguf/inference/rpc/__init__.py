"""Layers on other machines, through llama.cpp's RPC backend: client, worker, weight cache."""
