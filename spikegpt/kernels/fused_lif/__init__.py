"""Memoryless integer neurons in one pass with what makes their currents: token shift, squared ReLU, gate."""
