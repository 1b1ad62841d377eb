"""Tokens on disk: our token files, and Megatron's .bin and .idx."""
