"""The compiled token steps of the engine on the CPU."""
