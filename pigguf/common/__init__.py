"""Helpers that every other package may use: configuration, files, threads, text decoding, numerics."""
