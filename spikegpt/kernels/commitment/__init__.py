"""How far currents lie from what their spikes stand for."""
