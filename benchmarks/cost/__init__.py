"""What the middleware costs where it has nothing to do: time, throughput and memory, side by side with others."""
