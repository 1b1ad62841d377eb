"""The event-driven WKV of value spikes."""
