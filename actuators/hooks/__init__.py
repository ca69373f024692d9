"""What else a rule may have done: programs and webhooks from the host's own list, and nothing outside of it."""
