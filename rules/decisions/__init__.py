"""From signals to wanted actions: matchers, arbiter, remedy ladder."""
