"""All operations' weights in one network that runs the sampled ones only, and the memory policies of its cells."""
