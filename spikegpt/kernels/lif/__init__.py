"""The leaky integrate-and-fire neuron."""
