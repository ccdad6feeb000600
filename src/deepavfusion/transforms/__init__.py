"""From pixels and waveforms to what the network reads."""
