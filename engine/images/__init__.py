"""From files to the batch of step number n."""
