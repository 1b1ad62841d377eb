"""The neuron that may fire several unit spikes within one token."""
