"""The ground: errors, files, downloads and the like. Knows nothing of spiking models."""
